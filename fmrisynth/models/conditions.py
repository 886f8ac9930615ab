"""What a denoiser is told, as vectors and tokens: diffusion time, attributes, the events of a run.

Axis legend: B batch, A attributes, E conditioning width, M context tokens; for models of runs: S frames before and in a window,
K conditions, D their descriptors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fmrisynth.config.train import EventTelling
from fmrisynth.models.blocks import sinusoidal_embedding

NUMBER_SCALE = 10.0
"""Standard deviations are multiplied by this before they become sines: the finest has a period of 0.6 of them."""


class NumberEmbedding(nn.Module):
    """A standardised number as sines and cosines through two layers; NaN has a vector of its own, the null."""

    def __init__(self, width: int, cond_width: int) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(nn.Linear(width, cond_width), nn.SiLU(), nn.Linear(cond_width, cond_width))
        self.null = nn.Parameter(torch.randn(cond_width))

    def forward(self, value_B: Tensor) -> Tensor:
        known_B1 = value_B.isfinite()[:, None]
        waves_BW = sinusoidal_embedding(NUMBER_SCALE * value_B.nan_to_num(0.0), self.width)
        vector_BE = self.layers(waves_BW)
        return torch.where(known_B1, vector_BE, self.null.to(vector_BE.dtype))


def _tables(n_labels: Sequence[int], width: int, cond_width: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Embedding(n + 1, cond_width) if n else NumberEmbedding(width, cond_width) for n in n_labels)


def _look_up(tables: nn.ModuleList, labels_BA: Tensor) -> list[Tensor]:
    """A vector for each attribute, (B, E)."""
    columns = labels_BA.unbind(1)
    return [
        table(column if isinstance(table, NumberEmbedding) else column.long())
        for table, column in zip(tables, columns, strict=True)
    ]


class ConditionEmbedding(nn.Module):
    """Turn diffusion time and attribute labels into one vector and a few context tokens.

    Each attribute has a table with one row per label and a last row for "null" (unknown or dropped), or is a number
    (`NumberEmbedding`). The task condition (the first attribute) owns ``context_tokens`` tokens per label; every further
    attribute adds its vector as one more token.

    Parameters
    ----------
    width : int
        Of the sinusoidal embedding of time.
    cond_width : int
        Width of the vector and the tokens (E).
    n_labels : sequence of int
        Number of labels of each attribute, the task condition first; each table has one more row, the null row, at index
        ``n_labels[a]``. 0 stands for a number.
    context_tokens : int or None
    """

    def __init__(self, width: int, cond_width: int, n_labels: Sequence[int], context_tokens: int | None) -> None:
        super().__init__()
        self.width = width
        self.time = nn.Sequential(nn.Linear(width, cond_width), nn.SiLU(), nn.Linear(cond_width, cond_width))
        self.vectors = _tables(n_labels, width, cond_width)
        self.tokens: nn.Embedding | None = None
        if context_tokens is not None:
            self.tokens = nn.Embedding(n_labels[0] + 1, context_tokens * cond_width)

    def forward(self, time_B: Tensor, labels_BA: Tensor) -> tuple[Tensor, Tensor | None]:
        cond_BE = self.time(sinusoidal_embedding(time_B, self.width))
        vectors = _look_up(self.vectors, labels_BA)
        for vector_BE in vectors:
            cond_BE = cond_BE + vector_BE
        if self.tokens is None:
            return cond_BE, None
        tokens_BME = self.tokens(labels_BA[:, 0].long()).unflatten(1, (-1, cond_BE.shape[1]))
        return cond_BE, torch.cat([tokens_BME, *(v[:, None] for v in vectors[1:])], dim=1)


class EventEmbedding(nn.Module):
    """Turn diffusion time and what happens in and before a window into one vector and a context token for every frame.

    A frame's events are numbers, one per condition, or mixtures of the conditions' descriptors; the response to them is left to the
    network. The first attribute's label says whether the events are told (0) or withheld (the null row); further attributes
    are as in `ConditionEmbedding`. ``shown_B`` is 1 where the frames before the window are shown, 0 where they are not.

    Parameters
    ----------
    width : int
        Of the sinusoidal embedding of time.
    cond_width : int
        Width of the vector and the tokens (E). It should hold the events of all frames: a narrow one is a bottleneck.
    n_labels : sequence of int
        As in `ConditionEmbedding`.
    config : EventTelling
        Frames and conditions.
    with_tokens : bool
        Whether there are blocks that take context tokens.
    """

    descriptors_KD: Tensor

    def __init__(
        self, width: int, cond_width: int, n_labels: Sequence[int], config: EventTelling, with_tokens: bool
    ) -> None:
        super().__init__()
        self.width, self.null = width, n_labels[0]
        n_slots = config.history_frames + config.window_frames
        descriptors_KD = torch.eye(n_labels[0]) if config.descriptors is None else torch.tensor(config.descriptors)
        self.register_buffer("descriptors_KD", descriptors_KD, persistent=False)
        n_features = self.n_features = descriptors_KD.shape[1] + 1  # the last one says that events are told
        self.time = nn.Sequential(nn.Linear(width, cond_width), nn.SiLU(), nn.Linear(cond_width, cond_width))
        self.vectors = _tables(n_labels[1:], width, cond_width)
        self.course = nn.Linear(n_slots * n_features, cond_width)
        nn.init.normal_(self.course.weight, std=n_slots**-0.5)  # a frame in a few is busy: entries of unit size
        if config.past_channels:
            self.shown_E = nn.Parameter(torch.randn(cond_width))
        self.frame: nn.Linear | None = None
        if with_tokens:
            self.frame = nn.Linear(n_features, cond_width)
            self.slot_SE = nn.Parameter(torch.randn(n_slots, cond_width))

    def features(self, labels_BA: Tensor, events_BSK: Tensor) -> Tensor:
        """What happens in each frame, and that it is told, (B, S, D + 1); zeros where it is withheld."""
        told_B11 = (labels_BA[:, 0] != self.null).to(events_BSK.dtype)[:, None, None]
        return torch.cat([events_BSK @ self.descriptors_KD, torch.ones_like(events_BSK[..., :1])], dim=2) * told_B11

    def forward(
        self, time_B: Tensor, labels_BA: Tensor, features_BSD: Tensor, shown_B: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        cond_BE = self.time(sinusoidal_embedding(time_B, self.width)) + self.course(features_BSD.flatten(1))
        if shown_B is not None:
            cond_BE = cond_BE + shown_B[:, None] * self.shown_E
        vectors = _look_up(self.vectors, labels_BA[:, 1:])
        for vector_BE in vectors:
            cond_BE = cond_BE + vector_BE
        if self.frame is None:
            return cond_BE, None
        tokens_BME = self.frame(features_BSD) + self.slot_SE
        return cond_BE, torch.cat([tokens_BME, *(v[:, None] for v in vectors)], dim=1)

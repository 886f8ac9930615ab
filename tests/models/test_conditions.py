"""What a denoiser is told of the events of a run."""

from __future__ import annotations

import torch

from fmrisynth.config.train import EventTelling
from fmrisynth.models.conditions import EventEmbedding

FRAMES, HISTORY = 3, 2
NULL = 2


TELLING = EventTelling(window_frames=FRAMES, history_frames=HISTORY, grid=(2, 3, 4))


def embedding() -> EventEmbedding:
    torch.manual_seed(0)
    return EventEmbedding(8, 16, [NULL], TELLING, with_tokens=True)


def test_a_frame_tells_what_is_on():
    told = embedding()
    on_BSK = torch.rand(1, HISTORY + FRAMES, 2)
    with torch.no_grad():
        told.frame.weight.copy_(torch.eye(16)[:, :3])
        told.frame.bias.zero_()
        told.slot_SE.zero_()
        labels_BA = torch.zeros(1, 1).long()
        _, tokens_BME = told(torch.zeros(1), labels_BA, told.features(labels_BA, on_BSK))
    assert torch.equal(tokens_BME[..., :2], on_BSK)
    assert tokens_BME[..., 2].eq(1).all()


def test_withheld_events_are_not_heard():
    told, time_B, null_BA = embedding(), torch.zeros(1), torch.full((1, 1), NULL)

    def hear(labels_BA: torch.Tensor, on_BSK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return told(time_B, labels_BA, told.features(labels_BA, on_BSK))

    one, other = (hear(null_BA, torch.rand(1, HISTORY + FRAMES, 2)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    heard = hear(torch.zeros(1, 1).long(), torch.zeros(1, HISTORY + FRAMES, 2))
    assert not torch.allclose(heard[0], one[0])  # nothing happens is not the same as not told


def test_that_the_past_is_shown_is_heard():
    told, labels_BA = embedding(), torch.zeros(1, 1).long()
    features_BSD = told.features(labels_BA, torch.rand(1, HISTORY + FRAMES, 2))
    untold, hidden, shown = (
        told(torch.zeros(1), labels_BA, features_BSD, part)[0] for part in (None, torch.zeros(1), torch.ones(1))
    )
    assert torch.equal(untold, hidden)
    assert not torch.allclose(shown, hidden)

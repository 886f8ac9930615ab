"""An encoder as the public benchmark Brainmarks (MedARC) takes one: a transform of its samples, and a network of tokens.

Brainmarks finds ``plugins/brainmarks/models/fmrisynth.py``, which lies in its namespace package once fmrisynth is installed beside it.

Axis legend: B samples, N clips, T frames, V vertices of both hemispheres, P valid pixels, M used patches, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from fmrisynth.config.embed import MapConfig
from fmrisynth.embed.encoder import Encoder, load_encoder, to_sheet
from fmrisynth.embed.maps import draw_series
from fmrisynth.embed.surface import load_surface
from fmrisynth.errors import FmrisynthError

SPACE = "fslr64k"
"""Brainmarks' name for series at the 2 x 32,492 vertices of fs_LR, left first, medial wall included."""

N_VERTICES = 64_984


class FlatMaps:
    """Transform: a standardised series with its mean and deviation -> the encoder's flat map, ``bold`` (T, P)."""

    def __init__(self, config: MapConfig) -> None:
        self.config = config

    def __call__(self, sample: Mapping[str, Tensor | float]) -> dict[str, Tensor]:
        mean_V, spread_V = (torch.as_tensor(sample[key]).double().numpy().ravel() for key in ("mean", "std"))
        standard_VT = torch.as_tensor(sample["bold"]).double().numpy().T
        series_VT = standard_VT * spread_V[:, None] + mean_V[:, None]
        frames_TP = draw_series(series_VT, mean_V, spread_V > 0, float(sample["tr"]), self.config)
        return {"bold": torch.from_numpy(frames_TP)}


class FlatMapEncoder(nn.Module):
    """Network: flat maps (B, T, P) -> class token, (B, 1, D), no registers, and tokens of the patches, (B, M, D).

    Averaged over the clips that follow each other; what is left at the end makes no clip.
    """

    __space__ = SPACE

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.network, self.n_frames = encoder.network, encoder.maps.n_frames

    def forward(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, None, Tensor]:
        frames_BTP = batch["bold"]
        n_clips = frames_BTP.shape[1] // self.n_frames
        clips_NTP = frames_BTP[:, : n_clips * self.n_frames].unflatten(1, (n_clips, self.n_frames)).flatten(0, 1)
        tokens_NMD = self.network.tokens(to_sheet(clips_NTP, self.network.valid))
        tokens_BMD = tokens_NMD.unflatten(0, (-1, n_clips)).mean(dim=1)
        return tokens_BMD[:, :1], None, tokens_BMD[:, 1:]


def model_pair(encoder: Path) -> tuple[FlatMaps, FlatMapEncoder]:
    """Transform and network of an output of `fmrisynth embed`.

    Raises
    ------
    FmrisynthError
        No encoder, or one that was not fitted on fs_LR surfaces.
    """
    loaded = load_encoder(encoder)
    if loaded.maps.surfaces is None or _n_vertices(loaded.maps) != N_VERTICES:
        raise FmrisynthError(
            f"{encoder}: expected an encoder of CIFTI series on fs_LR surfaces (32k), found one of other surfaces; fit it to "
            "*.dtseries.nii files with --set maps.surfaces=DIR."
        )
    return FlatMaps(loaded.maps), FlatMapEncoder(loaded)


def _n_vertices(maps: MapConfig) -> int:
    return len(load_surface("flat", maps.surfaces).coordinates_V3)

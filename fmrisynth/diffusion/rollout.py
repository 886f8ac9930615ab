"""Whole runs, window by window: each window sees the last frames of the one before, and hears what happens in and before it.

Axis legend: B runs, C latent channels, T frames, P frames before a window, G = C*P + 1, S frames of which events are told, K conditions,
X Y Z latent grid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fmrisynth.config.train import EventTelling
from fmrisynth.data.occupancy import window_occupancy
from fmrisynth.diffusion.generate import Drawing


def past_channels(
    past_CPXYZ: Tensor | None, telling: EventTelling, brain_XYZ: Tensor, scale_CXYZ: Tensor | None
) -> Tensor:
    """What the network is shown of the frames before a window, (G, X, Y, Z); zeros where there are none.

    Parameters
    ----------
    past_CPXYZ : Tensor of shape (C, P, X, Y, Z), or None
        Standardised latents; None where there are none, or they are withheld.
    telling : EventTelling
    brain_XYZ : Tensor of shape (X, Y, Z), bool
    scale_CXYZ : Tensor or None
        Standard deviations of a whitening, which make all cells alike; frames are not mixed.
    """
    if past_CPXYZ is None:
        return torch.zeros(telling.past_channels, *brain_XYZ.shape)
    if scale_CXYZ is not None:
        past_CPXYZ = past_CPXYZ / scale_CXYZ[:, None]
    return torch.cat([past_CPXYZ.flatten(0, 1), torch.ones(1, *brain_XYZ.shape)]) * brain_XYZ


def window_seed(seed: int, first: int) -> int:
    """Seed of the window of a run that begins at a frame."""
    return int.from_bytes(hashlib.sha256(f"fmrisynth window {seed} {first}".encode()).digest()[:8], "big") >> 1


def roll_out(drawing: Drawing, telling: EventTelling, on_BTK: np.ndarray, seeds: Sequence[int]) -> Iterator[Tensor]:
    """Draw runs of any length, yielding the latents of one window after the other.

    Parameters
    ----------
    drawing : Drawing
        Of a model of runs.
    telling : EventTelling
        What it is told of a window.
    on_BTK : float32 array of shape (B, T, K)
        What happens in each run (`fmrisynth.data.occupancy.occupancy`).
    seeds : sequence of int, length B
        A run is the same whatever other runs stand beside it, and its beginning the same whatever its length.

    Yields
    ------
    Tensor of shape (B, C, n, X, Y, Z), float32
        In the units of the tokenizer; n is the model's window, less in the last one.
    """
    brain_XYZ, whitening = drawing.brain_XYZ.cpu(), drawing.model.whitening
    scale_CXYZ = None if whitening is None else whitening.scale_CXYZ
    n_frames, n_window = on_BTK.shape[1], telling.window_frames
    before: Tensor | None = None
    for first in range(0, n_frames, n_window):
        events = [window_occupancy(on_TK, first, n_window, telling.history_frames) for on_TK in on_BTK]
        told = [torch.from_numpy(np.stack(events))]
        if telling.past_frames:
            enough = before is not None and before.shape[2] >= telling.past_frames
            pasts = before[:, :, -telling.past_frames :] if before is not None and enough else [None] * len(seeds)
            told.append(torch.stack([past_channels(past, telling, brain_XYZ, scale_CXYZ) for past in pasts]))
        stack_BFXYZ = drawing.draw([window_seed(seed, first) for seed in seeds], told, fill=len(seeds))
        latent_BCTXYZ = drawing.standardised(stack_BFXYZ)
        kept = latent_BCTXYZ if before is None else torch.cat([before, latent_BCTXYZ], dim=2)
        before = kept[:, :, -max(telling.past_frames, 1) :]
        yield drawing.raw(latent_BCTXYZ[:, :, : n_frames - first])

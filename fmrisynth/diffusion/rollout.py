"""Whole runs, window by window: each window sees the last frames of the one before, and hears what happens in and before it.

Axis legend: C latent channels, T frames, P frames before a window, F = C*T, G = C*P + 1, K conditions, X Y Z latent grid.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fmrisynth.config.train import EventTelling
from fmrisynth.models.whitening import Whitening


def past_channels(
    past_CPXYZ: Tensor | None, telling: EventTelling, brain_XYZ: Tensor, whitening: Whitening | None
) -> Tensor:
    """What the network is shown of the frames before a window, (G, X, Y, Z).

    Parameters
    ----------
    past_CPXYZ : Tensor of shape (C, P, X, Y, Z), or None
        Standardised latents; None where there are none, or they are withheld.
    telling : EventTelling
    brain_XYZ : Tensor of shape (X, Y, Z), bool
    whitening : Whitening or None
        Its scale makes all cells alike; frames are not mixed.
    """
    if past_CPXYZ is None:
        return torch.zeros(telling.past_channels, *brain_XYZ.shape)
    if whitening is not None:
        past_CPXYZ = past_CPXYZ / whitening.scale_CXYZ[:, None]
    return torch.cat([past_CPXYZ.flatten(0, 1), torch.ones(1, *brain_XYZ.shape)]) * brain_XYZ

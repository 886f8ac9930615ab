"""The part of a denoiser of runs that answers events alike in every frame.

Axis legend: B batch, C latent channels, T frames of a window, F = C*T, S frames before and in it, D numbers that tell what happens in
a frame, R response maps, E conditioning width, W width of the finest level, X Y Z latent grid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fmrisynth.config.train import EventTelling
from fmrisynth.models.blocks import zero_init
from fmrisynth.models.whitening import Whitening

N_MAPS = 64
"""Response maps; some for each condition, as places answer at different speeds."""


class EventResponse(nn.Module):
    """Maps of responses, each with a course over the window that depends on what happens in and before each frame.

    The denoiser stacks the frames of a window as channels, so its convolutions learn anew for every frame what an event does. In the
    brain it does the same whenever it occurs (Boynton et al. 1996, J Neurosci 16: the response is linear and time-invariant). Here all
    frames share one response: a map has a value for every cell, learned for the cell and added to by the network's features there; its
    course is a linear function of the last frames' events, and the conditioning vector scales it, as the answer depends on the
    diffusion time. Whitening mixes the frames of a window and is done last. It answers nothing at initialisation.

    Parameters
    ----------
    width : int
        Of the network's features (W).
    cond_width : int
        E.
    channels : int
        Latent channels of a frame (C).
    n_features : int
        D.
    telling : EventTelling
        Frames and latent grid.
    whitening : Whitening, optional
        Of the latents that the network is given.
    """

    mix_FF: Tensor | None

    def __init__(
        self,
        width: int,
        cond_width: int,
        channels: int,
        n_features: int,
        telling: EventTelling,
        whitening: Whitening | None,
    ) -> None:
        super().__init__()
        self.register_buffer("mix_FF", None if whitening is None else whitening.mix_FF, persistent=False)
        self.n_lags = telling.history_frames + 1
        self.course = nn.Linear(self.n_lags * n_features, N_MAPS, bias=False)
        nn.init.normal_(self.course.weight, std=self.n_lags**-0.5)
        self.scale = zero_init(nn.Linear(cond_width, N_MAPS))
        self.map_RXYZ = nn.Parameter(torch.zeros(N_MAPS, *telling.grid))
        self.map_change = zero_init(nn.Linear(width, N_MAPS))
        self.channels_CR = nn.Parameter(torch.randn(channels, N_MAPS) * N_MAPS**-0.5)

    def forward(self, h_BWXYZ: Tensor, cond_BE: Tensor, features_BSD: Tensor) -> Tensor:
        """The response in a window, (B, C * T, X, Y, Z)."""
        recent_BTP = features_BSD.unfold(1, self.n_lags, 1).flatten(2)  # P = D * lags
        course_BTR = self.course(recent_BTP) * (1 + self.scale(cond_BE)[:, None])
        maps_BXYZR = self.map_change(h_BWXYZ.movedim(1, -1)) + self.map_RXYZ.movedim(0, -1)
        courses_BFR = (self.channels_CR[None, :, None] * course_BTR[:, None]).flatten(1, 2)
        if self.mix_FF is not None:
            courses_BFR = self.mix_FF @ courses_BFR
        return torch.einsum("bfr,bxyzr->bfxyz", courses_BFR, maps_BXYZR)

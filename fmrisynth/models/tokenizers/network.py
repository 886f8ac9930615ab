"""What the tokenizers `mae` and `kl` share.

Axis legend: N volumes, C latent channels; x, y, z latent axes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor

from fmrisynth.config.tokenize import LevelsConfig
from fmrisynth.models.tokenizers.base import Tokenizer, TokenizerInfo


class NetworkTokenizer(Tokenizer):
    """A network between volumes and latents.

    Cells without brain count as 0, in the fit as when a generator left something else in them. With ``config.centre`` the network
    is given what a volume differs by from the mean volume of the fit (`fit_centre`), and makes that again.
    """

    def __init__(self, config: LevelsConfig, info: TokenizerInfo) -> None:
        super().__init__(config, info)
        self.register_buffer("centre_XYZ", torch.zeros(info.grid.shape), persistent=config.centre)
        self.centre_XYZ: Tensor

    def fit_centre(self, blocks: Iterable[Tensor]) -> None:
        """Take the mean of the fitting volumes (each (T, 1, X, Y, Z), normalised) for the centre."""
        total_XYZ, n = torch.zeros(self.info.grid.shape, dtype=torch.float64), 0
        for frames in blocks:
            total_XYZ += frames[:, 0].double().sum(dim=0)
            n += len(frames)
        self.centre_XYZ.copy_((total_XYZ / max(n, 1)).float() * self.brain_XYZ)

    @abstractmethod
    def analyse(self, frames_NCXYZ: Tensor) -> Tensor:
        """Latents of volumes less the centre; what cells without brain hold is not looked at."""

    @abstractmethod
    def synthesise(self, latents_NCxyz: Tensor) -> Tensor:
        """Volumes less the centre, of latents that are 0 in cells without brain."""

    def encode_masked(self, frames_NCXYZ: Tensor) -> Tensor:
        """See `Tokenizer.encode_masked`; 0 in cells without brain."""
        with self._autocast(frames_NCXYZ.device):
            return self.within(self.analyse(frames_NCXYZ - self.centre_XYZ))

    def decode_unmasked(self, latents_NCxyz: Tensor) -> Tensor:
        """See `Tokenizer.decode_unmasked`; cells without brain are not looked at either."""
        with self._autocast(latents_NCxyz.device):
            return self.rebuild(latents_NCxyz)

    def rebuild(self, latents_NCxyz: Tensor) -> Tensor:
        """What `decode_unmasked` gives, in the precision of the caller."""
        return self.synthesise(self.within(latents_NCxyz)) + self.centre_XYZ

    def within(self, latents_NCxyz: Tensor) -> Tensor:
        """Latents, 0 in cells without brain."""
        return latents_NCxyz * self.info.latent_mask_xyz.to(latents_NCxyz)

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16)

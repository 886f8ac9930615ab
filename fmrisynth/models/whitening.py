"""Whitening of latents: what the noise of diffusion is measured against.

Latents vary twenty times as much along slow courses as along fast ones, and far more beside large vessels than elsewhere. White noise
hides the quiet directions first, and a network narrower than F = C*T channels cannot hold the F numbers of a cell to scale
each by its own. Whitened latents have unit variance in every cell and no correlation between the F numbers of a cell: they are what
the unit Gaussian of `diffusion.objectives` stands for. What goes between cells, conditions and people is left to the network.

Axis legend: C latent channels, T frames, F = C*T, X Y Z latent grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_SCALE = 0.05
"""Directions that hardly vary are magnified by no more than its inverse."""


@dataclass(frozen=True)
class Whitening:
    """A linear map of standardised latents, and its inverse.

    Attributes
    ----------
    scale_CXYZ : Tensor, float32
        Standard deviation of each channel and cell over training instances and frames, at least `LEAST_SCALE`; 1 without brain.
    mix_FF : Tensor, float32
        Symmetric inverse square root of the covariance of a scaled cell's F numbers, pooled over cells (ZCA: of all maps that whiten,
        the one that changes least).
    """

    scale_CXYZ: Tensor
    mix_FF: Tensor

    def apply(self, stack_FXYZ: Tensor) -> Tensor:
        """Whiten standardised latents (..., F, X, Y, Z), F in the order (c t)."""
        return torch.einsum("fg,...gxyz->...fxyz", self.mix_FF, stack_FXYZ / self._scale_FXYZ())

    def undo(self, stack_FXYZ: Tensor) -> Tensor:
        """Standardised latents of whitened ones."""
        return torch.einsum("fg,...gxyz->...fxyz", self.unmix_FF, stack_FXYZ) * self._scale_FXYZ()

    @property
    def unmix_FF(self) -> Tensor:
        """Inverse of `mix_FF`, float32."""
        return torch.linalg.inv(self.mix_FF.double()).float()

    def tensors(self) -> dict[str, Tensor]:
        """What a model directory stores of it, by name."""
        return {SCALE: self.scale_CXYZ, MIX: self.mix_FF}

    @classmethod
    def shapes(cls, latent_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Shapes of the stored tensors for latents of shape (C, T, X, Y, Z)."""
        n_channels, n_frames, *grid = latent_shape
        return {SCALE: (n_channels, *grid), MIX: (n_channels * n_frames,) * 2}

    @classmethod
    def taken_from(cls, tensors: Mapping[str, Tensor]) -> Whitening | None:
        """The whitening among a model's tensors, if it has one."""
        return cls(tensors[SCALE], tensors[MIX]) if SCALE in tensors and MIX in tensors else None

    def _scale_FXYZ(self) -> Tensor:
        return self.scale_CXYZ.repeat_interleave(len(self.mix_FF) // len(self.scale_CXYZ), dim=0)


SCALE, MIX = "whitening.scale_CXYZ", "whitening.mix_FF"
"""Names among the weights of a model."""


def whitening_map(covariance_FF: Tensor) -> Tensor:
    """Symmetric inverse square root of a covariance, float32; variances below ``LEAST_SCALE ** 2`` count as that."""
    values_F, vectors_FF = torch.linalg.eigh(covariance_FF.double())
    scale_F = values_F.clamp_min(LEAST_SCALE**2).rsqrt()
    return (vectors_FF * scale_F @ vectors_FF.T).float()

"""Build a denoiser from its configuration."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fmrisynth.config.train import DiTConfig, EventTelling, HybridConfig, UNetConfig
from fmrisynth.errors import FmrisynthError, UsageError
from fmrisynth.models.whitening import Whitening


def build_denoiser(
    config: HybridConfig | UNetConfig | DiTConfig,
    channels: int,
    n_labels: Sequence[int],
    brain_XYZ: Tensor | None = None,
    events: EventTelling | None = None,
    whitening: Whitening | None = None,
) -> nn.Module:
    """Build the network ``denoiser(stack_BFXYZ, time_B, labels_BA) -> stack_BFXYZ``.

    Parameters
    ----------
    config : HybridConfig, UNetConfig or DiTConfig
        Architecture.
    channels : int
        F = C*T.
    n_labels : sequence of int
        Number of labels per attribute without the null row, the task condition first; 0 for a number.
    brain_XYZ : Tensor of shape (X, Y, Z), bool, optional
        Latent cells that hold brain; the answer is 0 elsewhere, and tokens without brain are left out. Default: all cells.
    events : EventTelling, optional
        For models of runs.
    whitening : Whitening, optional
        For models of runs, whose latents are whitened.
    """
    if isinstance(config, HybridConfig):
        from fmrisynth.models.hybrid_dit import HybridDiT

        return HybridDiT(config, channels, n_labels, brain_XYZ, events, whitening)
    if isinstance(config, DiTConfig):
        from fmrisynth.models.dit import DiT

        return DiT(config, channels, n_labels, brain_XYZ)
    if len(n_labels) != 1:
        raise UsageError("The U-Net baseline takes the task condition only; remove conditioning.attributes.")
    from fmrisynth.models.unet import MonaiUNet

    return MonaiUNet(config, channels, n_labels[0], brain_XYZ)


def check_grid(config: HybridConfig | UNetConfig | DiTConfig, grid: Sequence[int]) -> None:
    """Refuse a latent grid that the network's levels cannot halve."""
    if any(side % config.downsampling for side in grid):
        raise FmrisynthError(
            f"Latent grid {'x'.join(map(str, grid))}: expected every side to divide by {config.downsampling} for a "
            f"network of {config.downsampling.bit_length()} levels; train with fewer levels or a network without them "
            "(--set model.kind=dit), or encode the data to another grid."
        )


def count_parameters(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)

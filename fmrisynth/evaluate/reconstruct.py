"""Real blocks and runs after a tokenizer's encode and decode: the ceiling that no generator on it can pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fmrisynth.config.glm import GlmConfig
from fmrisynth.data.blocks import Block, BlockData
from fmrisynth.data.grid import Grid
from fmrisynth.data.normalisation import brain_of, normalise
from fmrisynth.errors import FmrisynthError
from fmrisynth.glm.windows import Window, percent_signal, smooth_inside

if TYPE_CHECKING:
    from fmrisynth.models.tokenizers.base import Tokenizer

FRAMES_AT_A_TIME = 12


def tokenizer_of(folder: Path, grid: Grid) -> Tokenizer:
    """The tokenizer of a folder.

    Raises
    ------
    FmrisynthError
        It was made for another grid.
    """
    from fmrisynth.models.tokenizers.build import load_tokenizer

    tokenizer = load_tokenizer(folder)
    if not tokenizer.info.grid.same_as(grid):
        raise FmrisynthError(
            f"{folder}: made for the grid {tokenizer.info.grid.shape} in {tokenizer.info.grid.space}, the data have "
            f"{grid.shape} in {grid.space}; give the tokenizer that was trained on these data."
        )
    return tokenizer


def reconstructed_anatomy(volume_XYZ: np.ndarray, tokenizer: Tokenizer, noise_seed: int | None = None) -> np.ndarray:
    """An anatomy that went through a tokenizer of anatomies, as drawn ones come out of it: with brain where it is bright, and with the
    tokenizer's observation noise if a seed is given. Both volumes are in units of the brain's mean, 0 outside, float32.
    """
    import torch

    frame_NCXYZ = torch.from_numpy(np.ascontiguousarray(volume_XYZ[None, None]))
    with torch.no_grad():
        latent_1CTxyz = tokenizer.encode(frame_NCXYZ).transpose(0, 1)[None]
        noise_seeds = None if noise_seed is None else [noise_seed]
        back_XYZ = next(tokenizer.decode_blocks(latent_1CTxyz, noise_seeds=noise_seeds))[..., 0]
    reference_XYZ, mask_XYZ = tokenizer.info.reference_XYZ, tokenizer.info.mask_XYZ
    brain_XYZ = brain_of(back_XYZ / reference_XYZ[mask_XYZ].mean())
    return normalise(back_XYZ[..., None], back_XYZ, brain_XYZ, "relative")[..., 0]


def reconstructed_windows(
    blocks: Sequence[Block], mask_XYZ: np.ndarray, grid: Grid, config: GlmConfig, tokenizer_folder: Path
) -> Iterator[Window]:
    """Windows of blocks that went through a tokenizer, in percent of their own reference volume.

    Raises
    ------
    FmrisynthError
        The tokenizer was made for another grid.
    """
    tokenizer = tokenizer_of(tokenizer_folder, grid)
    for block in blocks:
        back = reconstructed(block.load(), tokenizer)
        percent_TV = percent_signal(back, mask_XYZ)
        if config.resolved_smoothing_fwhm_mm > 0:
            percent_TV = smooth_inside(percent_TV, mask_XYZ, grid, config.resolved_smoothing_fwhm_mm)
        yield Window(block, percent_TV, back.reference_XYZ[mask_XYZ])


def reconstructed(data: BlockData, tokenizer: Tokenizer, noise_seed: int | None = None) -> BlockData:
    """A block or run that went through a tokenizer, with the tokenizer's observation noise if a seed is given."""
    import torch

    values_XYZT = normalise(data.bold_XYZT, data.reference_XYZ, data.mask_XYZ, tokenizer.info.normalisation)
    frames_TCXYZ = torch.from_numpy(np.ascontiguousarray(values_XYZT.transpose(3, 0, 1, 2)[:, None]))
    with torch.no_grad():
        windows = (tokenizer.encode(part).transpose(0, 1) for part in frames_TCXYZ.split(FRAMES_AT_A_TIME))
        back = tokenizer.decode_run(windows, data.reference_XYZ, data.mask_XYZ, noise_seed=noise_seed)
        return replace(data, bold_XYZT=np.stack(list(back), axis=-1))

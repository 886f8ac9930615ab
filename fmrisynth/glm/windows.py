"""Block windows in percent signal change, the one scaling of real and synthetic data.

``percent = 100 (bold / reference - 1)`` with `reference` the block's reference volume (temporal mean of the
source run for real blocks). nilearn's own scaling is not used: it would divide by the window's mean and
so treat data differently with their baseline.

Axis legend: X, Y, Z voxel axes; T frames; V voxels in the mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fmrisynth.config.glm import GlmConfig
from fmrisynth.data.blocks import Block, BlockData
from fmrisynth.data.grid import Grid, make_grid
from fmrisynth.data.nifti import read_image
from fmrisynth.data.percent import percent_change, usable_voxels
from fmrisynth.errors import FmrisynthError
from fmrisynth.glm.design import Design, window_design

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Window:
    """One block in percent signal change.

    Attributes
    ----------
    block : Block
        Where it came from.
    percent_TV : array of shape (T, V), float32
        Percent signal change inside the mask.
    reference_V : array of shape (V,), float32
        The reference volume inside the mask, in BOLD-like units.
    """

    block: Block
    percent_TV: np.ndarray
    reference_V: np.ndarray


SINGLE_SUBJECT_Z = (
    "z of one subject is for display, not a test: short windows and a white-noise model make it too large"
)


def percent_signal(data: BlockData, voxels_XYZ: np.ndarray) -> np.ndarray:
    """Percent signal change of a block at the given voxels, (T, V) float32."""
    change_VT = percent_change(data.bold_XYZT[voxels_XYZ], data.reference_XYZ[voxels_XYZ][:, None])
    return np.ascontiguousarray(change_VT.T, dtype=np.float32)


def smooth_inside(percent_TV: np.ndarray, mask_XYZ: np.ndarray, grid: Grid, fwhm_mm: float) -> np.ndarray:
    """Gaussian smoothing that takes nothing from outside the mask (normalised by the smoothed mask)."""
    from scipy.ndimage import gaussian_filter

    sigma = fwhm_mm / np.sqrt(8 * np.log(2)) / np.array(grid.voxel_mm)
    weight_V = gaussian_filter(mask_XYZ.astype(np.float32), sigma)[mask_XYZ]
    smoothed = np.empty_like(percent_TV)
    volume = np.zeros(mask_XYZ.shape, np.float32)
    for frame, values in enumerate(percent_TV):
        volume[mask_XYZ] = values
        smoothed[frame] = gaussian_filter(volume, sigma)[mask_XYZ] / weight_V
    return smoothed


def read_window(block: Block, mask_XYZ: np.ndarray, grid: Grid, config: GlmConfig) -> Window:
    """Read one block as percent signal change inside a given mask.

    Raises
    ------
    FmrisynthError
        Damaged files, another grid than `grid`, another number of frames than the index says, or values
        that are not finite.
    """
    image = read_image(block.path, ndim=4)
    reference = read_image(block.reference_path, ndim=3)
    if not image.shape[:3] == reference.shape == grid.shape:
        raise FmrisynthError(
            f"{block.path}: expected the dataset's grid {grid.shape}, found {image.shape[:3]} with a reference of {reference.shape}; "
            "make the dataset again."
        )
    if image.shape[3] != block.n_frames:
        raise FmrisynthError(
            f"{block.path}: scans.tsv says {block.n_frames} frames, the image has {image.shape[3]}; "
            "make the dataset again."
        )
    # Frames lie one after the other in the file, voxels in Fortran order: no array of the whole image is made.
    order_V = np.arange(mask_XYZ.size).reshape(mask_XYZ.shape, order="F")[mask_XYZ]
    bold_TV = image.scale(np.take(image.stored_XYZT.T.reshape(block.n_frames, -1), order_V, axis=1))
    reference_V = reference.scaled(mask_XYZ)
    with np.errstate(divide="ignore", invalid="ignore"):
        percent_TV = percent_change(bold_TV, reference_V)
    if not np.isfinite(percent_TV).all():
        raise FmrisynthError(
            f"{block.path}: the image has voxels that are not finite or whose reference is 0 inside the mask; "
            "make the dataset again or raise min_reference_fraction."
        )
    if config.resolved_smoothing_fwhm_mm > 0:
        percent_TV = smooth_inside(percent_TV, mask_XYZ, grid, config.resolved_smoothing_fwhm_mm)
    return Window(block, percent_TV, reference_V)


def iterate_windows(blocks: Sequence[Block], mask_XYZ: np.ndarray, grid: Grid, config: GlmConfig) -> Iterator[Window]:
    """Read windows one at a time, in the order of `blocks`."""
    for block in blocks:
        yield read_window(block, mask_XYZ, grid, config)


def block_design(block: Block, config: GlmConfig) -> Design:
    """The design of a block's window under a configuration."""
    drift = config.resolved_drift
    if drift == "cosine":
        raise FmrisynthError(
            "drift=cosine needs whole runs: a block window is shorter than the cut-off; use none or linear."
        )
    return window_design(block.onset_s, block.duration_s, block.n_frames, block.tr_s, config.hrf, drift)


def design_frame(block: Block, config: GlmConfig) -> pd.DataFrame:
    """The design of a block's window as a table, frames x regressors; the index is time in seconds."""
    import pandas as pd

    design = block_design(block, config)
    return pd.DataFrame(design.matrix_TP, index=np.arange(block.n_frames) * block.tr_s, columns=list(design.names))


def common_mask(blocks: Sequence[Block], grid: Grid, min_reference_fraction: float) -> np.ndarray:
    """Voxels that are usable in every block (intersection of masks, references large enough).

    Reads the masks and reference volumes only.

    Raises
    ------
    FmrisynthError
        A block lies on another grid, or nothing is left.
    """
    mask_XYZ = np.ones(grid.shape, bool)
    for block in blocks:
        image = read_image(block.mask_path, ndim=3)
        own = make_grid(image.shape, image.affine, block.space)
        if not own.same_as(grid):
            raise FmrisynthError(
                f"{block.path}: its grid {own.shape} with affine {own.affine_rows} differs from {grid.shape} with "
                f"affine {grid.affine_rows} of the first block; resample one of them."
            )
        reference = read_image(block.reference_path, ndim=3).scaled()
        mask_XYZ &= usable_voxels(reference, image.scaled() > 0.5, min_reference_fraction)
    if not mask_XYZ.any():
        raise FmrisynthError(
            f"{blocks[0].root if blocks else 'the dataset'}: no voxel lies inside the masks of all {len(blocks)} blocks; "
            "check that they are on the same grid and space."
        )
    return mask_XYZ

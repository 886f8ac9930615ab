"""Percent signal change: the one scaling of blocks and runs, real and synthetic.

``percent = 100 (bold / reference - 1)``, with the temporal mean of the run as the reference. A voxel whose reference is
a small fraction of the brain's carries no percent signal change: dividing by it makes numbers out of nothing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fmrisynth.errors import FmrisynthError

MIN_REFERENCE_FRACTION = 0.05
"""Least reference of a usable voxel, as a fraction of the reference's median over the brain."""

MIN_TSNR = 3.0
"""Median temporal signal-to-noise below which an image has lost its mean (real runs: 20 to 200)."""


def check_mean(path: Path, mean_V: np.ndarray, deviation_V: np.ndarray) -> None:
    """Refuse an image whose mean was removed: its percent signal change would be anything.

    Parameters
    ----------
    path : Path
        The image, for the message.
    mean_V, deviation_V : array of shape (V,)
        Temporal mean and standard deviation of brain voxels.

    Raises
    ------
    FmrisynthError
        The mean is not many times the fluctuation.
    """
    moving = deviation_V > 0
    if moving.any() and np.median(mean_V[moving] / deviation_V[moving]) < MIN_TSNR:
        raise FmrisynthError(
            f"{path}: expected BOLD intensities, whose mean is many times their fluctuation, found an image whose mean was "
            "removed (demeaned, standardised or denoised); give the preprocessed image from before that step."
        )


def usable_voxels(
    reference_XYZ: np.ndarray, mask_XYZ: np.ndarray, min_fraction: float = MIN_REFERENCE_FRACTION
) -> np.ndarray:
    """Brain voxels whose reference is large enough to divide by.

    Parameters
    ----------
    reference_XYZ : array
        Reference volume.
    mask_XYZ : bool array
        Brain voxels.
    min_fraction : float
        Least value, as a fraction of the reference's median over the brain.
    """
    inside = reference_XYZ[mask_XYZ]
    inside = inside[np.isfinite(inside)]
    if inside.size == 0:
        return np.zeros_like(mask_XYZ)
    floor = min_fraction * float(np.median(inside))
    return mask_XYZ & np.isfinite(reference_XYZ) & (reference_XYZ > max(floor, 0.0))


def percent_change(bold: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Percent signal change, in the float type of the arguments, which broadcast; the reference must not be 0."""
    change: np.ndarray = 100.0 * (bold / reference - 1.0)
    return change

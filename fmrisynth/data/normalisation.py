"""Normalisations between BOLD-like intensities and the values a tokenizer sees; both can be inverted.

``global``
    z-score over the brain voxels of the source run: ``(bold - mean) / std`` with one mean and one
    standard deviation over space (of the run's temporal mean volume). The paper's natural reading.
``dynamics``
    percent signal change per frame, ``100 (bold / reference - 1)``, and the reference volume apart.
    The task signal is about 1 % of BOLD and anatomy is nearly all of its variance (paper, A.1), so
    this spends a tokenizer's capacity on what moves.
``relative``
    intensity in units of the brain's mean, 0 where there is no brain: for anatomies, whose shape is part of what is to be made.

Axis legend: X, Y, Z voxel axes; T frames. Voxels outside the mask are 0 on both sides.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from scipy.ndimage import binary_fill_holes, label

from fmrisynth.data.percent import percent_change, usable_voxels
from fmrisynth.errors import FmrisynthError

Normalisation = Literal["dynamics", "global", "relative"]
NORMALISATIONS: tuple[str, ...] = get_args(Normalisation)

LEAST_BRAIN = 0.4
"""Decoded values blur at the edge of the brain. Of 0.15 to 0.55 this gave the largest overlap with the true masks (Dice 0.99, volume
within 1 %) when anatomies of training people were encoded and decoded."""

PSC_LIMIT = 25.0
"""Percent signal change is clipped here: more is an artefact at a rim voxel, never a BOLD response."""


def normalise(
    bold_XYZT: np.ndarray, reference_XYZ: np.ndarray, mask_XYZ: np.ndarray, kind: Normalisation
) -> np.ndarray:
    """Normalise one block.

    Parameters
    ----------
    bold_XYZT : float array
        BOLD-like intensities.
    reference_XYZ : float array
        Temporal mean of the source run.
    mask_XYZ : bool array
        Brain voxels.
    kind : {"dynamics", "global", "relative"}
        Which normalisation.

    Returns
    -------
    array of the shape of `bold_XYZT`, float32
        Percent signal change, z units, or units of the brain's mean;
        0 outside the mask, and for percent signal change where the reference is
        too small to divide by (`fmrisynth.data.percent.usable_voxels`).
    """
    inside = mask_XYZ[..., None]
    if kind == "dynamics":
        usable = usable_voxels(reference_XYZ, mask_XYZ)
        safe = np.where(usable, reference_XYZ, 1.0).astype(np.float32)[..., None]
        change_XYZT = percent_change(bold_XYZT, safe)
        return np.where(usable[..., None], change_XYZT, 0.0).clip(-PSC_LIMIT, PSC_LIMIT).astype(np.float32)
    mean, std = _brain_statistics(reference_XYZ, mask_XYZ)
    values_XYZT = bold_XYZT / mean if kind == "relative" else (bold_XYZT - mean) / std
    return np.where(inside, values_XYZT, 0.0).astype(np.float32)


def denormalise(
    values_XYZT: np.ndarray, reference_XYZ: np.ndarray, mask_XYZ: np.ndarray, kind: Normalisation
) -> np.ndarray:
    """Inverse of `normalise`: BOLD-like intensities, float32, never negative, 0 outside the mask."""
    if kind == "dynamics":
        bold: np.ndarray = reference_XYZ[..., None] * (1.0 + values_XYZT / np.float32(100.0))
    else:
        mean, std = _brain_statistics(reference_XYZ, mask_XYZ)
        bold = values_XYZT * mean if kind == "relative" else values_XYZT * std + mean
    return np.where(mask_XYZ[..., None], bold, 0.0).clip(min=0.0).astype(np.float32)


def brain_of(values_XYZ: np.ndarray) -> np.ndarray:
    """The brain in a volume of ``relative`` values: where it is brighter than `LEAST_BRAIN`, in one piece without holes, bool."""
    bright_XYZ = values_XYZ > LEAST_BRAIN
    pieces_XYZ, n = label(bright_XYZ)
    if n == 0:
        raise FmrisynthError("an anatomy is dark everywhere; train longer, or look at the decoded training data.")
    return binary_fill_holes(pieces_XYZ == np.bincount(pieces_XYZ[bright_XYZ]).argmax())


def _brain_statistics(reference_XYZ: np.ndarray, mask_XYZ: np.ndarray) -> tuple[np.float32, np.float32]:
    values = reference_XYZ[mask_XYZ]
    if values.size == 0:
        raise FmrisynthError("the brain mask of a block is empty; run prepare again on its source.")
    std = float(values.std(dtype=np.float64))
    if not np.isfinite(std) or std <= 0:
        raise FmrisynthError("the reference volume of a block is constant; run prepare again on its source.")
    return np.float32(values.mean(dtype=np.float64)), np.float32(std)

"""Group effects against the planted truth of a phantom cohort.

Axis legend: K conditions, V voxels of the mask; X, Y, Z voxel axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmrisynth.bids.naming import group_statmap
from fmrisynth.conditions import load_table
from fmrisynth.config.glm import GlmConfig
from fmrisynth.data.grid import Grid, make_grid
from fmrisynth.data.nifti import read_image
from fmrisynth.errors import FmrisynthError
from fmrisynth.evaluate.cohorts import Cohorts
from fmrisynth.evaluate.properties import Properties
from fmrisynth.glm.estimand import NEGLIGIBLE, describe, mean_weights
from fmrisynth.glm.map_scores import pearson

FOLDER = "ground_truth"


def read_truth(root: Path, condition: str, grid: Grid) -> np.ndarray | None:
    """The true group response of a condition on a grid, (X, Y, Z) percent signal change, or None.

    `root` is a phantom cohort, or its ``ground_truth`` folder; a truth on another grid is resampled linearly.

    Raises
    ------
    FmrisynthError
        The folder holds no truth.
    """
    folder = root / FOLDER if (root / FOLDER).is_dir() else root
    if not (folder / "group").is_dir():
        raise FmrisynthError(
            f"{root}: expected the ground truth of a phantom ({FOLDER}/group/), found none; give the folder that "
            "`fmrisynth simulate` wrote."
        )
    known = load_table().get(condition)
    path = folder / group_statmap(known.task, grid.space, known.contrast, "effect")
    if not path.is_file():
        return None
    image = read_image(path, ndim=3)
    if make_grid(image.shape, image.affine, grid.space).same_as(grid):
        return image.scaled()
    import nibabel as nib
    from nilearn.image import resample_img

    moved = resample_img(
        nib.Nifti1Image(image.scaled(), image.affine), target_affine=grid.affine, target_shape=grid.shape,
        interpolation="linear", copy_header=True, force_resample=True,
    )  # fmt: skip
    return np.asarray(moved.dataobj, dtype=np.float32)


@dataclass(frozen=True)
class Ceiling:
    """Correlation of group effects with the true map of a condition, what noise-free window maps would reach, and what they estimate."""

    real: float
    synthetic: float
    ceiling: float | None
    estimates: str


def truth_correlations(
    root: Path, cohorts: Cohorts, real: Properties, synthetic: Properties, config: GlmConfig
) -> dict[str, Ceiling]:
    """Pearson correlation of group effect maps with the true maps, and the ceiling that the events set.

    A block that follows another condition is compared with what that one has left behind (`glm.estimand`). Noise-free, the window map of a
    condition is the sum of the true maps with these weights; its correlation with the condition's own true map is the ceiling.
    Conditions without a true map are left out.
    """
    found = {}
    for condition in cohorts.conditions:
        truth_XYZ = read_truth(root, condition, cohorts.grid)
        if truth_XYZ is None:
            continue
        truth_V = truth_XYZ[cohorts.mask_XYZ]
        weights = mean_weights([b for b in cohorts.real if b.condition == condition], config)
        ceiling, text = None, "not known: the dataset holds no events before its windows"
        if weights is not None:
            text = describe(weights)
            maps = {
                c: read_truth(root, c, cohorts.grid) for c in weights if c == condition or abs(weights[c]) >= NEGLIGIBLE
            }
            if all(m is not None for m in maps.values()):
                mixed_V = sum(weights[c] * m[cohorts.mask_XYZ] for c, m in maps.items() if m is not None)
                ceiling = float(pearson(truth_V, np.asarray(mixed_V)))
        found[condition] = Ceiling(
            float(pearson(truth_V, real.group(condition).effect)),
            float(pearson(truth_V, synthetic.group(condition).effect)), ceiling, text,
        )  # fmt: skip
    return found

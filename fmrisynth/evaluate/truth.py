"""Group effects against the planted truth of a phantom cohort.

Axis legend: K conditions, V voxels of the mask; X, Y, Z voxel axes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fmrisynth.bids.naming import group_statmap
from fmrisynth.conditions import load_table
from fmrisynth.data.grid import Grid, make_grid
from fmrisynth.data.nifti import read_image
from fmrisynth.errors import FmrisynthError
from fmrisynth.evaluate.scoring import GroupMaps
from fmrisynth.glm.map_scores import pearson

FOLDER = "ground_truth"


def read_truth(root: Path, condition: str, grid: Grid) -> np.ndarray | None:
    """The true group response of a condition on a grid, (X, Y, Z) percent signal change, or None.

    Parameters
    ----------
    root : Path
        A phantom cohort, or its ``ground_truth`` folder.
    condition : str
        Condition label.
    grid : Grid
        Where to; a truth on another grid is resampled linearly.

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


def truth_correlations(
    root: Path, grid: Grid, mask_XYZ: np.ndarray, real: GroupMaps, synthetic: GroupMaps
) -> dict[str, dict[str, float]]:
    """Pearson correlation of group effect maps with the true maps.

    Returns
    -------
    dict
        Condition -> ``{"real": r, "synthetic": r}``; conditions without a true map are left out.
    """
    found = {}
    for row, condition in enumerate(synthetic.conditions):
        truth_XYZ = read_truth(root, condition, grid)
        if truth_XYZ is None or condition not in real.conditions:
            continue
        truth_V = truth_XYZ[mask_XYZ]
        real_V = real.effect_KV[real.conditions.index(condition)]
        found[condition] = {
            "real": float(pearson(truth_V, real_V)),
            "synthetic": float(pearson(truth_V, synthetic.effect_KV[row])),
        }
    return found

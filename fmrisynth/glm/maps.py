"""Stat maps on disk: names, sidecars, tables of contents and group maps from subject maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmrisynth.bids import naming
from fmrisynth.bids.sidecars import write_sidecar, write_tsv
from fmrisynth.data.grid import Grid, make_grid
from fmrisynth.data.nifti import read_image, write_image
from fmrisynth.errors import FmrisynthError
from fmrisynth.glm.contrasts import Contrast
from fmrisynth.glm.group import RANDOM_EFFECTS, SINGLE_SUBJECT
from fmrisynth.glm.statistics import Estimate, RunningGroup

UNITS = {"effect": "percent signal change", "variance": "(percent signal change)^2", "z": "standard normal deviate"}

INDEX_COLUMNS = (
    "contrast",
    "formula",
    "task",
    "n_blocks",
    "dof",
    "peak_z",
    "peak_x",
    "peak_y",
    "peak_z_mm",
)
STATS = ("effect", "variance", "z")


@dataclass(frozen=True)
class Peak:
    """The voxel of largest |z| of a map: value and world coordinates in mm."""

    z: float
    x_mm: float
    y_mm: float
    z_mm: float

    def __str__(self) -> str:
        return f"z {self.z:.1f} at ({self.x_mm:.0f}, {self.y_mm:.0f}, {self.z_mm:.0f}) mm"


def find_peak(z_XYZ: np.ndarray, affine: np.ndarray) -> Peak:
    """The largest positive z of a map (the largest |z| where none is positive)."""
    values = np.nan_to_num(z_XYZ, nan=0.0)
    index = int(np.argmax(values)) if values.max() > 0 else int(np.argmin(values))
    voxel = np.unravel_index(index, values.shape)
    x, y, z = (affine @ np.array([*voxel, 1.0]))[:3]
    return Peak(float(values[voxel]), float(x), float(y), float(z))


def to_volume(values_V: np.ndarray, mask_XYZ: np.ndarray) -> np.ndarray:
    """Put mask values into a volume; 0 outside the mask and where a statistic does not exist."""
    volume = np.zeros(mask_XYZ.shape, np.float32)
    volume[mask_XYZ] = np.nan_to_num(values_V, nan=0.0)
    return volume


def write_maps(
    root: Path,
    paths: Mapping[str, Path],
    estimate: Estimate,
    mask_XYZ: np.ndarray,
    grid: Grid,
    about: Mapping[str, Any],
) -> Peak:
    """Write effect, variance and z with their sidecars; returns the peak of z.

    Parameters
    ----------
    root : Path
        Output dataset.
    paths : mapping
        Stat (``effect``, ``variance``, ``z``) -> image path relative to `root`.
    estimate : Estimate
        Arrays of shape (V,).
    about : mapping
        Further sidecar keys.
    """
    z_V = estimate.z
    values = {"effect": estimate.effect, "variance": estimate.variance, "z": z_V}
    n_undefined = int(np.isnan(z_V).sum())
    for stat, path in paths.items():
        write_image(root / path, to_volume(values[stat], mask_XYZ), grid.affine, mni=not grid.is_native)
        keys: dict[str, Any] = {
            "Units": UNITS[stat],
            "DegreesOfFreedom": estimate.dof,
            "VoxelsWithoutStatistic": n_undefined,
        }
        if "_res-" in path.name:
            keys["Resolution"] = f"{grid.voxel_mm[0]:g} mm isotropic"
        write_sidecar(root / str(path).replace(".nii.gz", ".json"), dict(about) | keys)
    return find_peak(to_volume(z_V, mask_XYZ), grid.affine)


def index_path(subject: str) -> Path:
    """The table of a subject's contrasts; written last, so its presence means that the subject is whole."""
    entities = naming.Entities(sub=subject)
    return Path(f"sub-{subject}") / entities.name("design", ".tsv")


def write_index(root: Path, subject: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the table of contents of a subject."""
    write_tsv(root / index_path(subject), INDEX_COLUMNS, rows, last=True)


def write_subject_contrast(
    out: Path, base: naming.Entities, task: str | None, contrast: Contrast, estimate: Estimate,
    mask_XYZ: np.ndarray, grid: Grid, about: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Write one contrast of one subject and return its row of the table of contents."""
    entities = naming.Entities(sub=base.sub, ses=base.ses, task=task, space=base.space, res=base.res)
    paths = {stat: naming.subject_statmap(entities, contrast.name, stat) for stat in STATS}
    peak = write_maps(out, paths, estimate, mask_XYZ, grid, about)
    return {
        "contrast": contrast.name, "formula": contrast.title, "task": task, "dof": float(estimate.dof),
        "peak_z": peak.z, "peak_x": peak.x_mm, "peak_y": peak.y_mm, "peak_z_mm": peak.z_mm,
    }  # fmt: skip


def subject_map_path(entities: naming.Entities, row: Mapping[str, Any], stat: str) -> Path:
    """Where a subject's map of a row of its table of contents lies, relative to the output."""
    own = naming.Entities(sub=entities.sub, ses=entities.ses, task=row["task"], space=entities.space, res=entities.res)
    return naming.subject_statmap(own, str(row["contrast"]), stat)


def combine_subjects(
    effect_paths: Sequence[Path], variance_paths: Sequence[Path], z_dof: Sequence[float]
) -> tuple[Estimate, np.ndarray, np.ndarray, str]:
    """Group estimate from subject maps on disk, read one at a time.

    Parameters
    ----------
    effect_paths, variance_paths : sequence of Path
        Maps of the subjects, in the same order.
    z_dof : sequence of float
        Degrees of freedom of each subject's variance.

    Returns
    -------
    estimate : Estimate
        Over the voxels of the mask.
    mask_XYZ : bool array
        Voxels that every subject has.
    affine : array of shape (4, 4)
    model : str
        Random effects, or the single subject's fixed effects.

    Raises
    ------
    FmrisynthError
        The maps are not on one grid, or have no voxel in common.
    """
    first = read_image(effect_paths[0], ndim=3)
    mask_XYZ = np.ones(first.shape, bool)
    running = RunningGroup(int(mask_XYZ.size))
    effect = variance = np.zeros(0)
    for effect_path, variance_path in zip(effect_paths, variance_paths, strict=True):
        image = read_image(effect_path, ndim=3)
        if image.shape != first.shape or not np.allclose(image.affine, first.affine, atol=1e-3):
            raise FmrisynthError(
                f"{effect_path}: its grid {image.shape} with affine {image.affine.tolist()} differs from {first.shape} with "
                f"{first.affine.tolist()} of {effect_paths[0].name}; a group map needs all subjects in one space."
            )
        effect, variance = image.scaled(), read_image(variance_path, ndim=3).scaled()
        mask_XYZ &= variance > 0
        running.add(effect.ravel())
    if not mask_XYZ.any():
        raise FmrisynthError(
            f"{effect_paths[0]}: no voxel has a finite variance in all {len(effect_paths)} subjects; check their masks and "
            "whether the images are constant."
        )
    if len(effect_paths) == 1:
        return Estimate(effect[mask_XYZ], variance[mask_XYZ], z_dof[0]), mask_XYZ, first.affine, SINGLE_SUBJECT
    whole = running.estimate()
    inside = mask_XYZ.ravel()
    return Estimate(whole.effect[inside], whole.variance[inside], whole.dof), mask_XYZ, first.affine, RANDOM_EFFECTS


def grid_of(path: Path, space: str) -> Grid:
    """The grid of an image on disk."""
    image = read_image(path)
    return make_grid(image.shape[:3], image.affine, space)

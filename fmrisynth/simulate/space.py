"""Where the phantom lives: the voxels that are simulated, and smooth fields over them.

Everything is computed on a *box*, the part of an output grid that holds the brain, in RAS+ order, and
then only in the *support*: brain voxels and a rim of scalp. Output grids at the same voxel size whose
voxels coincide (the standard grid and the 3 mm MNI grid) have the same box, hence the same random numbers.

Axis legend: X, Y, Z axes of the box; V support voxels; T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.ndimage import distance_transform_edt, map_coordinates

from fmrisynth.data.grid import MNI_3MM, Grid, make_grid
from fmrisynth.errors import FmrisynthError

BRAIN_LOW_MM = (-72.5, -112.0, -73.0)
BRAIN_HIGH_MM = (72.5, 79.0, 88.0)
"""Box around the MNI152 brain, mm; both 3 mm grids have the same voxels in it."""

RIM_MM = 4.0
"""Scalp and skull around the brain that are simulated, mm."""

SPACE = "MNI152NLin6Asym"
HCP_2MM = make_grid((91, 109, 91), [[-2, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]], SPACE)
"""The grid of every HCP ``tfMRI_*.nii.gz``."""
MNI_3MM_FULL = make_grid((61, 73, 61), [[-3, 0, 0, 91.5], [0, 3, 0, -126], [0, 0, 3, -72], [0, 0, 0, 1]], SPACE)
"""A 3 mm MNI grid in HCP's orientation whose voxels coincide with those of the standard grid."""
STANDARD = MNI_3MM

FWHM_TO_SD = 1 / np.sqrt(8 * np.log(2))


@dataclass(frozen=True, eq=False)
class Space:
    """The simulated voxels of one output grid.

    Attributes
    ----------
    grid : Grid
        The output grid.
    voxel_mm : float
        Isotropic voxel side.
    axes_mm : tuple of 3 arrays
        World coordinates of the box's voxel centres along x, y and z, increasing.
    support : array of int
        Flat indices (C order) of the support in the box.
    depth_mm : array of shape (V,), float32
        Distance to the template brain's edge, positive inside.
    """

    grid: Grid
    voxel_mm: float
    axes_mm: tuple[np.ndarray, np.ndarray, np.ndarray]
    support: np.ndarray
    depth_mm: np.ndarray
    _box: tuple[slice, slice, slice]
    _flip: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the box."""
        x, y, z = (len(axis) for axis in self.axes_mm)
        return x, y, z

    @property
    def coordinates_V3(self) -> np.ndarray:
        """World coordinates of the support voxels, (V, 3) float32, mm."""
        index = np.unravel_index(self.support, self.shape)
        return np.stack([axis[i] for axis, i in zip(self.axes_mm, index, strict=True)], axis=1).astype(np.float32)

    def to_grid(self, values: np.ndarray) -> np.ndarray:
        """Support values (V,) or (T, V) as an image on the output grid, (X, Y, Z) or (X, Y, Z, T); 0 elsewhere."""
        frames_TV = np.atleast_2d(values)
        box = np.zeros((int(np.prod(self.shape)), len(frames_TV)), dtype=values.dtype)
        box[self.support] = frames_TV.T
        image = np.zeros((*self.grid.shape, len(frames_TV)), dtype=values.dtype)
        image[self._box] = box.reshape(*self.shape, -1)[tuple(slice(None, None, step) for step in self._flip)]
        return image if values.ndim == 2 else image[..., 0]

    def from_grid(self, image: np.ndarray) -> np.ndarray:
        """Values of a 3D image on the output grid at the support voxels, (V,)."""
        box = image[self._box][tuple(slice(None, None, step) for step in self._flip)]
        return box.reshape(-1)[self.support]

    def gaussian(self, centre_mm: np.ndarray, fwhm_mm: float) -> tuple[np.ndarray, np.ndarray]:
        """A Gaussian blob of height one, as (box indices, values) within 2.5 standard deviations."""
        sd = fwhm_mm * FWHM_TO_SD
        ranges, profiles = [], []
        for axis, c in zip(self.axes_mm, centre_mm, strict=True):
            low, high = np.searchsorted(axis, (c - 2.5 * sd, c + 2.5 * sd))
            ranges.append(np.arange(low, high))
            profiles.append(np.exp(-0.5 * ((axis[low:high] - c) / sd) ** 2))
        flat = np.ravel_multi_index(np.ix_(*ranges), self.shape).ravel()
        values = (profiles[0][:, None, None] * profiles[1][:, None] * profiles[2]).ravel()
        return flat, values.astype(np.float32)


def make_space(grid: Grid) -> Space:
    """The simulated voxels of a grid in MNI space with axes along x, y, z (either direction)."""
    return _make_space(grid)


@lru_cache(maxsize=4)
def _make_space(grid: Grid) -> Space:
    affine = grid.affine
    steps = np.diag(affine)[:3]
    if np.abs(affine[:3, :3] - np.diag(steps)).max() > 1e-6 or np.ptp(np.abs(steps)) > 1e-6 or grid.is_native:
        raise FmrisynthError(
            "the phantom is simulated on MNI grids with isotropic voxels along x, y and z; resample its output for others."
        )
    axes, box, flip = [], [], []
    for i in range(3):
        axis = affine[i, 3] + steps[i] * np.arange(grid.shape[i])
        keep = np.flatnonzero((axis >= BRAIN_LOW_MM[i]) & (axis <= BRAIN_HIGH_MM[i]))
        box.append(slice(int(keep[0]), int(keep[-1]) + 1))
        flip.append(1 if steps[i] > 0 else -1)
        axes.append(np.sort(axis[keep]))
    template = load_templates()["brain"]
    shape = tuple(len(axis) for axis in axes)
    where = np.meshgrid(*axes, indexing="ij")
    brain = sample_template(template, np.stack([w.ravel() for w in where], axis=1)).reshape(shape) > 0.5
    voxel_mm = float(abs(steps[0]))
    inside = distance_transform_edt(brain, sampling=voxel_mm)
    outside = distance_transform_edt(~brain, sampling=voxel_mm)
    depth = (inside - outside).ravel()
    support = np.flatnonzero(depth > -RIM_MM)
    return Space(
        grid=grid, voxel_mm=voxel_mm, axes_mm=(axes[0], axes[1], axes[2]), support=support,
        depth_mm=depth[support].astype(np.float32), _box=(box[0], box[1], box[2]), _flip=(flip[0], flip[1], flip[2]),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Template:
    """A template image for sampling at arbitrary points."""

    values_XYZ: np.ndarray
    origin_mm: np.ndarray
    voxel_mm: float


@lru_cache(maxsize=1)
def load_templates() -> dict[str, Template]:
    """Grey and white matter probability, CSF and the brain of MNI152 at 1 mm, as nilearn packages them (offline)."""
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_gm_template, load_mni152_wm_template

    images = {
        "gm": load_mni152_gm_template(resolution=1),
        "wm": load_mni152_wm_template(resolution=1),
        "brain": load_mni152_brain_mask(resolution=1),
    }
    arrays = {name: np.asarray(image.dataobj, dtype=np.float32) for name, image in images.items()}
    arrays["csf"] = np.clip(arrays["brain"] - arrays["gm"] - arrays["wm"], 0.0, 1.0)
    affine = images["gm"].affine
    return {name: Template(array, affine[:3, 3].copy(), float(affine[0, 0])) for name, array in arrays.items()}


def sample_template(template: Template, points_V3: np.ndarray) -> np.ndarray:
    """Linear interpolation of a template at world points, (V,) float32; 0 outside."""
    voxels = (points_V3.T - template.origin_mm[:, None]) / template.voxel_mm
    return map_coordinates(template.values_XYZ, voxels.astype(np.float32), order=1, output=np.float32)


def _separable(kernels: tuple[np.ndarray, np.ndarray, np.ndarray], values: np.ndarray) -> np.ndarray:
    """Multiply a matrix to each spatial axis of fields (n, X, Y, Z)."""
    kx, ky, kz = kernels
    out = np.matmul(ky, values @ kz.T)
    n, x = out.shape[:2]
    return np.matmul(kx, out.reshape(n, x, -1)).reshape(n, len(kx), len(ky), len(kz))


class Smoother:
    """Makes smooth Gaussian fields with unit variance everywhere from white ones at the support voxels.

    Separable: one banded matrix per axis. Smoothness estimators report `fwhm_mm`, the kernel that would make the
    field from white noise.
    """

    def __init__(self, space: Space, fwhm_mm: float) -> None:
        self._space = space
        x, y, z = (_kernel(len(axis), fwhm_mm / space.voxel_mm) for axis in space.axes_mm)
        self._kernels = x, y, z
        variance = _separable((x**2, y**2, z**2), self._box(np.ones((1, len(space.support)), np.float32)))
        self._scale_V = 1.0 / np.sqrt(variance.reshape(-1)[space.support])
        self.size = len(space.support)

    def _box(self, values: np.ndarray) -> np.ndarray:
        box = np.zeros((len(values), int(np.prod(self._space.shape))), np.float32)
        box[:, self._space.support] = values
        return box.reshape(len(values), *self._space.shape)

    def __call__(self, white: np.ndarray) -> np.ndarray:
        """Smooth fields (n, V) float32 from white ones of the same shape."""
        smooth = _separable(self._kernels, self._box(white)).reshape(len(white), -1)
        return smooth[:, self._space.support] * self._scale_V


def _kernel(n: int, fwhm_voxels: float) -> np.ndarray:
    if fwhm_voxels <= 0:
        return np.eye(n, dtype=np.float32)
    distance = np.arange(n)[:, None] - np.arange(n)
    kernel = np.exp(-0.5 * (distance / (fwhm_voxels * FWHM_TO_SD)) ** 2)
    kernel[kernel < 1e-4] = 0.0  # also keeps subnormal numbers, which are slow, out of the products
    return kernel.astype(np.float32)


class CoarseFields:
    """Very smooth Gaussian fields with unit variance, made from a coarse lattice of random numbers.

    The lattice is laid over the brain in mm and does not depend on the grid, so one subject has the same
    anatomy at 2 and at 3 mm.
    """

    def __init__(self, space: Space, fwhm_mm: float) -> None:
        spacing = fwhm_mm / 1.5
        matrices = []
        self.sizes: list[int] = []
        for axis, low, high in zip(space.axes_mm, BRAIN_LOW_MM, BRAIN_HIGH_MM, strict=True):
            nodes = np.arange(low - spacing, high + 2 * spacing, spacing)
            weights = np.exp(-0.5 * ((axis[:, None] - nodes) / (fwhm_mm * FWHM_TO_SD)) ** 2)
            weights[weights < 1e-4] = 0.0
            matrices.append((weights / np.sqrt((weights**2).sum(axis=1, keepdims=True))).astype(np.float32))
            self.sizes.append(len(nodes))
        self._matrices = matrices[0], matrices[1], matrices[2]
        self._support = space.support
        self.size = int(np.prod(self.sizes))

    def __call__(self, lattice: np.ndarray) -> np.ndarray:
        """Fields at the support voxels, (n, V) float32, from lattice values (n, *sizes) or (n, size)."""
        fields = _separable(self._matrices, lattice.reshape(-1, *self.sizes).astype(np.float32, copy=False))
        return fields.reshape(len(fields), -1)[:, self._support]


def blob(points_V3: np.ndarray, centre: Sequence[float], fwhm_mm: float) -> np.ndarray:
    """A Gaussian of height one at points (V, 3), mm; (V,) float32."""
    squared = ((points_V3 - np.asarray(centre, np.float32)) ** 2).sum(axis=1)
    return np.exp(-0.5 * squared / (fwhm_mm * FWHM_TO_SD) ** 2).astype(np.float32)

"""The voxel grid of a block dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from fmrisynth.errors import FmrisynthError

SIDE_DIVISOR = 16
"""Sides must divide by a tokenizer's 4 and by two halvings of the denoiser, or by a tokenizer's 16."""

NATIVE_SPACE = "scanner"


@dataclass(frozen=True)
class Grid:
    """Shape, affine and space of a grid.

    Attributes
    ----------
    shape : tuple of int
        (X, Y, Z).
    affine_rows : tuple of 4 tuples of 4 floats
        Voxel to world (mm).
    space : str
        BIDS space label, ``MNI152NLin6Asym`` or ``scanner``.
    """

    shape: tuple[int, int, int]
    affine_rows: tuple[tuple[float, ...], ...]
    space: str

    @property
    def affine(self) -> np.ndarray:
        """Voxel-to-world matrix, (4, 4) float64, mm."""
        return np.array(self.affine_rows, dtype=np.float64)

    @property
    def is_native(self) -> bool:
        """Whether the grid is the subject's own scanner space and not a template."""
        return self.space == NATIVE_SPACE

    @property
    def voxel_mm(self) -> tuple[float, float, float]:
        """Voxel sides in mm."""
        x, y, z = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))
        return float(x), float(y), float(z)

    @property
    def resolution(self) -> str | None:
        """BIDS ``res`` label (``3`` for 3 mm); None for a native grid."""
        return None if self.is_native else f"{round(self.voxel_mm[0])}"

    @property
    def resolution_text(self) -> str | None:
        """What the ``res`` label means, for sidecars; None for a native grid."""
        if self.is_native:
            return None
        sides = " x ".join(map(str, self.shape))
        return (
            f"{self.voxel_mm[0]:g} mm isotropic voxels on the {sides} grid of fmrisynth, which holds the MNI152 brain"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {
            "shape": list(self.shape),
            "affine": [list(row) for row in self.affine_rows],
            "space": self.space,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Grid:
        """Inverse of `to_json`."""
        return make_grid(content["shape"], content["affine"], content["space"])

    def same_as(self, other: Grid) -> bool:
        """Equal shape and space, and affines within 1e-3 mm."""
        return (
            self.shape == other.shape
            and self.space == other.space
            and bool(np.allclose(self.affine, other.affine, atol=1e-3))
        )


def make_grid(shape, affine, space: str) -> Grid:
    """A checked `Grid` from anything array-like."""
    x, y, z = (int(n) for n in shape)
    matrix = np.asarray(affine, dtype=np.float64)
    if matrix.shape != (4, 4) or min(x, y, z) < 1:
        raise FmrisynthError(f"a grid needs three sides and a 4 x 4 affine, found {shape} and {matrix.shape}.")
    return Grid((x, y, z), tuple(tuple(float(v) for v in row) for row in matrix), str(space))


MNI_3MM = make_grid(
    (48, 64, 64), [[3, 0, 0, -70.5], [0, 3, 0, -111.0], [0, 0, 3, -84.0], [0, 0, 0, 1]], "MNI152NLin6Asym"
)
"""The standard grid: 48 x 64 x 64 at 3 mm, the smallest box with sides divisible by 16 that holds the MNI152 brain."""

MNI_GRIDS = {
    1.0: make_grid((160, 192, 160), [[1, 0, 0, -80], [0, 1, 0, -113], [0, 0, 1, -75], [0, 0, 0, 1]], "MNI152NLin6Asym"),
    2.0: make_grid((80, 96, 80), [[2, 0, 0, -80], [0, 2, 0, -114], [0, 0, 2, -76], [0, 0, 0, 1]], "MNI152NLin6Asym"),
    3.0: MNI_3MM,
}
"""Voxel side (mm) -> such a box; the voxels of the finer ones are those of the MNI152 templates, so that nothing is interpolated."""


@lru_cache(maxsize=4)
def mni_brain_mask(grid: Grid = MNI_3MM) -> np.ndarray:
    """The MNI152 brain mask on a grid, bool array of the grid's shape (read-only).

    The mask is the one that nilearn packages, so nothing is downloaded.
    """
    from nilearn.datasets import load_mni152_brain_mask
    from nilearn.image import resample_img

    mask = resample_img(
        load_mni152_brain_mask(resolution=1), target_affine=grid.affine, target_shape=grid.shape,
        interpolation="nearest", copy_header=True, force_resample=True,
    )  # fmt: skip
    values = np.asarray(mask.dataobj) > 0
    values.setflags(write=False)
    return values


def native_grid(shape: tuple[int, ...], affine: np.ndarray, mask_XYZ: np.ndarray) -> tuple[Grid, tuple[slice, ...]]:
    """A subject's own voxel grid, cropped to its brain and padded to sides divisible by 16.

    Parameters
    ----------
    shape : tuple of int
        Shape of the source image (first three axes are used).
    affine : array of shape (4, 4)
        Its affine, mm; kept, so no interpolation is needed.
    mask_XYZ : bool array
        Brain voxels of the source image.

    Returns
    -------
    grid : Grid
    source : tuple of 3 slices
        Where the grid's box lies in source voxels; it may reach outside the image.
    """
    where = np.argwhere(mask_XYZ)
    if where.size == 0:
        raise FmrisynthError("the brain mask is empty; check the mask or the image it was computed from.")
    low, high = where.min(axis=0), where.max(axis=0) + 1
    sides = ((high - low + SIDE_DIVISOR - 1) // SIDE_DIVISOR) * SIDE_DIVISOR
    start = (low + high - sides) // 2
    moved = np.array(affine, dtype=np.float64)
    moved[:3, 3] = (moved @ np.append(start, 1.0))[:3]
    box = tuple(slice(int(a), int(a + n)) for a, n in zip(start, sides, strict=True))
    return make_grid(sides, moved, NATIVE_SPACE), box

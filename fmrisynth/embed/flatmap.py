"""The flattened cortex as a picture: both hemispheres side by side, a pixel is valid where a triangle covers it.

Axis legend: V vertices; H rows from top, W columns from left; P valid pixels, row by row; T frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix

from fmrisynth.embed.surface import load_surface

GAP_MM = 16.0
"""Between the hemispheres."""

LONGEST_EDGE_MM = 16.0
"""Triangles with an edge as long as this bridge a cut of the flattening and are left out."""


@dataclass(frozen=True)
class FlatMap:
    """A raster of the flattened cortex.

    Attributes
    ----------
    valid_HW : bool array
        Pixels whose centre lies on the cortex.
    matrix : csr_matrix of shape (P, V), float32
        Interpolation within triangles; rows add up to 1.
    pixel_mm : float
    surfaces : Path or None
        Folder of the surfaces; None is fsaverage5.
    """

    valid_HW: np.ndarray
    matrix: csr_matrix
    pixel_mm: float
    surfaces: Path | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """H, W."""
        height, width = self.valid_HW.shape
        return height, width

    @property
    def n_pixels(self) -> int:
        """P, the valid ones."""
        return self.matrix.shape[0]

    def spread(self, values_PT: np.ndarray, fill: float = 0.0) -> np.ndarray:
        """Put values of valid pixels in their places, (T, H, W); ``fill`` elsewhere."""
        frames_THW = np.full((values_PT.shape[1], *self.shape), fill, values_PT.dtype)
        frames_THW[:, self.valid_HW] = values_PT.T
        return frames_THW

    def place_of(self, vertex: int) -> tuple[float, float]:
        """Row and column of a vertex, in pixels."""
        x, y = flat_positions(self.surfaces)[vertex]
        left, top = _corner(self.surfaces)
        return float((top - y) / self.pixel_mm - 0.5), float((x - left) / self.pixel_mm - 0.5)


@lru_cache(maxsize=2)
def flat_positions(surfaces: Path | None = None) -> np.ndarray:
    """Places of the vertices on the sheet, (V, 2) float64, mm; x to the right, y up.

    Frontal poles point outwards, occipital poles meet in the middle, dorsal is up (of fsaverage5 and of the HCP's surfaces). The third
    coordinate of the flat surface is no place on the sheet and ignored.
    """
    flat = load_surface("flat", surfaces)
    used = np.unique(flat.faces_F3)
    placed = flat.coordinates_V3[:, :2].copy()
    left, right = (used[used < flat.n_left], used[used >= flat.n_left])
    placed[: flat.n_left, 0] -= placed[left, 0].max() + GAP_MM / 2
    placed[flat.n_left :, 0] -= placed[right, 0].min() - GAP_MM / 2
    return placed


@lru_cache(maxsize=2)
def flat_faces(surfaces: Path | None = None) -> np.ndarray:
    """Triangles without those that bridge a cut, (F, 3) int64."""
    faces_F3 = load_surface("flat", surfaces).faces_F3
    corners = flat_positions(surfaces)[faces_F3]
    edges = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2)
    return faces_F3[(edges < LONGEST_EDGE_MM).all(axis=1)]


def _corner(surfaces: Path | None) -> tuple[float, float]:
    """Left and top edge of the sheet, mm."""
    used = flat_positions(surfaces)[np.unique(load_surface("flat", surfaces).faces_F3)]
    return float(used[:, 0].min()), float(used[:, 1].max())


@lru_cache(maxsize=4)
def flat_map(pixel_mm: float, surfaces: Path | None = None) -> FlatMap:
    """Rasterise the flattened cortex.

    Parameters
    ----------
    pixel_mm : float
        Side of a pixel, mm. With fsaverage5, 1.2, 2.4 and 4.8 give 235 x 541, 118 x 271 and 59 x 136 pixels.
    surfaces : Path, optional
        Folder of other surfaces, see `fmrisynth.embed.surface.load_surface`.
    """
    placed_V2, faces_F3 = flat_positions(surfaces), flat_faces(surfaces)
    used = placed_V2[np.unique(load_surface("flat", surfaces).faces_F3)]
    left, top = _corner(surfaces)
    width = int(np.ceil((used[:, 0].max() - left) / pixel_mm))
    height = int(np.ceil((top - used[:, 1].min()) / pixel_mm))
    face_HW = np.full((height, width), -1)
    share_HW3 = np.zeros((height, width, 3))
    at_V2 = (
        np.column_stack([(placed_V2[:, 0] - left) / pixel_mm, (top - placed_V2[:, 1]) / pixel_mm]) - 0.5
    )  # column, row
    corners = at_V2[faces_F3]
    lowest, highest = np.ceil(corners.min(axis=1)).astype(int), np.floor(corners.max(axis=1)).astype(int)
    sides = np.maximum(highest - lowest + 1, 0)
    a, b, c = corners.transpose(1, 0, 2)
    twice_area = (a - c)[:, 0] * (b - c)[:, 1] - (b - c)[:, 0] * (a - c)[:, 1]
    for j, i in np.ndindex(*sides.max(axis=0)):  # the pixels of all triangles' boxes, one of each at a time
        face = np.flatnonzero((sides > (j, i)).all(axis=1) & (twice_area != 0))
        column, row = (lowest[face] + (j, i)).T
        x, y = (np.column_stack([column, row]) - c[face]).T
        first = (x * (b - c)[face, 1] - y * (b - c)[face, 0]) / twice_area[face]
        second = (y * (a - c)[face, 0] - x * (a - c)[face, 1]) / twice_area[face]
        share = np.stack([first, second, 1 - first - second], axis=1)
        inside = (share >= -1e-9).all(axis=1) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        face_HW[row[inside], column[inside]] = face[inside]
        share_HW3[row[inside], column[inside]] = share[inside]
    valid_HW = face_HW >= 0
    n_pixels = int(valid_HW.sum())
    vertices = faces_F3[face_HW[valid_HW]]
    entries = (share_HW3[valid_HW].ravel(), (np.repeat(np.arange(n_pixels), 3), vertices.ravel()))
    matrix = csr_matrix(entries, shape=(n_pixels, len(placed_V2)), dtype=np.float32)
    return FlatMap(valid_HW, matrix, pixel_mm, surfaces)


def sheet(valid_HW: np.ndarray, patch: tuple[int, int]) -> np.ndarray:
    """Padding with invalid pixels, below and to the right, to a whole number of patches."""
    pad = [(0, -side % step) for side, step in zip(valid_HW.shape, patch, strict=True)]
    return np.pad(valid_HW, pad)

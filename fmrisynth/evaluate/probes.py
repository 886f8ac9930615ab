"""The fixed projections of a volume: cells, parcels, regions and pairs of neighbouring voxels.

Axis legend: V voxels, C cells, P parcels, R regions.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from fmrisynth.data.grid import Grid
from fmrisynth.evaluate.response import mirror_index
from fmrisynth.evaluate.rois import Roi
from fmrisynth.glm.windows import Window

CELL_VOXELS = 4
"""Cells have the size of a latent voxel of a 4x tokenizer: the space of the privacy audit and the classifiers."""

PARCEL_VOXELS = 8
MAX_PAIRS = 3_000


def cell_matrix(mask_XYZ: np.ndarray, side: int) -> sparse.csr_matrix:
    """Averaging over cubes of `side` voxels that lie at least half inside the mask.

    Returns
    -------
    csr_matrix of shape (C, V), float32
        Rows sum to one. If no cube is half full, all that touch the mask are kept.
    """
    where = np.argwhere(mask_XYZ) // side
    n_sides = -(-np.array(mask_XYZ.shape) // side)
    flat = np.asarray(np.ravel_multi_index(tuple(where.T), tuple(n_sides)))
    _, index, counts = np.unique(flat, return_inverse=True, return_counts=True)
    keep = counts >= side**3 / 2
    if not keep.any():
        keep = counts > 0
    number = np.cumsum(keep) - 1
    inside = keep[index]
    rows, columns = number[index[inside]], np.flatnonzero(inside)
    weights = (1.0 / counts[index[inside]]).astype(np.float32)
    return sparse.csr_matrix((weights, (rows, columns)), shape=(int(keep.sum()), len(flat)))


def neighbour_pairs(mask_XYZ: np.ndarray, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per axis, indices (into the mask's voxels) of neighbouring pairs, at most `MAX_PAIRS` of them."""
    number = np.full(mask_XYZ.shape, -1)
    number[mask_XYZ] = np.arange(int(mask_XYZ.sum()))
    rng = np.random.default_rng(seed)
    pairs = []
    for axis in range(3):
        low = np.take(number, range(mask_XYZ.shape[axis] - 1), axis=axis).ravel()
        high = np.take(number, range(1, mask_XYZ.shape[axis]), axis=axis).ravel()
        good = np.flatnonzero((low >= 0) & (high >= 0))
        if len(good) > MAX_PAIRS:
            good = rng.choice(good, MAX_PAIRS, replace=False)
        pairs.append((low[good], high[good]))
    return pairs


def log_anatomy(reference_C: np.ndarray) -> np.ndarray:
    """Log reference volume on cells, mean removed, float32."""
    log_C = np.log(np.maximum(reference_C, 1e-6))
    return (log_C - log_C.mean()).astype(np.float32)


class Probes:
    """The fixed projections that every window goes through; `pairs` of neighbours are indices into the voxels `near_U`."""

    def __init__(self, grid: Grid, mask_XYZ: np.ndarray, rois: list[Roi]) -> None:
        self.grid, self.mask_XYZ, self.rois = grid, mask_XYZ, rois
        self.cells, self.parcels = cell_matrix(mask_XYZ, CELL_VOXELS), cell_matrix(mask_XYZ, PARCEL_VOXELS)
        weights = [roi.voxels_V / roi.voxels_V.sum() for roi in rois]
        regions_RV = np.reshape(weights, (len(rois), int(mask_XYZ.sum()))).astype(np.float32)
        self._every = sparse.vstack([self.cells, self.parcels, sparse.csr_matrix(regions_RV)], "csr")
        pairs = neighbour_pairs(mask_XYZ)
        self.near_U, index = np.unique(np.concatenate([side for pair in pairs for side in pair]), return_inverse=True)
        sides = np.split(index, np.cumsum([len(side) for pair in pairs for side in pair])[:-1])
        self.pairs = list(zip(sides[::2], sides[1::2], strict=True))
        self.mirror_V = None if grid.is_native else mirror_index(mask_XYZ, grid.affine)

    def project(self, percent_TV: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean courses of cells (C, T), parcels (P, T) and regions (R, T), float32."""
        courses = self._every @ np.ascontiguousarray(percent_TV.T)
        cells, parcels, regions = np.split(courses, np.cumsum([self.cells.shape[0], self.parcels.shape[0]]))
        return cells, parcels, regions

    def on_cells(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Mean courses (C, T) and log reference volume (C,) of a window on cells."""
        return self.cells @ np.ascontiguousarray(window.percent_TV.T), log_anatomy(self.cells @ window.reference_V)

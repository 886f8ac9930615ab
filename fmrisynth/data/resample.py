"""Separable resampling: one small matrix per spatial axis, and one matrix in time.

In space this is linear interpolation between two grids whose axes are parallel, which MNI images always
are; it equals ``nilearn.image.resample_img(interpolation="linear")``. Only the part of the source that the
target box needs is touched. On the way to coarser voxels the triangle of linear interpolation can be as wide as they are.
In time it is band-limited interpolation: a Lanczos-windowed sinc whose cut-off is
the lower of the two Nyquist frequencies, evaluated at any set of times.

Axis legend: X, Y, Z voxel axes; T source frames; K output frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fmrisynth.data.grid import Grid
from fmrisynth.errors import FmrisynthError

MAX_SHEAR_VOXELS = 0.05
"""Largest displacement, over the whole grid, that a not-quite-parallel axis may cause, in source voxels."""

LANCZOS_LOBES = 3


def axis_matrix(n_in: int, coordinates: np.ndarray, width: float = 1.0) -> np.ndarray:
    """Linear interpolation along one axis, or a mean over a triangle.

    Parameters
    ----------
    n_in : int
        Source samples, at coordinates 0 ... n_in - 1.
    coordinates : array of shape (n_out,)
        Where to sample, in source samples. Outside the source the result is 0.
    width : float, default 1
        Half the base of the triangle, in source samples. Wider ones than 1 keep what is finer than the output from aliasing.

    Returns
    -------
    array of shape (n_out, n_in), float32
        Weights add up to 1 inside the source; for linear interpolation there are at most two in a row.
    """
    nearest = np.rint(coordinates)
    at = np.where(np.abs(coordinates - nearest) < 1e-6, nearest, coordinates)  # no rounding past the edge
    low = np.floor(at).astype(int)
    fraction = at - low
    weights = np.zeros((len(at), n_in), dtype=np.float64)
    inside = (at >= 0) & (at <= n_in - 1)
    if width > 1.0 + 1e-6:
        triangle = np.maximum(1.0 - np.abs(at[:, None] - np.arange(n_in)) / width, 0.0) * inside[:, None]
        return (triangle / np.maximum(triangle.sum(axis=1, keepdims=True), 1e-12)).astype(np.float32)
    rows = np.flatnonzero(inside)
    weights[rows, low[rows]] = 1.0 - fraction[rows]
    upper = rows[fraction[rows] > 0]
    weights[upper, low[upper] + 1] += fraction[upper]
    return weights.astype(np.float32)


@dataclass(frozen=True)
class SpatialResampler:
    """Linear resampling of frames from a source grid to a `Grid` with parallel axes.

    Parameters
    ----------
    source_shape : tuple of int
        (X, Y, Z) of the source.
    source_affine : array of shape (4, 4)
        Its affine, mm.
    grid : Grid
        The target.
    antialias : bool
        Average over the larger target voxels where the source is finer, in place of two neighbours.

    Raises
    ------
    FmrisynthError
        If the axes are not parallel.
    """

    source_shape: tuple[int, int, int]
    source_affine: np.ndarray
    grid: Grid
    antialias: bool = False

    @cached_property
    def _axes(self) -> tuple[tuple[int, ...], list[np.ndarray]]:
        """Source axis of each target axis, and the source coordinates along it."""
        relative = np.linalg.inv(self.source_affine) @ self.grid.affine
        linear, shift = relative[:3, :3], relative[:3, 3]
        source_axes = tuple(int(axis) for axis in np.abs(linear).argmax(axis=0))
        leak = linear.copy()
        leak[list(source_axes), range(3)] = 0.0
        if sorted(source_axes) != [0, 1, 2] or np.abs(leak @ np.diag(self.grid.shape)).max() > MAX_SHEAR_VOXELS:
            raise FmrisynthError(
                f"the image axes are rotated by {self.rotation_degrees:.1f} degrees against the target grid, expected "
                "parallel axes as in every MNI-space output; resample the image to MNI space first "
                "(fMRIPrep does), or use --native."
            )
        coordinates = [
            linear[source, target] * np.arange(self.grid.shape[target]) + shift[source]
            for target, source in enumerate(source_axes)
        ]
        return source_axes, coordinates

    @property
    def rotation_degrees(self) -> float:
        """Largest angle between a source axis and the nearest world axis of the grid."""
        relative = np.linalg.inv(self.source_affine[:3, :3]) @ self.grid.affine[:3, :3]
        unit = relative / np.linalg.norm(relative, axis=0)
        return float(np.degrees(np.arccos(np.clip(np.abs(unit).max(axis=0), 0, 1))).max())

    @cached_property
    def _plan(self) -> tuple[tuple[slice, ...], tuple[int, ...], tuple[np.ndarray, ...]]:
        """Crop of the source, its axis order, and one matrix per target axis."""
        source_axes, coordinates = self._axes
        crop: list[slice] = [slice(0, 0)] * 3
        matrices = []
        for source, along in zip(source_axes, coordinates, strict=True):
            step = abs(float(along[1] - along[0])) if self.antialias and len(along) > 1 else 1.0
            matrix = axis_matrix(self.source_shape[source], along, step)
            used = np.flatnonzero(matrix.any(axis=0))
            span = slice(int(used[0]), int(used[-1]) + 1) if used.size else slice(0, 1)
            crop[source] = span
            matrices.append(np.ascontiguousarray(matrix[:, span]))
        return tuple(crop), source_axes, tuple(matrices)

    @property
    def crop(self) -> tuple[slice, ...]:
        """The part of the source that the grid needs."""
        return self._plan[0]

    def crop_frame(self, frame_XYZ: np.ndarray) -> np.ndarray:
        """That part of one source frame (a view)."""
        return frame_XYZ[self.crop]

    def resample_crop(self, cropped_XYZ: np.ndarray, out_zyx: np.ndarray | None = None) -> np.ndarray:
        """Resample one frame that `crop_frame` returned; float32 (x, y, z), Fortran order.

        With `out_zyx`, a C-contiguous float32 array (z, y, x), the result is written there.
        """
        _, source_axes, (x, y, z) = self._plan
        # Fortran order in files: X is contiguous, so the transposed view (z, y, x) feeds BLAS without a copy.
        volume_zyx = np.ascontiguousarray(cropped_XYZ.transpose(source_axes).T, dtype=np.float32)
        nz, ny, nx = volume_zyx.shape
        along_x = (volume_zyx.reshape(nz * ny, nx) @ x.T).reshape(nz, ny, -1)
        along_y = np.matmul(y, along_x).reshape(nz, -1)
        if out_zyx is None:
            out_zyx = np.empty((len(z), len(y), len(x)), dtype=np.float32)
        np.matmul(z, along_y, out=out_zyx.reshape(len(z), -1))
        return out_zyx.T

    def __call__(self, volume_XYZ: np.ndarray) -> np.ndarray:
        """Resample one whole volume; 0 outside the source."""
        return self.resample_crop(self.crop_frame(volume_XYZ))

    def coverage(self, mask_XYZ: np.ndarray) -> float:
        """Share of a target mask's voxels that lie inside the source's box."""
        x, y, z = (np.asarray(matrix.any(axis=1)) for matrix in self._plan[2])
        box = x[:, None, None] & y[None, :, None] & z[None, None, :]
        return float((box & mask_XYZ).sum() / max(int(mask_XYZ.sum()), 1))


def temporal_matrix(times_in_s: np.ndarray, times_out_s: np.ndarray, tr_in_s: float, tr_out_s: float) -> np.ndarray:
    """Anti-aliased interpolation in time at arbitrary instants.

    Parameters
    ----------
    times_in_s : array of shape (n_in,)
        Times of the source frames, evenly spaced by `tr_in_s`, seconds.
    times_out_s : array of shape (n_out,)
        Times wanted, seconds.
    tr_in_s, tr_out_s : float
        Spacing of source and output; the cut-off is the lower Nyquist frequency, ``1 / (2 max(tr))``.

    Returns
    -------
    array of shape (n_out, n_in), float32
        Rows add up to 1, also at the ends of the run where the kernel is cut off.

    Notes
    -----
    ``w(u) = sinc(u) sinc(u / a)`` for ``|u| < a``, with ``u = (t_out - t_in) / max(tr)`` and a = 3 lobes (Lanczos,
    as in Duchon 1979). Source frames that fall on output times are reproduced exactly when the spacings are equal.
    """
    spacing_s = max(tr_in_s, tr_out_s)
    u = (np.asarray(times_out_s)[:, None] - np.asarray(times_in_s)[None, :]) / spacing_s
    weights = np.where(np.abs(u) < LANCZOS_LOBES, np.sinc(u) * np.sinc(u / LANCZOS_LOBES), 0.0)
    total = weights.sum(axis=1, keepdims=True)
    if (total < 0.1).any():
        raise FmrisynthError("a window reaches outside its run; this is a bug in the choice of windows.")
    weights /= total
    weights[np.abs(weights) < 1e-7] = 0.0
    return weights.astype(np.float32)

"""Observation noise: what a tokenizer cannot say about a volume, as a random field.

A tokenizer keeps a few numbers per 64 voxels. What it drops is mostly thermal and other local noise: most of the
variance of a real frame. Decoding alone therefore gives frames that are too smooth and vary too little. A probabilistic
decoder has a likelihood, ``x = decode(z) + noise``, and a sample of the model is a draw from it, not its mean.

The noise here is Gaussian with mean 0, a standard deviation per voxel, one covariance between the frames of a block and
one smoothness per axis. All are what the second moments of decoded frames lack of those of the originals, over the
blocks that the tokenizer was fitted to, so that decoded frames and noise, drawn independently, vary as the originals
do. The residuals' own moments would not do that: where a cell crosses a border of tissues, decoding smears the
variance of one side over the other, and the residual is correlated with what was decoded.

The noise knows no condition and no subject. Reconstructions never get it; samples do (`fmrisynth sample --set observation_noise=false`
leaves it out).

Axis legend: T frames; X, Y, Z voxel axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import correlate1d
from scipy.optimize import brentq

KERNEL_RADIUS = 3
"""Half width of the smoothing kernels, voxels."""

MAX_NEIGHBOUR_R = 0.85
"""About the largest correlation of neighbours that such a kernel can give."""


@dataclass(frozen=True)
class ObservationNoise:
    """A Gaussian random field, in the units of the tokenizer's normalisation.

    Attributes
    ----------
    std_XYZ : float32 array
        Standard deviation per voxel, 0 outside the brain.
    correlation_TT : float64 array
        Correlation between the frames of a block, from the block's first frame on.
    neighbour_r_3 : float64 array of shape (3,)
        Correlation of neighbouring voxels along X, Y and Z, in [0, 0.85].
    """

    std_XYZ: np.ndarray
    correlation_TT: np.ndarray
    neighbour_r_3: np.ndarray

    @property
    def n_frames(self) -> int:
        """T."""
        return len(self.correlation_TT)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Draw the noise of one block, (X, Y, Z, T) float32."""
        white_TXYZ = rng.standard_normal((self.n_frames, *self.std_XYZ.shape), dtype=np.float32)
        for axis, r in enumerate(self.neighbour_r_3):
            white_TXYZ = _smooth(white_TXYZ, smoothing_kernel(float(r)), axis + 1)
        mixed_TV = matrix_root(self.correlation_TT).astype(np.float32) @ white_TXYZ.reshape(self.n_frames, -1)
        noise_TXYZ = mixed_TV.reshape(white_TXYZ.shape) * self.std_XYZ
        return np.ascontiguousarray(np.moveaxis(noise_TXYZ, 0, -1))

    def is_sound(self) -> bool:
        """Whether all parts are finite and fit together."""
        n = self.n_frames
        return bool(
            self.correlation_TT.shape == (n, n)
            and self.neighbour_r_3.shape == (3,)
            and all(np.isfinite(part).all() for part in (self.std_XYZ, self.correlation_TT, self.neighbour_r_3))
            and (self.std_XYZ >= 0).all()
            and ((self.neighbour_r_3 >= 0) & (self.neighbour_r_3 <= MAX_NEIGHBOUR_R)).all()
        )


class NoiseMoments:
    """Accumulates second moments of originals minus those of decoded frames, block by block.

    Parameters
    ----------
    mask_XYZ : bool array
        Brain.
    """

    def __init__(self, mask_XYZ: np.ndarray) -> None:
        self.mask_XYZ = mask_XYZ
        self.squares_XYZ = np.zeros(mask_XYZ.shape)
        self.products_TT: np.ndarray | None = None
        self.neighbour_products = [np.zeros_like(_neighbours(self.squares_XYZ, axis)) for axis in range(3)]
        self.n_frames = 0

    def add(self, frames_TXYZ: np.ndarray, decoded_TXYZ: np.ndarray) -> None:
        """Add a block and what its latents decode to, both 0 outside the brain."""
        n_frames = len(frames_TXYZ)
        if self.products_TT is None:
            self.products_TT = np.zeros((n_frames, n_frames))
        if len(self.products_TT) != n_frames:  # a block of another length says nothing about the frames' covariance
            return
        self.n_frames += n_frames
        for values_TXYZ, sign in ((frames_TXYZ, 1), (decoded_TXYZ, -1)):
            flat_TV = values_TXYZ[:, self.mask_XYZ]
            self.products_TT += sign * (flat_TV @ flat_TV.T).astype(np.float64)
            self.squares_XYZ += sign * np.square(values_TXYZ).sum(axis=0, dtype=np.float64)
            for axis, products_XYZ in enumerate(self.neighbour_products):
                low, high = _neighbours(values_TXYZ, axis + 1), _neighbours(values_TXYZ, axis + 1, upper=True)
                products_XYZ += sign * (low * high).sum(axis=0, dtype=np.float64)

    def finish(self) -> ObservationNoise | None:
        """The noise; None if decoded frames lack no variance."""
        if self.products_TT is None:
            return None
        std_XYZ = np.sqrt(self.squares_XYZ.clip(min=0))
        values_T, vectors_TT = np.linalg.eigh(self.products_TT)
        lacking_TT = (vectors_TT * values_T.clip(min=0)) @ vectors_TT.T
        if not std_XYZ.any() or not lacking_TT.any():
            return None
        scale_T = np.sqrt(np.diag(lacking_TT).clip(min=1e-30))
        # Over the product of the deviations, because the field is scaled by them after it is made smooth.
        neighbour_r = [
            products.sum()
            / max(1e-30, float((_neighbours(std_XYZ, axis) * _neighbours(std_XYZ, axis, upper=True)).sum()))
            for axis, products in enumerate(self.neighbour_products)
        ]
        return ObservationNoise(
            std_XYZ=(std_XYZ / np.sqrt(self.n_frames)).astype(np.float32),
            correlation_TT=lacking_TT / np.outer(scale_T, scale_T),
            neighbour_r_3=np.clip(neighbour_r, 0.0, MAX_NEIGHBOUR_R),
        )


def smoothing_kernel(neighbour_r: float) -> np.ndarray:
    """Gaussian kernel of unit energy that gives white noise a correlation between neighbours.

    Parameters
    ----------
    neighbour_r : float
        Correlation of neighbouring voxels, in [0, 0.85]; the largest that the kernel's radius can give is used beyond it.

    Returns
    -------
    float64 array of shape (2 * KERNEL_RADIUS + 1,)
    """
    offsets = np.arange(-KERNEL_RADIUS, KERNEL_RADIUS + 1)

    def kernel(sd: float) -> np.ndarray:
        values = np.exp(-0.5 * (offsets / sd) ** 2)
        return values / np.sqrt(np.square(values).sum())

    def excess(sd: float) -> float:
        values = kernel(sd)
        return float(values[1:] @ values[:-1]) - neighbour_r

    narrow, wide = 0.1, 4.0
    if excess(narrow) >= 0:
        return kernel(narrow)
    return kernel(wide) if excess(wide) <= 0 else kernel(float(brentq(excess, narrow, wide)))


def matrix_root(covariance_TT: np.ndarray) -> np.ndarray:
    """Symmetric square root of a covariance; negative eigenvalues (rounding) count as 0."""
    values, vectors = np.linalg.eigh(covariance_TT)
    root: np.ndarray = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return root


def _smooth(field_TXYZ: np.ndarray, kernel: np.ndarray, axis: int) -> np.ndarray:
    """Smooth along one axis; the variance stays 1 up to the edge."""
    n = field_TXYZ.shape[axis]
    energy_N = correlate1d(np.ones(n), np.square(kernel), mode="constant")
    smooth: np.ndarray = correlate1d(field_TXYZ, kernel.astype(np.float32), axis=axis, mode="constant")
    shape = [1] * field_TXYZ.ndim
    shape[axis] = n
    smooth *= (1 / np.sqrt(energy_N)).astype(np.float32).reshape(shape)
    return smooth


def _neighbours(array: np.ndarray, axis: int, *, upper: bool = False) -> np.ndarray:
    """All but the last (or, `upper`, the first) slices along an axis."""
    index = [slice(None)] * array.ndim
    index[axis] = slice(1, None) if upper else slice(None, -1)
    return array[tuple(index)]

"""Observation noise: what a tokenizer cannot say about a volume, as a random field.

A tokenizer keeps a few numbers per 64 voxels. What it drops is mostly thermal and other local noise: most of the
variance of a real frame. Decoding alone therefore gives frames that are too smooth and vary too little. A probabilistic
decoder has a likelihood, ``x = decode(z) + noise``, and a sample of the model is a draw from it, not its mean.

The noise here is Gaussian with mean 0. Over the frames of a block it is written in cosines, from the constant up (DCT-II,
as the slow drifts of a GLM are): a standard deviation per voxel and frequency, a smoothness per frequency and axis, and one
correlation between the frequencies. What is dropped is slower in some places than in others, and a GLM sees it, because the variance that
a block's response does not explain lies in the faster frequencies.

All are what the second moments of decoded frames lack of those of the originals, over blocks that the tokenizer was
fitted to, so that decoded frames and noise, drawn independently, vary as the originals do. The residuals' own moments
would not do that: where a cell crosses a border of tissues, decoding smears the variance of one side over the other,
and the residual is correlated with what was decoded.

The noise knows no condition and no subject. Reconstructions never get it; samples do (`fmrisynth sample --set observation_noise=false`
leaves it out).

Axis legend: T frames; F = T temporal frequencies; X, Y, Z voxel axes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
from scipy.ndimage import correlate1d
from scipy.optimize import brentq

from fmrisynth.data.cosines import cosines

KERNEL_RADIUS = 3
"""Half width of the smoothing kernels, voxels."""

MAX_NEIGHBOUR_R = 0.85
"""About the largest correlation of neighbours that such a kernel can give."""

SHRINKAGE_BLOCKS = 32.0
"""Weight of the spectrum that all voxels share against a voxel's own, in blocks."""


@dataclass(frozen=True)
class ObservationNoise:
    """A Gaussian random field, in the units of the tokenizer's normalisation.

    Attributes
    ----------
    std_FXYZ : float32 array
        Standard deviation per frequency and voxel, of the coefficients of `cosines`; 0 outside the brain.
    correlation_FF : float64 array
        Correlation between the frequencies.
    neighbour_r_F3 : float64 array of shape (F, 3)
        Correlation of neighbouring voxels along X, Y and Z, in [0, 0.85].
    """

    std_FXYZ: np.ndarray
    correlation_FF: np.ndarray
    neighbour_r_F3: np.ndarray

    @property
    def n_frames(self) -> int:
        """T."""
        return len(self.correlation_FF)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Draw the noise of one block, (X, Y, Z, T) float32."""
        coefficients_FXYZ = rng.standard_normal(self.std_FXYZ.shape, dtype=np.float32)
        for index, neighbour_r_3 in enumerate(self.neighbour_r_F3):
            for axis, r in enumerate(neighbour_r_3):
                coefficients_FXYZ[index] = _smooth(coefficients_FXYZ[index], smoothing_kernel(float(r)), axis)
        mixed_FV = matrix_root(self.correlation_FF).astype(np.float32) @ coefficients_FXYZ.reshape(self.n_frames, -1)
        mixed_FV *= self.std_FXYZ.reshape(self.n_frames, -1)
        noise_TV = cosines(self.n_frames).astype(np.float32).T @ mixed_FV
        return np.ascontiguousarray(np.moveaxis(noise_TV.reshape(self.std_FXYZ.shape), 0, -1))

    def draw_frames(self, *seed: int) -> Iterator[np.ndarray]:
        """Endless noise of a run, frame by frame, (X, Y, Z) float32.

        Blocks of noise overlap by half, under sine windows whose squares add up to one: every frame has the block's variance, and frames k
        apart the block's correlation times cos(pi k / T). Where blocks begin that is up to sin(pi / 2T)^2 more for neighbours, 0.017 for 12
        frames.

        Parameters
        ----------
        *seed : int
            Names the run; frame t is a function of it and t alone.
        """
        half = self.n_frames // 2
        rising = np.sin(np.pi * (np.arange(half) + 0.5) / (2 * half)).astype(np.float32)
        previous = self.draw(np.random.default_rng([*seed, 0]))
        for number in count(1):
            block = self.draw(np.random.default_rng([*seed, number]))
            mixed_XYZT = rising[::-1] * previous[..., half : 2 * half] + rising * block[..., :half]
            yield from np.moveaxis(mixed_XYZT, 3, 0)
            previous = block

    def is_sound(self) -> bool:
        """Whether all parts are finite and fit together."""
        n = self.n_frames
        return bool(
            self.correlation_FF.shape == (n, n)
            and len(self.std_FXYZ) == n
            and self.neighbour_r_F3.shape == (n, 3)
            and all(np.isfinite(part).all() for part in (self.std_FXYZ, self.correlation_FF, self.neighbour_r_F3))
            and (self.std_FXYZ >= 0).all()
            and ((self.neighbour_r_F3 >= 0) & (self.neighbour_r_F3 <= MAX_NEIGHBOUR_R)).all()
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
        self.n_blocks = 0
        self._squares_FXYZ: np.ndarray | None = None
        self._products_FF = np.zeros((0, 0))
        self._neighbour_products_F3 = np.zeros((0, 3))

    def add(self, frames_TXYZ: np.ndarray, decoded_TXYZ: np.ndarray) -> None:
        """Add a block and what its latents decode to, both 0 outside the brain."""
        n = len(frames_TXYZ)
        if self._squares_FXYZ is None:
            self._squares_FXYZ = np.zeros((n, *self.mask_XYZ.shape))
            self._products_FF, self._neighbour_products_F3 = np.zeros((n, n)), np.zeros((n, 3))
        if len(self._squares_FXYZ) != n:  # a block of another length says nothing about these frequencies
            return
        self.n_blocks += 1
        cosines_FT = cosines(n).astype(np.float32)
        for values_TXYZ, sign in ((frames_TXYZ, 1), (decoded_TXYZ, -1)):
            values_FXYZ = (cosines_FT @ values_TXYZ.reshape(n, -1)).reshape(values_TXYZ.shape)
            flat_FV = values_FXYZ[:, self.mask_XYZ]
            self._products_FF += sign * (flat_FV @ flat_FV.T).astype(np.float64)
            self._squares_FXYZ += sign * np.square(values_FXYZ)
            for axis in range(3):
                low, high = _neighbours(values_FXYZ, axis + 1), _neighbours(values_FXYZ, axis + 1, upper=True)
                products_F = np.einsum("fxyz,fxyz->f", low, high, dtype=np.float64)
                self._neighbour_products_F3[:, axis] += sign * products_F

    def finish(self) -> ObservationNoise | None:
        """The noise; None if decoded frames lack no variance."""
        if self._squares_FXYZ is None:
            return None
        lacking_FF = _nearest_covariance(self._products_FF)
        variance_FXYZ = self._shrunk(lacking_FF.diagonal()) / self.n_blocks
        if not variance_FXYZ.any() or not lacking_FF.any():
            return None
        std_FXYZ = np.sqrt(variance_FXYZ)
        scale_F = np.sqrt(lacking_FF.diagonal().clip(min=1e-30))
        # Over the product of the deviations, because the field is scaled by them after it is made smooth.
        expected_F3 = np.stack(
            [
                np.einsum("fxyz,fxyz->f", _neighbours(std_FXYZ, axis), _neighbours(std_FXYZ, axis, upper=True))
                for axis in (1, 2, 3)
            ],
            axis=1,
        )
        neighbour_r_F3 = self._neighbour_products_F3 / self.n_blocks / expected_F3.clip(min=1e-30)
        return ObservationNoise(
            std_FXYZ=std_FXYZ.astype(np.float32),
            correlation_FF=lacking_FF / np.outer(scale_F, scale_F),
            neighbour_r_F3=np.clip(neighbour_r_F3, 0.0, MAX_NEIGHBOUR_R),
        )

    def _shrunk(self, lacking_F: np.ndarray) -> np.ndarray:
        """Sums of lacking squares (F, X, Y, Z), a voxel's own spectrum drawn to the shared one."""
        assert self._squares_FXYZ is not None
        total_XYZ = self._squares_FXYZ.sum(axis=0).clip(min=0)
        share_F = lacking_F / max(lacking_F.sum(), 1e-30)
        shared_FXYZ = share_F[:, None, None, None] * total_XYZ
        own = self.n_blocks / (self.n_blocks + SHRINKAGE_BLOCKS)
        shrunk_FXYZ: np.ndarray = (own * self._squares_FXYZ + (1 - own) * shared_FXYZ).clip(min=0)
        return shrunk_FXYZ


def _nearest_covariance(products_FF: np.ndarray) -> np.ndarray:
    """The same without negative eigenvalues."""
    values, vectors = np.linalg.eigh(products_FF)
    nearest: np.ndarray = (vectors * values.clip(min=0)) @ vectors.T
    return nearest


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


def _smooth(field_XYZ: np.ndarray, kernel: np.ndarray, axis: int) -> np.ndarray:
    """Smooth along one axis; the variance stays 1 up to the edge."""
    n = field_XYZ.shape[axis]
    energy_N = correlate1d(np.ones(n), np.square(kernel), mode="constant")
    smooth: np.ndarray = correlate1d(field_XYZ, kernel.astype(np.float32), axis=axis, mode="constant")
    shape = [1] * field_XYZ.ndim
    shape[axis] = n
    smooth *= (1 / np.sqrt(energy_N)).astype(np.float32).reshape(shape)
    return smooth


def _neighbours(array: np.ndarray, axis: int, *, upper: bool = False) -> np.ndarray:
    """All but the last (or, `upper`, the first) slices along an axis."""
    index = [slice(None)] * array.ndim
    index[axis] = slice(1, None) if upper else slice(None, -1)
    return array[tuple(index)]

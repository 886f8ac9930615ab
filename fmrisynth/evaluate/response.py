"""The response of a condition in other people, and what can be told of a dataset by it: strength, timing, side and place.

Axis legend: V voxels, T frames, D delays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PATTERN_SHARE = 0.05
"""A pattern is made of this share of the voxels: those of largest abs(t) in the reference people."""

NEAR_MM = 15.0
"""A response's place is looked for within this distance of the reference people's peak."""

DELAYS_S = np.arange(-5.0, 5.01, 0.1)
SMEAR_S = 2.0


@dataclass(frozen=True)
class Pattern:
    """Where and how strongly a condition answers in the reference people.

    Attributes
    ----------
    weights_V : array, float32
        The group effect at its strongest voxels, divided by its sum of squares: a map times these is its gain, 1 for the group map itself.
    odd_weights_V : array or None
        The same of the left-right odd part of the group effect; None where the space has no midline.
    odd_energy : float
        Sum of squares of that odd part: how lateralised the condition is.
    near_V : int array
        Voxels near the peak.
    offset_mm_N3 : array
        Their positions, from the peak.
    sign : float
        Of the peak.
    """

    weights_V: np.ndarray
    odd_weights_V: np.ndarray | None
    odd_energy: float
    near_V: np.ndarray
    offset_mm_N3: np.ndarray
    sign: float

    def place_mm(self, effect_V: np.ndarray) -> np.ndarray:
        """Centre of mass of a map's response near the peak, mm from the peak, shape (3,)."""
        strength = np.maximum(self.sign * effect_V[self.near_V], 0.0)
        total = float(strength.sum())
        return (strength @ self.offset_mm_N3 / total if total > 0 else np.zeros(3)).astype(np.float32)


def _weights(effect_V: np.ndarray, t_V: np.ndarray) -> np.ndarray:
    strength = np.abs(np.nan_to_num(t_V))
    chosen = strength >= np.quantile(strength, 1 - PATTERN_SHARE)
    weights = np.where(chosen, effect_V, 0.0)
    total = float(np.square(weights).sum())
    return (weights / total if total > 0 else weights).astype(np.float32)


def make_pattern(
    effect_V: np.ndarray, variance_V: np.ndarray, positions_mm_V3: np.ndarray, mirror_V: np.ndarray | None
) -> Pattern:
    """A pattern from a group map.

    Parameters
    ----------
    effect_V, variance_V : arrays
        Group effect and its squared standard error.
    positions_mm_V3 : array
        World coordinates of the voxels.
    mirror_V : int array or None
        Index of each voxel's mirror image, -1 for none; None where the space has no midline.
    """
    effect = effect_V.astype(np.float64)
    error = np.sqrt(np.maximum(variance_V.astype(np.float64), 1e-12))
    odd, energy = None, 0.0
    if mirror_V is not None and (mirror_V >= 0).any():
        partner = np.where(mirror_V >= 0, effect[mirror_V], effect)
        odd = _weights((effect - partner) / 2, (effect - partner) / error)
        squares = float(np.square(odd, dtype=np.float64).sum())
        energy = 1 / squares if squares > 0 else 0.0
    weights = _weights(effect, effect / error)
    peak = int(np.argmax(np.abs(weights)))
    offset = positions_mm_V3 - positions_mm_V3[peak]
    near = np.flatnonzero(np.linalg.norm(offset, axis=1) <= NEAR_MM)
    return Pattern(weights, odd, energy, near, offset[near], float(np.sign(effect[peak]) or 1.0))


def mirror_index(mask_XYZ: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Index of the voxel at (-x, y, z) mm among the voxels of the mask, -1 where there is none, (V,)."""
    number = np.full(mask_XYZ.shape, -1)
    number[mask_XYZ] = np.arange(int(mask_XYZ.sum()))
    where = np.argwhere(mask_XYZ)
    world = where @ affine[:3, :3].T + affine[:3, 3]
    other = np.rint((world * [-1, 1, 1] - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T).astype(int)
    inside = ((other >= 0) & (other < mask_XYZ.shape)).all(axis=1)
    mirror = np.full(len(where), -1)
    mirror[inside] = number[tuple(other[inside].T)]
    return mirror


class Timing:
    """How late, and how much wider than a template a course is.

    ``course(t) = a template(t - delay) + b (smeared(t - delay) - template(t - delay)) + c`` by least squares over a
    grid of delays, with the template smeared by a kernel of `SMEAR_S` standard deviation: ``b / a`` times its variance
    is the change of the response's variance in s².

    Parameters
    ----------
    template_T : array
        Mean course of the reference people.
    tr_s : float
    """

    def __init__(self, template_T: np.ndarray, tr_s: float) -> None:
        from scipy.interpolate import CubicSpline

        n = len(template_T)
        time = np.arange(n) * tr_s
        spline = CubicSpline(time, template_T, bc_type="natural")
        lags = np.linspace(-2.5, 2.5, 11)
        weights = np.exp(-0.5 * lags**2)
        weights /= weights.sum()
        at_DT = time - DELAYS_S[:, None]
        shape = spline(np.clip(at_DT, 0, time[-1]))
        smeared = sum(
            weight * spline(np.clip(at_DT - lag * SMEAR_S, 0, time[-1]))
            for weight, lag in zip(weights, lags, strict=True)
        )
        curve = smeared - shape
        self._design = np.stack([shape, curve, np.ones_like(shape)], axis=-1)
        self._inverse = np.linalg.pinv(self._design)

    def __call__(self, course_T: np.ndarray) -> tuple[float, float]:
        """Delay in s and change of the response's variance in s²; NaN where the course does not follow the template at all."""
        found = self._inverse @ course_T
        error = np.square(course_T - np.einsum("dtp,dp->dt", self._design, found)).sum(axis=1)
        error = np.where(found[:, 0] > 0, error, np.inf)
        best = int(np.argmin(error))
        if not np.isfinite(error[best]):
            return float("nan"), float("nan")
        delay = DELAYS_S[best]
        if 0 < best < len(DELAYS_S) - 1 and np.isfinite(error[best - 1 : best + 2]).all():
            before, here, after = error[best - 1 : best + 2]
            bend = before - 2 * here + after
            if bend > 0:
                delay += (DELAYS_S[1] - DELAYS_S[0]) * (before - after) / (2 * bend)
        return float(delay), float(SMEAR_S**2 * found[best, 1] / found[best, 0])

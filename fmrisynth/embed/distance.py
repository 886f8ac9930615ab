"""How far two sets of features lie apart, condition by condition, with intervals over people.

Axis legend: N, M rows; D features; K conditions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Distance:
    """Two distances between features, with 95 % bootstrap intervals over people.

    Attributes
    ----------
    frechet, frechet_low, frechet_high : float
        See `frechet`.
    kernel, kernel_low, kernel_high : float
        See `kernel`.
    n, n_people : int
        Rows that were compared, and people behind them.
    """

    frechet: float
    frechet_low: float
    frechet_high: float
    kernel: float
    kernel_low: float
    kernel_high: float
    n: int
    n_people: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "frechet": self.frechet, "frechet_interval_95": [self.frechet_low, self.frechet_high],
            "kernel": self.kernel, "kernel_interval_95": [self.kernel_low, self.kernel_high], "n": self.n, "people": self.n_people,
        }  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """Features with their conditions and people.

    Attributes
    ----------
    features_ND : array
    conditions_N, people_N : arrays of str
    """

    features_ND: np.ndarray
    conditions_N: np.ndarray
    people_N: np.ndarray

    def of(self, chosen: np.ndarray) -> Rows:
        """Some of the rows."""
        return Rows(self.features_ND[chosen], self.conditions_N[chosen], self.people_N[chosen])


class Scale:
    """Leading principal components of reference features, each with unit variance: the space that distances are measured in.

    Parameters
    ----------
    reference_ND : array
        Features of real people.
    n_components : int
        At most; a tenth of the rows bounds it too, so that covariances can be told.
    """

    def __init__(self, reference_ND: np.ndarray, n_components: int = 32) -> None:
        reference_ND = np.asarray(reference_ND, np.float64)
        self._mean_D = reference_ND.mean(axis=0)
        _, singular, axes = np.linalg.svd(reference_ND - self._mean_D, full_matrices=False)
        n = max(1, min(n_components, len(reference_ND) // 10, int((singular > 1e-6 * singular[0]).sum())))
        self._axes_DC = axes[:n].T * np.sqrt(len(reference_ND)) / singular[:n]

    def __call__(self, rows: Rows) -> Rows:
        """The rows in that space."""
        scaled = (np.asarray(rows.features_ND, np.float64) - self._mean_D) @ self._axes_DC
        return Rows(scaled, rows.conditions_N, rows.people_N)


def frechet(a: Rows, b: Rows, conditions: list[str]) -> float:
    """Fréchet distance of Gaussians with a mean for each condition and one covariance within conditions.

    ``mean_k |m_k - m'_k|² + tr(C + C' - 2 (C C')^½)`` (Heusel et al. 2017, with the condition kept): what carries the wrong label is
    far away even where the whole set looks right. Small samples make it larger, so only distances of equal size compare.
    """
    means, covariances = [], []
    for rows in (a, b):
        own_K = [rows.features_ND[rows.conditions_N == c] for c in conditions]
        means.append(np.stack([own.mean(axis=0) for own in own_K]))
        centred = np.concatenate([own - own.mean(axis=0) for own in own_K])
        covariances.append(centred.T @ centred / max(1, len(centred) - len(conditions)))
    first, second = covariances
    # With C' = R'R, from the triangle of the last centred rows, the eigenvalues of C C' are those of the symmetric R C R'.
    root = np.linalg.qr(centred, mode="r") / np.sqrt(max(1, len(centred) - len(conditions)))
    cross = np.sqrt(np.linalg.eigvalsh(root @ first @ root.T).clip(0)).sum()
    return float(np.square(means[0] - means[1]).sum(axis=1).mean() + np.trace(first) + np.trace(second) - 2 * cross)


def kernel(a: Rows, b: Rows, conditions: list[str]) -> float:
    """Mean over conditions of the unbiased squared maximum mean discrepancy with the kernel ``(x·y / D + 1)³`` (Binkowski et al. 2018).

    Its expectation does not depend on the number of rows; for equal distributions it is 0, and may come out below.
    """
    found = []
    for condition in conditions:
        x, y = (rows.features_ND[rows.conditions_N == condition] for rows in (a, b))
        within = sum(np.subtract(*_cubes(own, own)) / max(1, len(own) * (len(own) - 1)) for own in (x, y))
        found.append(within - 2 * _cubes(x, y)[0] / (len(x) * len(y)))
    return float(np.mean(found))


def _cubes(x_ND: np.ndarray, y_MD: np.ndarray) -> tuple[float, float]:
    """Sum of ``(x·y / D + 1)³`` over all pairs of rows, and over those of equal index. `k**3` takes ten times as long as `k*k*k`."""
    k_NM = x_ND @ y_MD.T
    k_NM /= x_ND.shape[1]
    k_NM += 1
    own = np.diagonal(k_NM)
    return float(np.vdot(k_NM * k_NM, k_NM)), float(np.vdot(own * own, own))


def measure(
    real: Rows, other: Rows, conditions: list[str], scale: Callable[[Rows], Rows], *, paired: bool = False,
    resamples: int = 200, seed: int = 0,
) -> Distance:  # fmt: skip
    """Both distances between equally many rows of each condition.

    Parameters
    ----------
    real, other : Rows
        At least two rows of each condition.
    conditions : list of str
    scale : Scale, or another map of rows
    paired : bool
        The k-th rows of both are of the same person, so that resamples draw the same people of both.
    resamples : int
        Bootstrap samples of the people of both sides. Rows that a resample holds twice make distances of resamples larger, so the
        interval is that of the differences from their mean, around the value.
    """
    rng = np.random.default_rng(seed)
    a, b = scale(real), scale(other)
    a, b = _equal(a, b, conditions, rng)
    value = np.array([frechet(a, b, conditions), kernel(a, b, conditions)])
    draws = []
    for _ in range(resamples):
        drawn = _people(a, conditions, rng)
        x, y = a.of(drawn), b.of(drawn if paired else _people(b, conditions, rng))
        draws.append([frechet(x, y, conditions), kernel(x, y, conditions)])
    spread = np.std(draws, axis=0, ddof=1) * 1.959964
    low, high = value - spread, value + spread
    return Distance(
        value[0],
        max(0.0, low[0]),
        high[0],
        value[1],
        low[1],
        high[1],
        len(a.people_N),
        len(set(a.people_N)) + (0 if paired else len(set(b.people_N))),
    )


def _equal(a: Rows, b: Rows, conditions: list[str], rng: np.random.Generator) -> tuple[Rows, Rows]:
    chosen: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for condition in conditions:
        pools = [rng.permutation(np.flatnonzero(rows.conditions_N == condition)) for rows in (a, b)]
        n = min(map(len, pools))
        for side, pool in zip(chosen, pools, strict=True):
            side.append(pool[:n])
    return a.of(np.sort(np.concatenate(chosen[0]))), b.of(np.sort(np.concatenate(chosen[1])))


def _people(rows: Rows, conditions: list[str], rng: np.random.Generator) -> np.ndarray:
    """Rows of people drawn with replacement, drawn again until every condition has two."""
    names, of_person = np.unique(rows.people_N, return_inverse=True)
    own = [np.flatnonzero(of_person == i) for i in range(len(names))]
    for _ in range(100):
        drawn = np.concatenate([own[i] for i in rng.integers(len(names), size=len(names))])
        if all((rows.conditions_N[drawn] == c).sum() > 1 for c in conditions):
            return drawn
    return np.arange(len(rows.people_N))

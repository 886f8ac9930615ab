"""Group maps of resampled subjects: bootstrap intervals and split-half ceilings.

A resample is a vector of weights over subjects (how often each is drawn), so that the group maps of
many resamples come out of two matrix products. z is read from t through a table (error below 1e-4).

Axis legend: B repeats, S subjects, K conditions, V voxels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fmrisynth.glm.map_scores import Scores, score_maps
from fmrisynth.glm.statistics import t_to_z

MIN_SUBJECTS = 5
"""Fewer subjects than this give no bootstrap interval: it would be too narrow to be true."""

_BATCH = 16


@dataclass(frozen=True)
class GroupEffects:
    """Effect maps of the subjects of one dataset.

    Attributes
    ----------
    conditions : tuple of str
        K labels.
    subjects : tuple of str
        S labels.
    effects : dict of str to array of shape (S_k, V), float32
        Per condition, subjects in the order of `members`.
    members : dict of str to int array of shape (S_k,)
        Per condition, the indices into `subjects`.
    """

    conditions: tuple[str, ...]
    subjects: tuple[str, ...]
    effects: dict[str, np.ndarray]
    members: dict[str, np.ndarray]

    @property
    def n_per_condition(self) -> dict[str, int]:
        """Number of subjects per condition."""
        return {condition: len(self.members[condition]) for condition in self.conditions}

    def strata(self) -> list[np.ndarray]:
        """Subjects grouped by the set of conditions they have, as index arrays."""
        has = np.zeros((len(self.subjects), len(self.conditions)), bool)
        for column, condition in enumerate(self.conditions):
            has[self.members[condition], column] = True
        _, group = np.unique(has, axis=0, return_inverse=True)
        return [np.flatnonzero(group.ravel() == index) for index in range(int(group.max(initial=-1)) + 1)]

    def voxels(self, selection: np.ndarray) -> GroupEffects:
        """The same subjects over fewer voxels."""
        effects = {key: value[:, selection] for key, value in self.effects.items()}
        return GroupEffects(self.conditions, self.subjects, effects, self.members)

    def only(self, conditions: Sequence[str]) -> GroupEffects:
        """The same subjects with fewer conditions, in the order given."""
        return GroupEffects(
            tuple(conditions), self.subjects,
            {c: self.effects[c] for c in conditions}, {c: self.members[c] for c in conditions},
        )  # fmt: skip


@lru_cache(maxsize=64)
def _z_table(dof: int) -> tuple[np.ndarray, np.ndarray]:
    u = np.linspace(-8.0, 8.0, 8001)
    t = np.sinh(u)
    return t, t_to_z(t, dof).astype(np.float64)


def weighted_z(effects_SV: np.ndarray, weights_BS: np.ndarray) -> np.ndarray:
    """Random-effects z maps of many resamples.

    Parameters
    ----------
    effects_SV : array of shape (S, V), float32
        One effect map per subject.
    weights_BS : array of shape (B, S)
        How often each subject is drawn; each row sums to the same or another number >= 2.

    Returns
    -------
    array of shape (B, V), float32
        z; 0 where all drawn subjects are equal (no statistic).
    """
    weights = np.asarray(weights_BS, dtype=np.float32)
    centre = effects_SV.mean(axis=0, dtype=np.float64).astype(np.float32)
    effects = effects_SV - centre
    n = weights.sum(axis=1, dtype=np.float64)[:, None]
    mean = (weights @ effects) / n
    variance = ((weights @ effects**2) - n * mean**2) / (n - 1) / n
    total = mean + centre
    smallest = (1e-6 * np.abs(total)) ** 2
    t = np.where(variance > smallest, total / np.sqrt(np.maximum(variance, 1e-30)), 0.0)
    z = np.empty_like(t, dtype=np.float32)
    for row, count in enumerate(n[:, 0]):
        grid_t, grid_z = _z_table(round(count) - 1)
        z[row] = np.interp(t[row], grid_t, grid_z)
    return z


def _maps(data: GroupEffects, weights_BS: np.ndarray) -> np.ndarray:
    return np.stack([weighted_z(data.effects[c], weights_BS[:, data.members[c]]) for c in data.conditions], axis=1)


def draw_weights(data: GroupEffects, rng: np.random.Generator, n: int) -> np.ndarray:
    """Bootstrap draws of subjects, with replacement within strata of equal conditions; shape (n, S)."""
    weights = np.zeros((n, len(data.subjects)), np.float32)
    for stratum in data.strata():
        counts = rng.multinomial(len(stratum), np.full(len(stratum), 1.0 / len(stratum)), size=n)
        weights[:, stratum] = counts
    return weights


def draw_halves(data: GroupEffects, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Random disjoint halves of the subjects within strata, two arrays of 0/1 weights of shape (n, S)."""
    first = np.zeros((n, len(data.subjects)), np.float32)
    second = np.zeros_like(first)
    for stratum in data.strata():
        half = len(stratum) // 2
        for row in range(n):
            order = rng.permutation(stratum)
            first[row, order[:half]] = 1
            second[row, order[half:]] = 1
    return first, second


@dataclass(frozen=True)
class Interval:
    """A 95 % interval and how it came about."""

    low: float
    high: float
    n_repeats: int


def bootstrap_scores(
    real: GroupEffects, synthetic: GroupEffects, target_K: np.ndarray, n_repeats: int, seed: int
) -> Iterator[Scores]:
    """Scores of `n_repeats` resamples of real subjects and synthetic samples, in batches."""
    rng = np.random.default_rng(seed)
    done = 0
    while done < n_repeats:
        n = min(_BATCH, n_repeats - done)
        real_maps = _maps(real, draw_weights(real, rng, n))
        synthetic_maps = _maps(synthetic, draw_weights(synthetic, rng, n))
        yield score_maps(real_maps, synthetic_maps, target_K)
        done += n


def split_half_scores(real: GroupEffects, n_repeats: int, seed: int) -> Iterator[Scores]:
    """Scores of one random half of the subjects against the other, in batches."""
    rng = np.random.default_rng(seed)
    done = 0
    while done < n_repeats:
        n = min(_BATCH, n_repeats - done)
        first, second = draw_halves(real, rng, n)
        yield score_maps(_maps(real, first), _maps(real, second))
        done += n


def centred_interval(observed: float, resampled: np.ndarray, *, correlation: bool) -> Interval:
    """A 95 % bootstrap interval around the observed score.

    Resampling adds noise to both maps and so lowers every resampled correlation: the spread of the
    resamples is right, their level is not. For correlations the interval is therefore normal on Fisher's
    z scale, ``tanh(artanh(observed) +- 1.96 se)`` with the resamples' standard deviation as ``se``. It covers
    the score's expectation at these numbers of subjects and samples (simulated in the tests). Shares
    (Top-1) take the percentiles, widened where needed to hold the observed value.

    Parameters
    ----------
    observed : float
        The score of the full data.
    resampled : array of shape (B,)
        Scores of the resamples, finite.
    correlation : bool
        Whether the score is a correlation in (-1, 1); otherwise a share in [0, 1].
    """
    if correlation:
        z = np.arctanh(np.clip(resampled, -0.999999, 0.999999))
        centre = np.arctanh(np.clip(observed, -0.999999, 0.999999))
        reach = 1.959964 * z.std(ddof=1)
        low, high = np.tanh(centre - reach), np.tanh(centre + reach)
    else:
        low, high = np.clip(np.percentile(resampled, [2.5, 97.5]), 0.0, 1.0)
        low, high = min(low, observed), max(high, observed)
    return Interval(float(low), float(high), len(resampled))

"""What is measured of a dataset's signal, so that it can also be had without a group of subjects.

Blocks leave a few numbers each (`BlockRows`), maps leave sums (`Sums`): what a group of subjects added can be taken away again, so that
nothing grows with the number of subjects but the rows.

Axis legend: N blocks, G groups of subjects, T frames, V voxels, S voxels of the resampling, L lags, F frequencies,
P parcels, R regions, C cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from fmrisynth.glm.group import RANDOM_EFFECTS, SINGLE_SUBJECT
from fmrisynth.glm.statistics import Estimate, t_to_z

R = TypeVar("R")

N_LAGS = 5
N_GROUPS = 20
"""Subjects are dealt to so many groups; leaving out one at a time says how sure a number is (see `jackknife`)."""

ACTIVE_SHARE = 0.05
"""A block's active voxels are this share of all: maps of equal area, so that overlap says where and not how strong."""


def smoothness_fwhm_mm(
    residual_TV: np.ndarray, pairs: Sequence[tuple[np.ndarray, np.ndarray]], voxel_mm: Sequence[float]
) -> float:
    """Smoothness of noise from the variance of neighbour differences (Forman et al. 1995).

    ``fwhm = d sqrt(-2 ln 2 / ln(1 - var(difference) / (2 var)))`` per axis with voxel side d; geometric mean over
    axes. NaN where the residuals do not vary or are rougher than white noise.
    """
    widths = []
    for (low, high), side in zip(pairs, voxel_mm, strict=True):
        if low.size == 0:
            continue
        a, b = residual_TV[:, low], residual_TV[:, high]
        variance = (np.square(a).mean() + np.square(b).mean()) / 2
        ratio = np.square(a - b).mean() / (2 * variance) if variance > 0 else np.nan
        if not 0 < ratio < 1:
            return float("nan")
        widths.append(side * np.sqrt(-2 * np.log(2) / np.log(1 - ratio)))
    return float(np.exp(np.mean(np.log(widths)))) if widths else float("nan")


def autocorrelation(gram_TT: np.ndarray, n_lags: int) -> np.ndarray:
    """Autocorrelation over time at lags 1 .. n_lags, pooled over voxels (biased estimator).

    `gram_TT` holds the products of frames of the centred window, summed over voxels.
    """
    total = float(np.trace(gram_TT))
    if total <= 0:
        return np.full(n_lags, np.nan)
    return np.array([float(np.trace(gram_TT, lag)) / total for lag in range(1, n_lags + 1)])


def power_spectrum(gram_TT: np.ndarray, n_voxels: int) -> np.ndarray:
    """Periodogram averaged over voxels, frequencies 1 .. T // 2 of the window (%^2), from the products of frames (see
    `autocorrelation`).
    """
    fourier_FT = np.fft.rfft(np.eye(len(gram_TT)), axis=0)[1:]
    return np.einsum("ft,ts,fs->f", fourier_FT, gram_TT, fourier_FT.conj()).real / n_voxels / len(gram_TT)


def fisher_correlation(series_PT: np.ndarray) -> np.ndarray:
    """Correlations of all pairs of courses on Fisher's z scale, diagonal 0."""
    centred = series_PT - series_PT.mean(axis=1, keepdims=True)
    norm = np.sqrt(np.square(centred).sum(axis=1, keepdims=True))
    unit = np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 0)
    r = np.clip(unit @ unit.T, -0.999, 0.999)
    np.fill_diagonal(r, 0.0)
    return np.arctanh(r)


@dataclass(frozen=True)
class BlockRows:
    """The numbers that every block leaves; see `Properties`."""

    people_N: np.ndarray
    conditions_N: np.ndarray
    group_N: np.ndarray
    phase_encodings_N: np.ndarray
    courses_NRT: np.ndarray
    autocorrelation_NL: np.ndarray
    spectrum_NF: np.ndarray
    fwhm_mm_N: np.ndarray
    block_variance_N: np.ndarray
    anatomy_NC: np.ndarray
    volume_NC: np.ndarray
    effect_NC: np.ndarray
    response_NT: np.ndarray
    gain_N: np.ndarray
    odd_gain_N: np.ndarray
    place_mm_N3: np.ndarray
    effects_NS: np.ndarray

    def only(self, kept_N: np.ndarray) -> BlockRows:
        """The chosen blocks."""
        return BlockRows(*(getattr(self, entry.name)[kept_N] for entry in fields(self)))


class Sums(dict[tuple[str, ...], np.ndarray]):
    """Sums over blocks or people by name; what a part has added can be taken away again."""

    def accumulate(self, key: tuple[str, ...], value: np.ndarray | float) -> None:
        """Add to a sum, which starts at 0."""
        if key in self:
            self[key] += value
        else:
            self[key] = np.array(value, dtype=np.float64)

    def without(self, part: Sums) -> Sums:
        """What is left when a part is taken away."""
        return Sums({key: value - part[key] if key in part else value for key, value in self.items()})

    def at(self, voxels_S: np.ndarray, n_voxels: int) -> Sums:
        """The same sums at fewer voxels."""
        return Sums({key: value[voxels_S] if value.shape == (n_voxels,) else value for key, value in self.items()})

    def people(self, kind: str, condition: str, effect_V: np.ndarray) -> None:
        """Add one person's effect map to the first two moments of a condition."""
        effect = effect_V.astype(np.float64)
        for name, value in (("n", 1.0), ("sum", effect), ("square", effect**2)):
            self.accumulate((kind, condition, name), value)

    def group(self, condition: str, kind: str = "people") -> Estimate:
        """Random effects over people, or the fixed effects of the only one."""
        n = float(self[kind, condition, "n"])
        mean = self[kind, condition, "sum"] / (n or np.nan)  # nobody is left: NaN
        if n < 2:
            variance, dof = self["fixed", condition, "variance"], self["fixed", condition, "dof"]
            return Estimate(mean.astype(np.float32), variance.astype(np.float32), float(dof))
        variance = np.maximum(self[kind, condition, "square"] - n * mean**2, 0.0) / (n - 1) / n
        # A spread at the level of float32 rounding is no spread: the people are copies of each other.
        variance[variance <= (np.finfo(np.float32).eps * np.abs(mean)) ** 2] = 0.0
        return Estimate(mean.astype(np.float32), variance.astype(np.float32), n - 1)


class Memo(dict[Any, Any]):
    """Numbers by what they are; itself a key, by identity."""

    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__


@dataclass(frozen=True)
class Properties:
    """Properties of a dataset's signal.

    Attributes
    ----------
    rows : BlockRows
        Per block: person, condition, group and phase encoding; mean courses of regions (%); autocorrelation, spectrum,
        smoothness (mm); mean residual variance (%²); log reference volume, log block-mean volume and effect on cells;
        course of the condition's pattern, gain along it and along its left-right odd part, both in multiples of the
        reference people's response; place of the response (mm from the reference peak); the effect map at S voxels
        (empty where it is not kept).
    sums : Sums
        ``("people", condition, ...)`` moments of people's effects, ``("single", condition, ...)`` of one block of each
        person where they have several, ``("active", condition)`` how often a voxel was active, and more.
    parts : list of Sums
        What each group of people added, at `voxels_S`.
    voxels_S : int array
        Voxels of the resampling.
    n_voxels : int
    memo : Memo
        What `once` keeps.
    """

    rows: BlockRows
    sums: Sums
    parts: list[Sums]
    voxels_S: np.ndarray
    n_voxels: int
    memo: Memo = field(default_factory=Memo, compare=False, repr=False)

    def once(self, key: Any, compute: Callable[[], R]) -> R:
        """A number that is asked for again and again: computed the first time."""
        if key not in self.memo:
            self.memo[key] = compute()
        return self.memo[key]

    @property
    def n_groups(self) -> int:
        """How many groups of people can be left out."""
        return len(self.parts)

    def without(self, groups: Sequence[int], n_groups: int) -> Properties:
        """The properties without some of `n_groups` groups of people, at the voxels of the resampling."""
        whole, gone = self.at_resampled, [i for i in range(self.n_groups) if i % n_groups in groups]
        sums = whole.sums
        for index in gone:
            sums = sums.without(self.parts[index])
        kept = self.rows.only(~np.isin(self.rows.group_N, gone))
        memo = self.once(("without", n_groups, *groups), Memo)
        return Properties(kept, sums, [], whole.voxels_S, whole.n_voxels, memo)

    @cached_property
    def at_resampled(self) -> Properties:
        """The same properties, maps at the voxels of the resampling only."""
        n = len(self.voxels_S)
        return Properties(self.rows, self.sums.at(self.voxels_S, self.n_voxels), self.parts, np.arange(n), n)

    def halves(self, rng: np.random.Generator) -> tuple[Properties, Properties]:
        """Two disjoint random halves of the groups of people."""
        whole, order = self.at_resampled, rng.permutation(self.n_groups)
        first = Sums()
        for index in order[: self.n_groups // 2]:
            for key, value in self.parts[index].items():
                first.accumulate(key, value)
        inside = np.isin(self.rows.group_N, order[: self.n_groups // 2])
        return (
            Properties(self.rows.only(inside), first, [], whole.voxels_S, whole.n_voxels),
            Properties(self.rows.only(~inside), whole.sums.without(first), [], whole.voxels_S, whole.n_voxels),
        )

    def has(self, condition: str) -> bool:
        """Whether there are blocks of a condition."""
        return self.n_people(condition) > 0

    def n_people(self, condition: str) -> int:
        """How many people (or samples) a condition's group map holds."""
        return int(self.sums.get(("people", condition, "n"), np.zeros(())))

    def fewest(self, conditions: Sequence[str]) -> int:
        """Different people in the condition that has fewest."""
        return min(len(set(self.rows.people_N[self.rows.conditions_N == c])) for c in conditions)

    def group(self, condition: str, kind: str = "people") -> Estimate:
        """Group map of a condition."""
        return self.sums.group(condition, kind)

    def model(self, condition: str) -> str:
        """The model behind `group`."""
        return RANDOM_EFFECTS if self.n_people(condition) >= 2 else SINGLE_SUBJECT

    def z(self, condition: str) -> np.ndarray:
        """z of the group map, NaN where there is none; kept, as many comparisons ask for it."""

        def compute() -> np.ndarray:
            estimate = self.group(condition)
            return t_to_z(estimate.t, estimate.dof)

        return self.once(("z", condition), compute)

    @property
    def residual_variance_V(self) -> np.ndarray:
        """Mean over blocks of the window GLM's residual variance."""
        return self.sums["residual variance",] / self.sums["blocks",]

    @property
    def connectivity_PP(self) -> np.ndarray:
        """Mean over blocks (Fisher z) of parcel correlations of residuals."""
        return np.tanh(self.sums["connectivity",] / self.sums["blocks",])

    def effect_variance(self, condition: str) -> np.ndarray | None:
        """Variance over people of the effect of one block, (V,); None for fewer than two."""
        n = self.n_blocks_apart(condition)
        return None if n < 2 else self.group(condition, self._of_one_block(condition)).variance.astype(np.float64) * n

    def n_blocks_apart(self, condition: str) -> int:
        """How many blocks of a condition there are that do not share their person."""
        return int(self.sums.get((self._of_one_block(condition), condition, "n"), np.zeros(())))

    def _of_one_block(self, condition: str) -> str:
        """Whose moments are those of one block of each person: where people have one block each, their own."""
        return "single" if ("single", condition, "n") in self.sums else "people"

    def overlap(self, condition: str) -> float:
        """Mean Dice overlap of the active voxels of two people's blocks (maps of equal area); NaN for fewer than two."""
        n = self.n_blocks_apart(condition)
        if n < 2:
            return float("nan")
        count_V = self.sums["active", condition]
        return float((count_V * (count_V - 1)).sum() / ((n - 1) * count_V.sum()))

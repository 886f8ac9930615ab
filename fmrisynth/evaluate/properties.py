"""Properties of the signal that the realism checks look at, also with a group of subjects left out.

Axis legend: N blocks, G groups of subjects, T frames, V voxels, L lags, F frequencies, P parcels, R regions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fmrisynth.evaluate.probes import Probes
from fmrisynth.glm.design import Design
from fmrisynth.glm.statistics import RunningGroup
from fmrisynth.glm.windows import Window

N_LAGS = 5
N_GROUPS = 20
"""Subjects are dealt to so many groups; leaving out one at a time says how sure a number is (see `jackknife`)."""


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


def autocorrelation(centred_TV: np.ndarray, n_lags: int) -> np.ndarray:
    """Autocorrelation over time at lags 1 .. n_lags, pooled over voxels (biased estimator)."""
    total = float(np.square(centred_TV).sum(dtype=np.float64))
    if total <= 0:
        return np.full(n_lags, np.nan)
    return np.array(
        [float((centred_TV[lag:] * centred_TV[:-lag]).sum(dtype=np.float64)) / total for lag in range(1, n_lags + 1)]
    )


def power_spectrum(centred_TV: np.ndarray) -> np.ndarray:
    """Periodogram averaged over voxels, frequencies 1 .. T // 2 of the window (%^2)."""
    amplitude = np.fft.rfft(centred_TV, axis=0)[1:]
    return np.square(np.abs(amplitude)).mean(axis=1) / len(centred_TV)


def _fisher_correlation(series_PT: np.ndarray) -> np.ndarray:
    centred = series_PT - series_PT.mean(axis=1, keepdims=True)
    norm = np.sqrt(np.square(centred).sum(axis=1, keepdims=True))
    unit = np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 0)
    r = np.clip(unit @ unit.T, -0.999, 0.999)
    np.fill_diagonal(r, 0.0)
    return np.arctanh(r)


class _Sums:
    """What is added up over blocks, of one group of subjects or of all."""

    def __init__(self, n_voxels: int, n_parcels: int) -> None:
        self.n_blocks = 0
        self.residual_variance_V = np.zeros(n_voxels)
        self.fisher_PP = np.zeros((n_parcels, n_parcels))
        self.spread: dict[str, RunningGroup] = {}

    def add(self, condition: str, effect_V: np.ndarray, residual_variance_V: np.ndarray, fisher_PP: np.ndarray) -> None:
        self.n_blocks += 1
        self.residual_variance_V += residual_variance_V
        self.fisher_PP += fisher_PP
        self.spread.setdefault(condition, RunningGroup(len(effect_V))).add(effect_V)

    def without(self, part: _Sums) -> _Sums:
        rest = _Sums(0, 0)
        rest.n_blocks = self.n_blocks - part.n_blocks
        rest.residual_variance_V = self.residual_variance_V - part.residual_variance_V
        rest.fisher_PP = self.fisher_PP - part.fisher_PP
        rest.spread = {
            condition: group.without(part.spread[condition]) if condition in part.spread else group
            for condition, group in self.spread.items()
        }
        return rest


@dataclass(frozen=True)
class Properties:
    """Properties of a dataset's signal.

    Attributes
    ----------
    subjects_N, conditions_N : array of str
        What each block is.
    courses_NRT : array of shape (N, R, T)
        ROI mean time courses, percent.
    autocorrelation_NL, spectrum_NF, fwhm_mm_N : arrays
        Per block.
    block_variance_N : array of shape (N,)
        Mean over voxels of the window GLM's residual variance, %².
    residual_variance_V : array of shape (V,)
        Mean over blocks of the window GLM's residual variance.
    effect_variance : dict of str to array of shape (V,)
        Variance of single-block effects between blocks, per condition with two or more.
    connectivity_PP : array of shape (P, P)
        Mean over blocks (Fisher z) of parcel correlations of residuals.
    """

    subjects_N: np.ndarray
    conditions_N: np.ndarray
    courses_NRT: np.ndarray
    autocorrelation_NL: np.ndarray
    spectrum_NF: np.ndarray
    fwhm_mm_N: np.ndarray
    block_variance_N: np.ndarray
    residual_variance_V: np.ndarray
    effect_variance: dict[str, np.ndarray]
    connectivity_PP: np.ndarray
    _group_N: np.ndarray
    _total: _Sums
    _groups: list[_Sums]

    @property
    def n_groups(self) -> int:
        """How many groups of subjects can be left out."""
        return len(self._groups)

    def leave_one_group_out(self) -> Iterator[Properties]:
        """The properties without each group of subjects in turn."""
        for index, part in enumerate(self._groups):
            kept = self._group_N != index
            yield Properties(
                self.subjects_N[kept], self.conditions_N[kept], self.courses_NRT[kept], self.autocorrelation_NL[kept],
                self.spectrum_NF[kept], self.fwhm_mm_N[kept], self.block_variance_N[kept], *_means(rest := self._total.without(part)),
                self._group_N[kept], rest, [],
            )  # fmt: skip


def _means(sums: _Sums) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    spread = {
        condition: group.estimate().variance.astype(np.float64) * group.n
        for condition, group in sums.spread.items() if group.n >= 2
    }  # fmt: skip
    return sums.residual_variance_V / sums.n_blocks, spread, np.tanh(sums.fisher_PP / sums.n_blocks)


class PropertyAccumulator:
    """Measures windows one at a time.

    Parameters
    ----------
    probes : Probes
    n_groups : int, default 20
        The k-th subject to come with a condition first is dealt to group ``k % n_groups``, so that no group holds a condition alone
        in whatever order samples come; 1 for no groups.
    """

    def __init__(self, probes: Probes, n_groups: int = N_GROUPS) -> None:
        self._probes = probes
        self._shape = int(probes.mask_XYZ.sum()), probes.parcels.shape[0]
        self._total = _Sums(*self._shape)
        self._groups: list[_Sums] = []
        self._n_groups = n_groups
        self._group_of: dict[str, int] = {}
        self._dealt: Counter[str] = Counter()
        self._rows: list[tuple[str, str, int, np.ndarray, np.ndarray, np.ndarray, float, float]] = []

    def add(self, window: Window, design: Design, effect_V: np.ndarray) -> None:
        """Add a window, with its design and the block's effect."""
        block, percent, probes = window.block, window.percent_TV, self._probes
        if block.subject not in self._group_of:
            self._group_of[block.subject] = self._dealt[block.condition] % self._n_groups
            self._dealt[block.condition] += 1
        group = self._group_of[block.subject]
        if self._n_groups > 1 and group == len(self._groups):
            self._groups.append(_Sums(*self._shape))
        residual = (percent - (design.matrix_TP @ (design.pinv_PT @ percent.astype(np.float64)))).astype(np.float32)
        residual_variance = np.square(residual).sum(axis=0, dtype=np.float64) / design.dof
        fisher = _fisher_correlation(probes.parcels @ residual.T)
        for sums in (self._total, *self._groups[group : group + 1]):
            sums.add(block.condition, effect_V, residual_variance, fisher)
        centred = percent - percent.mean(axis=0)
        self._rows.append((
            block.subject, block.condition, group,
            (probes.regions @ percent.T).astype(np.float32),
            autocorrelation(centred, min(N_LAGS, len(percent) - 1)),
            power_spectrum(centred),
            smoothness_fwhm_mm(residual, probes.pairs, probes.grid.voxel_mm),
            float(residual_variance.mean()),
        ))  # fmt: skip

    def finish(self) -> Properties:
        """The properties of all windows."""
        subjects, conditions, groups, courses, lags, spectra, widths, variances = (
            np.array(column) for column in zip(*self._rows, strict=True)
        )
        means = _means(self._total)
        return Properties(
            subjects, conditions, courses, lags, spectra, widths, variances, *means, groups, self._total, self._groups
        )

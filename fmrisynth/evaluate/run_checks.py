"""Whole runs of synthetic people against those of real ones who did the same: how the two compare, and what is allowed.

Axis legend: N people, K conditions, V voxels of the common mask, L lags, R regions (one per condition), C cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import numpy as np
from scipy.special import stdtrit

from fmrisynth.evaluate.runs import BANDS_HZ, RunNumbers
from fmrisynth.progress import track

MIN_PEOPLE = 5
"""Fewer people give no interval, and no answer."""

ACTIVE_SHARE = 0.05
Answer = Literal["passes", "fails", "cannot tell"]


def map_correlation(real: Sequence[RunNumbers], synthetic: Sequence[RunNumbers]) -> np.ndarray:
    """Correlation over voxels between the group's effect maps, as a share of what as many real people would reach, (K,)."""
    both = [[_centred(p.effects_KV) for p in people] for people in (real, synthetic)]
    return _share_of_attainable(*both)


def _centred(values_KV: np.ndarray) -> np.ndarray:
    return values_KV - values_KV.mean(axis=1, keepdims=True)


def _share_of_attainable(real: Sequence[np.ndarray], synthetic: Sequence[np.ndarray]) -> np.ndarray:
    """Correlation between group means, over that expected of two groups of real people of these sizes, (K,).

    Products between different people hold what people share; a group's mean holds what its people add to that, divided by their number.
    """
    mean_KV, other_KV, n = np.mean(real, axis=0), np.mean(synthetic, axis=0), len(real)
    total_K = np.square(mean_KV).sum(axis=1)
    own_K = np.sum([np.square(person).sum(axis=1) for person in real], axis=0)
    shared_K = (n**2 * total_K - own_K) / (n * (n - 1))
    total_if_K = shared_K + (total_K - shared_K) * n / len(synthetic)
    r_K = (mean_KV * other_KV).sum(axis=1) / np.sqrt(total_K * np.square(other_KV).sum(axis=1))
    attainable_K = shared_K / np.sqrt(total_K * total_if_K)
    return np.where(shared_K > 0, r_K / np.where(shared_K > 0, attainable_K, 1), np.nan)


def slopes(real: Sequence[RunNumbers], synthetic: Sequence[RunNumbers]) -> np.ndarray:
    """How much of each real map is in each synthetic one, (K, K): rows synthetic; the diagonal is the amplitude, the rest leakage.

    Least squares on all real maps together, whose products are taken between different people only, so that their noise does not count
    as signal.
    """
    group_KV, n = _group(real), len(real)
    if n < 2:
        return np.full((len(group_KV),) * 2, np.nan)
    own_KK = np.zeros((len(group_KV),) * 2)
    for person in real:
        effects_KV = _centred(person.effects_KV)
        own_KK += effects_KV @ effects_KV.T
    moments_KK = (n**2 * group_KV @ group_KV.T - own_KK) / (n * (n - 1))
    return np.linalg.solve(moments_KK, group_KV @ _group(synthetic).T).T


def slopes_on_truth(truth_KV: np.ndarray, people: Sequence[RunNumbers]) -> np.ndarray:
    """How much of each true map is in each group map, (K, K), by least squares."""
    centred_KV = truth_KV - truth_KV.mean(axis=1, keepdims=True)
    return np.linalg.lstsq(centred_KV.T, _group(people).T, rcond=None)[0].T


def fir_correlation(real: Sequence[RunNumbers], synthetic: Sequence[RunNumbers]) -> np.ndarray:
    """Correlation over lags of a condition's response in its own region, (K,)."""
    return np.array([np.corrcoef(one, other)[0, 1] for one, other in _responses(real, synthetic)])


def peak_delay_s(real: Sequence[RunNumbers], synthetic: Sequence[RunNumbers], *, tr_s: float) -> np.ndarray:
    """How much later the synthetic response is, by the shift that fits best, (K,) s."""
    return np.array([tr_s * (_shift(other, one)) for one, other in _responses(real, synthetic)])


def spread_ratio(real: Sequence[RunNumbers], synthetic: Sequence[RunNumbers]) -> np.ndarray:
    """Standard deviation of effects between people in active voxels, synthetic over real, log, (K,)."""
    size_KV = np.abs(_group(real))
    active_KV = size_KV >= np.quantile(size_KV, 1 - ACTIVE_SHARE, axis=1, keepdims=True)
    both = [np.stack([one.effects_KV for one in people]).var(axis=0, ddof=1) for people in (real, synthetic)]
    return np.array(
        [0.5 * np.log(both[1][k][active].mean() / both[0][k][active].mean()) for k, active in enumerate(active_KV)]
    )


def connectivity_correlation(real: Sequence[RunNumbers], synthetic: Sequence[RunNumbers]) -> np.ndarray:
    """Correlation over pairs of cells between the groups' connectivity, as a share of what as many real people would reach, (1,)."""
    upper = np.triu_indices(len(real[0].connectivity_CC), 1)
    both = [np.stack([p.connectivity_CC[upper] for p in people]) for people in (real, synthetic)]
    known = np.isfinite(both[0]).all(axis=0) & np.isfinite(both[1]).all(axis=0)
    return _share_of_attainable(*([_centred(row[None, known]) for row in rows] for rows in both))


def ratio(name: str, real: Sequence[RunNumbers], synthetic: Sequence[RunNumbers]) -> np.ndarray:
    """Log of a positive number of synthetic people over that of real ones, geometric means."""
    with np.errstate(divide="ignore", invalid="ignore"):  # a short run has no frequency in the lowest band
        one, other = (np.mean([np.log(getattr(p, name)) for p in people], axis=0) for people in (real, synthetic))
        return np.atleast_1d(other - one)


def difference(name: str, real: Sequence[RunNumbers], synthetic: Sequence[RunNumbers]) -> np.ndarray:
    """Difference of the means of a number."""
    one, other = (np.mean([getattr(p, name) for p in people], axis=0) for people in (real, synthetic))
    return np.atleast_1d(other - one)


def _group(people: Sequence[RunNumbers]) -> np.ndarray:
    return _centred(np.mean([p.effects_KV for p in people], axis=0))


def _responses(real: Sequence[RunNumbers], synthetic: Sequence[RunNumbers]) -> list[tuple[np.ndarray, np.ndarray]]:
    both = [np.nanmean([p.fir_KLR for p in people], axis=0) for people in (real, synthetic)]
    known = [np.isfinite(both[0][k, :, k]) for k in range(len(both[0]))]
    return [(both[0][k, own, k], both[1][k, own, k]) for k, own in enumerate(known)]


def _shift(course: np.ndarray, template: np.ndarray) -> float:
    """Lags by which a course follows a template, by the correlation's peak on a fine grid."""
    lags, fine = np.arange(len(course)), np.arange(-4, 4.01, 0.05)
    scores = [np.corrcoef(course, np.interp(lags - shift, lags, template))[0, 1] for shift in fine]
    return float(fine[int(np.argmax(scores))])


@dataclass(frozen=True)
class RunCheck:
    """One comparison: what is computed, and between which limits it must lie for the synthetic runs to pass."""

    key: str
    title: str
    compute: Callable[[Sequence[RunNumbers], Sequence[RunNumbers]], np.ndarray]
    least: float
    most: float
    unit: str = ""


@dataclass(frozen=True)
class RunVerdict:
    """A check's value, its 95 % interval over people (of both datasets), and the answer."""

    check: RunCheck
    value: float
    low: float
    high: float
    each: tuple[float, ...]
    answer: Answer


def run_checks(tr_s: float) -> list[RunCheck]:
    """All checks; limits as stated in docs/runs.md."""
    third = math.log(4 / 3)
    bands = [f"{low:g} to {high:g} Hz" for low, high in pairwise(BANDS_HZ)]

    def band(b: int, real: Sequence[RunNumbers], synthetic: Sequence[RunNumbers]) -> np.ndarray:
        return ratio("power_B", real, synthetic)[b : b + 1]

    def diagonal(real: Sequence[RunNumbers], synthetic: Sequence[RunNumbers]) -> np.ndarray:
        return np.diag(slopes(real, synthetic))

    def leakage(real: Sequence[RunNumbers], synthetic: Sequence[RunNumbers]) -> np.ndarray:
        found_KK = np.abs(slopes(real, synthetic))
        np.fill_diagonal(found_KK, 0)
        return found_KK.max(axis=1)

    return [
        RunCheck("maps", "Group maps, r over voxels against as many real people", map_correlation, 0.9, 1.0),
        RunCheck("amplitude", "Amplitude of group maps (slope)", diagonal, 0.85, 1.15),
        RunCheck("leakage", "Largest leakage from another condition (slope)", leakage, 0.0, 0.1),
        RunCheck("spread", "Spread of effects between people, log ratio", spread_ratio, -third, third),
        RunCheck("fir", "Impulse responses, r over lags", fir_correlation, 0.95, 1.0),
        RunCheck("latency", "Latency of responses, s later", partial(peak_delay_s, tr_s=tr_s), -0.7, 0.7, "s"),
        RunCheck("sd", "Residual standard deviation, log ratio", partial(ratio, "sd"), -third / 2, third / 2),
        RunCheck("lag1", "Lag-1 autocorrelation, difference", partial(difference, "lag1"), -0.05, 0.05),
        *(RunCheck(f"power{b}", f"Power at {name}, log ratio", partial(band, b), -third, third) for b, name in enumerate(bands)),
        RunCheck("global", "Global signal, log ratio of standard deviations", partial(ratio, "global_sd"), -third, third),
        RunCheck("connectivity", "Connectivity, r over pairs of cells against as many real people", connectivity_correlation, 0.9, 1.0),
        RunCheck("border", "Step at window borders, log ratio to elsewhere", partial(ratio, "border"), -0.05, 0.05),
    ]  # fmt: skip


def judge(checks: Sequence[RunCheck], real: Sequence[RunNumbers], synthetic: Sequence[RunNumbers]) -> list[RunVerdict]:
    """Compute all checks with delete-one intervals over the people of both datasets."""
    verdicts = []
    for check in track(list(checks), "Checks"):
        values_K = check.compute(real, synthetic)
        value, spread = float(np.mean(values_K)), 0.0
        if not math.isfinite(value) or min(len(real), len(synthetic)) < MIN_PEOPLE:
            verdicts.append(
                RunVerdict(check, value, math.nan, math.nan, tuple(float(v) for v in values_K), "cannot tell")
            )
            continue
        for people, swap in ((real, False), (synthetic, True)):
            rests = [[*people[:number], *people[number + 1 :]] for number in range(len(people))]
            parts = [float(np.mean(check.compute(*((real, rest) if swap else (rest, synthetic))))) for rest in rests]
            spread += (len(people) - 1) * float(np.var(parts))
        half = float(stdtrit(max(1, min(len(real), len(synthetic)) - 1), 0.975)) * math.sqrt(spread)
        low, high = value - half, value + half
        inside, apart = check.least <= low and high <= check.most, high < check.least or low > check.most
        if check.most == 1.0 and check.least > 0:  # correlations have no upper limit to overstep
            inside = low >= check.least
        answer: Answer = "passes" if inside else "fails" if apart else "cannot tell"
        verdicts.append(RunVerdict(check, value, low, high, tuple(float(v) for v in values_K), answer))
    return verdicts

"""How sure the checks are, by leaving out groups of people.

Delete-a-group jackknife (Kott 2001): real people, samples and the real blocks that set a ceiling are dealt to G groups
each, the g-th group of all of them is left out at once, and the spread of a number over what is left says how much it
would vary between cohorts. Where a number depends on products of what several groups add, as correlations of noisy maps
do, that counts their variance once for each group; leaving out two groups at once says how much too often (see
`jackknife_variance`). The model that made the samples stays the same. Unlike a bootstrap it never draws a person twice,
which would add noise to both sides of a pattern correlation.

An interval covers what the number would be on average over cohorts of as many people and samples, not what endless data would give.

Axis legend: G groups of people, K conditions (or one pooled value).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.special import stdtrit

from fmrisynth.evaluate.checks import CHECKS, Check, Context, Found, Verdict
from fmrisynth.evaluate.properties import N_GROUPS, Properties

Standing = Literal["nearer", "even", "farther"]
Values = dict[str, Found | None]

MIN_SUBJECTS = 5
"""Fewer people or samples than this in a condition give no interval, and no answer."""

STATISTICS = tuple(check for check in CHECKS if check.statistic is not None)


def jackknife_variance(left_out_G: np.ndarray, pairs_G: np.ndarray) -> np.ndarray:
    """Variance of a number by leaving out groups and pairs of groups.

    Let V_k be the variance of what depends on k groups together (Efron and Stein 1981). Leaving out one group measures
    ``first = sum_k k V_k``, the second differences of pairs ``second = sum_k k (k - 1) / 2 V_k``; wanted is
    ``sum_k V_k``. It is ``first - second`` where k is 1 or 2, and ``first^2 / (first + 2 second)`` for any single k;
    neither can be more than wanted, so the larger counts. Beyond three groups (the geometries of two sets of maps)
    nothing is expected: `second` is at most `first`.

    Parameters
    ----------
    left_out_G : array of shape (G, ...)
        The number without group g.
    pairs_G : array of shape (G, ...)
        Without groups g and g + 1 (of the last and the first for the last): a sample of all pairs.
    """
    n = len(left_out_G)
    first = (n - 1) * left_out_G.var(axis=0)
    second = ((n - 2) * pairs_G - (n - 1) * (left_out_G + np.roll(left_out_G, -1, axis=0))).var(axis=0) / 2
    second = np.minimum(second, first)
    return np.asarray(np.maximum(first - second, first**2 / np.maximum(first + 2 * second, 1e-300)))


@dataclass(frozen=True)
class Evidence:
    """Judged numbers of all statistics: of the whole data, without each group of people, and without each pair of neighbouring groups."""

    whole: Values
    left_out: list[Values]
    pairs: list[Values]
    fewest: int

    def quantile(self, tail: float = 0.025) -> float:
        """How many standard errors an interval reaches that leaves so much probability on either side (Student's t)."""
        return float(stdtrit(len(self.left_out) - 1, 1 - tail))

    def variance(self, key: str, number: Callable[[Found], np.ndarray | float]) -> np.ndarray | None:
        """Variance of a number of a check; None where it could not be had without some group."""
        numbers = []
        for part in (self.left_out, self.pairs):
            found = [values.get(key) for values in part]
            if not found or any(one is None for one in found):
                return None
            numbers.append(np.array([number(one) for one in found if one is not None]))
        return jackknife_variance(*numbers) if all(np.isfinite(n).all() for n in numbers) else None


def measure(real: Properties, other: Properties, peer: Properties | None, context: Context) -> Values:
    """All statistics of one dataset."""
    return {
        check.key: check.statistic(real, other, peer, context) for check in STATISTICS if check.statistic is not None
    }


def gather(
    real: Properties, other: Properties, peer: Properties | None, context: Context, n_groups: int | None = None
) -> Evidence:
    """Measure a dataset, with and without groups of people.

    `real` are people to compare with, `other` the samples (or what stands in their place), `peer` as many blocks of
    other real people: what can be reached. At most `n_groups` groups; by default as many as the dataset with fewest can
    be dealt to.
    """
    few = peer is None or peer.n_groups < MIN_SUBJECTS  # too few to say how sure the ceiling is
    ceiling = None if few else peer
    g = min(n_groups or N_GROUPS, *(p.n_groups for p in (real, other, ceiling) if p is not None))
    fewest = min(p.fewest(context.conditions) for p in (real, other))

    def without(*groups: int) -> Values:
        best = None if ceiling is None else ceiling.without(groups, g)
        return measure(real.without(groups, g), other.without(groups, g), best, context)

    enough = min(fewest, g) >= MIN_SUBJECTS
    left_out = [without(i) for i in range(g)] if enough else []
    pairs = [without(i, (i + 1) % g) for i in range(g)] if enough else []
    return Evidence(measure(real, other, peer, context), left_out, pairs, fewest)


def judge(evidence: Evidence) -> dict[str, Verdict]:
    """The verdicts of all statistics."""
    return {check.key: _verdict(check, evidence) for check in STATISTICS}


def _verdict(check: Check, evidence: Evidence) -> Verdict:
    found = evidence.whole[check.key]
    if found is None:
        note = "Not measured: the data lack what it needs, or real people do not reproduce it."
        return Verdict(check, "unclear", note=note)
    real, other = (float(v) if np.isfinite(v) else None for v in (found.real, found.other))
    value = float(found.values_K.mean())
    if not np.isfinite(value):
        if real is not None and other is None and evidence.left_out:
            return Verdict(check, "fail", real, None, note="The samples lack this property altogether.")
        return Verdict(check, "unclear", real, other, note="Could not be measured.")
    pooled = evidence.variance(check.key, lambda one: one.values_K.mean())
    if pooled is None:
        note = f"No interval: it needs {MIN_SUBJECTS} people and samples in each condition, the fewest are {evidence.fewest}."
        if evidence.left_out:
            note = f"No interval: not measurable without some group of people, or fewer than {MIN_SUBJECTS} people set the ceiling."
        return Verdict(check, "unclear", real, other, check.shown(value), note=note)
    verdict = Verdict.of(check, real, other, value, evidence.quantile() * float(np.sqrt(pooled)))
    each_K = evidence.variance(check.key, lambda one: one.values_K)
    if not found.names or each_K is None:
        return verdict
    reach_K = evidence.quantile(0.025 / len(found.names)) * np.sqrt(each_K)  # Bonferroni
    parts = {
        name: (check.shown(float(one)), check.answer(one - own, one + own))
        for name, one, own in zip(found.names, found.values_K, reach_K, strict=True)
    }
    failed = any(answer == "fail" for _, answer in parts.values())
    return replace(verdict, parts=parts, answer="fail" if failed else verdict.answer)


def standings(own: Evidence, rival: Evidence) -> dict[str, Standing | None]:
    """Whether a rival's data are nearer to the real data than ours, beyond chance, per statistic; None where that is not known.

    Both must be judged against the same real people and peers, dealt to the same groups.
    """
    return {check.key: _standing(check, own, rival) for check in STATISTICS}


def _standing(check: Check, own: Evidence, rival: Evidence) -> Standing | None:
    def misses(values: Sequence[Values]) -> np.ndarray | None:
        found = [v.get(check.key) for v in values]
        if not found or any(f is None or not np.isfinite(f.values_K).all() for f in found):
            return None
        misses_G = np.array([check.miss(float(f.values_K.mean())) for f in found if f is not None])
        return misses_G if check.kind in ("share", "distance") else np.abs(misses_G)

    gaps = []
    for a, b in (([own.whole], [rival.whole]), (own.left_out, rival.left_out), (own.pairs, rival.pairs)):
        ours, theirs = misses(a), misses(b)
        if ours is None or theirs is None or len(ours) != len(theirs):
            return None
        gaps.append(theirs - ours)
    reach = own.quantile() * float(np.sqrt(jackknife_variance(gaps[1], gaps[2])))
    gap = float(gaps[0][0])
    return "nearer" if gap < -reach else "farther" if gap > reach else "even"

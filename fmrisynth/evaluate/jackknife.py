"""How sure the checks are, by leaving out groups of people.

Delete-a-group jackknife (Kott 2001): people are dealt to G groups, and the spread of a number over the G datasets that lack one
group says how much it would vary between cohorts, ``var = (G - 1) / G sum_g (value_g - mean)^2``. Real people, samples and the real blocks
that set a ceiling are left out separately and the variances added; the model that made the samples stays the same. Unlike a bootstrap it
never draws a person twice, which would add noise to both sides of a pattern correlation.

Axis legend: G groups of people, K conditions (or one pooled value).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import stdtrit

from fmrisynth.evaluate.checks import CHECKS, Check, Context, Found, Verdict
from fmrisynth.evaluate.properties import Properties

Standing = Literal["nearer", "even", "farther"]
Values = dict[str, Found | None]

MIN_SUBJECTS = 5
"""Fewer people or samples than this in a condition give no interval, and no answer."""

STATISTICS = tuple(check for check in CHECKS if check.statistic is not None)


@dataclass(frozen=True)
class Evidence:
    """Judged numbers of all statistics: of the whole data, and without each group of real people, of samples, of peers."""

    whole: Values
    left_out: tuple[list[Values], ...]
    fewest: int

    @property
    def dof(self) -> int:
        """Degrees of freedom of an interval: those of the fewer groups."""
        return min(len(part) for part in self.left_out[:2]) - 1

    def variance(self, key: str) -> tuple[np.ndarray, float] | None:
        """Jackknife variances of a check's values and of their mean; None where it could not be judged each time."""
        if self.fewest < MIN_SUBJECTS:
            return None
        each, pooled = 0.0, 0.0
        for part in self.left_out:
            found = [values.get(key) for values in part]
            if any(one is None or not np.isfinite(one.values_K).all() for one in found):
                return None
            values_GK = np.stack([one.values_K for one in found if one is not None])
            each = each + (len(part) - 1) * values_GK.var(axis=0)
            pooled += (len(part) - 1) * float(values_GK.mean(axis=1).var())
        return np.asarray(each), pooled

    def error_of(self, key: str) -> float | None:
        """Standard error of what the samples reach in a correlation, on Fisher's z scale; None where that is not known."""
        if self.fewest < MIN_SUBJECTS:
            return None
        total = 0.0
        for part in self.left_out[:2]:
            found = [values.get(key) for values in part]
            if any(one is None or not np.isfinite(one.other) for one in found):
                return None
            z_G = np.arctanh(np.clip([one.other for one in found if one is not None], -0.999999, 0.999999))
            total += (len(part) - 1) * float(z_G.var())
        return float(np.sqrt(total))


def measure(real: Properties, other: Properties, peer: Properties | None, context: Context) -> Values:
    """All statistics of one dataset."""
    return {
        check.key: check.statistic(real, other, peer, context) for check in STATISTICS if check.statistic is not None
    }


def gather(real: Properties, other: Properties, peer: Properties | None, context: Context) -> Evidence:
    """Measure a dataset, with and without each group of people.

    Parameters
    ----------
    real, other : Properties
        Real people to compare with, and the samples (or what stands in their place).
    peer : Properties or None
        As many blocks of other real people as there are samples: what can be reached.
    context : Context
    """
    fewest = min(p.fewest(context.conditions) if p.n_groups >= MIN_SUBJECTS else 0 for p in (real, other))
    parts: list[list[Values]] = [[], []]
    if fewest >= MIN_SUBJECTS:
        small_real, small_other = real.at_resampled, other.at_resampled
        small_peer = None if peer is None else peer.at_resampled
        parts = [
            [measure(part, small_other, small_peer, context) for part in real.leave_one_group_out()],
            [measure(small_real, part, small_peer, context) for part in other.leave_one_group_out()],
        ]
        if peer is not None and peer.n_groups >= MIN_SUBJECTS:
            parts.append([measure(small_real, small_other, part, context) for part in peer.leave_one_group_out()])
    return Evidence(measure(real, other, peer, context), tuple(parts), fewest)


def judge(evidence: Evidence, conditions: Sequence[str]) -> dict[str, Verdict]:
    """The verdicts of all statistics."""
    return {check.key: _verdict(check, evidence, conditions) for check in STATISTICS}


def _verdict(check: Check, evidence: Evidence, conditions: Sequence[str]) -> Verdict:
    found = evidence.whole[check.key]
    if found is None:
        return Verdict(
            check, "unclear", note="Not measured: the data lack what it needs, or real people do not reproduce it."
        )
    real, other = (float(v) if np.isfinite(v) else None for v in (found.real, found.other))
    value = float(found.values_K.mean())
    if not np.isfinite(value):
        if real is not None and other is None:
            return Verdict(check, "fail", real, None, note="The samples lack this property altogether.")
        return Verdict(check, "unclear", real, other, note="Could not be measured.")
    variance = evidence.variance(check.key)
    if variance is None:
        note = f"No interval: it needs {MIN_SUBJECTS} people and samples in each condition, the fewest are {evidence.fewest}."
        if evidence.fewest >= MIN_SUBJECTS:
            note = "No interval: not measurable without some group of people."
        return Verdict(check, "unclear", real, other, check.shown(value), note=note)
    each_K, pooled = variance
    reach = float(stdtrit(evidence.dof, 0.975)) * np.sqrt(pooled)
    answer = check.answer(value - reach, value + reach)
    per_condition = {}
    if len(found.values_K) == len(conditions) > 1:
        reach_K = float(stdtrit(evidence.dof, 1 - 0.025 / len(conditions))) * np.sqrt(each_K)  # Bonferroni
        for name, one, own in zip(conditions, found.values_K, reach_K, strict=True):
            per_condition[name] = (check.shown(float(one)), check.answer(one - own, one + own))
        if any(own == "fail" for _, own in per_condition.values()):
            answer = "fail"
    return Verdict(
        check,
        answer,
        real,
        other,
        check.shown(value),
        check.shown(value - reach),
        check.shown(value + reach),
        per_condition,
    )


def standings(own: Evidence, rival: Evidence) -> dict[str, Standing | None]:
    """Whether a rival's data are nearer to the real data than ours, beyond chance, per statistic; None where that is not known.

    Both must be judged against the same real people and peers, which are left out of both at once.
    """
    return {check.key: _standing(check, own, rival) for check in STATISTICS}


def _standing(check: Check, own: Evidence, rival: Evidence) -> Standing | None:
    def misses(values: Sequence[Values]) -> np.ndarray | None:
        found = [v.get(check.key) for v in values]
        if any(f is None or not np.isfinite(f.values_K).all() for f in found):
            return None
        misses_G = np.array([check.miss(float(f.values_K.mean())) for f in found if f is not None])
        return misses_G if check.kind in ("share", "distance") else np.abs(misses_G)

    if min(own.fewest, rival.fewest) < MIN_SUBJECTS or len(own.left_out) != len(rival.left_out):
        return None
    whole, theirs = misses([own.whole]), misses([rival.whole])
    parts = [(misses(a), misses(b)) for a, b in zip(own.left_out, rival.left_out, strict=True)]
    if whole is None or theirs is None:
        return None
    variance = 0.0
    for index, (a, b) in enumerate(parts):
        if a is None or b is None:
            return None
        pairs = (
            [a, b] if index == 1 else [b - a]
        )  # samples are left out of either alone, real people and peers of both at once
        variance += sum((len(v) - 1) * float(v.var()) for v in pairs)
    gap = float(theirs[0] - whole[0])
    reach = float(stdtrit(min(own.dof, rival.dof), 0.975)) * np.sqrt(variance)
    return "nearer" if gap < -reach else "farther" if gap > reach else "even"

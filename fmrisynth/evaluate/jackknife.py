"""How sure the realism checks are: intervals, and comparisons with a rival, by leaving out groups of subjects.

Delete-a-group jackknife (Kott 2001): subjects are dealt to G groups, and the spread of a number over the G datasets that lack one
group says how much it would vary between cohorts, ``var = (G - 1) / G sum_g (value_g - mean)^2``. Real subjects and samples are left
out separately and the variances added; the model that made the samples stays the same. Unlike a bootstrap it never draws a
subject twice, which would add noise to both sides of a pattern correlation.

Axis legend: G groups of subjects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.special import stdtrit

from fmrisynth.evaluate.properties import Properties
from fmrisynth.evaluate.realism import Check, Kind, realism_checks
from fmrisynth.evaluate.resampling import MIN_SUBJECTS
from fmrisynth.evaluate.rois import Roi

Standing = Literal["nearer", "even", "farther"]
Values = dict[str, float | None]


@dataclass(frozen=True)
class LeftOut:
    """Judged numbers of all checks, by key, without one group of real subjects and without one group of samples."""

    without_real_G: list[Values]
    without_samples_G: list[Values]

    @property
    def t(self) -> float:
        """Half-width of a 95 % interval in standard errors: Student's, with the fewer groups' degrees of freedom."""
        return float(stdtrit(min(len(self.without_real_G), len(self.without_samples_G)) - 1, 0.975))


@dataclass(frozen=True)
class Realism:
    """The realism checks of one dataset, with intervals, and what is needed to compare it with a rival."""

    checks: list[Check]
    left_out: LeftOut | None


def judge_realism(
    real: Properties,
    synthetic: Properties,
    conditions: list[str],
    rois: Sequence[Roi],
    reference: Properties | None = None,
) -> Realism:
    """`realism_checks` with 95 % intervals, where every condition has at least five subjects and five samples."""
    checks = realism_checks(real, synthetic, conditions, rois, reference)
    left_out = _leave_out(real, synthetic, conditions, rois)
    if left_out is not None:
        checks = [_with_interval(check, left_out) for check in checks]
    return Realism(checks, left_out)


def standings(own: Realism, rival: Realism) -> dict[str, Standing | None]:
    """Whether a rival's data are nearer to the real data than ours, beyond chance, per check; None where that is not known.

    Both must be judged against the same real subjects, which are left out of both at once.
    """
    pairs = zip(own.checks, rival.checks, strict=True)
    return {check.key: _standing(check, own.left_out, theirs, rival.left_out) for check, theirs in pairs}


def _leave_out(real: Properties, synthetic: Properties, conditions: list[str], rois: Sequence[Roi]) -> LeftOut | None:
    for properties in (real, synthetic):
        pairs = set(zip(properties.subjects_N, properties.conditions_N, strict=True))
        counts = Counter(condition for _, condition in pairs)
        if properties.n_groups < MIN_SUBJECTS or min(counts[condition] for condition in conditions) < MIN_SUBJECTS:
            return None

    def values(real: Properties, synthetic: Properties) -> Values:
        return {check.key: check.value for check in realism_checks(real, synthetic, conditions, rois)}

    return LeftOut(
        [values(part, synthetic) for part in real.leave_one_group_out()],
        [values(real, part) for part in synthetic.leave_one_group_out()],
    )


def _with_interval(check: Check, left_out: LeftOut) -> Check:
    """Of logarithms for ratios, on Fisher's z scale for correlations."""
    scale, back, least, most = _SCALES[check.kind]
    variance = _variance(check.key, scale, left_out.without_real_G, left_out.without_samples_G)
    if check.value is None or variance is None:
        return check
    centre, reach = scale(check.value), left_out.t * np.sqrt(variance)
    return replace(check, low=max(least, float(back(centre - reach))), high=min(most, float(back(centre + reach))))


def _standing(check: Check, left_out: LeftOut | None, rival: Check, rival_left_out: LeftOut | None) -> Standing | None:
    if left_out is None or rival_left_out is None or check.value is None or rival.value is None:
        return None
    key, kind = check.key, check.kind
    gap_G = [
        {key: _gap(kind, theirs[key], ours[key])}
        for ours, theirs in zip(left_out.without_real_G, rival_left_out.without_real_G, strict=True)
    ]
    variance = _variance(key, lambda gap: gap, gap_G)
    own = _variance(key, lambda value: _miss(kind, value), left_out.without_samples_G)
    theirs = _variance(key, lambda value: _miss(kind, value), rival_left_out.without_samples_G)
    if variance is None or own is None or theirs is None:
        return None
    gap = _miss(kind, rival.value) - _miss(kind, check.value)
    reach = max(left_out.t, rival_left_out.t) * np.sqrt(variance + own + theirs)
    return "nearer" if gap < -reach else "farther" if gap > reach else "even"


def _miss(kind: Kind, value: float) -> float:
    """How far a judged number is from that of perfect data; 0 at best."""
    if kind == "ratio":
        return abs(float(np.log(max(value, 1e-12))))
    return abs(value) if kind in ("difference", "distance") else 1.0 - value


def _gap(kind: Kind, theirs: float | None, ours: float | None) -> float | None:
    return None if theirs is None or ours is None else _miss(kind, theirs) - _miss(kind, ours)


def _variance(key: str, scale: Callable[[float], float], *parts: Sequence[Values]) -> float | None:
    """Sum of the jackknife variances of one check; None where it could not be judged."""
    total = 0.0
    for part in parts:
        values = [values.get(key) for values in part]
        if any(value is None for value in values):
            return None
        scaled_G = np.array([scale(value) for value in values if value is not None])
        total += (len(part) - 1) * float(scaled_G.var())
    return total


def _fisher(r: float) -> float:
    return float(np.arctanh(np.clip(r, -0.999999, 0.999999)))


def _log(ratio: float) -> float:
    return float(np.log(max(ratio, 1e-12)))


def _same(value: float) -> float:
    return value


_SCALES: dict[Kind, tuple[Callable[[float], float], Callable[[float], float], float, float]] = {
    "ratio": (_log, np.exp, 0.0, np.inf),
    "difference": (_same, _same, -np.inf, np.inf),
    "distance": (_same, _same, 0.0, np.inf),
    "correlation": (_fisher, np.tanh, -1.0, 1.0),
    "share": (_same, _same, 0.0, 1.0),
}

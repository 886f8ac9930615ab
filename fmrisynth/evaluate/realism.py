"""Do synthetic blocks look like real ones? Ratios and distances with the real data's own spread beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fmrisynth.evaluate.courses import (
    agreement,
    course_pairs,
    mean_agreement,
    mean_correlation,
    share_in_band,
    share_in_band_of_draws,
)
from fmrisynth.evaluate.properties import Properties
from fmrisynth.evaluate.rois import Roi
from fmrisynth.glm.map_scores import off_diagonal, pearson

Outcome = Literal["pass", "warn", "fail", "info"]
Kind = Literal["ratio", "difference", "distance", "correlation", "share"]


@dataclass(frozen=True)
class Check:
    """One comparison of a property.

    Attributes
    ----------
    key, title : str
    kind : {"ratio", "difference", "distance", "correlation", "share"}
        What sort of number `value` is: perfect data give 1, 0, 0, 1, 1.
    real, synthetic : float or None
        The property itself.
    value : float or None
        The number that is judged.
    what : str
        What `value` is, in words.
    outcome : {"pass", "warn", "fail", "info"}
    bounds : str
        The rule, in words.
    note : str
    low, high : float or None
        95 % interval of `value` (see `jackknife`).
    """

    key: str
    title: str
    kind: Kind
    real: float | None
    synthetic: float | None
    value: float | None
    what: str
    outcome: Outcome
    bounds: str
    note: str = ""
    low: float | None = None
    high: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "title": self.title, "real": self.real, "synthetic": self.synthetic, "value": self.value,
            "interval_95": None if self.low is None else [self.low, self.high], "what": self.what, "outcome": self.outcome, "bounds": self.bounds,
            "note": self.note,
        }  # fmt: skip


def _ratio_check(key: str, title: str, real: float, synthetic: float, good: float, bad: float, note: str = "") -> Check:
    """Pass within a factor `good`, fail beyond a factor `bad`, look in between."""
    bounds = f"passes between {1 / good:.2f} and {good:.2f}, fails beyond {1 / bad:.2f} or {bad:.2f}"
    if not (np.isfinite(real) and np.isfinite(synthetic)) or real <= 0:
        reason = note or "the property does not exist in one of the datasets (no variation)"
        outcome: Outcome = "fail" if np.isfinite(real) and real > 0 else "info"
        return Check(key, title, "ratio", _number(real), _number(synthetic), None, "ratio", outcome, bounds, reason)
    ratio = synthetic / real
    distance = abs(np.log(ratio)) if ratio > 0 else np.inf
    outcome = "pass" if distance <= np.log(good) else "warn" if distance <= np.log(bad) else "fail"
    return Check(key, title, "ratio", real, synthetic, float(ratio), "synthetic / real", outcome, bounds, note)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def realism_checks(
    real: Properties,
    synthetic: Properties,
    conditions: list[str],
    rois: Sequence[Roi],
    reference: Properties | None = None,
) -> list[Check]:
    """All realism checks of section 9 that are numbers, without intervals.

    Parameters
    ----------
    real, synthetic : Properties
        To compare.
    conditions : list of str
        Conditions of both.
    rois : sequence of Roi
        Regions of the properties' courses; each is judged in the conditions it belongs to.
    reference : Properties, optional
        Training split: how well real data match real data (connectivity ceiling).
    """
    chosen = np.isin(real.conditions_N, conditions)
    checks = [
        _ratio_check("residual_variance", "Voxel variance over time",
                     float(np.median(real.residual_variance_V)), float(np.median(synthetic.residual_variance_V)), 1.5, 2.5,
                     "median over voxels of the variance that the task does not explain, %²"),
        _ratio_check("variance_spread", "Differences in variance between blocks",
                     _log_spread(real.block_variance_N[chosen]), _log_spread(synthetic.block_variance_N), 1.5, 2.5,
                     "standard deviation over blocks of the logarithm of their mean variance: some people and some blocks are noisier"),
        _between_variance(real, synthetic, conditions),
        _difference("autocorrelation", "Temporal autocorrelation (lag 1)",
                    _mean(real.autocorrelation_NL[chosen, 0]), _mean(synthetic.autocorrelation_NL[:, 0]), 0.1, 0.2),
        _spectrum_check(real, synthetic, chosen),
        _ratio_check("smoothness", "Spatial smoothness (FWHM of residuals, mm)",
                     _mean(real.fwhm_mm_N[chosen]), _mean(synthetic.fwhm_mm_N), 1.2, 1.5),
        _variance_map(real, synthetic, reference),
        _connectivity(real, synthetic, reference),
    ]  # fmt: skip
    checks += _courses(real, synthetic, conditions, rois, reference)
    return checks


def _mean(values: np.ndarray) -> float:
    good = values[np.isfinite(values)]
    return float(good.mean()) if good.size else float("nan")


def _log_spread(values: np.ndarray) -> float:
    positive = values[values > 0]
    return float(np.log(positive).std(ddof=1)) if positive.size > 1 else float("nan")


def _difference(key: str, title: str, real: float, synthetic: float, good: float, bad: float) -> Check:
    bounds = f"passes within {good:g}, fails beyond {bad:g}"
    kind: Kind = "difference"
    if not (np.isfinite(real) and np.isfinite(synthetic)):
        note = "a dataset does not vary over time"
        return Check(key, title, kind, _number(real), _number(synthetic), None, "difference", "fail", bounds, note)
    gap = synthetic - real
    outcome: Outcome = "pass" if abs(gap) <= good else "warn" if abs(gap) <= bad else "fail"
    return Check(key, title, kind, real, synthetic, float(gap), "synthetic - real", outcome, bounds)


def _between_variance(real: Properties, synthetic: Properties, conditions: list[str]) -> Check:
    shared = [c for c in conditions if c in real.effect_variance and c in synthetic.effect_variance]
    key, title = "effect_variance", "Variance of effects between blocks"
    if not shared:
        note = "needs two blocks per condition on both sides"
        return Check(key, title, "ratio", None, None, None, "ratio", "info", "", note)
    a = float(np.mean([np.median(real.effect_variance[c]) for c in shared]))
    b = float(np.mean([np.median(synthetic.effect_variance[c]) for c in shared]))
    note = "variance of single-block effects within a condition: between subjects and within"
    return _ratio_check(key, title, a, b, 1.5, 2.5, note)


def _spectrum_check(real: Properties, synthetic: Properties, chosen: np.ndarray) -> Check:
    a, b = real.spectrum_NF[chosen].mean(axis=0), synthetic.spectrum_NF.mean(axis=0)
    key, title = "spectrum", "Power spectrum (mean |log ratio| over frequencies)"
    what, bounds = "mean |ln ratio|", "passes below 0.35, fails above 0.7"
    if (a <= 0).any() or (b <= 0).any():
        note = "a dataset has no power at some frequency"
        return Check(key, title, "distance", None, None, None, what, "fail", bounds, note)
    value = float(np.abs(np.log(b / a)).mean())
    outcome: Outcome = "pass" if value < 0.35 else "warn" if value < 0.7 else "fail"
    total = "the pair is total power, %²"
    return Check(key, title, "distance", float(a.sum()), float(b.sum()), value, what, outcome, bounds, total)


def _pattern_check(key: str, title: str, kind: Kind, r: float, ceiling: float, what: str, missing: str) -> Check:
    """Judge a pattern correlation, or a share, by what real data reach against real data."""
    known = np.isfinite(ceiling)
    best = ceiling if known else 1.0
    bounds = "passes from 0.8, fails below 0.5"
    bounds += f" of what real training data reach ({ceiling:.2f})" if known else ""
    if not np.isfinite(r):
        return Check(key, title, kind, _number(ceiling), None, None, what, "fail", bounds, missing)
    if known and ceiling < 0.2:
        note = "real data do not reproduce this pattern themselves, so it is not judged"
        return Check(key, title, kind, ceiling, r, r, what, "info", bounds, note)
    outcome: Outcome = "pass" if r >= 0.8 * best else "warn" if r >= 0.5 * best else "fail"
    return Check(key, title, kind, _number(ceiling), r, r, what, outcome, bounds)


def _variance_map(real: Properties, synthetic: Properties, reference: Properties | None) -> Check:
    def log_map(properties: Properties) -> np.ndarray:
        return np.log(np.maximum(properties.residual_variance_V, 1e-12))

    r = float(pearson(log_map(real), log_map(synthetic)))
    ceiling = float(pearson(log_map(real), log_map(reference))) if reference is not None else float("nan")
    return _pattern_check(
        "variance_map", "Where in the brain the signal varies", "correlation", r, ceiling,
        "Pearson r of log variance maps", "the variance does not differ between voxels",
    )  # fmt: skip


def _connectivity(real: Properties, synthetic: Properties, reference: Properties | None) -> Check:
    key, title = "connectivity", "Functional connectivity (residuals, parcel pairs)"
    what = "Pearson r over parcel pairs"
    kind: Kind = "correlation"
    a, b = off_diagonal(real.connectivity_PP), off_diagonal(synthetic.connectivity_PP)
    if a.size < 10:
        note = f"the mask holds only {a.size} parcel pairs"
        return Check(key, title, kind, None, None, None, what, "info", "", note)
    ceiling = float(pearson(a, off_diagonal(reference.connectivity_PP))) if reference is not None else float("nan")
    return _pattern_check(key, title, kind, float(pearson(a, b)), ceiling, what, "residuals do not vary")


def _courses(
    real: Properties, synthetic: Properties, conditions: list[str], rois: Sequence[Roi], reference: Properties | None
) -> list[Check]:
    titles: dict[str, tuple[str, Kind]] = {
        "roi_courses": ("ROI time courses", "correlation"),
        "roi_agreement": ("ROI time courses within sampling error", "share"),
        "roi_band": ("ROI time courses inside the real SEM band", "share"),
    }
    if not rois:
        note = "no region lies inside the mask"
        return [
            Check(key, title, kind, None, None, None, kind, "info", "", note) for key, (title, kind) in titles.items()
        ]
    pairs = course_pairs(real, synthetic, conditions, rois)
    best = course_pairs(real, reference, conditions, rois) if reference is not None else []
    nan = float("nan")
    n = f"{len(pairs)} courses"
    values = {
        "roi_courses": (f"mean Pearson r of {n}", mean_correlation),
        "roi_agreement": (
            f"share of the frames of {n} at which the means differ by less than 1.96 standard errors of the difference",
            mean_agreement,
        ),
        "roi_band": (f"share of {n} that lie within one SEM of the real mean at most frames", share_in_band),
    }
    checks = []
    for key, (what, measure) in values.items():
        ceiling = measure(best) if best else nan
        if key == "roi_agreement":
            what += f" (in {sum(share > 0.5 for share in agreement(pairs))} of them at most frames)"
        if key == "roi_band" and reference is not None and best:
            # A mean of n blocks strays by itself: the fair ceiling is that of as many real training blocks.
            fair, low, high = share_in_band_of_draws(real, reference, synthetic, conditions, rois)
            what += (
                f" (as many random training blocks reach {fair:.2f} [{low:.2f}, {high:.2f}], "
                f"all training blocks together {ceiling:.2f})"
            )
            ceiling = fair
        value = measure(pairs) if pairs else nan
        checks.append(_pattern_check(key, *titles[key], value, ceiling, what, "no course could be compared"))
    return checks

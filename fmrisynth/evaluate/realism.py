"""Do synthetic blocks look like real ones? Ratios and distances with the real data's own spread beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fmrisynth.evaluate.rois import Roi
from fmrisynth.evaluate.summary import Summary
from fmrisynth.glm.map_scores import off_diagonal, pearson

Outcome = Literal["pass", "warn", "fail", "info"]

N_DRAWS = 200  # of training blocks, for what an ideal sampler would reach


@dataclass(frozen=True)
class Check:
    """One comparison of a property.

    Attributes
    ----------
    key, title : str
    real, synthetic : float or None
        The property itself.
    value : float or None
        The number that is judged: a ratio, a difference or a correlation.
    what : str
        What `value` is.
    outcome : {"pass", "warn", "fail", "info"}
    bounds : str
        The rule, in words.
    note : str
    """

    key: str
    title: str
    real: float | None
    synthetic: float | None
    value: float | None
    what: str
    outcome: Outcome
    bounds: str
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "title": self.title, "real": self.real, "synthetic": self.synthetic, "value": self.value,
            "what": self.what, "outcome": self.outcome, "bounds": self.bounds, "note": self.note,
        }  # fmt: skip


def _ratio_check(key: str, title: str, real: float, synthetic: float, good: float, bad: float, note: str = "") -> Check:
    """Pass within a factor `good`, fail beyond a factor `bad`, look in between."""
    bounds = f"passes between {1 / good:.2f} and {good:.2f}, fails beyond {1 / bad:.2f} or {bad:.2f}"
    if not (np.isfinite(real) and np.isfinite(synthetic)) or real <= 0:
        reason = note or "the property does not exist in one of the datasets (no variation)"
        outcome: Outcome = "fail" if np.isfinite(real) and real > 0 else "info"
        return Check(key, title, _number(real), _number(synthetic), None, "ratio", outcome, bounds, reason)
    ratio = synthetic / real
    distance = abs(np.log(ratio)) if ratio > 0 else np.inf
    outcome = "pass" if distance <= np.log(good) else "warn" if distance <= np.log(bad) else "fail"
    return Check(key, title, real, synthetic, float(ratio), "synthetic / real", outcome, bounds, note)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def realism_checks(
    real: Summary, synthetic: Summary, conditions: list[str], rois: Sequence[Roi], reference: Summary | None = None
) -> list[Check]:
    """All realism checks of section 9 that are numbers.

    Parameters
    ----------
    real, synthetic : Summary
        To compare.
    conditions : list of str
        Conditions of both.
    rois : sequence of Roi
        Regions of the summaries' courses; each is judged in the conditions it belongs to.
    reference : Summary, optional
        Training split: how well real data match real data (connectivity ceiling).
    """
    chosen = np.isin(real.conditions_N, conditions)
    checks = [
        _ratio_check("residual_variance", "Voxel variance over time",
                     float(np.median(real.residual_variance_V)), float(np.median(synthetic.residual_variance_V)), 1.5, 2.5,
                     "median over voxels of the variance that the task does not explain, %²"),
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


def _difference(key: str, title: str, real: float, synthetic: float, good: float, bad: float) -> Check:
    bounds = f"passes within {good:g}, fails beyond {bad:g}"
    if not (np.isfinite(real) and np.isfinite(synthetic)):
        return Check(
            key,
            title,
            _number(real),
            _number(synthetic),
            None,
            "difference",
            "fail",
            bounds,
            "a dataset does not vary over time",
        )
    gap = synthetic - real
    outcome: Outcome = "pass" if abs(gap) <= good else "warn" if abs(gap) <= bad else "fail"
    return Check(key, title, real, synthetic, float(gap), "synthetic - real", outcome, bounds)


def _between_variance(real: Summary, synthetic: Summary, conditions: list[str]) -> Check:
    shared = [c for c in conditions if c in real.effect_variance and c in synthetic.effect_variance]
    title = "Variance of effects between blocks"
    if not shared:
        return Check(
            "effect_variance",
            title,
            None,
            None,
            None,
            "ratio",
            "info",
            "",
            "needs two blocks per condition on both sides",
        )
    a = float(np.mean([np.median(real.effect_variance[c]) for c in shared]))
    b = float(np.mean([np.median(synthetic.effect_variance[c]) for c in shared]))
    note = "variance of single-block effects within a condition: between subjects and within"
    return _ratio_check("effect_variance", title, a, b, 1.5, 2.5, note)


def _spectrum_check(real: Summary, synthetic: Summary, chosen: np.ndarray) -> Check:
    a, b = real.spectrum_NF[chosen].mean(axis=0), synthetic.spectrum_NF.mean(axis=0)
    bounds = "passes below 0.35, fails above 0.7"
    title = "Power spectrum (mean |log ratio| over frequencies)"
    if (a <= 0).any() or (b <= 0).any():
        return Check(
            "spectrum",
            title,
            None,
            None,
            None,
            "mean |ln ratio|",
            "fail",
            bounds,
            "a dataset has no power at some frequency",
        )
    value = float(np.abs(np.log(b / a)).mean())
    outcome: Outcome = "pass" if value < 0.35 else "warn" if value < 0.7 else "fail"
    return Check(
        "spectrum",
        title,
        float(a.sum()),
        float(b.sum()),
        value,
        "mean |ln ratio|",
        outcome,
        bounds,
        "the pair is total power, %²",
    )


def _pattern_check(key: str, title: str, r: float, ceiling: float, what: str, missing: str) -> Check:
    """Judge a pattern correlation by what real data reach against real data."""
    known = np.isfinite(ceiling)
    best = ceiling if known else 1.0
    bounds = "passes from 0.8, fails below 0.5"
    bounds += f" of what real training data reach ({ceiling:.2f})" if known else ""
    if not np.isfinite(r):
        return Check(key, title, _number(ceiling), None, None, what, "fail", bounds, missing)
    if known and ceiling < 0.2:
        note = "real data do not reproduce this pattern themselves, so it is not judged"
        return Check(key, title, ceiling, r, r, what, "info", bounds, note)
    outcome: Outcome = "pass" if r >= 0.8 * best else "warn" if r >= 0.5 * best else "fail"
    return Check(key, title, _number(ceiling), r, r, what, outcome, bounds)


def _variance_map(real: Summary, synthetic: Summary, reference: Summary | None) -> Check:
    title = "Where in the brain the signal varies"

    def log_map(summary: Summary) -> np.ndarray:
        return np.log(np.maximum(summary.residual_variance_V, 1e-12))

    r = float(pearson(log_map(real), log_map(synthetic)))
    ceiling = float(pearson(log_map(real), log_map(reference))) if reference is not None else float("nan")
    return _pattern_check(
        "variance_map",
        title,
        r,
        ceiling,
        "Pearson r of log variance maps",
        "the variance does not differ between voxels",
    )


def _connectivity(real: Summary, synthetic: Summary, reference: Summary | None) -> Check:
    title = "Functional connectivity (residuals, parcel pairs)"
    what = "Pearson r over parcel pairs"
    a, b = off_diagonal(real.connectivity_PP), off_diagonal(synthetic.connectivity_PP)
    if a.size < 10:
        return Check(
            "connectivity", title, None, None, None, what, "info", "", f"the mask holds only {a.size} parcel pairs"
        )
    ceiling = float(pearson(a, off_diagonal(reference.connectivity_PP))) if reference is not None else float("nan")
    return _pattern_check("connectivity", title, float(pearson(a, b)), ceiling, what, "residuals do not vary")


def roi_courses(summary: Summary, condition: str, region: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean and SEM over subjects of one region's course in one condition, and the number of subjects.

    Blocks of one subject are averaged first: they are not independent.
    """
    chosen = summary.conditions_N == condition
    subjects = summary.subjects_N[chosen]
    blocks_NT = summary.courses_NRT[chosen, region]
    courses = np.stack([blocks_NT[subjects == subject].mean(axis=0) for subject in dict.fromkeys(subjects)])
    n = len(courses)
    sem = courses.std(axis=0, ddof=1) / np.sqrt(n) if n > 1 else np.zeros(courses.shape[1])
    return courses.mean(axis=0), sem, n


@dataclass(frozen=True)
class _CoursePair:
    """One region in one condition it belongs to: mean courses and their SEM, real and other."""

    mean: np.ndarray
    sem: np.ndarray
    other: np.ndarray
    other_sem: np.ndarray


def _course_pairs(real: Summary, other: Summary, conditions: list[str], rois: Sequence[Roi]) -> list[_CoursePair]:
    return [
        _CoursePair(*roi_courses(real, condition, region)[:2], *roi_courses(other, condition, region)[:2])
        for condition in conditions
        if condition in set(other.conditions_N)
        for region, roi in enumerate(rois)
        if roi.belongs_to(condition)
    ]


def _course_correlation(pairs: list[_CoursePair]) -> float:
    return _mean(np.array([float(pearson(pair.mean, pair.other)) for pair in pairs]))


def _agreement(pairs: list[_CoursePair]) -> list[float]:
    """Per course, the share of frames at which the means differ by less than chance: 0.95 on average for two samples of one population."""
    return [
        float((np.abs(pair.other - pair.mean) <= 1.96 * np.hypot(pair.sem, pair.other_sem)).mean()) for pair in pairs
    ]


def _courses_agree(pairs: list[_CoursePair]) -> float:
    return _mean(np.array(_agreement(pairs)))


def _courses_in_band(pairs: list[_CoursePair]) -> float:
    """Share of courses that lie inside the real SEM band at most frames."""
    return float(np.mean([(np.abs(pair.other - pair.mean) <= pair.sem).mean() > 0.5 for pair in pairs]))


def _courses(
    real: Summary, synthetic: Summary, conditions: list[str], rois: Sequence[Roi], reference: Summary | None
) -> list[Check]:
    titles = {
        "roi_courses": "ROI time courses",
        "roi_agreement": "ROI time courses within sampling error",
        "roi_band": "ROI time courses inside the real SEM band",
    }
    if not rois:
        return [
            Check(key, title, None, None, None, "Pearson r", "info", "", "no region lies inside the mask")
            for key, title in titles.items()
        ]
    pairs = _course_pairs(real, synthetic, conditions, rois)
    best = _course_pairs(real, reference, conditions, rois) if reference is not None else []
    nan = float("nan")
    n = f"{len(pairs)} courses"
    values = {
        "roi_courses": (f"mean Pearson r of {n}", _course_correlation),
        "roi_agreement": (
            f"share of the frames of {n} at which the means differ by less than 1.96 standard errors of the difference",
            _courses_agree,
        ),
        "roi_band": (f"share of {n} that lie within one SEM of the real mean at most frames", _courses_in_band),
    }
    checks = []
    for key, (what, measure) in values.items():
        ceiling = measure(best) if best else nan
        if key == "roi_agreement":
            what += f" (in {sum(share > 0.5 for share in _agreement(pairs))} of them at most frames)"
        if key == "roi_band" and reference is not None and best:
            # A mean of n blocks strays by itself: the fair ceiling is that of as many real training blocks.
            fair, low, high = _courses_in_band_of_draws(real, reference, synthetic, conditions, rois)
            what += (
                f" (as many random training blocks reach {fair:.2f} [{low:.2f}, {high:.2f}], "
                f"all training blocks together {ceiling:.2f})"
            )
            ceiling = fair
        value = measure(pairs) if pairs else nan
        checks.append(_pattern_check(key, titles[key], value, ceiling, what, "no course could be compared"))
    return checks


def _courses_in_band_of_draws(
    real: Summary, reference: Summary, synthetic: Summary, conditions: list[str], rois: Sequence[Roi]
) -> tuple[float, float, float]:
    """Mean and 95 % interval of `_courses_in_band` for training blocks, as many per condition as there are samples."""
    counts = {c: int((synthetic.conditions_N == c).sum()) for c in conditions}
    bands = [
        (condition, region, *roi_courses(real, condition, region)[:2])
        for condition in conditions
        if counts[condition] and (reference.conditions_N == condition).any()
        for region, roi in enumerate(rois)
        if roi.belongs_to(condition)
    ]
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(N_DRAWS):
        drawn_RT = {}
        for condition in dict.fromkeys(band[0] for band in bands):
            blocks = rng.choice(np.flatnonzero(reference.conditions_N == condition), size=counts[condition])
            drawn_RT[condition] = reference.courses_NRT[blocks].mean(axis=0)
        drawn = [_CoursePair(mean, sem, drawn_RT[c][region], np.zeros_like(sem)) for c, region, mean, sem in bands]
        shares.append(_courses_in_band(drawn))
    low, high = np.percentile(shares, [2.5, 97.5])
    return float(np.mean(shares)), float(low), float(high)


def variance_shares(features_NC: np.ndarray, labels: list[str]) -> float | None:
    """Share of total variance that lies between the groups of a label (eta squared, all features pooled).

    The share that random labels would reach, ``(groups - 1) / (N - 1)``, is removed (epsilon squared), so that
    many groups do not explain variance by number alone; never below 0. None for one group.
    """
    groups = list(dict.fromkeys(labels))
    n = len(labels)
    if len(groups) < 2 or n <= len(groups):
        return None
    centred = features_NC - features_NC.mean(axis=0)
    total = float(np.square(centred).sum(dtype=np.float64))
    if total <= 0:
        return None
    names = np.array(labels)
    between = sum(
        float(np.square(centred[names == g].mean(axis=0)).sum(dtype=np.float64)) * int((names == g).sum())
        for g in groups
    )
    within = (total - between) / (n - len(groups))
    return max(0.0, (between - (len(groups) - 1) * within) / total)


def principal_components(features_NC: np.ndarray, n: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the first `n` principal components, and their shares of variance."""
    centred = features_NC - features_NC.mean(axis=0)
    gram = centred @ centred.T
    values, vectors = np.linalg.eigh(gram.astype(np.float64))
    order = np.argsort(values)[::-1][:n]
    total = max(float(values.clip(min=0).sum()), 1e-30)
    scores = vectors[:, order] * np.sqrt(values[order].clip(min=0))
    if scores.shape[1] < n:
        scores = np.pad(scores, ((0, 0), (0, n - scores.shape[1])))
    shares = np.zeros(n)
    shares[: len(order)] = values[order].clip(min=0) / total
    return scores, shares

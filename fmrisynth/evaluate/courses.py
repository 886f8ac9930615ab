"""Mean time courses of regions: do synthetic ones follow the real ones, and stay within their sampling error?

Axis legend: N blocks, R regions, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fmrisynth.evaluate.properties import Properties
from fmrisynth.evaluate.rois import Roi
from fmrisynth.glm.map_scores import pearson

N_DRAWS = 200  # of training blocks, for what an ideal sampler would reach


def roi_courses(properties: Properties, condition: str, region: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean and SEM over subjects of one region's course in one condition, and the number of subjects.

    Blocks of one subject are averaged first: they are not independent.
    """
    chosen = properties.conditions_N == condition
    subjects = properties.subjects_N[chosen]
    blocks_NT = properties.courses_NRT[chosen, region]
    courses = np.stack([blocks_NT[subjects == subject].mean(axis=0) for subject in dict.fromkeys(subjects)])
    n = len(courses)
    sem = courses.std(axis=0, ddof=1) / np.sqrt(n) if n > 1 else np.zeros(courses.shape[1])
    return courses.mean(axis=0), sem, n


@dataclass(frozen=True)
class CoursePair:
    """One region in one condition it belongs to: mean courses and their SEM, real and other."""

    mean: np.ndarray
    sem: np.ndarray
    other: np.ndarray
    other_sem: np.ndarray


def course_pairs(real: Properties, other: Properties, conditions: list[str], rois: Sequence[Roi]) -> list[CoursePair]:
    """Every region in every condition that it belongs to and that both datasets have."""
    shared = set(real.conditions_N) & set(other.conditions_N)
    return [
        CoursePair(*roi_courses(real, condition, region)[:2], *roi_courses(other, condition, region)[:2])
        for condition in conditions
        if condition in shared
        for region, roi in enumerate(rois)
        if roi.belongs_to(condition)
    ]


def mean_correlation(pairs: list[CoursePair]) -> float:
    """Mean Pearson r of the mean courses; NaN for none."""
    values = np.array([float(pearson(pair.mean, pair.other)) for pair in pairs])
    good = values[np.isfinite(values)]
    return float(good.mean()) if good.size else float("nan")


def agreement(pairs: list[CoursePair]) -> list[float]:
    """Per course, the share of frames at which the means differ by less than chance: 0.95 on average for two samples of one population."""
    return [
        float((np.abs(pair.other - pair.mean) <= 1.96 * np.hypot(pair.sem, pair.other_sem)).mean()) for pair in pairs
    ]


def mean_agreement(pairs: list[CoursePair]) -> float:
    """The mean of `agreement` over courses."""
    return float(np.mean(agreement(pairs)))


def share_in_band(pairs: list[CoursePair]) -> float:
    """Share of courses that lie inside the real SEM band at most frames."""
    return float(np.mean([(np.abs(pair.other - pair.mean) <= pair.sem).mean() > 0.5 for pair in pairs]))


def share_in_band_of_draws(
    real: Properties, reference: Properties, synthetic: Properties, conditions: list[str], rois: Sequence[Roi]
) -> tuple[float, float, float]:
    """Mean and 95 % interval of `share_in_band` for training blocks, as many per condition as there are samples."""
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
        drawn = [CoursePair(mean, sem, drawn_RT[c][region], np.zeros_like(sem)) for c, region, mean, sem in bands]
        shares.append(share_in_band(drawn))
    low, high = np.percentile(shares, [2.5, 97.5])
    return float(np.mean(shares)), float(low), float(high)

"""Mean time courses of regions: do synthetic ones follow the real ones, and stay within their sampling error?

Axis legend: N blocks, R regions, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fmrisynth.evaluate.properties import Properties
from fmrisynth.evaluate.rois import Roi
from fmrisynth.glm.map_scores import pearson

Course = tuple[np.ndarray, np.ndarray, int]
"""Mean over people and its standard error, (T,) each, and the number of people."""


def roi_course(properties: Properties, condition: str, region: int) -> Course:
    """One region's course in one condition.

    Blocks of one subject are averaged first: they are not independent. One subject has no standard error (NaN).
    """
    rows = properties.rows
    chosen = rows.conditions_N == condition
    _, person = np.unique(rows.people_N[chosen], return_inverse=True)
    n = int(person.max(initial=-1)) + 1
    courses = np.zeros((n, rows.courses_NRT.shape[2]))
    np.add.at(courses, person, rows.courses_NRT[chosen, region])
    courses /= np.bincount(person)[:, None]
    sem = courses.std(axis=0, ddof=1) / np.sqrt(n) if n > 1 else np.full(courses.shape[1], np.nan)
    return courses.mean(axis=0), sem, n


def course_pairs(
    real: Properties, other: Properties, conditions: Sequence[str], rois: Sequence[Roi]
) -> list[tuple[Course, Course]]:
    """Real and other course of every region in every condition that it belongs to and that both datasets have."""
    shared = set(real.rows.conditions_N) & set(other.rows.conditions_N)
    return [
        (roi_course(real, condition, region), roi_course(other, condition, region))
        for condition in conditions
        if condition in shared
        for region, roi in enumerate(rois)
        if roi.belongs_to(condition)
    ]


def mean_correlation(pairs: list[tuple[Course, Course]]) -> float:
    """Mean Pearson r of the mean courses; NaN for none."""
    values = np.array([float(pearson(a[0], b[0])) for a, b in pairs])
    good = values[np.isfinite(values)]
    return float(good.mean()) if good.size else float("nan")


def mean_agreement(pairs: list[tuple[Course, Course]]) -> float:
    """Share of frames at which the means differ by less than chance: 0.95 for two samples of one population; NaN without an error."""
    reaches = [1.96 * np.hypot(a[1], b[1]) for a, b in pairs]
    if not pairs or not all(np.isfinite(reach).all() for reach in reaches):
        return float("nan")
    return float(np.mean([(np.abs(b[0] - a[0]) <= reach).mean() for (a, b), reach in zip(pairs, reaches, strict=True)]))

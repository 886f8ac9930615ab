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


def roi_courses(properties: Properties, condition: str, region: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean and SEM over subjects of one region's course in one condition, and the number of subjects; kept, as two checks ask for them.

    Blocks of one subject are averaged first: they are not independent. One subject has no SEM (NaN).
    """

    def compute() -> tuple[np.ndarray, np.ndarray, int]:
        rows = properties.rows
        chosen = rows.conditions_N == condition
        _, person = np.unique(rows.people_N[chosen], return_inverse=True)
        n = int(person.max(initial=-1)) + 1
        courses = np.zeros((n, rows.courses_NRT.shape[2]))
        np.add.at(courses, person, rows.courses_NRT[chosen, region])
        courses /= np.bincount(person)[:, None]
        sem = courses.std(axis=0, ddof=1) / np.sqrt(n) if n > 1 else np.full(courses.shape[1], np.nan)
        return courses.mean(axis=0), sem, n

    return properties.once(("course", condition, region), compute)


@dataclass(frozen=True)
class CoursePair:
    """One region in one condition it belongs to: mean courses and their SEM, real and other."""

    mean: np.ndarray
    sem: np.ndarray
    other: np.ndarray
    other_sem: np.ndarray


def course_pairs(
    real: Properties, other: Properties, conditions: Sequence[str], rois: Sequence[Roi]
) -> list[CoursePair]:
    """Every region in every condition that it belongs to and that both datasets have."""
    shared = set(real.rows.conditions_N) & set(other.rows.conditions_N)
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


def mean_agreement(pairs: list[CoursePair]) -> float:
    """Share of frames at which the means differ by less than chance: 0.95 for two samples of one population; NaN without an SEM."""
    reaches = [1.96 * np.hypot(pair.sem, pair.other_sem) for pair in pairs]
    if not pairs or not all(np.isfinite(reach).all() for reach in reaches):
        return float("nan")
    return float(np.mean([(np.abs(p.other - p.mean) <= reach).mean() for p, reach in zip(pairs, reaches, strict=True)]))

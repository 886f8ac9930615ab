"""Who a subject is: age, sex and scanner site, and what of the brain they determine.

The effects are planted, not estimated. Ageing widens the ventricles and the sulci and darkens grey matter (Fjell &
Walhovd 2010, Rev Neurosci 21: about 0.5 % of volume a year; ours are of that order, not fitted); men's brains are
longer after registration and their white matter is a little brighter; every scanner has a receive profile, a contrast
and a noise level of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fmrisynth.simulate.randomness import Traits

SITES = ("A", "B", "C")
SITE_NOISE = {"A": 0.92, "B": 1.0, "C": 1.1}
"""Thermal noise of a scanner relative to the middle one."""

AGES = (22, 80)
"""Youngest and oldest, years."""
MIDDLE_AGE = 50


@dataclass(frozen=True)
class Person:
    """Age (years), sex (``F``, ``M``) and scanner site (one of `SITES`)."""

    age: int
    sex: str
    site: str

    @property
    def decades(self) -> float:
        """Decades after `MIDDLE_AGE`."""
        return (self.age - MIDDLE_AGE) / 10

    @property
    def maleness(self) -> float:
        """One half for men, minus one half for women."""
        return 0.5 if self.sex == "M" else -0.5


def draw_person(traits: Traits) -> Person:
    """Age, sex and site of a subject; twins share their age, identical twins their sex."""
    draw = traits.uniform("person", (3,), twins_share=True)
    return Person(
        age=AGES[0] + int(draw[0] * (AGES[1] - AGES[0] + 1)),
        sex="F" if draw[1] < 0.5 else "M",
        site=SITES[int(draw[2] * len(SITES))],
    )


def ageing_mm(points_V3: np.ndarray, depth_V: np.ndarray) -> np.ndarray:
    """Where the template is sampled one decade later, displacement (V, 3), mm.

    Towards the middle of the nearer lateral ventricle within about 25 mm of it (ventricles look wider), and outwards at the
    brain's surface (sulci look wider).
    """
    inner = np.zeros_like(points_V3)
    for side in (-1, 1):
        away = points_V3 - np.array([side * 14.0, -16.0, 14.0])
        inner -= 0.06 * away * np.exp(-0.3 * ((away / np.array([10.0, 26.0, 12.0])) ** 2).sum(axis=1))[:, None]
    radius = np.maximum(np.linalg.norm(points_V3, axis=1), 1.0)
    outer = 0.25 * points_V3 / radius[:, None] * np.exp(-np.abs(depth_V) / 8.0)[:, None]
    return (inner + outer).astype(np.float32)


def maleness_mm(points_V3: np.ndarray) -> np.ndarray:
    """Where the template is sampled in men against women, displacement (V, 3), mm: a longer brain."""
    return points_V3 * np.array([0.0, -0.012, 0.006], np.float32)


AGE_GREY = -0.015
"""Log intensity of grey matter per decade."""
MALE_WHITE = 0.03
"""Log intensity of white matter, men against women."""
SITE_GAIN_SD = 0.10
"""SD of the log receive profile of a site."""
SITE_CONTRAST_SD = 0.04
"""SD of the log intensity of a tissue at a site."""

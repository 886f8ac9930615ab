"""Who a subject is: age, sex and scanner site, and what of the brain they determine.

The effects are planted, not estimated. Ageing widens the ventricles and the sulci and darkens grey matter (Fjell &
Walhovd 2010, Rev Neurosci 21: about 0.5 % of volume a year; ours are of that order, not fitted); men's brains are
longer after registration and their white matter is a little brighter; every scanner has a receive profile, a contrast
and a noise level of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter

from fmrisynth.simulate.randomness import Traits
from fmrisynth.simulate.space import FWHM_TO_SD, Space, load_templates, sample_template

SITES = ("A", "B", "C")
SITE_NOISE = {"A": 0.92, "B": 1.0, "C": 1.1}
"""Thermal noise of a scanner relative to the middle one."""

AGES = (22, 80)
"""Youngest and oldest, years."""
MIDDLE_AGE = 50


@dataclass(frozen=True)
class Person:
    """Age (years), sex (``F``, ``M``) and scanner site (one of `SITES`)."""

    age: float
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


@lru_cache(maxsize=4)
def ageing_mm(space: Space) -> np.ndarray:
    """Where the template is sampled one decade later, displacement (V, 3), mm: towards CSF, so that there is more of it.

    Ventricles and deep sulci widen by about half a millimetre; the brain's outline, which registration fits, stays.
    """
    csf_V = sample_template(load_templates()["csf"], space.coordinates_V3)
    box = np.zeros(int(np.prod(space.shape)), np.float32)
    box[space.support] = csf_V
    smooth = gaussian_filter(box.reshape(space.shape), 8.0 * FWHM_TO_SD / space.voxel_mm)
    slope_3XYZ = np.stack(np.gradient(smooth, space.voxel_mm))
    inside_V = 1.0 - np.exp(-((np.maximum(space.depth_mm, 0.0) / 8.0) ** 2))
    return (8.0 * slope_3XYZ.reshape(3, -1)[:, space.support] * inside_V).T.astype(np.float32)


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

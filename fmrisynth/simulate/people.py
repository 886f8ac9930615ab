"""Who a subject is: age, sex, scanner site and perhaps a diagnosis, and what of the brain they determine.

The effects are planted, not estimated. Ageing widens the ventricles and the sulci and darkens grey matter (Fjell &
Walhovd 2010, Rev Neurosci 21: about 0.5 % of volume a year; ours are of that order, not fitted); men's brains are
longer after registration and their white matter is a little brighter; every scanner has a receive profile, a contrast
and a noise level of its own. In patients CSF takes the place of grey matter in and around the hippocampi (as in Alzheimer's
disease; how much is ours).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter

from fmrisynth.simulate.randomness import Traits
from fmrisynth.simulate.space import FWHM_TO_SD, Space, blob, load_templates, sample_template

SITES = ("A", "B", "C")
SITE_NOISE = {"A": 0.92, "B": 1.0, "C": 1.1}
"""Thermal noise of a scanner relative to the middle one."""

AGES = (22, 80)
"""Youngest and oldest, years."""
MIDDLE_AGE = 50


@dataclass(frozen=True)
class Person:
    """Age (years), sex (``F``, ``M``), scanner site (one of `SITES`), diagnosis (``control``, ``patient``; None where there are none)."""

    age: float
    sex: str
    site: str
    diagnosis: str | None = None

    @property
    def decades(self) -> float:
        """Decades after `MIDDLE_AGE`."""
        return (self.age - MIDDLE_AGE) / 10

    @property
    def maleness(self) -> float:
        """One half for men, minus one half for women."""
        return 0.5 if self.sex == "M" else -0.5

    @property
    def attributes(self) -> dict[str, str]:
        """As columns of a table."""
        known = {"sex": self.sex, "age": f"{self.age:g}", "site": self.site, "diagnosis": self.diagnosis}
        return {name: value for name, value in known.items() if value is not None}


def draw_person(traits: Traits, patients: float = 0.0) -> Person:
    """A subject; twins share their age, identical twins sex and diagnosis too.

    Of all people the share `patients` is ill; 0 names no diagnosis.
    """
    draw = traits.uniform("person", (3,), twins_share=True)
    ill = bool(traits.uniform("diagnosis", (2,), twins_share=True)[1] < patients)
    return Person(
        age=AGES[0] + int(draw[0] * (AGES[1] - AGES[0] + 1)),
        sex="F" if draw[1] < 0.5 else "M",
        site=SITES[int(draw[2] * len(SITES))],
        diagnosis=("patient" if ill else "control") if patients else None,
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


def illness_share(points_V3: np.ndarray) -> np.ndarray:
    """Share of grey matter that CSF has taken the place of in patients, (V,), at points of the template: most in the hippocampi."""
    return PATIENT_LOSS * np.sum([blob(points_V3, centre, HIPPOCAMPUS_MM) for centre in HIPPOCAMPI], axis=0)


def maleness_mm(points_V3: np.ndarray) -> np.ndarray:
    """Where the template is sampled in men against women, displacement (V, 3), mm: a longer brain."""
    return points_V3 * np.array([0.0, -0.012, 0.006], np.float32)


HIPPOCAMPI, HIPPOCAMPUS_MM = ((28.0, -20.0, -14.0), (-28.0, -20.0, -14.0)), 36.0
"""Centres (MNI, mm) and FWHM (mm) of what a disorder shrinks."""
PATIENT_LOSS = 0.3
"""How much of its grey matter."""
AGE_GREY = -0.015
"""Log intensity of grey matter per decade."""
MALE_WHITE = 0.03
"""Log intensity of white matter, men against women."""
SITE_GAIN_SD = 0.10
"""SD of the log receive profile of a site."""
SITE_CONTRAST_SD = 0.04
"""SD of the log intensity of a tissue at a site."""

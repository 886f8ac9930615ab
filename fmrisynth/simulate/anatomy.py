"""A subject's brain as an EPI volume: anatomy, contrast, receive gain, and what phase encoding does to it.

Axis legend: V support voxels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fmrisynth.config.simulate import AnatomyConfig
from fmrisynth.simulate.people import (
    AGE_GREY,
    MALE_WHITE,
    SITE_CONTRAST_SD,
    SITE_GAIN_SD,
    Person,
    ageing_mm,
    maleness_mm,
)
from fmrisynth.simulate.randomness import NoTraits, Traits, stream
from fmrisynth.simulate.space import FWHM_TO_SD, RIM_MM, CoarseFields, Space, load_templates, sample_template

TISSUE_INTENSITY = {"gm": 1.0, "wm": 0.8, "csf": 1.35}
"""Relative EPI intensities at 3 T and TE 33 ms (grey matter 1)."""

SINUSES = (((0.0, 40.0, -22.0), 34.0), ((52.0, -16.0, -32.0), 30.0), ((-52.0, -16.0, -32.0), 30.0))
"""Centre (mm) and FWHM (mm) of the air cavities that dephase the signal: frontal and ear canals."""

SIGN = {"LR": 1.0, "RL": -1.0}


@dataclass(frozen=True)
class Anatomy:
    """One subject's anatomy.

    Attributes
    ----------
    baseline : dict of direction to float32 array (V,)
        EPI intensity of the brain at rest, grey matter about 1.
    mask_V : bool array
        The subject's brain.
    grey_V, csf_V : float32 arrays
        Tissue shares.
    dephasing_V : float32 array
        Share of the signal that the air cavities take.
    """

    baseline: dict[str, np.ndarray]
    mask_V: np.ndarray
    grey_V: np.ndarray
    csf_V: np.ndarray
    dephasing_V: np.ndarray


def make_anatomy(space: Space, traits: Traits | NoTraits, person: Person, config: AnatomyConfig, seed: int) -> Anatomy:
    """Draw one subject's anatomy; with `NoTraits` the typical one of a person's age, sex and site.

    The MNI152 tissue maps are sampled at displaced points (what registration left over); tissue
    contrast, a smooth receive gain and local texture multiply them. LR and RL see the same anatomy
    displaced in opposite directions along x near the sinuses, with opposite gain and pile-up.
    """
    points = space.coordinates_V3
    broad, fine, gain, texture = (CoarseFields(space, fwhm) for fwhm in (55.0, 22.0, 90.0, 9.0))

    def field(fields: CoarseFields, name: str, n: int) -> np.ndarray:
        return fields(traits.normal(name, (n, *fields.sizes)))

    displacement_V3 = (
        config.deformation_mm * field(broad, "deformation", 3)
        + config.fine_deformation_mm * field(fine, "fine deformation", 3)
    ).T
    displacement_V3 += person.decades * ageing_mm(space) + person.maleness * maleness_mm(points)
    site = stream(seed, "site", person.site)  # the same scanner for all its subjects
    cavities = np.stack([_blob(points, centre, fwhm) for centre, fwhm in SINUSES])
    templates = load_templates()
    contrast = {
        name: level
        * float(
            np.exp(config.contrast_sd * traits.normal(f"contrast {name}") + SITE_CONTRAST_SD * site.standard_normal())
        )
        for name, level in TISSUE_INTENSITY.items()
    }
    contrast["gm"] *= float(np.exp(AGE_GREY * person.decades))
    contrast["wm"] *= float(np.exp(MALE_WHITE * person.maleness))
    receive = gain(site.standard_normal((1, *gain.sizes), dtype=np.float32))[0]
    signal_gain = np.exp(
        SITE_GAIN_SD * receive
        + config.gain_sd * field(gain, "gain", 1)[0]
        + config.texture_sd * field(texture, "texture", 1)[0]
    )
    loss = np.clip(0.55 + 0.12 * traits.normal("dropout", (len(SINUSES),)), 0.1, 0.95)
    dephasing_V = 1.0 - np.prod(1.0 - loss[:, None] * cavities, axis=0)
    signal_gain *= 1.0 - dephasing_V

    own_shift = field(broad, "distortion", 2)
    shift_V = config.distortion_mm * (cavities.T @ np.array([1.5, 1.2, -1.2], np.float32) + 0.5 * own_shift[0])
    pile_up_V = np.clip(_derivative_along_x(space, shift_V), -0.3, 0.3)
    ramp_V = 0.8 * points[:, 0] / 40.0 + 0.6 * own_shift[1]

    undistorted = {name: sample_template(templates[name], points + displacement_V3) for name in templates}
    baseline = {}
    for direction, sign in SIGN.items():
        moved = displacement_V3.copy()
        moved[:, 0] += sign * shift_V
        where = points + moved
        image = sum(contrast[name] * sample_template(templates[name], where) for name in contrast)
        rim = 1.0 - sample_template(templates["brain"], where)
        image = image + 0.25 * rim * np.clip(1.0 + space.depth_mm / RIM_MM, 0.05, 1.0)
        pe_gain = np.clip(1.0 + sign * (config.phase_encoding_gain * ramp_V + 0.5 * pile_up_V), 0.5, 1.5)
        baseline[direction] = np.maximum(image * signal_gain * pe_gain, 0.02).astype(np.float32)
    return Anatomy(baseline, undistorted["brain"] > 0.5, undistorted["gm"], undistorted["csf"], dephasing_V)


def _blob(points_V3: np.ndarray, centre, fwhm_mm: float) -> np.ndarray:
    squared = ((points_V3 - np.asarray(centre, np.float32)) ** 2).sum(axis=1)
    return np.exp(-0.5 * squared / (fwhm_mm * FWHM_TO_SD) ** 2).astype(np.float32)


def gradients(space: Space, values_V: np.ndarray) -> np.ndarray:
    """Spatial gradient of a support image along x, y, z in units per mm, (3, V) float32."""
    box = np.zeros(int(np.prod(space.shape)), dtype=np.float32)
    box[space.support] = values_V
    return np.stack(
        [g.reshape(-1)[space.support] for g in np.gradient(box.reshape(space.shape), space.voxel_mm)]
    ).astype(np.float32)


def _derivative_along_x(space: Space, values_V: np.ndarray) -> np.ndarray:
    return gradients(space, values_V)[0]

"""A subject's brain as an EPI volume, with what phase encoding does to it, and as a T1-weighted one.

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
    SITE_NOISE,
    Person,
    ageing_mm,
    illness_share,
    maleness_mm,
)
from fmrisynth.simulate.randomness import NoTraits, Traits, stream
from fmrisynth.simulate.space import RIM_MM, CoarseFields, Space, blob, load_templates, sample_template

TISSUE_INTENSITY = {"gm": 1.0, "wm": 0.8, "csf": 1.35}
"""Relative EPI intensities at 3 T and TE 33 ms (grey matter 1)."""

T1W_INTENSITY = {"gm": 0.7, "wm": 1.0, "csf": 0.25}
"""Relative T1-weighted intensities (MPRAGE at 3 T; white matter 1)."""
T1W_UNITS = 1000.0
"""Intensity of white matter in the stored images; arbitrary, as in a scanner."""
T1W_SHARE = 0.5
"""How much tissues and their texture differ between subjects, against the EPI: iron and vessels matter less to T1 than to T2*."""
T1W_BIAS_LEFT = 0.25
"""Share of the receive profiles of site and subject that bias correction leaves."""
T1W_NOISE = 0.025
"""SD of the thermal noise in a voxel of 1 mm, relative to white matter; it falls with the root of the voxel's volume."""
BROAD_MM, FINE_MM, GAIN_MM, TEXTURE_MM = 55.0, 22.0, 90.0, 9.0
"""Smoothness (FWHM) of the fields of deformation, receive gain and texture."""
RIM_INTENSITY = 0.25
"""Intensity of scalp and skull right at the brain."""

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
    broad, gain, texture = (CoarseFields(space, fwhm) for fwhm in (BROAD_MM, GAIN_MM, TEXTURE_MM))

    def field(fields: CoarseFields, name: str, n: int) -> np.ndarray:
        return fields(traits.normal(name, (n, *fields.sizes)))

    displacement_V3 = _displacement_mm(space, traits, person, config)
    site = stream(seed, "site", person.site)  # the same scanner for all its subjects
    cavities = np.stack([blob(points, centre, fwhm) for centre, fwhm in SINUSES])
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

    undistorted = _shares(points + displacement_V3, person)
    baseline = {}
    for direction, sign in SIGN.items():
        moved = displacement_V3.copy()
        moved[:, 0] += sign * shift_V
        where = points + moved
        shares = _shares(where, person)
        image = sum(contrast[name] * shares[name] for name in contrast) + _rim(space, 1.0 - shares["brain"])
        pe_gain = np.clip(1.0 + sign * (config.phase_encoding_gain * ramp_V + 0.5 * pile_up_V), 0.5, 1.5)
        baseline[direction] = np.maximum(image * signal_gain * pe_gain, 0.02).astype(np.float32)
    return Anatomy(baseline, undistorted["brain"] > 0.5, undistorted["gm"], undistorted["csf"], dephasing_V)


def make_t1w(
    space: Space, traits: Traits | NoTraits, person: Person, config: AnatomyConfig, seed: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The same anatomy as `make_anatomy` in a T1-weighted image: intensities (V,) float32, and the brain (V,) bool.

    Age, sex and site act as on the EPI: where the templates are sampled, on grey and on white matter, on contrast and (as far as bias
    correction leaves it) on the receive profile. There is no distortion, no dropout and no gain along a phase encoding. `rng` draws the
    thermal noise.
    """
    where = space.coordinates_V3 + _displacement_mm(space, traits, person, config)
    site = stream(seed, "site T1w", person.site)
    gain, texture = CoarseFields(space, GAIN_MM), CoarseFields(space, TEXTURE_MM)
    shares = _shares(where, person)
    lightness = {"gm": AGE_GREY * person.decades, "wm": MALE_WHITE * person.maleness, "csf": 0.0}
    image_V = np.zeros(len(where), np.float32)
    for name, level in T1W_INTENSITY.items():
        own = T1W_SHARE * config.contrast_sd * traits.normal(f"T1w contrast {name}")
        scale = np.exp(own + SITE_CONTRAST_SD * site.standard_normal() + lightness[name])
        image_V += np.float32(level * scale) * shares[name]
    image_V += _rim(space, 1.0 - shares["brain"])
    profile_V = SITE_GAIN_SD * gain(site.standard_normal((1, *gain.sizes), dtype=np.float32))[0]
    profile_V += config.gain_sd * gain(traits.normal("T1w gain", (1, *gain.sizes)))[0]
    texture_V = T1W_SHARE * config.texture_sd * texture(traits.normal("texture", (1, *texture.sizes)))[0]
    image_V *= np.exp(T1W_BIAS_LEFT * profile_V + texture_V)
    noise_sd = T1W_NOISE * SITE_NOISE[person.site] / space.voxel_mm**1.5
    image_V += noise_sd * rng.standard_normal(len(image_V), dtype=np.float32)
    return T1W_UNITS * np.maximum(image_V, 0.0, dtype=np.float32), shares["brain"] > 0.5


def _displacement_mm(space: Space, traits: Traits | NoTraits, person: Person, config: AnatomyConfig) -> np.ndarray:
    """Where a subject's tissue is in the templates, against the voxel, (V, 3) mm: what registration left over, age and sex."""
    broad, fine = CoarseFields(space, BROAD_MM), CoarseFields(space, FINE_MM)
    displacement_V3 = (
        config.deformation_mm * broad(traits.normal("deformation", (3, *broad.sizes)))
        + config.fine_deformation_mm * fine(traits.normal("fine deformation", (3, *fine.sizes)))
    ).T
    displacement_V3 += person.decades * ageing_mm(space) + person.maleness * maleness_mm(space.coordinates_V3)
    return displacement_V3


def _shares(where_V3: np.ndarray, person: Person) -> dict[str, np.ndarray]:
    """Shares of brain and tissues (V,) at points of the templates."""
    shares = {name: sample_template(template, where_V3) for name, template in load_templates().items()}
    if person.diagnosis == "patient":
        lost_V = illness_share(where_V3) * shares["gm"]
        shares |= {"gm": shares["gm"] - lost_V, "csf": shares["csf"] + lost_V}
    return shares


def _rim(space: Space, outside_V: np.ndarray) -> np.ndarray:
    return RIM_INTENSITY * outside_V * np.clip(1.0 + space.depth_mm / RIM_MM, 0.05, 1.0)


def gradients(space: Space, values_V: np.ndarray) -> np.ndarray:
    """Spatial gradient of a support image along x, y, z in units per mm, (3, V) float32."""
    box = np.zeros(int(np.prod(space.shape)), dtype=np.float32)
    box[space.support] = values_V
    return np.stack(
        [g.reshape(-1)[space.support] for g in np.gradient(box.reshape(space.shape), space.voxel_mm)]
    ).astype(np.float32)


def _derivative_along_x(space: Space, values_V: np.ndarray) -> np.ndarray:
    return gradients(space, values_V)[0]

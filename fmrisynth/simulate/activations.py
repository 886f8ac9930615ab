"""Where and how strongly a brain responds: packaged peaks, or a user's table over an atlas.

Axis legend: K conditions, P response units (peaks or parcels), V support voxels.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Protocol

import numpy as np
import yaml
from scipy.sparse import csr_matrix, diags

from fmrisynth.conditions import fold, load_table, suggest
from fmrisynth.config.simulate import ResponseConfig
from fmrisynth.data.nifti import read_image
from fmrisynth.errors import FmrisynthError, UsageError
from fmrisynth.simulate.paradigms import CONDITIONS_BY_TASK
from fmrisynth.simulate.randomness import Traits
from fmrisynth.simulate.space import FWHM_TO_SD, CoarseFields, Space

CUE = "motor_cue"
EVENT_LABELS = (*(label for labels in CONDITIONS_BY_TASK.values() for label in labels), CUE)
"""The 23 conditions and the motor cue, in the order of the rows of every response array."""

GREY_SHARE = 0.75
"""Share of the response that follows grey matter; the rest is draining veins and partial volume."""

SPLIT_MM = 14.0
"""Distance of the two parts of a split peak."""

PLAUSIBLE_PERCENT = 10.0
"""No task changes the BOLD signal of a region by more at 3 T, mm-sized voxels and block designs."""


@dataclass(frozen=True)
class Responses:
    """The true responses of one subject, at the plateau of a long block.

    Attributes
    ----------
    percent_KV : float32 array
        Percent signal change, rows as `EVENT_LABELS`.
    delay_KV : float32 array
        ``percent * delay`` in percent seconds: how much later (s) than the subject's HRF each part responds.
    width_KV : float32 array
        ``percent * log(width)``: how much wider than the subject's HRF the response of each part is.
    hrf_delay_s, hrf_width : float
        Delay and relative width of the subject's double gamma (6 and 1 are canonical).
    """

    percent_KV: np.ndarray
    delay_KV: np.ndarray
    width_KV: np.ndarray
    hrf_delay_s: float
    hrf_width: float


class ActivationModel(Protocol):
    """Group-level responses and how a subject's differ from them."""

    def group_map(self, space: Space, grey_V: np.ndarray, config: ResponseConfig) -> np.ndarray:
        """Responses of the population, (K, V), percent signal change."""

    def subject(self, space: Space, traits: Traits, grey_V: np.ndarray, config: ResponseConfig) -> Responses:
        """True responses of one subject."""


def load_activations(table: Path | None, atlas: Path | None) -> ActivationModel:
    """The packaged peaks, or a user's table."""
    if table is None or atlas is None:
        return load_peaks()
    return AtlasActivations(*read_activation_table(table), atlas)


@dataclass(frozen=True)
class _Units:
    """What a subject makes of the units: own weights (K, P), delays (P,) in seconds and log widths (P,)."""

    weights_KP: np.ndarray
    delay_P: np.ndarray
    log_width_P: np.ndarray
    hrf_delay_s: float
    hrf_width: float

    @classmethod
    def draw(cls, weights_KP: np.ndarray, traits: Traits, config: ResponseConfig) -> _Units:
        n_conditions, n_units = weights_KP.shape
        overall = config.subject_sd * traits.normal("responsiveness")
        shared = config.peak_sd * traits.normal("unit amplitude", (n_units,))
        own = config.condition_peak_sd * traits.normal("condition amplitude", (n_conditions, n_units))
        # A log-normal factor has mean exp(variance / 2): divide it out, so that the group mean stays.
        variance = config.subject_sd**2 + config.peak_sd**2 + config.condition_peak_sd**2
        factor = np.exp(overall + shared + own - variance / 2)
        factor *= (traits.uniform("unit present", (n_units,)) >= config.missing_share) / (1 - config.missing_share)
        half = config.idiosyncratic_percent / np.sqrt(2)
        private = half * (
            traits.normal("private", (n_units,)) + traits.normal("private condition", (n_conditions, n_units))
        )
        active = (np.abs(weights_KP).sum(axis=1) > 0)[:, None]
        return cls(
            config.amplitude * (weights_KP * factor + private * active),
            config.region_delay_sd_s * traits.normal("unit delay", (n_units,)),
            config.width_sd * traits.normal("unit width", (n_units,)),
            float(np.clip(6.0 + config.hrf_delay_sd_s * traits.normal("hrf delay"), 4.0, 8.0)),
            float(np.exp(np.clip(config.width_sd * traits.normal("hrf width"), -0.4, 0.4))),
        )

    def responses(self, paint: Callable[[np.ndarray], np.ndarray]) -> Responses:
        """Responses, with `paint` from values of units (n, P) to maps (n, V)."""
        parts = (self.weights_KP, self.weights_KP * self.delay_P, self.weights_KP * self.log_width_P)
        percent_KV, delay_KV, width_KV = np.split(paint(np.concatenate(parts).astype(np.float32)), 3)
        return Responses(percent_KV, delay_KV, width_KV, self.hrf_delay_s, self.hrf_width)


def _grey_weight(grey_V: np.ndarray) -> np.ndarray:
    return (1 - GREY_SHARE) + GREY_SHARE * grey_V


def blob_matrix(space: Space, centres_P3: np.ndarray, fwhm_P: np.ndarray) -> csr_matrix:
    """Gaussian blobs of height one as a sparse (P, V) matrix."""
    lookup = np.full(int(np.prod(space.shape)), -1, dtype=np.int64)
    lookup[space.support] = np.arange(len(space.support))
    indices, values, pointer = [], [], [0]
    for centre, fwhm in zip(centres_P3, fwhm_P, strict=True):
        box, height = space.gaussian(centre, float(fwhm))
        where = lookup[box]
        indices.append(where[where >= 0])
        values.append(height[where >= 0])
        pointer.append(pointer[-1] + len(indices[-1]))
    return csr_matrix(
        (np.concatenate(values), np.concatenate(indices), pointer), shape=(len(centres_P3), len(space.support))
    )


class PeakActivations:
    """Responses at packaged peaks (``activations.yaml``)."""

    def __init__(self, centres_P3: np.ndarray, fwhm_P: np.ndarray, weights_KP: np.ndarray) -> None:
        self.centres_P3, self.fwhm_P, self.weights_KP = centres_P3, fwhm_P, weights_KP

    def group_map(self, space: Space, grey_V: np.ndarray, config: ResponseConfig) -> np.ndarray:
        """See `ActivationModel`: the expectation over people, peaks blurred by where people have them."""
        variance_P = (self.fwhm_P * FWHM_TO_SD) ** 2
        moved = config.location_sd_mm**2 + config.split_share * (SPLIT_MM / 2) ** 2 / 3
        height_P = (variance_P / (variance_P + moved)) ** 1.5
        blobs = blob_matrix(space, self.centres_P3, np.sqrt(variance_P + moved) / FWHM_TO_SD)
        return config.amplitude * ((self.weights_KP * height_P) @ blobs).astype(np.float32) * _grey_weight(grey_V)

    def subject(self, space: Space, traits: Traits, grey_V: np.ndarray, config: ResponseConfig) -> Responses:
        """See `ActivationModel`; a split peak is two, on both sides of where it would have been."""
        n = len(self.fwhm_P)
        centres = self.centres_P3 + config.location_sd_mm * traits.normal("unit location", (n, 3))
        fwhm = self.fwhm_P * np.exp(0.1 * traits.normal("unit size", (n,)))
        axis = traits.normal("split axis", (n, 3))
        axis *= (SPLIT_MM / 2) / np.maximum(np.linalg.norm(axis, axis=1, keepdims=True), 1e-6)
        axis[traits.uniform("unit split", (n,)) >= config.split_share] = 0.0
        first_P = 0.3 + 0.4 * traits.uniform("split balance", (n,))
        blobs = blob_matrix(space, np.concatenate([centres + axis, centres - axis]), np.tile(fwhm, 2))
        blobs = (diags(np.concatenate([first_P, 1 - first_P]).astype(np.float32)) @ blobs).tocsr()
        blobs = blobs[:n] + blobs[n:]
        grey = _grey_weight(grey_V)
        return _Units.draw(self.weights_KP, traits, config).responses(lambda values: (values @ blobs) * grey)


class AtlasActivations:
    """Responses of a user's table: one value per parcel of a label image and condition."""

    def __init__(self, parcels: Sequence[int], weights_KP: np.ndarray, atlas: Path, path: Path | None = None) -> None:
        image = read_image(atlas, ndim=3)
        labels = np.rint(image.scaled()).astype(np.int64)
        missing = sorted(set(parcels) - set(np.unique(labels).tolist()))
        if missing:
            raise FmrisynthError(
                f"{atlas}: parcel {missing[0]} of the activation table is not in the atlas (and {len(missing) - 1} more); "
                "give the atlas that the table was made with."
            )
        index = np.full(int(labels.max()) + 1, len(parcels), dtype=np.int64)  # one more unit: outside all parcels
        index[np.asarray(parcels)] = np.arange(len(parcels))
        self._unit_XYZ = index[np.clip(labels, 0, None)]
        self._world_to_voxel = np.linalg.inv(image.affine)
        self.weights_KP = weights_KP

    def _paint(self, space: Space, values_KP: np.ndarray, shift_V3: np.ndarray | float) -> np.ndarray:
        """Values of units as maps (K, V); the atlas is read at shifted points."""
        points = space.coordinates_V3 + shift_V3
        voxels = np.rint(points @ self._world_to_voxel[:3, :3].T + self._world_to_voxel[:3, 3]).astype(np.int64)
        inside = ((voxels >= 0) & (voxels < self._unit_XYZ.shape)).all(axis=1)
        unit_V = np.full(len(points), values_KP.shape[1], dtype=np.int64)
        unit_V[inside] = self._unit_XYZ[tuple(voxels[inside].T)]
        padded = np.concatenate([values_KP, np.zeros((len(values_KP), 1), values_KP.dtype)], axis=1)
        return padded[:, unit_V]

    def group_map(self, space: Space, grey_V: np.ndarray, config: ResponseConfig) -> np.ndarray:
        """See `ActivationModel`; every voxel of a parcel has the table's value, without a grey matter weight.

        People have the parcels displaced, so that the mean over people blurs them: where parcels are as thin as the
        cortex, the mean within a parcel of this map is smaller than the table's value.
        """
        return config.amplitude * self._paint(space, self.weights_KP.astype(np.float32), 0.0)

    def subject(self, space: Space, traits: Traits, grey_V: np.ndarray, config: ResponseConfig) -> Responses:
        """See `ActivationModel`."""
        fields = CoarseFields(space, 20.0)
        shift = config.location_sd_mm * fields(traits.normal("unit location", (3, *fields.sizes))).T
        return _Units.draw(self.weights_KP, traits, config).responses(lambda values: self._paint(space, values, shift))


@lru_cache(maxsize=1)
def load_peaks() -> PeakActivations:
    """Read the packaged table of peaks."""
    text = (resources.files("fmrisynth.simulate") / "activations.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    centres, fwhm, scales, owners = [], [], [], []
    for name, component in content["components"].items():
        both = component.get("hemispheres", "both") == "both"
        for x, y, z, width, *scale in component["peaks"]:
            for side in (1, -1) if both and x else (1,):
                centres.append((side * x, y, z))
                fwhm.append(width)
                scales.append(scale[0] if scale else 1.0)
                owners.append(name)
    weights = np.array(
        [
            [content["conditions"][label].get(owner, 0.0) * scale for owner, scale in zip(owners, scales, strict=True)]
            for label in EVENT_LABELS
        ]
    )
    return PeakActivations(np.array(centres, dtype=float), np.array(fwhm, dtype=float), weights)


def read_activation_table(path: Path) -> tuple[list[int], np.ndarray]:
    """Read a table of effect sizes: first column ``parcel``, one column per condition.

    A column is named by our label (``gambling_loss``) or by ``TASK:condition`` in any spelling of the
    condition table (``GAMBLING:loss``, ``tfMRI_GAMBLING:PUNISH``).

    Returns
    -------
    parcels : list of int
        Labels of the atlas.
    weights_KP : array
        Percent signal change, rows as `EVENT_LABELS`; conditions without a column do not respond.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            header, *rows = [row for row in csv.reader(stream, delimiter="\t") if row]
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise FmrisynthError(f"{path}: expected a table of activations, it cannot be read ({error}).") from None
    if header[0] != "parcel" or len(header) < 2 or not rows:
        raise FmrisynthError(
            f"{path}: expected tab-separated columns, first 'parcel', then conditions; found {', '.join(header[:4])}."
        )
    weights = np.zeros((len(EVENT_LABELS), len(rows)))
    parcels = []
    columns = [_column_label(path, name) for name in header[1:]]
    if len(set(columns)) < len(columns):
        raise FmrisynthError(f"{path}: two columns name the same condition; keep one of them.")
    for i, row in enumerate(rows):
        try:
            parcels.append(int(row[0]))
            for label, cell in zip(columns, row[1:], strict=True):
                weights[EVENT_LABELS.index(label), i] = float(cell)
        except ValueError as error:
            raise FmrisynthError(f"{path}: row {i + 2} cannot be read ({error}); give numbers only.") from None
    if len(set(parcels)) < len(parcels) or not np.isfinite(weights).all():
        raise FmrisynthError(f"{path}: a parcel stands twice, or a value is not finite; correct the table.")
    largest = float(np.abs(weights).max())
    if largest > PLAUSIBLE_PERCENT:
        raise FmrisynthError(
            f"{path}: expected percent signal change, at most {PLAUSIBLE_PERCENT:g} in size; found {largest:g}. Scale the "
            "table (z values, betas in scanner units and per cent of per cent are not percent signal change)."
        )
    return parcels, weights


def _column_label(path: Path, name: str) -> str:
    if name in EVENT_LABELS:
        return name
    task, separator, trial_type = name.partition(":")
    condition = load_table().match(fold(task).removeprefix("tfmri"), trial_type) if separator else None
    if condition is None:
        raise UsageError(f"{path}: {name!r} is no condition of the HCP tasks; {suggest(name, EVENT_LABELS)}")
    return condition.label

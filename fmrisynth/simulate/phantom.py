"""The phantom in memory: subjects, runs and block instances.

``bold = baseline * (1 + (task + noise) / 100)`` with the baseline of the subject and phase encoding, the
responses of the subject and the noise of the run, all in percent signal change.

Axis legend: X, Y, Z voxel axes of the output grid; V support voxels; T frames of a run; F frames of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from fmrisynth.conditions import load_table, suggest
from fmrisynth.config.simulate import SimulateConfig
from fmrisynth.data.blocks import GRAND_MEAN, BlockData
from fmrisynth.data.grid import Grid
from fmrisynth.data.resample import temporal_matrix
from fmrisynth.errors import UsageError
from fmrisynth.simulate.activations import EVENT_LABELS, ActivationModel, Responses, load_activations
from fmrisynth.simulate.anatomy import Anatomy, make_anatomy, make_t1w
from fmrisynth.simulate.hrf import convolved_boxcar
from fmrisynth.simulate.noise import (
    VASCULAR_FWHM_MM,
    VASCULAR_TAU_S,
    LocalNoise,
    SpatialNoise,
    TemporalNoise,
    spatial_noise,
    subject_network_maps,
    temporal_noise,
)
from fmrisynth.simulate.paradigms import (
    CONDITIONS_BY_TASK,
    MIXED,
    Event,
    Paradigm,
    given_paradigm,
    make_paradigm,
    mixed_paradigm,
)
from fmrisynth.simulate.people import Person, draw_person
from fmrisynth.simulate.randomness import Traits, stream
from fmrisynth.simulate.space import STANDARD, CoarseFields, Smoother, Space, make_space

BLOCK_FRAMES = 12
BLOCK_TR_S = 1.44
"""Frames of a block instance and the time between them (paper, section 3)."""

_FIRST_LABEL = 900_001

RESTLESSNESS_SD = 0.5
"""SD over subjects of the log of how much they move."""

_CHUNK = 24
"""Frames of a run that are rendered at once."""


def chosen_conditions(config: SimulateConfig) -> list[str]:
    """Conditions of mixed runs: those asked for, or the paper's seven among the tasks.

    Raises
    ------
    UsageError
        A condition that no task of the configuration has.
    """
    available = [label for task in config.tasks for label in CONDITIONS_BY_TASK[task]]
    if config.conditions is None:
        return [label for label in load_table().default_labels if label in available]
    for label in config.conditions:
        if label not in available:
            raise UsageError(
                f"simulate: {label!r} is no condition of the tasks {', '.join(config.tasks)}; {suggest(label, available)}"
            )
    return list(config.conditions)


def subject_index(label: str) -> int:
    """Index of a subject's label (``900001`` is 0)."""
    return int(label) - _FIRST_LABEL


@dataclass(frozen=True)
class PhantomBlock(BlockData):
    """One block instance: `BlockData` and what it is.

    Attributes
    ----------
    condition : str
        Condition label.
    onset_s : float
        Block onset after the first frame, seconds.
    duration_s : float
        Block duration, seconds.
    phase_encoding : str
        ``LR`` or ``RL``.
    task : str
        HCP's task name.
    source_onset_s : float
        Block onset in its run, seconds.
    """

    condition: str
    onset_s: float
    duration_s: float
    phase_encoding: str
    task: str
    source_onset_s: float


class Phantom:
    """A cohort of any number of subjects, each a function of (seed, index).

    Parameters
    ----------
    config : SimulateConfig
        Tasks, noise, variability, seed.
    grid : Grid, default the standard 3 mm grid
        Output grid, in MNI space.
    """

    def __init__(self, config: SimulateConfig | None = None, grid: Grid = STANDARD) -> None:
        self.config = config or SimulateConfig()
        self.grid = grid
        self.space: Space = make_space(grid)
        self.activations: ActivationModel = load_activations(self.config.activations, self.config.atlas)
        self.thermal_field = Smoother(self.space, self.config.noise.fwhm_mm)
        self.vascular_field = CoarseFields(self.space, VASCULAR_FWHM_MM)

    def subject(self, index: int) -> PhantomSubject:
        """The subject of an index (0, 1, ...)."""
        return PhantomSubject(self, index)

    def conditions(self) -> list[str]:
        """Condition labels of the tasks of the configuration."""
        return [label for task in self.config.tasks for label in CONDITIONS_BY_TASK[task]]

    @cached_property
    def given(self) -> dict[str, Paradigm]:
        """Runs of the events files of the configuration, by task."""
        config = self.config
        found = [given_paradigm(path, config.run_s, config.tr_s) for path in config.events]
        if len({paradigm.task for paradigm in found}) < len(found):
            raise UsageError("two events files have one task in their names; name them task-<label>_events.tsv.")
        return {paradigm.task: paradigm for paradigm in found}

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks of the runs of each subject."""
        return (MIXED,) if self.config.mixed else tuple(self.given) or self.config.tasks

    def paradigm(self, task: str, direction: str, rng: np.random.Generator) -> Paradigm:
        """What happens in a run."""
        config = self.config
        if task == MIXED:
            return mixed_paradigm(chosen_conditions(config), config.run_s or 360.0, rng, config.tr_s)
        return self.given[task] if task in self.given else make_paradigm(task, direction, rng, config.tr_s)


class PhantomSubject:
    """One subject; what it is made of is drawn when first asked for."""

    def __init__(self, phantom: Phantom, index: int) -> None:
        self.phantom, self.index = phantom, index
        self.traits = Traits(phantom.config.seed, index, phantom.config.families)

    @property
    def label(self) -> str:
        """Six digits as in HCP, above every number HCP gave to a person."""
        return f"{_FIRST_LABEL + self.index}"

    @cached_property
    def anatomy(self) -> Anatomy:
        """The subject's anatomy."""
        config = self.phantom.config
        return make_anatomy(self.phantom.space, self.traits, self.person, config.anatomy, config.seed)

    @cached_property
    def person(self) -> Person:
        """Age, sex, site and diagnosis."""
        return draw_person(self.traits, self.phantom.config.anatomy.patients)

    def at_session(self, session: int) -> Person:
        """The subject in a session, from 0: older by `years_between` from one to the next."""
        return replace(self.person, age=self.person.age + session * self.phantom.config.years_between)

    def t1w(self, session: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """The T1-weighted image of a session at the support voxels, and the brain in it."""
        config, noise = self.phantom.config, stream(self.phantom.config.seed, "T1w noise", self.index, session)
        return make_t1w(self.phantom.space, self.traits, self.at_session(session), config.anatomy, config.seed, noise)

    @cached_property
    def restlessness(self) -> float:
        """How much more than the median subject this one moves."""
        return float(np.exp(RESTLESSNESS_SD * self.traits.normal("restlessness")))

    @cached_property
    def responses(self) -> Responses:
        """The subject's true responses."""
        return self.phantom.activations.subject(
            self.phantom.space, self.traits, self.anatomy.grey_V, self.phantom.config.response
        )

    @cached_property
    def network_RV(self) -> np.ndarray:
        """Maps of the subject's functional networks, percent signal change."""
        return subject_network_maps(self.phantom.space, self.traits, self.anatomy, self.phantom.config.noise)

    @cached_property
    def _noise_maps(self) -> dict[str, SpatialNoise]:
        return {}

    def noise_maps(self, direction: str) -> SpatialNoise:
        """Noise maps of a phase encoding."""
        if direction not in self._noise_maps:
            self._noise_maps[direction] = spatial_noise(
                self.phantom.space, self.traits, self.person, self.anatomy, self.network_RV, direction,
                self.phantom.config.noise,
            )  # fmt: skip
        return self._noise_maps[direction]

    @cached_property
    def mask_XYZ(self) -> np.ndarray:
        """The subject's brain mask on the output grid."""
        return self.phantom.space.to_grid(self.anatomy.mask_V)

    def run(self, task: str, direction: str) -> PhantomRun:
        """One run of the subject.

        Raises
        ------
        UsageError
            Unknown task or direction.
        """
        known = {*CONDITIONS_BY_TASK, *self.phantom.tasks}
        if task not in known or direction not in ("LR", "RL"):
            raise UsageError(f"there is no run {task} {direction}; {suggest(task, known)}")
        return PhantomRun(self, task, direction)

    def runs(self) -> Iterator[PhantomRun]:
        """All runs of the configuration."""
        for task in self.phantom.tasks:
            for direction in self.phantom.config.directions:
                yield self.run(task, direction)

    def blocks(self, condition: str | None = None) -> Iterator[PhantomBlock]:
        """Block instances on the output grid: 12 frames of 1.44 s from each block's onset.

        Parameters
        ----------
        condition : str, optional
            One condition; all of the configured tasks by default.
        """
        known = self.phantom.conditions()
        if condition is not None and condition not in known:
            raise UsageError(f"{condition!r} is no condition of the phantom's tasks; {suggest(condition, known)}")
        for run in self.runs():
            if condition is None or condition in CONDITIONS_BY_TASK[run.task]:
                yield from run.blocks(*([condition] if condition else []))


class PhantomRun:
    """One run of one subject; frames are rendered when asked for."""

    def __init__(self, subject: PhantomSubject, task: str, direction: str) -> None:
        self.subject, self.task, self.direction = subject, task, direction
        config = subject.phantom.config
        self.tr_s = config.tr_s
        name = (subject.index, task, direction)
        self.paradigm: Paradigm = subject.phantom.paradigm(task, direction, stream(config.seed, "paradigm", *name))
        slowness = float(np.exp(-self.tr_s / VASCULAR_TAU_S))
        self._thermal = LocalNoise(subject.phantom.thermal_field, 0.0, config.seed, "thermal", *name)
        self._vascular = LocalNoise(subject.phantom.vascular_field, slowness, config.seed, "vascular", *name)
        self._name = name

    @property
    def n_frames(self) -> int:
        """Volumes of the run."""
        return self.paradigm.n_frames

    @property
    def times_s(self) -> np.ndarray:
        """Time of every frame, in seconds: the middle of its repetition time, as readers of real runs assume."""
        times_s: np.ndarray = (np.arange(self.n_frames) + 0.5) * self.tr_s
        return times_s

    @property
    def name(self) -> str:
        """HCP's name of the run (``tfMRI_GAMBLING_LR``)."""
        return f"tfMRI_{self.task}_{self.direction}"

    @cached_property
    def noise_courses(self) -> TemporalNoise:
        """Time courses of the low-rank noise."""
        config = self.subject.phantom.config
        rng = stream(config.seed, "noise", *self._name)
        n_networks = len(self.subject.network_RV)
        return temporal_noise(rng, self.n_frames, self.tr_s, n_networks, self.subject.restlessness, config.noise)

    @cached_property
    def task_courses(self) -> tuple[list[int], np.ndarray]:
        """Rows of the responses that occur in the run, and their time courses (T, 3 per row)."""
        config = self.subject.phantom.config.response
        rng = stream(self.subject.phantom.config.seed, "block amplitude", *self._name)
        times = self.times_s
        amplitudes = dict(
            zip(
                self.paradigm.events,
                1.0 + config.block_sd * rng.standard_normal(len(self.paradigm.events)),
                strict=True,
            )
        )
        rows: list[int] = []
        courses: list[np.ndarray] = []
        for label in dict.fromkeys(event.condition for event in self.paradigm.events):
            events = self.paradigm.blocks(label)
            rows.append(EVENT_LABELS.index(label))
            courses.extend(
                convolved_boxcar(
                    [e.onset_s for e in events], [e.duration_s for e in events], [amplitudes[e] * e.modulation for e in events],
                    times, self.subject.responses.hrf_delay_s, self.subject.responses.hrf_width,
                )
            )  # fmt: skip
        return rows, np.stack(courses, axis=1)

    @cached_property
    def _low_rank(self) -> tuple[np.ndarray, np.ndarray]:
        """Time courses (T, R) and maps (R, V) of task and noise, percent signal change."""
        rows, courses = self.task_courses
        responses = self.subject.responses
        maps = np.stack(
            [m[row] for row in rows for m in (responses.percent_KV, responses.delay_KV, responses.width_KV)]
        )
        noise = self.subject.noise_maps(self.direction)
        return (
            np.concatenate([courses, self.noise_courses.low_rank_TR], axis=1).astype(np.float32),
            np.concatenate([maps, noise.low_rank_RV]).astype(np.float32),
        )

    def percent_signal(self, weights_FT: np.ndarray, first: int) -> np.ndarray:
        """Task and noise in percent of the baseline, (F, V) float32.

        Parameters
        ----------
        weights_FT : array
            How output frames are mixed from consecutive frames of the run (identity: the frames themselves).
        first : int
            Frame of the run that the first column stands for.
        """
        courses, maps = self._low_rank
        part = weights_FT.astype(np.float32) @ courses[first : first + weights_FT.shape[1]]
        percent = part @ maps
        noise = self.subject.noise_maps(self.direction)
        for local, sd_V in ((self._thermal, noise.thermal_V), (self._vascular, noise.vascular_V)):
            if sd_V.any():
                part = local.draw(weights_FT, first)
                part *= sd_V
                percent += part
        return percent

    @cached_property
    def _scaled_baseline_V(self) -> np.ndarray:
        """Baseline scaled so that the run's grand mean in the brain is 10,000."""
        anatomy = self.subject.anatomy
        baseline = anatomy.baseline[self.direction]
        return baseline * np.float32(GRAND_MEAN / float(self._mean_V[anatomy.mask_V].mean(dtype=np.float64)))

    @cached_property
    def _mean_V(self) -> np.ndarray:
        """Temporal mean of the run in units of the baseline; full-rank noise averages out."""
        courses, maps = self._low_rank
        return self.subject.anatomy.baseline[self.direction] * (1 + (courses.mean(axis=0) @ maps) / 100)

    @cached_property
    def reference_V(self) -> np.ndarray:
        """Temporal mean of the run at the support voxels, grand mean 10,000."""
        baseline = self.subject.anatomy.baseline[self.direction]
        return self._mean_V * (self._scaled_baseline_V / baseline)

    def frames(self, weights_FT: np.ndarray, first: int) -> np.ndarray:
        """BOLD intensities at the support voxels, (F, V) float32; see `percent_signal`."""
        percent = self.percent_signal(weights_FT, first)
        percent *= np.float32(0.01)
        percent += np.float32(1.0)
        percent *= self._scaled_baseline_V
        return np.maximum(percent, 0.0, out=percent)

    def chunks(self) -> Iterator[tuple[int, np.ndarray]]:
        """The whole run in order, as (first frame, (F, V) array) pieces of bounded memory."""
        for first in range(0, self.n_frames, _CHUNK):
            yield first, self.frames(np.eye(min(_CHUNK, self.n_frames - first)), first)

    def bold_XYZT(self) -> np.ndarray:
        """The whole run on the output grid, float32, scalp included (apply the mask to strip it)."""
        space = self.subject.phantom.space
        bold = np.zeros((*space.grid.shape, self.n_frames), dtype=np.float32)
        for first, frames in self.chunks():
            bold[..., first : first + len(frames)] = space.to_grid(frames)
        return bold

    def resampled_XYZT(self, tr_s: float) -> np.ndarray:
        """The whole run at another repetition time, frames at its middle, as `prepare --unit run` makes it; float32 inside the brain."""
        space, mask_XYZ = self.subject.phantom.space, self.subject.mask_XYZ
        wanted_s = tr_s * (np.arange(int(self.n_frames * self.tr_s / tr_s + 1e-6)) + 0.5)
        bold = np.zeros((*space.grid.shape, len(wanted_s)), dtype=np.float32)
        for first in range(0, len(wanted_s), _CHUNK):
            weights = temporal_matrix(self.times_s, wanted_s[first : first + _CHUNK], self.tr_s, tr_s)
            used = np.flatnonzero(weights.any(axis=0))
            frames = self.frames(weights[:, used[0] : used[-1] + 1], int(used[0]))
            bold[..., first : first + _CHUNK] = space.to_grid(frames)
        bold[~mask_XYZ] = 0.0
        return bold

    def windows(self, *conditions: str) -> Iterator[tuple[Event, int, np.ndarray]]:
        """Block windows that fit into the run: event, first frame needed, and mixing weights (12, frames).

        A window starts at the block's onset; its frames are interpolated from the run's as in `prepare`.
        """
        times_s = self.times_s
        for event in self.paradigm.events:
            if event.condition not in (conditions or CONDITIONS_BY_TASK[self.task]):
                continue
            wanted_s = event.onset_s + BLOCK_TR_S * np.arange(BLOCK_FRAMES)
            past_end = wanted_s[-1] + BLOCK_TR_S > self.n_frames * self.tr_s + 1e-3
            if past_end or wanted_s[-1] > times_s[-1] + self.tr_s / 2 + 1e-3:
                continue
            weights = temporal_matrix(times_s, wanted_s, self.tr_s, BLOCK_TR_S)
            used = np.flatnonzero(weights.any(axis=0))
            yield event, int(used[0]), weights[:, used[0] : used[-1] + 1]

    def blocks(self, *conditions: str) -> Iterator[PhantomBlock]:
        """Block instances of the run in order of onset, all or those of some conditions."""
        space = self.subject.phantom.space
        mask_XYZ = self.subject.mask_XYZ
        mask_V = self.subject.anatomy.mask_V
        reference_XYZ = space.to_grid(np.where(mask_V, self.reference_V, 0.0).astype(np.float32))
        for event, first, weights in self.windows(*conditions):
            bold_FV = self.frames(weights, first) * mask_V
            yield PhantomBlock(
                bold_XYZT=space.to_grid(bold_FV), reference_XYZ=reference_XYZ, mask_XYZ=mask_XYZ,
                condition=event.condition, onset_s=0.0, duration_s=event.duration_s,
                phase_encoding=self.direction, task=self.task, source_onset_s=event.onset_s,
            )  # fmt: skip

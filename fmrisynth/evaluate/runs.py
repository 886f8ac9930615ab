"""What is measured of each whole run; `fmrisynth.evaluate.run_checks` compares people by it.

Every run is read once and leaves a few maps and numbers. Real and synthetic go through the same lines.

Axis legend: N people, K conditions, V voxels of the common mask, T frames, L lags, R regions (one per condition),
B frequency bands, C cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from fmrisynth.bids.events import Event, read_events
from fmrisynth.bids.naming import image_sidecar
from fmrisynth.conditions import load_table
from fmrisynth.data.blocks import Block, common_grid, read_subject, subjects_of
from fmrisynth.data.grid import Grid
from fmrisynth.data.nifti import read_image
from fmrisynth.data.percent import usable_voxels
from fmrisynth.errors import FmrisynthError, UsageError
from fmrisynth.glm.windows import percent_signal
from fmrisynth.parse import read_json
from fmrisynth.progress import log, track

HIGH_PASS_HZ = 0.01
BANDS_HZ = (0.0, 0.01, 0.02, 0.04, 0.08, 0.16, 0.5)
"""Borders of the frequency bands: below the first lie drifts of minutes."""

REGION_VOXELS = 150
"""A condition's region is so many voxels with the largest mean effect of real people."""

AFTER_S = 20.0
"""Finite impulse responses end so long after the longest event of a condition."""

CELL_VOXELS = 4
WINDOW_FRAMES = 12
"""Where borders are looked for in runs that no model made."""


@dataclass(frozen=True)
class RunNumbers:
    """What the runs of one person leave, averaged over them.

    Attributes
    ----------
    effects_KV : float32 array
        Percent signal change at the plateau, by a GLM with canonical responses and cosine drifts.
    fir_KLR : array
        Mean finite impulse response of each region to each condition, percent; NaN behind a condition's last lag.
    sd : float
        Median over voxels of the residuals' standard deviation, percent.
    lag1 : float
        Their autocorrelation from frame to frame, pooled over voxels.
    power_B : array
        Mean power of voxels in each band, percent squared.
    global_sd : float
        Standard deviation of the residuals' mean over voxels, percent.
    border : float
        Mean squared step from frame to frame at the model's window borders, over that elsewhere.
    connectivity_CC : float32 array
        Fisher z of correlations between residuals of 12 mm cells.
    """

    effects_KV: np.ndarray
    fir_KLR: np.ndarray
    sd: float
    lag1: float
    power_B: np.ndarray
    global_sd: float
    border: float
    connectivity_CC: np.ndarray


@dataclass(frozen=True)
class RunCohort:
    """The people of one dataset and their runs."""

    root: Path
    people: dict[str, list[Block]]

    @classmethod
    def open(cls, root: Path, split: str = "all") -> RunCohort:
        """Read the tables of a dataset of whole runs.

        Raises
        ------
        UsageError
            It holds blocks.
        """
        people = {subject: read_subject(root, subject) for subject in subjects_of(root)}
        block = next((block for blocks in people.values() for block in blocks if not block.is_run), None)
        if block is not None:
            raise UsageError(
                f"{root}: holds blocks, not whole runs; use --unit block, or make runs with `prepare --unit run`."
            )
        if split != "all" and any(run.split == split for runs in people.values() for run in runs):
            people = {s: own for s, runs in people.items() if (own := [run for run in runs if run.split == split])}
        return cls(root, people)

    @property
    def runs(self) -> list[Block]:
        """All runs."""
        return [run for runs in self.people.values() for run in runs]


@dataclass(frozen=True)
class Plan:
    """What is common to the runs of both datasets."""

    grid: Grid
    mask_XYZ: np.ndarray
    tr_s: float
    conditions: tuple[str, ...]
    n_lags_K: np.ndarray
    window_frames: int
    cell_V: np.ndarray

    @classmethod
    def of(cls, real: RunCohort, synthetic: RunCohort) -> Plan:
        """Agree on grid, mask, conditions and lags.

        Raises
        ------
        FmrisynthError
            The datasets differ in grid or repetition time, share no voxel or no condition.
        """
        grid = common_grid(real.runs)
        mask_XYZ = np.ones(grid.shape, dtype=bool)
        for run in [*real.runs, *synthetic.runs]:
            if not run.load_grid().same_as(grid) or abs(run.tr_s - real.runs[0].tr_s) > 1e-6:
                raise FmrisynthError(
                    f"{run.path}: expected the grid and repetition time of {real.runs[0].path}, found others; prepare both alike."
                )
            own_XYZ = run.load_mask()
            mask_XYZ &= usable_voxels(read_image(run.reference_path, ndim=3).scaled(), own_XYZ)
        told = [[events_of(run) for run in cohort.runs] for cohort in (real, synthetic)]
        known = [{event.label for events in runs for event in events} for runs in told]
        conditions = tuple(sorted(known[0] & known[1]))
        if not conditions or not mask_XYZ.any():
            labels = [", ".join(sorted(names)) for names in known]
            what = "voxel" if conditions else f"condition (real: {labels[0]}; synthetic: {labels[1]})"
            raise FmrisynthError(
                f"{synthetic.root}: shares no {what} with {real.root}; compare runs of one experiment."
            )
        tr_s, shortest = real.runs[0].tr_s, min(run.n_frames for run in [*real.runs, *synthetic.runs])
        longest = [max(e.duration_s for events in told[0] for e in events if e.label == c) for c in conditions]
        # A finite impulse response must leave frames to estimate it from.
        in_one_run = max(len({event.label for event in events}) for runs in told for events in runs)
        most = max(2, shortest // (3 * in_one_run))
        n_lags_K = np.array([min(most, math.ceil((duration + AFTER_S) / tr_s)) for duration in longest])
        numbers = np.arange(mask_XYZ.size).reshape(mask_XYZ.shape)
        x, y, z = np.unravel_index(numbers[mask_XYZ], mask_XYZ.shape)
        sides = [-(-side // CELL_VOXELS) for side in mask_XYZ.shape]
        cell_V = np.ravel_multi_index((x // CELL_VOXELS, y // CELL_VOXELS, z // CELL_VOXELS), sides)
        return cls(
            grid,
            mask_XYZ,
            tr_s,
            conditions,
            n_lags_K,
            _window_frames(synthetic),
            np.unique(cell_V, return_inverse=True)[1],
        )


def _window_frames(synthetic: RunCohort) -> int:
    """Frames that the model made at a time, as its runs say."""
    path = image_sidecar(synthetic.runs[0].path)
    try:
        return max(2, int(dict(read_json(path)).get("WindowFrames", WINDOW_FRAMES)))
    except (OSError, ValueError, TypeError) as error:
        raise FmrisynthError(
            f"{path}: expected the run's sidecar, it cannot be read ({error}); make the run again."
        ) from None


def events_of(run: Block) -> list[Event]:
    """A run's events with our labels, seconds after the start of the run."""
    table, task = load_table(), run.entities.get("task", "")
    found = []
    for event in read_events(run.events_path).events:
        condition = None if event.label in table.conditions else table.match(task, event.label)
        found.append(event if condition is None else event._replace(label=condition.label))
    return found


def percent_of(run: Block, mask_XYZ: np.ndarray) -> np.ndarray:
    """A run in percent of its reference, (T, V) float32."""
    return percent_signal(run.load(), mask_XYZ)


Reader = Callable[[Block, np.ndarray], np.ndarray]
"""Reads a run like `percent_of`."""


def fir_design(
    events: Sequence[Event], conditions: Sequence[str], n_lags_K: np.ndarray, times_s: np.ndarray, tr_s: float
) -> np.ndarray:
    """Columns of sticks, (T, sum of lags): how many events of a condition began so many repetition times before a frame."""
    blocks = []
    for condition, n_lags in zip(conditions, n_lags_K, strict=True):
        onsets = np.array([e.onset_s for e in events if e.label == condition])
        lag_TE = np.floor((times_s[:, None] - onsets) / tr_s + 0.5)
        blocks.append(np.stack([(lag_TE == lag).sum(axis=1) for lag in range(n_lags)], axis=1))
    return np.concatenate(blocks, axis=1).astype(float)


def measure_run(run: Block, plan: Plan, regions_RV: np.ndarray | None, read: Reader = percent_of) -> RunNumbers:
    """Read a run and measure it; without regions the finite impulse responses are empty."""
    import pandas as pd
    from nilearn.glm.first_level import make_first_level_design_matrix

    y_TV = read(run, plan.mask_XYZ)
    times_s = (np.arange(len(y_TV)) + 0.5) * plan.tr_s
    events = events_of(run)
    rows = [
        {"onset": e.onset_s, "duration": e.duration_s, "trial_type": e.label, "modulation": e.modulation}
        for e in events
    ]
    table = pd.DataFrame(rows)
    if (table["modulation"] == 1).all():
        table = table.drop(columns="modulation")  # nilearn says each time that it is used
    design = make_first_level_design_matrix(
        times_s, table, hrf_model="spm", drift_model="cosine", high_pass=HIGH_PASS_HZ
    )
    x_TP = design.to_numpy()
    beta_PV = np.linalg.pinv(x_TP) @ y_TV
    effects_KV = np.full((len(plan.conditions), y_TV.shape[1]), np.nan, dtype=np.float32)
    for k, condition in enumerate(plan.conditions):
        if condition in design.columns:
            effects_KV[k] = beta_PV[design.columns.get_loc(condition)]
    residual_TV = y_TV - (x_TP @ beta_PV).astype(np.float32)

    longest = int(plan.n_lags_K.max())
    fir_KLR = np.full((len(plan.conditions), longest, 0 if regions_RV is None else len(regions_RV)), np.nan)
    if regions_RV is not None:
        occurring = [k for k, c in enumerate(plan.conditions) if any(e.label == c for e in events)]
        sticks = fir_design(
            events, [plan.conditions[k] for k in occurring], plan.n_lags_K[occurring], times_s, plan.tr_s
        )
        drift_TD = design.filter(regex="drift|constant").to_numpy()
        course_TR = y_TV @ (regions_RV / regions_RV.sum(axis=1, keepdims=True)).T
        fitted = np.linalg.pinv(np.concatenate([sticks, drift_TD], axis=1)) @ course_TR
        start = 0
        for k in occurring:
            n_lags = plan.n_lags_K[k]
            fir_KLR[k, :n_lags] = fitted[start : start + n_lags]
            start += n_lags

    variance_V = residual_TV.var(axis=0)
    centred_TV = y_TV - y_TV.mean(axis=0)
    frequencies = np.fft.rfftfreq(len(y_TV), plan.tr_s)
    power_F = sum(
        (np.abs(np.fft.rfft(part, axis=0)) ** 2).sum(axis=1) for part in np.array_split(centred_TV, 16, axis=1)
    ) / (len(y_TV) ** 2 / 2 * y_TV.shape[1])
    band_F = np.digitize(frequencies, BANDS_HZ) - 1
    power_B = np.array([power_F[(band_F == b) & (frequencies > 0)].sum() for b in range(len(BANDS_HZ) - 1)])
    step_T = np.square(np.diff(y_TV, axis=0)).mean(axis=1)
    at_border = np.arange(1, len(y_TV)) % plan.window_frames == 0
    cells = int(plan.cell_V.max()) + 1
    count_C = np.bincount(plan.cell_V, minlength=cells)
    means_TC = np.stack([np.bincount(plan.cell_V, frame, minlength=cells) for frame in residual_TV]) / count_C
    with np.errstate(invalid="ignore"):
        connectivity = np.arctanh(np.clip(np.corrcoef(means_TC.T), -0.999, 0.999)).astype(np.float32)
    return RunNumbers(
        effects_KV=effects_KV, fir_KLR=fir_KLR, sd=float(np.median(np.sqrt(variance_V))),
        lag1=float((residual_TV[1:] * residual_TV[:-1]).mean() / variance_V.mean()), power_B=power_B,
        global_sd=float(residual_TV.mean(axis=1).std()),
        border=float(step_T[at_border].mean() / step_T[~at_border].mean()) if at_border.any() else 1.0,
        connectivity_CC=connectivity,
    )  # fmt: skip


def measure(
    cohort: RunCohort, plan: Plan, regions_RV: np.ndarray | None, title: str, read: Reader = percent_of
) -> list[RunNumbers]:
    """The numbers of every person, runs averaged; who did not do every condition is left out, with a warning.

    Raises
    ------
    FmrisynthError
        Nobody did every condition.
    """
    found = []
    for person, runs in track(list(cohort.people.items()), title):
        done = {event.label for run in runs for event in events_of(run)}
        lacking = [condition for condition in plan.conditions if condition not in done]
        if lacking:
            log.warning("%s: sub-%s is left out, it has no %s.", cohort.root, person, ", ".join(lacking))
            continue
        own = [measure_run(run, plan, regions_RV, read) for run in runs]
        found.append(RunNumbers(**{f.name: _mean([getattr(one, f.name) for one in own]) for f in fields(RunNumbers)}))
    if not found:
        raise FmrisynthError(
            f"{cohort.root}: expected people who did {', '.join(plan.conditions)}, found nobody who did all."
        )
    return found


def _mean(values: Sequence[Any]) -> Any:
    if len(values) == 1:
        return values[0]
    stacked = np.stack(values)
    known = np.isfinite(stacked)
    return np.where(known, stacked, 0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)


def regions_of(effects_NKV: np.ndarray) -> np.ndarray:
    """One region per condition, bool (R, V): the voxels with the largest mean effect."""
    mean_KV = effects_NKV.mean(axis=0)
    regions_RV = np.zeros(mean_KV.shape, dtype=bool)
    for own, mean_V in zip(regions_RV, mean_KV, strict=True):
        own[np.argsort(mean_V)[-REGION_VOXELS:]] = True
    return regions_RV


# Comparisons: a function of the numbers of real people and of synthetic ones, (values,) each.

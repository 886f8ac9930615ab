"""Whole runs of synthetic people against those of real ones who did the same: what is measured of each run, and how the two compare.

Every run is read once and leaves a few maps and numbers. Real and synthetic go through the same lines.

Axis legend: N people, K conditions, V voxels of the common mask, T frames, L lags, R regions (one per condition),
B frequency bands, C cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.special import stdtrit

from fmrisynth.bids.events import Event, read_events
from fmrisynth.bids.naming import image_sidecar
from fmrisynth.conditions import load_table
from fmrisynth.data.blocks import Block, common_grid, read_subject, subjects_of
from fmrisynth.data.grid import Grid
from fmrisynth.data.nifti import read_image
from fmrisynth.data.percent import percent_change, usable_voxels
from fmrisynth.errors import FmrisynthError, UsageError
from fmrisynth.parse import read_json
from fmrisynth.progress import log, track

HIGH_PASS_HZ = 0.01
BANDS_HZ = (0.0, 0.01, 0.02, 0.04, 0.08, 0.16, 0.5)
"""Borders of the frequency bands: below the first lie drifts of minutes."""

REGION_VOXELS = 150
"""A condition's region is so many voxels with the largest mean effect of real people."""

AFTER_S = 20.0
"""Finite impulse responses end so long after the longest event of a condition."""

MIN_PEOPLE = 5
"""Fewer people give no interval, and no answer."""

CELL_VOXELS = 4
WINDOW_FRAMES = 12
"""Where borders are looked for in runs that no model made."""

ACTIVE_SHARE = 0.05
Answer = Literal["passes", "fails", "cannot tell"]


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
    data = run.load()
    return percent_change(data.bold_XYZT[mask_XYZ], data.reference_XYZ[mask_XYZ][:, None]).T


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


def measure_run(run: Block, plan: Plan, regions_RV: np.ndarray | None) -> RunNumbers:
    """Read a run and measure it; without regions the finite impulse responses are empty."""
    import pandas as pd
    from nilearn.glm.first_level import make_first_level_design_matrix

    y_TV = percent_of(run, plan.mask_XYZ)
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


def measure(cohort: RunCohort, plan: Plan, regions_RV: np.ndarray | None, title: str) -> list[RunNumbers]:
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
        own = [measure_run(run, plan, regions_RV) for run in runs]
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


def map_correlation(real: Sequence[RunNumbers], synthetic: Sequence[RunNumbers]) -> np.ndarray:
    """Correlation over voxels between the group's effect maps, as a share of what as many real people would reach, (K,)."""
    both = [[_centred(p.effects_KV) for p in people] for people in (real, synthetic)]
    return _share_of_attainable(*both)


def _centred(values_KV: np.ndarray) -> np.ndarray:
    return values_KV - values_KV.mean(axis=1, keepdims=True)


def _share_of_attainable(real: Sequence[np.ndarray], synthetic: Sequence[np.ndarray]) -> np.ndarray:
    """Correlation between group means, over that expected of two groups of real people of these sizes, (K,).

    Products between different people hold what people share; a group's mean holds what its people add to that, divided by their number.
    """
    mean_KV, other_KV, n = np.mean(real, axis=0), np.mean(synthetic, axis=0), len(real)
    total_K = np.square(mean_KV).sum(axis=1)
    own_K = np.sum([np.square(person).sum(axis=1) for person in real], axis=0)
    shared_K = (n**2 * total_K - own_K) / (n * (n - 1))
    total_if_K = shared_K + (total_K - shared_K) * n / len(synthetic)
    r_K = (mean_KV * other_KV).sum(axis=1) / np.sqrt(total_K * np.square(other_KV).sum(axis=1))
    attainable_K = shared_K / np.sqrt(total_K * total_if_K)
    return np.where(shared_K > 0, r_K / np.where(shared_K > 0, attainable_K, 1), np.nan)


def slopes(real: Sequence[RunNumbers], synthetic: Sequence[RunNumbers]) -> np.ndarray:
    """How much of each real map is in each synthetic one, (K, K): rows synthetic; the diagonal is the amplitude, the rest leakage.

    Least squares on all real maps together, whose products are taken between different people only, so that their noise does not count
    as signal.
    """
    group_KV, n = _group(real), len(real)
    if n < 2:
        return np.full((len(group_KV),) * 2, np.nan)
    own_KK = np.zeros((len(group_KV),) * 2)
    for person in real:
        effects_KV = _centred(person.effects_KV)
        own_KK += effects_KV @ effects_KV.T
    moments_KK = (n**2 * group_KV @ group_KV.T - own_KK) / (n * (n - 1))
    return np.linalg.solve(moments_KK, group_KV @ _group(synthetic).T).T


def slopes_on_truth(truth_KV: np.ndarray, people: Sequence[RunNumbers]) -> np.ndarray:
    """How much of each true map is in each group map, (K, K), by least squares."""
    centred_KV = truth_KV - truth_KV.mean(axis=1, keepdims=True)
    return np.linalg.lstsq(centred_KV.T, _group(people).T, rcond=None)[0].T


def fir_correlation(real: Sequence[RunNumbers], synthetic: Sequence[RunNumbers]) -> np.ndarray:
    """Correlation over lags of a condition's response in its own region, (K,)."""
    return np.array([np.corrcoef(one, other)[0, 1] for one, other in _responses(real, synthetic)])


def peak_delay_s(real: Sequence[RunNumbers], synthetic: Sequence[RunNumbers], *, tr_s: float) -> np.ndarray:
    """How much later the synthetic response is, by the shift that fits best, (K,) s."""
    return np.array([tr_s * (_shift(other, one)) for one, other in _responses(real, synthetic)])


def spread_ratio(real: Sequence[RunNumbers], synthetic: Sequence[RunNumbers]) -> np.ndarray:
    """Standard deviation of effects between people in active voxels, synthetic over real, log, (K,)."""
    size_KV = np.abs(_group(real))
    active_KV = size_KV >= np.quantile(size_KV, 1 - ACTIVE_SHARE, axis=1, keepdims=True)
    both = [np.stack([one.effects_KV for one in people]).var(axis=0, ddof=1) for people in (real, synthetic)]
    return np.array(
        [0.5 * np.log(both[1][k][active].mean() / both[0][k][active].mean()) for k, active in enumerate(active_KV)]
    )


def connectivity_correlation(real: Sequence[RunNumbers], synthetic: Sequence[RunNumbers]) -> np.ndarray:
    """Correlation over pairs of cells between the groups' connectivity, as a share of what as many real people would reach, (1,)."""
    upper = np.triu_indices(len(real[0].connectivity_CC), 1)
    both = [np.stack([p.connectivity_CC[upper] for p in people]) for people in (real, synthetic)]
    known = np.isfinite(both[0]).all(axis=0) & np.isfinite(both[1]).all(axis=0)
    return _share_of_attainable(*([_centred(row[None, known]) for row in rows] for rows in both))


def ratio(name: str, real: Sequence[RunNumbers], synthetic: Sequence[RunNumbers]) -> np.ndarray:
    """Log of a positive number of synthetic people over that of real ones, geometric means."""
    with np.errstate(divide="ignore", invalid="ignore"):  # a short run has no frequency in the lowest band
        one, other = (np.mean([np.log(getattr(p, name)) for p in people], axis=0) for people in (real, synthetic))
        return np.atleast_1d(other - one)


def difference(name: str, real: Sequence[RunNumbers], synthetic: Sequence[RunNumbers]) -> np.ndarray:
    """Difference of the means of a number."""
    one, other = (np.mean([getattr(p, name) for p in people], axis=0) for people in (real, synthetic))
    return np.atleast_1d(other - one)


def _group(people: Sequence[RunNumbers]) -> np.ndarray:
    return _centred(np.mean([p.effects_KV for p in people], axis=0))


def _responses(real: Sequence[RunNumbers], synthetic: Sequence[RunNumbers]) -> list[tuple[np.ndarray, np.ndarray]]:
    both = [np.nanmean([p.fir_KLR for p in people], axis=0) for people in (real, synthetic)]
    known = [np.isfinite(both[0][k, :, k]) for k in range(len(both[0]))]
    return [(both[0][k, own, k], both[1][k, own, k]) for k, own in enumerate(known)]


def _shift(course: np.ndarray, template: np.ndarray) -> float:
    """Lags by which a course follows a template, by the correlation's peak on a fine grid."""
    lags, fine = np.arange(len(course)), np.arange(-4, 4.01, 0.05)
    scores = [np.corrcoef(course, np.interp(lags - shift, lags, template))[0, 1] for shift in fine]
    return float(fine[int(np.argmax(scores))])


@dataclass(frozen=True)
class RunCheck:
    """One comparison: what is computed, and between which limits it must lie for the synthetic runs to pass."""

    key: str
    title: str
    compute: Callable[[Sequence[RunNumbers], Sequence[RunNumbers]], np.ndarray]
    least: float
    most: float
    unit: str = ""


@dataclass(frozen=True)
class RunVerdict:
    """A check's value, its 95 % interval over people (of both datasets), and the answer."""

    check: RunCheck
    value: float
    low: float
    high: float
    each: tuple[float, ...]
    answer: Answer


def run_checks(tr_s: float) -> list[RunCheck]:
    """All checks; limits as stated in docs/runs.md."""
    third = math.log(4 / 3)
    bands = [f"{low:g} to {high:g} Hz" for low, high in pairwise(BANDS_HZ)]

    def band(b: int, real: Sequence[RunNumbers], synthetic: Sequence[RunNumbers]) -> np.ndarray:
        return ratio("power_B", real, synthetic)[b : b + 1]

    def diagonal(real: Sequence[RunNumbers], synthetic: Sequence[RunNumbers]) -> np.ndarray:
        return np.diag(slopes(real, synthetic))

    def leakage(real: Sequence[RunNumbers], synthetic: Sequence[RunNumbers]) -> np.ndarray:
        found_KK = np.abs(slopes(real, synthetic))
        np.fill_diagonal(found_KK, 0)
        return found_KK.max(axis=1)

    return [
        RunCheck("maps", "Group maps, r over voxels against as many real people", map_correlation, 0.9, 1.0),
        RunCheck("amplitude", "Amplitude of group maps (slope)", diagonal, 0.85, 1.15),
        RunCheck("leakage", "Largest leakage from another condition (slope)", leakage, 0.0, 0.1),
        RunCheck("spread", "Spread of effects between people, log ratio", spread_ratio, -third, third),
        RunCheck("fir", "Impulse responses, r over lags", fir_correlation, 0.95, 1.0),
        RunCheck("latency", "Latency of responses, s later", partial(peak_delay_s, tr_s=tr_s), -0.7, 0.7, "s"),
        RunCheck("sd", "Residual standard deviation, log ratio", partial(ratio, "sd"), -third / 2, third / 2),
        RunCheck("lag1", "Lag-1 autocorrelation, difference", partial(difference, "lag1"), -0.05, 0.05),
        *(RunCheck(f"power{b}", f"Power at {name}, log ratio", partial(band, b), -third, third) for b, name in enumerate(bands)),
        RunCheck("global", "Global signal, log ratio of standard deviations", partial(ratio, "global_sd"), -third, third),
        RunCheck("connectivity", "Connectivity, r over pairs of cells against as many real people", connectivity_correlation, 0.9, 1.0),
        RunCheck("border", "Step at window borders, log ratio to elsewhere", partial(ratio, "border"), -0.05, 0.05),
    ]  # fmt: skip


def judge(checks: Sequence[RunCheck], real: Sequence[RunNumbers], synthetic: Sequence[RunNumbers]) -> list[RunVerdict]:
    """Compute all checks with delete-one intervals over the people of both datasets."""
    verdicts = []
    for check in track(list(checks), "Checks"):
        values_K = check.compute(real, synthetic)
        value, spread = float(np.mean(values_K)), 0.0
        if not math.isfinite(value) or min(len(real), len(synthetic)) < MIN_PEOPLE:
            verdicts.append(
                RunVerdict(check, value, math.nan, math.nan, tuple(float(v) for v in values_K), "cannot tell")
            )
            continue
        for people, swap in ((real, False), (synthetic, True)):
            rests = [[*people[:number], *people[number + 1 :]] for number in range(len(people))]
            parts = [float(np.mean(check.compute(*((real, rest) if swap else (rest, synthetic))))) for rest in rests]
            spread += (len(people) - 1) * float(np.var(parts))
        half = float(stdtrit(max(1, min(len(real), len(synthetic)) - 1), 0.975)) * math.sqrt(spread)
        low, high = value - half, value + half
        inside, apart = check.least <= low and high <= check.most, high < check.least or low > check.most
        if check.most == 1.0 and check.least > 0:  # correlations have no upper limit to overstep
            inside = low >= check.least
        answer: Answer = "passes" if inside else "fails" if apart else "cannot tell"
        verdicts.append(RunVerdict(check, value, low, high, tuple(float(v) for v in values_K), answer))
    return verdicts

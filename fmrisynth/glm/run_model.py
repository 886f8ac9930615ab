"""The statistics of the whole-run GLM: nilearn's design, masking and noise models, run by run.

Frames that are no signal (marked in the confounds, or empty in the image) are dropped before scaling and fitting, as
nilearn's ``sample_masks`` does. Everything is nilearn's own function, so that maps equal ``FirstLevelModel``'s.

Axis legend: X, Y, Z voxel axes; T frames; V voxels in the mask; P regressors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fmrisynth.bids.runs import Run
from fmrisynth.conditions import fold, spell
from fmrisynth.config.glm import GlmConfig
from fmrisynth.data.nifti import iterate_frames, read_image
from fmrisynth.data.percent import check_mean, percent_change, usable_voxels
from fmrisynth.errors import FmrisynthError
from fmrisynth.glm.statistics import Estimate
from fmrisynth.progress import log

MIN_FRAMES = 10
MAX_INFLATION = 10.0
"""Variance inflation of a condition above which the data can hardly tell it from the rest of the model."""

CLOCK_DOUBT, CLOCK_LIMIT = 0.1, 0.2
"""Relative change of an effect with the moment of the frames that is told, and that is refused; see `clock_doubts`."""

BRIGHT_START = 1.03
"""First frames brighter than this times the run's median are a magnetisation that has not settled."""


@dataclass(frozen=True)
class FittedRun:
    """One run's fit.

    Attributes
    ----------
    design : pandas.DataFrame
        Kept frames x regressors; the index is the time of the frame, in seconds.
    labels, results
        As nilearn's ``run_glm`` returns them.
    conditions : frozenset of str
        Conditions that the run can estimate.
    n_confounds, n_dropped : int
        Confound regressors in the design, and frames left out.
    """

    design: Any
    labels: np.ndarray
    results: dict
    conditions: frozenset[str]
    n_confounds: int
    n_dropped: int


@dataclass(frozen=True)
class FittedTask:
    """The fits of one participant's runs of one task, on one grid.

    Attributes
    ----------
    mask_XYZ : bool array
        V voxels.
    affine : array of shape (4, 4)
        Voxel to world, mm.
    mean_XYZ : array
        Temporal mean of the first run, to draw on.
    runs : tuple of FittedRun
        In order.
    doubts : tuple of str
        What may be wrong, in sentences, for sidecars and pages.
    """

    mask_XYZ: np.ndarray
    affine: np.ndarray
    mean_XYZ: np.ndarray
    runs: tuple[FittedRun, ...]
    doubts: tuple[str, ...]


def condition_name(trial_type: str) -> str:
    """A trial type as a word that formulas can hold: ``CS+`` -> ``CS_plus``; see `fmrisynth.conditions.spell`."""
    word = "_".join(spell(trial_type))
    return word if word and not word[0].isdigit() else f"c{word}"


def condition_names(runs: Iterable[Run]) -> dict[str, str]:
    """Trial type -> name of its condition, in order of first appearance; spellings that only fold differently share one.

    Raises
    ------
    FmrisynthError
        Two different trial types would get one name.
    """
    by_spelling: dict[str, str] = {}
    names: dict[str, str] = {}
    for run in runs:
        for event in run.events:
            if event.label not in names and spell(event.label):
                name = by_spelling.setdefault(fold(event.label), condition_name(event.label))
                clash = next((k for k, v in names.items() if v == name and fold(k) != fold(event.label)), None)
                if clash is not None:
                    raise FmrisynthError(
                        f"{run.events_files[0]}: trial types {clash!r} and {event.label!r} would both be called {name}; rename one."
                    )
                names[event.label] = name
    return names


def fit_runs(runs: Sequence[Run], config: GlmConfig) -> FittedTask:
    """Fit a participant's runs of one task.

    Raises
    ------
    FmrisynthError
        A run that cannot be right: without its mean, on another grid, confounds for some runs only, or frames too few.
    """
    _check_confounds(runs, config)
    names = condition_names(runs)
    doubts = [text for run in runs for text in run.warnings]
    given = [read_image(run.mask, ndim=3).scaled() > 0.5 for run in runs if run.mask is not None]
    headers = [run.check()[0] for run in runs]
    for run, header in zip(runs, headers, strict=True):
        if not header.on_grid_of(headers[0]):
            raise FmrisynthError(
                f"{run.bold}: its grid differs from that of {runs[0].bold.name}; runs of one task must be on one grid: "
                "resample them, or analyse them apart (--task, sessions)."
            )
    mask_XYZ = np.logical_and.reduce(given) if len(given) == len(runs) else _computed_mask(runs)
    scans = [scan_run(run, mask_XYZ, config) for run in runs]
    for scan in scans:
        doubts += scan.doubts
        mask_XYZ = mask_XYZ & scan.usable_XYZ
    if not mask_XYZ.any():
        raise FmrisynthError(f"{runs[0].bold}: no voxel of the brain mask has signal in every run; check the masks.")
    fitted = []
    for run, scan in zip(runs, scans, strict=True):
        fit, more = _fit_run(run, scan.kept, mask_XYZ, names, config)
        fitted.append(fit)
        doubts += more
    for text in doubts:
        log.warning("%s", text)
    return FittedTask(mask_XYZ, headers[0].affine, scans[0].mean_XYZ, tuple(fitted), tuple(doubts))


def contrast_estimate(task: FittedTask, weights: Mapping[str, float]) -> tuple[Estimate, int] | None:
    """Effect, variance and dof of a contrast over the runs that have all its conditions, and how many they are.

    nilearn's fixed effects: the mean of the runs' effects. None where no run has them.
    """
    from nilearn.glm.contrasts import compute_contrast

    parts = []
    for run in task.runs:
        if set(weights) <= run.conditions:
            vector = np.array([weights.get(str(name), 0.0) for name in run.design.columns])
            parts.append(compute_contrast(run.labels, run.results, vector))
    if not parts:
        return None
    effect = np.mean([np.ravel(part.effect_size()) for part in parts], axis=0)
    variance = np.sum([np.ravel(part.effect_variance()) for part in parts], axis=0) / len(parts) ** 2
    dof = float(np.sum([np.mean(part.dof) for part in parts]))
    return Estimate(effect.astype(np.float32), variance.astype(np.float32), dof), len(parts)


@dataclass(frozen=True)
class Scan:
    """What one pass over a run's frames shows."""

    mean_XYZ: np.ndarray
    usable_XYZ: np.ndarray
    kept: np.ndarray
    doubts: tuple[str, ...]


def scan_run(run: Run, mask_XYZ: np.ndarray, config: GlmConfig) -> Scan:
    """Look at every frame of a run: which are empty, which voxels have signal, whether the mean is still there.

    Raises
    ------
    FmrisynthError
        Too few frames, or an image without its mean (demeaned, standardised, denoised).
    """
    header, timing = run.check()
    path, doubts = run.bold, []
    marked = run.confounds.dropped(config.confounds) if run.confounds else frozenset()
    levels = np.zeros(timing.n_frames)
    total = squares = np.zeros(header.shape[:3])
    bad_XYZ = np.zeros(header.shape[:3], bool)
    n = 0
    for number, stored in enumerate(iterate_frames(path)):
        frame = stored * header.slope + header.intercept
        finite = np.isfinite(frame)
        if not finite.all():
            bad_XYZ |= ~finite
            frame = np.where(finite, frame, 0.0)
        levels[number] = np.abs(frame[mask_XYZ]).mean() if mask_XYZ.any() else 0.0
        if levels[number] > 0 and number not in marked:
            total, squares, n = total + frame, squares + frame * frame, n + 1
    empty = np.flatnonzero(levels < 1e-3 * np.median(levels))
    kept = np.setdiff1d(np.arange(timing.n_frames), [*marked, *empty])
    if len(kept) < MIN_FRAMES:
        raise FmrisynthError(
            f"{path}: expected at least {MIN_FRAMES} usable frames, found {len(kept)} of {timing.n_frames}."
        )
    if len(empty):
        doubts.append(f"{path}: {_frames(empty)} empty (dropped by the scanner, or not written); left out of the fit.")
    if marked:
        doubts.append(
            f"{run.confounds_file}: {_frames(sorted(marked))} marked as non-steady-state or outlying; left out."
        )
    bright = [t for t in kept[:4] if t < 4 and levels[t] > BRIGHT_START * np.median(levels[kept])]
    if bright:
        doubts.append(
            f"{path}: {_frames(bright)} brighter than the rest by {100 * (levels[bright].max() / np.median(levels[kept]) - 1):.0f} % "
            "and not marked as non-steady-state; give fMRIPrep's confounds, or cut them off."
        )
    mean = total / n
    deviation = np.sqrt(np.maximum(squares / n - mean**2, 0))
    inside = mask_XYZ & ~bad_XYZ
    check_mean(path, mean[inside], deviation[inside])
    usable_XYZ = usable_voxels(np.where(bad_XYZ, np.nan, mean), mask_XYZ, config.min_reference_fraction)
    n_bad = int((bad_XYZ & mask_XYZ).sum())
    if n_bad and run.mask is not None:
        doubts.append(f"{path}: {n_bad} voxels inside the brain mask are NaN or infinite and are left out of the maps.")
    return Scan(mean.astype(np.float32), usable_XYZ, kept, tuple(doubts))


def _frames(numbers: Sequence[int] | np.ndarray) -> str:
    """``volume 3 is``, ``volumes 40 and 41 are``, counted from 0."""
    shown = [str(int(n)) for n in numbers]
    if len(shown) == 1:
        return f"volume {shown[0]} is"
    listed = ", ".join(shown[:6]) + ", ..." if len(shown) > 7 else f"{', '.join(shown[:-1])} and {shown[-1]}"
    return f"{len(shown)} volumes ({listed}) are"


def _check_confounds(runs: Sequence[Run], config: GlmConfig) -> None:
    if config.confounds == "none":
        return
    for run in runs:
        if run.confounds_file is not None and run.confounds is None:
            raise FmrisynthError(next(problem.text for problem in run.problems if problem.name == "confounds"))
    having = [run for run in runs if run.confounds_file is not None]
    lacking = [run for run in runs if run.confounds_file is None]
    if having and lacking:
        raise FmrisynthError(
            f"{lacking[0].bold}: this run has no confounds file (*_desc-confounds_timeseries.tsv), {having[0].bold.name} of "
            "the same task has one, so their models would differ; give the missing one, or set confounds=none."
        )


def _computed_mask(runs: Sequence[Run]) -> np.ndarray:
    """nilearn's EPI mask of all runs, as ``FirstLevelModel`` computes it."""
    from nilearn.masking import compute_multi_epi_mask

    return np.asarray(compute_multi_epi_mask([_image(run) for run in runs]).dataobj) > 0


def _image(run: Run) -> Any:
    """The run as nibabel gives it; images that it does not read as we do are held in memory."""
    import nibabel as nib

    header, _ = run.check()
    if header.plain:
        return nib.load(run.bold)
    stored = read_image(run.bold, ndim=4).stored_XYZT
    return nib.Nifti1Image(stored * header.slope + header.intercept, header.affine)


def run_design(run: Run, names: Mapping[str, str], config: GlmConfig) -> Any:
    """The design matrix of a whole run, all frames (pandas.DataFrame; the index is time in seconds).

    `names` gives each trial type the name of its condition.
    """
    import pandas as pd
    from nilearn.glm.first_level import make_first_level_design_matrix

    _, timing = run.check()
    rows = [
        (event.onset_s, event.duration_s, names[event.label])
        for event in run.events if event.label in names and event.onset_s < timing.end_s
    ]  # fmt: skip
    # As nilearn makes it from slice_time_ref, to the last bit.
    first, last = timing.first_frame_s, (timing.n_frames - 1 + timing.first_frame_s / timing.tr_s) * timing.tr_s
    confounds = run.confounds.regressors(config.confounds) if run.confounds else {}
    return make_first_level_design_matrix(
        np.linspace(first, last, timing.n_frames),
        pd.DataFrame(rows, columns=["onset", "duration", "trial_type"]),
        hrf_model=config.hrf,
        drift_model={"none": None, "linear": "polynomial", "cosine": "cosine"}[config.resolved_drift],
        drift_order=1,
        high_pass=config.high_pass_hz,
        add_regs=np.column_stack(list(confounds.values())) if confounds else None,
        add_reg_names=list(confounds) or None,
    )


def _fit_run(
    run: Run, kept: np.ndarray, mask_XYZ: np.ndarray, names: Mapping[str, str], config: GlmConfig
) -> tuple[FittedRun, list[str]]:
    import nibabel as nib
    from nilearn.glm.first_level import run_glm
    from nilearn.maskers import NiftiMasker

    design = run_design(run, names, config)
    all_kept = len(kept) == len(design)
    design = design if all_kept else design.iloc[kept]
    conditions, doubts = estimable_conditions(run, names, design)
    doubts += clock_doubts(run, names, design, kept, sorted(conditions), config)
    header, _ = run.check()
    mask_image = nib.Nifti1Image(mask_XYZ.astype(np.uint8), header.affine)
    masker = NiftiMasker(mask_image, smoothing_fwhm=config.resolved_smoothing_fwhm_mm or None, standardize=None).fit()
    try:
        bold_TV = masker.transform(_image(run), sample_mask=None if all_kept else kept)
        percent_TV = percent_change(bold_TV, bold_TV.mean(axis=0))
        labels, results = run_glm(percent_TV, design.to_numpy(), noise_model=config.resolved_noise_model, n_jobs=1)
    except (ValueError, EOFError, OSError) as error:
        raise FmrisynthError(f"{run.bold}: nilearn could not fit the run: {error}") from None
    n_confounds = len(run.confounds.regressors(config.confounds)) if run.confounds else 0
    return FittedRun(design, labels, results, conditions, n_confounds, header.shape[3] - len(kept)), doubts


def clock_doubts(
    run: Run, names: Mapping[str, str], design: Any, kept: np.ndarray, conditions: Sequence[str], config: GlmConfig
) -> list[str]:
    """Conditions whose effect hangs on the moment of the frames where nothing says which it is.

    What the model would make of the response that another moment gives, the start and the end of the repetition time,
    is known from the design alone. Blocks lose a few percent; confounds that follow the task make it many.

    Raises
    ------
    FmrisynthError
        The effect would be wrong by more than `CLOCK_LIMIT`.
    """
    _, timing = run.check()
    if not timing.is_assumed:
        return []
    solve = np.linalg.pinv(design.to_numpy(dtype=float))
    at = [list(map(str, design.columns)).index(name) for name in conditions]
    changes = []
    for moment_s in (0.0, timing.tr_s):
        other = run_design(replace(run, timing=replace(timing, first_frame_s=moment_s)), names, config)
        responses = other[list(conditions)].to_numpy(dtype=float)[kept]
        changes.append(np.abs(np.einsum("cf,fc->c", solve[at], responses) - 1))
    doubts = []
    for name, change in zip(conditions, np.max(changes, axis=0), strict=True):
        if change > CLOCK_DOUBT:
            doubts.append(
                f"{run.bold}: no file says which moment of the repetition time its frames stand for; the middle is taken, and "
                f"the effect of {name} would be wrong by up to {100 * change:.0f} % if it were the start or the end (look for "
                "confounds that follow the task); give StartTime in the sidecar, or slice_time_ref (0 start, 0.5 middle)."
            )
        if change > CLOCK_LIMIT:
            raise FmrisynthError(doubts[-1])
    return doubts


def estimable_conditions(run: Run, names: Mapping[str, str], design: Any) -> tuple[frozenset[str], list[str]]:
    """Conditions whose effect the design determines, and what is doubtful about the others.

    A condition is left out where its regressor is empty in the kept frames, or a combination of other regressors.
    """
    matrix = design.to_numpy(dtype=float)
    columns = [str(name) for name in design.columns]
    projector = np.linalg.pinv(matrix) @ matrix
    where = run.events_files[0] if run.events_files else run.bold
    found, doubts = [], []
    for name in dict.fromkeys(names[event.label] for event in run.events if event.label in names):
        at = columns.index(name) if name in columns else -1
        if at < 0 or np.ptp(matrix[:, at]) < 1e-8:
            doubts.append(f"{where}: condition {name} has no event inside the usable frames of {run.bold.name}; the run "
                          "gives no map of it.")  # fmt: skip
            continue
        if np.abs(projector[at] - np.eye(len(columns))[at]).max() > 1e-6:
            doubts.append(f"{where}: the regressor of {name} is a combination of others in {run.bold.name}, so its effect is "
                          "undetermined and the run gives no map of it; look for events listed under two names.")  # fmt: skip
            continue
        others = np.delete(matrix, at, axis=1)
        residual = matrix[:, at] - others @ np.linalg.lstsq(others, matrix[:, at], rcond=None)[0]
        spread = matrix[:, at] - matrix[:, at].mean()
        inflation = float(spread @ spread / max(residual @ residual, 1e-300))
        if inflation > MAX_INFLATION:
            doubts.append(f"{where}: {name} is nearly a combination of the other regressors in {run.bold.name} (variance "
                          f"inflation {inflation:.0f}); its map is uncertain.")  # fmt: skip
        found.append(name)
    return frozenset(found), doubts

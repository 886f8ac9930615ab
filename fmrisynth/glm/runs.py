"""``fmrisynth glm --unit run``: the whole runs of an HCP tree, a BIDS or an fMRIPrep dataset."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmrisynth.bids import naming
from fmrisynth.bids.digests import files_of
from fmrisynth.bids.discover import open_source
from fmrisynth.bids.origin import Origin, read_origin
from fmrisynth.bids.runs import Run
from fmrisynth.bids.sources import Source, choose_subjects
from fmrisynth.conditions import fold, load_table, spell
from fmrisynth.config.glm import GlmConfig
from fmrisynth.data.grid import NATIVE_SPACE, make_grid
from fmrisynth.errors import FmrisynthError, UsageError
from fmrisynth.glm.contrasts import HCP_NAME, Contrast, camel_case, parse_contrast
from fmrisynth.glm.maps import index_path, write_index, write_subject_contrast
from fmrisynth.glm.run_model import condition_name, condition_names, contrast_estimate, fit_runs, run_design
from fmrisynth.progress import count, log
from fmrisynth.stage import Unit

if TYPE_CHECKING:
    import pandas as pd


def open_runs(dataset: Path, config: GlmConfig) -> Source:
    """The dataset as the reader of runs sees it: the best image of each run, whatever its space."""
    return open_source(dataset, config, load_table(), images="any")


def runs_of(source: Source, subject: str, config: GlmConfig) -> list[Run]:
    """A participant's runs with conditions, of the task asked for.

    Runs without conditions (rest, no events file) do not matter to others; a run that cannot be right does to its task.

    Raises
    ------
    FmrisynthError
        No run is left, or one of them cannot be right.
    """
    found, without = [], []
    for run in source.runs(subject):
        if config.task is not None and fold(run.task) != fold(config.task):
            continue
        unread = any(p.severity == "error" and p.name == "events" for p in run.problems)
        if any(spell(event.label) for event in run.events) or unread:
            found.append(run)
        else:
            without.append(run)
    for run in without:
        log.warning(
            "%s", "; ".join(run.warnings) or f"{run.name}: no events file, or an empty one; the run is left out."
        )
    if not found:
        asked = f" of task {config.task!r}" if config.task else ""
        reasons = "; ".join(text for run in without for text in run.warnings)
        raise FmrisynthError(
            f"{source.root}: participant {subject} has no run{asked} with an events file"
            + (f" ({reasons})" if reasons else "")
            + "; point to the BIDS root that holds the events (fMRIPrep output alone has none)."
        )
    return found


def _find_runs(
    source: Source, subjects: Sequence[str], config: GlmConfig
) -> tuple[dict[str, list[Run]], dict[str, str]]:
    """Runs by participant, and the participants that have none; contrasts are checked before any fit.

    Raises
    ------
    UsageError
        Conditions of contrasts that no run has; all of them are named.
    """
    found: dict[str, list[Run]] = {}
    failed: dict[str, str] = {}
    known: set[str] = set()
    for subject in subjects:
        try:
            runs = runs_of(source, subject, config)
            known |= {name for own in _by_task(runs).values() for name in condition_names(own).values()}
            found[subject] = runs
        except FmrisynthError as error:
            failed[subject] = str(error)
    wrong = []
    for formula in config.contrasts if found else ():
        try:
            parse_contrast(_local(formula, known, found), sorted(known))
        except UsageError as error:
            wrong.append(str(error))
    if wrong:
        raise UsageError(" ".join(wrong))
    return found, failed


def plan_runs(dataset: Path, config: GlmConfig, participant_labels: Sequence[str] | None = None) -> list[str]:
    """What would be fitted, in lines: the files of every run, its clock, and the doubts about it."""
    source = open_runs(dataset, config)
    found, failed = _find_runs(source, choose_subjects(dataset, source.subjects(), participant_labels), config)
    lines = [
        f"{count(sum(map(len, found.values())), 'run')} of {count(len(found), 'subject')}; {len(failed)} cannot be analysed"
    ]
    lines += [f"sub-{subject}: cannot be analysed: {reason}" for subject, reason in failed.items()]
    for run in (run for runs in found.values() for run in runs):
        when = (
            f"TR {run.timing.tr_s:g} s, first frame at {run.timing.first_frame_s:g} s ({run.timing.clock})"
            if run.timing
            else ""
        )
        files = [path.name for path in (run.mask, run.confounds_file, *run.events_files) if path]
        lines.append(
            f"sub-{run.subject} task-{run.task}: {run.name}: {when}; {', '.join(files)}; {len(run.events)} events"
        )
        lines += [f"  {problem.severity}: {problem.text}" for problem in run.problems]
    return lines


def run_units(
    source: Source, subjects: Sequence[str], out: Path, config: GlmConfig
) -> tuple[dict[str, Unit], dict[str, str]]:
    """The unit of work of each subject, and the subjects that cannot be read; see `fmrisynth.glm.run_glm`."""
    found, broken = _find_runs(source, subjects, config)
    origin = read_origin(source.root)
    units = {
        subject: Unit(
            f"sub-{subject}", {"files": files_of(runs), "timing or names": runs},
            partial(fit_subject_runs, subject, runs, out, config, origin), index_path(subject), Path(f"sub-{subject}"),
        )
        for subject, runs in found.items()
    }  # fmt: skip
    return units, broken


def run_example(source: Source, subject: str, config: GlmConfig) -> tuple[str, pd.DataFrame]:
    """The design of a subject's first readable run, every frame of it, and what it is of."""
    run = next(run for run in runs_of(source, subject, config) if all(p.severity != "error" for p in run.problems))
    return f"{run.name}, every volume of it", run_design(run, condition_names([run]), config)


def _by_task(runs: Sequence[Run]) -> dict[str, list[Run]]:
    tasks: dict[str, list[Run]] = {}
    for run in runs:
        tasks.setdefault(run.task or "task", []).append(run)
    return tasks


def _local(formula: str, known: set[str], found: dict[str, list[Run]]) -> str:
    """Accept ``oneback_face`` for trial type ``face`` of task ``oneback``."""
    tasks = {re.sub(r"\W", "", run.task).lower() for runs in found.values() for run in runs}
    return localise_formula(formula, known, tasks)


def localise_formula(formula: str, known: set[str], tasks: set[str]) -> str:
    """Replace condition labels ``<task>_<trial type>`` and HCP's spelling of them by the trial type, where it is known.

    Examples
    --------
    >>> localise_formula("oneback_face - object", {"face", "object"}, {"oneback"})
    'face - object'
    >>> localise_formula("REASONING:rel - RELATIONAL:match", {"relation", "match"}, {"relational"})
    'relation - match'
    """
    table = load_table()

    def replace(match: re.Match[str]) -> str:
        word = match.group(0)
        task, *rest = re.split(r"[_: ]", word, maxsplit=1)
        if word in known or not rest:
            return word
        name = condition_name(rest[0])
        if fold(task) in tasks and name in known:
            return name
        meant = table.match(task, rest[0])
        if meant is None or not tasks & set(meant.tasks):
            return word
        own = [k for k in sorted(known) if fold(re.sub("^c(?=[0-9])", "", k)) in meant.trial_types]
        return own[0] if len(own) == 1 else word

    return re.sub(rf"{HCP_NAME.pattern}|[A-Za-z]\w*", replace, formula)


def fit_subject_runs(subject: str, runs: Sequence[Run], out: Path, config: GlmConfig, origin: Origin) -> dict[str, Any]:
    """Fit a subject's runs, one model per task, and write its contrasts.

    A task that cannot be fitted takes nothing from the others; ``failed`` of what is returned says why.
    """
    first = runs[0].entities
    base = naming.Entities(
        sub=subject, ses=first.get("ses"), space=first.get("space", NATIVE_SPACE), res=first.get("res")
    )
    rows: list[dict[str, Any]] = []
    reasons = {}
    for task, own in _by_task(runs).items():
        try:
            rows += _fit_task(base, task, own, out, config, origin)
        except FmrisynthError as error:
            reasons[task] = str(error)
    if not rows:
        errors = [p.text for run in runs for p in run.problems if p.severity == "error"]
        why = "; ".join([*reasons.values()] or errors[:3]) or "it has none of the conditions that the contrasts need"
        raise FmrisynthError(f"no map could be made: {why}")
    if not reasons:
        write_index(out, subject, rows)
    return {"entities": asdict(base), "rows": rows, "failed": reasons}


def _fit_task(
    base: naming.Entities, task: str, runs: Sequence[Run], out: Path, config: GlmConfig, origin: Origin
) -> list[dict[str, Any]]:
    """Fit one task of a subject and write its contrasts; a task without a contrast's conditions gives none of it."""
    conditions = list(dict.fromkeys(condition_names(runs).values()))
    task_word = re.sub(r"[^0-9A-Za-z]", "", task)
    contrasts = []
    for formula in config.contrasts:
        try:
            contrasts.append(parse_contrast(localise_formula(formula, set(conditions), {fold(task)}), conditions))
        except UsageError:
            continue  # of another task
    if not config.contrasts:
        prefix = task_word.lower() if task_word.isupper() else task_word
        contrasts = [
            Contrast(camel_case(f"{prefix}_{re.sub('^c(?=[0-9])', '', name)}"), name, {name: 1.0})
            for name in conditions
        ]
    if not contrasts:
        for run in () if config.contrasts else runs:
            run.check()  # why its events could not be read
        return []
    fitted = fit_runs(runs, config)
    grid = make_grid(fitted.mask_XYZ.shape, fitted.affine, base.space or NATIVE_SPACE)
    rows = []
    for contrast in contrasts:
        estimated = contrast_estimate(fitted, contrast.weights)
        if estimated is None:
            log.warning("sub-%s %s: no run can estimate it", base.sub, contrast.title)
            continue
        estimate, n_runs = estimated
        if n_runs < len(runs):
            log.warning("sub-%s %s: %d runs lack a condition of it", base.sub, contrast.title, len(runs) - n_runs)
        about = {
            "Contrast": contrast.title, "Weights": dict(contrast.weights), "Runs": n_runs,
            "Model": f"whole run: events * HRF, {config.resolved_drift} drift, constant"
            + (f", confounds ({config.confounds})" if any(run.n_confounds for run in fitted.runs) else ""),
            "HRF": config.hrf, "HighPassHz": config.high_pass_hz, "NoiseModel": config.resolved_noise_model,
            "SmoothingFWHM": config.resolved_smoothing_fwhm_mm, "SignalScaling": "percent of the voxel's run mean",
            "Sources": [run.name for run in runs], "FrameTimes": [run.check()[1].clock for run in runs],
            "DroppedFrames": [run.n_dropped for run in fitted.runs], "Doubts": list(fitted.doubts),
            **origin.sidecar(),
        }  # fmt: skip
        rows.append(
            write_subject_contrast(out, base, task_word, contrast, estimate, fitted.mask_XYZ, grid, about)
            | {"n_blocks": n_runs}
        )
    if config.reports:
        from fmrisynth.glm.pages import write_run_page

        write_run_page(out, base, task, fitted, rows, config, origin)
    return rows

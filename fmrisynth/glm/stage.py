"""``fmrisynth glm``: subject maps, then group maps."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmrisynth.bids import naming
from fmrisynth.bids.atomic import remove_leftovers, remove_temporaries
from fmrisynth.bids.lock import exclusive
from fmrisynth.bids.provenance import write_dataset_description, write_run_log
from fmrisynth.bids.sources import choose_subjects
from fmrisynth.conditions import load_table
from fmrisynth.config.glm import GlmConfig
from fmrisynth.data.blocks import Block, common_grid, is_synthetic, read_subject, subjects_of
from fmrisynth.errors import FmrisynthError, UsageError
from fmrisynth.glm.contrasts import Contrast, parse_contrast
from fmrisynth.glm.effects import combine_conditions, fit_subject
from fmrisynth.glm.maps import combine_subjects, grid_of, read_index, write_index, write_maps
from fmrisynth.glm.statistics import Estimate
from fmrisynth.glm.windows import common_mask, iterate_windows
from fmrisynth.progress import StageSummary, count, log, reason_of, track

STATS = ("effect", "variance", "z")


@dataclass(frozen=True)
class SubjectResult:
    """What one subject contributes: its entities and its contrasts."""

    entities: naming.Entities
    rows: list[dict[str, Any]]


def run_stage(
    dataset: Path,
    out: Path,
    config: GlmConfig,
    *,
    participant_labels: Sequence[str] | None = None,
    group: bool = True,
) -> StageSummary:
    """Write subject maps, group maps and pages (see `fmrisynth.glm.run_glm`)."""
    if config.unit == "block":
        subjects_of(dataset)  # refuses a folder that is no block dataset before anything is written
    write_dataset_description(
        out, f"GLM maps of {dataset.name}", sources=[dataset],
        readme=f"GLM maps written by `fmrisynth glm --unit {config.unit}`. Effects are percent signal change.",
    )  # fmt: skip
    write_run_log(out, "glm", config)
    for folder in (out, out / "group", out / "logs", out / "figures"):
        remove_leftovers(folder)
    if config.unit == "run":
        from fmrisynth.glm.runs import fit_dataset

        results, failed = fit_dataset(dataset, out, config, participant_labels)
    else:
        results, failed = _fit_block_dataset(dataset, out, config, participant_labels)
    summary = StageSummary(failed=failed)
    if not results:
        reasons = "; ".join(f"sub-{subject}: {reason}" for subject, reason in list(failed.items())[:3])
        raise FmrisynthError(
            f"{dataset}: no subject could be analysed ({reasons or 'none matched the split or task'})."
        )
    if group:
        with exclusive(out, "group"):  # maps and sidecars of one call stay together
            _write_group(dataset, out, results, summary, config.unit)
    else:
        summary.lines.append(f"{len(results)} subjects' maps in {out}.")
    return summary


def condition_contrasts(conditions: Sequence[str], formulas: Sequence[str]) -> list[Contrast]:
    """The contrasts asked for; by default every condition against the implicit baseline."""
    if formulas:
        return [parse_contrast(formula, conditions) for formula in formulas]
    table = load_table()
    return [Contrast(table.get(label).contrast, label, {label: 1.0}) for label in conditions]


def contrast_task(contrast: Contrast) -> str | None:
    """The task that all conditions of a contrast share, or None."""
    tasks = {load_table().get(label).task for label in contrast.weights}
    return tasks.pop() if len(tasks) == 1 else None


def _fit_block_dataset(
    dataset: Path, out: Path, config: GlmConfig, participant_labels: Sequence[str] | None
) -> tuple[list[SubjectResult], dict[str, str]]:
    results: list[SubjectResult] = []
    failed: dict[str, str] = {}
    subjects = choose_subjects(dataset, subjects_of(dataset), participant_labels)
    # Formulas are checked against all conditions first: a misspelling must not cost an hour of fitting.
    chosen = {}
    for subject in subjects:
        try:
            blocks = [b for b in read_subject(dataset, subject) if config.split is None or b.split == config.split]
        except FmrisynthError as error:
            failed[subject] = str(error)
            continue
        if blocks:
            chosen[subject] = blocks
    if not chosen and failed:
        return results, failed
    if not chosen:
        raise UsageError(f"{dataset}: no subject is in split {config.split!r}; leave the split out to use all.")
    known = list(dict.fromkeys(block.condition for blocks in chosen.values() for block in blocks))
    contrasts = condition_contrasts(known, config.contrasts)
    for subject in track(list(chosen), "GLM", total=len(chosen)):
        try:
            with exclusive(out, f"sub-{subject}"):
                results.append(_fit_block_subject(subject, chosen[subject], contrasts, out, config))
        except Exception as error:
            failed[subject] = reason_of(f"sub-{subject}", error)
            log.warning("sub-%s: %s", subject, failed[subject])
    return results, failed


def _settings(config: GlmConfig, blocks: Sequence[Block]) -> str:
    """Digest of everything that a subject's maps depend on, for recognising finished work."""
    parts = [config.digest()]
    for block in blocks:
        stat = block.path.stat() if block.path.exists() else None
        parts.append(f"{block.bold}|{block.condition}|{block.onset_s}|{block.duration_s}|{stat.st_size if stat else 0}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


SINGLE_SUBJECT_Z = (
    "z of one subject is for display, not a test: short windows and a white-noise model make it too large"
)


def _fit_block_subject(
    subject: str, blocks: list[Block], contrasts: Sequence[Contrast], out: Path, config: GlmConfig
) -> SubjectResult:
    found = blocks[0].entities
    settings = _settings(config, blocks)
    base = naming.Entities(sub=subject, ses=found.get("ses"), space=blocks[0].space, res=found.get("res"))
    finished = read_index(out, subject, settings)
    if finished is not None:
        return SubjectResult(base, list(finished))
    remove_temporaries(out / f"sub-{subject}")
    grid = common_grid(blocks)
    mask_XYZ = common_mask(blocks, grid, config.min_reference_fraction)
    fitted = fit_subject(iterate_windows(blocks, mask_XYZ, grid, config), config)
    estimates = {condition: estimate for condition, (estimate, _) in fitted.items()}
    rows = []
    for contrast in contrasts:
        if not set(contrast.weights) <= set(estimates):
            continue
        estimate = (
            estimates[contrast.formula] if contrast.formula in estimates else combine_conditions(contrast, estimates)
        )
        n_blocks = sum(fitted[label][1] for label in contrast.weights)
        about = {
            "Contrast": contrast.title, "Weights": dict(contrast.weights), "Blocks": n_blocks,
            "Model": "block window: boxcar * HRF, constant" + (", linear drift" if config.resolved_drift == "linear" else ""),
            "HRF": config.hrf, "NoiseModel": config.resolved_noise_model,
            "SmoothingFWHM": config.resolved_smoothing_fwhm_mm,
            "SignalScaling": "percent of the block's reference volume",
            "Estimates": estimates(blocks, dict(contrast.weights), config), "StatisticNote": SINGLE_SUBJECT_Z,
        }  # fmt: skip
        rows.append(write_subject_contrast(out, base, contrast_task(contrast), contrast, estimate, mask_XYZ, grid, about)
                    | {"n_blocks": n_blocks, "settings": settings})  # fmt: skip
    if not rows:
        raise FmrisynthError(f"sub-{subject}: has none of the conditions that the contrasts need.")
    if config.reports:
        from fmrisynth.glm.pages import write_block_page

        write_block_page(out, base, blocks, rows, mask_XYZ, grid, config)
    write_index(out, subject, rows)
    return SubjectResult(base, rows)


def write_subject_contrast(
    out: Path, base: naming.Entities, task: str | None, contrast: Contrast, estimate: Estimate,
    mask_XYZ: np.ndarray, grid, about: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Write one contrast of one subject and return its row of the table of contents."""
    entities = naming.Entities(sub=base.sub, ses=base.ses, task=task, space=base.space, res=base.res)
    paths = {stat: naming.subject_statmap(entities, contrast.name, stat) for stat in STATS}
    peak = write_maps(out, paths, estimate, mask_XYZ, grid, about)
    return {
        "contrast": contrast.name, "formula": contrast.title, "task": task, "dof": float(estimate.dof),
        "peak_z": peak.z, "peak_x": peak.x_mm, "peak_y": peak.y_mm, "peak_z_mm": peak.z_mm,
    }  # fmt: skip


def subject_map_path(entities: naming.Entities, row: dict[str, Any], stat: str) -> Path:
    """Where a subject's map of a row of its table of contents lies, relative to the output."""
    task = row["task"] if row["task"] not in (None, "", "n/a") else None
    own = naming.Entities(sub=entities.sub, ses=entities.ses, task=task, space=entities.space, res=entities.res)
    return naming.subject_statmap(own, str(row["contrast"]), stat)


def _write_group(dataset: Path, out: Path, results: list[SubjectResult], summary: StageSummary, unit: str) -> None:
    spaces = {result.entities.space or "scanner" for result in results}
    # Synthetic subjects of one native model share the grid it was trained on; real ones never share theirs.
    if spaces == {"scanner"} and len(results) > 1 and not all(is_synthetic(dataset, r.entities.sub) for r in results):
        summary.lines.append(
            "Group maps were not made: the subjects are in their own scanner spaces, which cannot be averaged."
        )
        return
    members: dict[tuple[str, str, str], list[tuple[SubjectResult, dict[str, Any]]]] = {}
    for result in results:
        for row in result.rows:
            task = row["task"] if row["task"] not in (None, "", "n/a") else ""
            members.setdefault((str(task), str(row["contrast"]), str(row["formula"])), []).append((result, row))
    summary.lines.append(f"{count(len(results), 'subject')}, {count(len(members), 'contrast')}.")
    for (task, contrast, formula), own in sorted(members.items()):
        effect_paths = [out / subject_map_path(r.entities, row, "effect") for r, row in own]
        variance_paths = [out / subject_map_path(r.entities, row, "variance") for r, row in own]
        try:
            estimate, mask_XYZ, _, model = combine_subjects(
                effect_paths, variance_paths, [float(row["dof"]) for _, row in own]
            )
        except FmrisynthError as error:
            summary.failed[f"group {contrast}"] = str(error)
            continue
        space = own[0][0].entities.space or "scanner"
        grid = grid_of(effect_paths[0], space)
        paths = {stat: naming.group_statmap(task or None, space, contrast, stat) for stat in STATS}
        about = {
            "Contrast": formula, "Model": model, "Subjects": len(own),
            f"{unit.capitalize()}s": sum(int(float(row["n_blocks"])) for _, row in own),
        }  # fmt: skip
        peak = write_maps(out, paths, estimate, mask_XYZ, grid, about)
        if np.isnan(estimate.z).all():
            summary.lines.append(
                f"{formula}: the {len(own)} subjects' maps are identical; there is no between-subject variance, so no z."
            )
            continue
        summary.lines.append(
            f"{formula}: {model} over {unit}s, n = {len(own)}, peak {peak}."
            if len(own) == 1
            else f"{formula}: {model}, n = {len(own)}, peak {peak}."
        )

"""``fmrisynth glm``: subject maps, then group maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmrisynth.bids import naming
from fmrisynth.bids.origin import read_origin
from fmrisynth.bids.sources import choose_subjects, read_json
from fmrisynth.config.glm import GlmConfig
from fmrisynth.data.blocks import (
    Block,
    block_files,
    common_grid,
    is_synthetic,
    read_subject,
    refuse_unless_blocks,
    subjects_of,
    table_rows,
)
from fmrisynth.errors import FmrisynthError, UsageError
from fmrisynth.glm.contrasts import Contrast, condition_contrasts, contrast_task
from fmrisynth.glm.effects import combine_conditions, fit_subject
from fmrisynth.glm.estimand import estimates
from fmrisynth.glm.maps import (
    STATS,
    combine_subjects,
    grid_of,
    index_path,
    subject_map_path,
    write_index,
    write_maps,
    write_subject_contrast,
)
from fmrisynth.glm.runs import open_runs, run_example, run_units
from fmrisynth.glm.windows import SINGLE_SUBJECT_Z, common_mask, design_frame, iterate_windows
from fmrisynth.progress import StageSummary, count, some
from fmrisynth.stage import Stage, Unit

if TYPE_CHECKING:
    import pandas as pd

NEEDS_ANOTHER_CALL = "its input changed since its maps were made, so the group maps leave it out; call again with it."


def run_stage(
    dataset: Path,
    out: Path,
    config: GlmConfig,
    *,
    participant_labels: Sequence[str] | None = None,
    group: bool = True,
    force: bool = False,
) -> StageSummary:
    """Write subject maps, group maps and pages (see `fmrisynth.glm.run_glm`)."""
    source = open_runs(dataset, config) if config.unit == "run" else None
    known = subjects_of(dataset) if source is None else source.subjects()
    chosen = choose_subjects(dataset, known, participant_labels)
    earlier = {subject for subject in known if group and (out / naming.unit_record(f"sub-{subject}")).is_file()}
    wanted = [subject for subject in known if subject in {*chosen, *earlier}]
    if source is None:
        units, broken = _block_units(dataset, wanted, out, config)
    else:
        units, broken = run_units(source, wanted, out, config)
    failed = {subject: reason for subject, reason in broken.items() if subject in chosen}
    if not units.keys() & set(chosen):  # before the folder is begun
        raise _nothing_done(dataset, failed)
    stage = Stage.begin(
        "glm", out, config, sources=[dataset], known=[f"sub-{subject}" for subject in known], force=force,
        title=f"GLM maps of {dataset.name}", origin=read_origin(dataset),
        readme=f"GLM maps written by `fmrisynth glm --unit {config.unit}`. Effects are percent signal change.",
    )  # fmt: skip
    stage.failed |= broken
    results = stage.each(
        [subject for subject in chosen if subject in units], lambda subject: stage.do(units[subject]), "GLM"
    )
    if not results:
        stage.withdraw()
        raise _nothing_done(dataset, stage.failed)
    lines = [f"{len(results)} subjects' maps in {out}."]
    if group:
        for subject, unit in units.items():  # of earlier calls for other participants
            if subject not in chosen and (result := stage.result(unit.label)) is not None:
                if stage.is_finished(unit):
                    results[subject] = result
                else:
                    stage.failed[subject] = NEEDS_ANOTHER_CALL
        results = {subject: results[subject] for subject in sorted(results)}
        of = min(results)
        example = partial(run_example, source, of, config) if source else partial(_block_example, dataset, of, config)
        lines = _group_maps(stage, dataset, results, config, example)
        without = [f"sub-{s}" for s in (known if config.split is None else wanted) if s not in results]
        if without and len(lines) > 1:
            lines.append(f"The group maps are without {some(without)}: no finished maps.")
    for subject, result in results.items():  # the group has its other tasks
        stage.failed |= {f"{subject} task-{task}": reason for task, reason in result.get("failed", {}).items()}
    return stage.summary(lines)


def _nothing_done(dataset: Path, failed: Mapping[str, str]) -> FmrisynthError:
    reasons = "; ".join(f"sub-{subject}: {reason}" for subject, reason in list(failed.items())[:3])
    return FmrisynthError(f"{dataset}: no subject could be analysed ({reasons or 'none matched the split or task'}).")


def _block_units(
    dataset: Path, subjects: Sequence[str], out: Path, config: GlmConfig
) -> tuple[dict[str, Unit], dict[str, str]]:
    """The unit of work of each subject of a block dataset, and the subjects that cannot be read."""
    found: dict[str, list[Block]] = {}
    broken: dict[str, str] = {}
    for subject in subjects:
        try:
            blocks = [b for b in read_subject(dataset, subject) if config.split is None or b.split == config.split]
        except FmrisynthError as error:
            broken[subject] = str(error)
            continue
        refuse_unless_blocks(blocks, "use --unit run")
        if blocks:
            found[subject] = blocks
    if not found and not broken:
        raise UsageError(f"{dataset}: no subject is in split {config.split!r}; leave the split out to use all.")
    # Formulas are checked against all conditions first: a misspelling must not cost an hour of fitting.
    known = list(dict.fromkeys(block.condition for blocks in found.values() for block in blocks))
    contrasts = condition_contrasts(known, config.contrasts) if known else []
    done_by = {subject: {block.condition for block in blocks} for subject, blocks in found.items()}
    for contrast in contrasts:
        most = max(len(done & set(contrast.weights)) for done in done_by.values())
        if most < len(contrast.weights):
            raise UsageError(
                f"{dataset}: no subject has more than {most} of the {len(contrast.weights)} conditions of {contrast.title!r}, so "
                "this contrast within subjects cannot be made; sample people who do every condition (`fmrisynth sample "
                "--subjects N`), or compare the group maps of the conditions."
            )
    units = {}
    for subject, blocks in found.items():
        own = [contrast for contrast in contrasts if set(contrast.weights) <= done_by[subject]]
        if not own:
            broken[subject] = f"it has none of the contrasts, only blocks of {some(sorted(done_by[subject]))}."
            continue
        units[subject] = Unit(
            f"sub-{subject}",
            about={"blocks": block_files(blocks), "table of blocks": table_rows(blocks), "contrasts": own},
            make=partial(_fit_block_subject, subject, blocks, own, out, config),
            index=index_path(subject), folder=Path(f"sub-{subject}"),
        )  # fmt: skip
    return units, broken


def _fit_block_subject(
    subject: str, blocks: list[Block], contrasts: Sequence[Contrast], out: Path, config: GlmConfig
) -> dict[str, Any]:
    entities, origin = blocks[0].entities, read_origin(blocks[0].root)
    base = naming.Entities(sub=subject, ses=entities.get("ses"), space=blocks[0].space, res=entities.get("res"))
    grid = common_grid(blocks)
    mask_XYZ = common_mask(blocks, grid, config.min_reference_fraction)
    fitted = fit_subject(iterate_windows(blocks, mask_XYZ, grid, config), config)
    found = {condition: estimate for condition, (estimate, _) in fitted.items()}
    rows = []
    for contrast in contrasts:
        estimate = found[contrast.formula] if contrast.formula in found else combine_conditions(contrast, found)
        n_blocks = sum(fitted[label][1] for label in contrast.weights)
        about = {
            "Contrast": contrast.title, "Weights": dict(contrast.weights), "Blocks": n_blocks,
            "Model": "block window: boxcar * HRF, constant" + (", linear drift" if config.resolved_drift == "linear" else ""),
            "HRF": config.hrf, "NoiseModel": config.resolved_noise_model,
            "SmoothingFWHM": config.resolved_smoothing_fwhm_mm,
            "SignalScaling": "percent of the block's reference volume",
            "Estimates": estimates(blocks, dict(contrast.weights), config), "StatisticNote": SINGLE_SUBJECT_Z,
            **origin.sidecar(),
        }  # fmt: skip
        rows.append(
            write_subject_contrast(out, base, contrast_task(contrast), contrast, estimate, mask_XYZ, grid, about)
            | {"n_blocks": n_blocks}
        )
    if config.reports:
        from fmrisynth.glm.pages import write_block_page

        write_block_page(out, base, blocks, rows, mask_XYZ, grid, config, origin)
    write_index(out, subject, rows)
    return {"entities": asdict(base), "rows": rows}


def _block_example(dataset: Path, subject: str, config: GlmConfig) -> tuple[str, pd.DataFrame]:
    """The design of a subject's first window, and what it is of."""
    block = next(b for b in read_subject(dataset, subject) if config.split is None or b.split == config.split)
    return f"sub-{subject}, a window of {block.condition}", design_frame(block, config)


def _group_maps(
    stage: Stage, dataset: Path, results: dict[str, dict[str, Any]], config: GlmConfig,
    example: Callable[[], tuple[str, pd.DataFrame]],
) -> list[str]:  # fmt: skip
    """Group maps of all finished subjects; returns a line for each contrast."""
    entities = {subject: naming.Entities(**result["entities"]) for subject, result in results.items()}
    spaces = {own.space or "scanner" for own in entities.values()}
    # Synthetic subjects of one native model share the grid it was trained on; real ones never share theirs.
    if spaces == {"scanner"} and len(results) > 1 and not all(is_synthetic(dataset, subject) for subject in results):
        return ["Group maps were not made: the subjects are in their own scanner spaces, which cannot be averaged."]
    members: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for subject, result in results.items():
        for row in result["rows"]:
            members.setdefault((row["task"] or "", row["contrast"], row["formula"]), {})[subject] = row
    done: dict[str, Path] = {}
    lines = [f"{count(len(results), 'subject')}, {count(len(members), 'contrast')}."]
    labels = {f"group-{task}-{contrast}" for task, contrast, _ in members}
    stage.drop(label for label in stage.records() if label.startswith("group-") and label not in labels)
    for (task, contrast, formula), rows in sorted(members.items()):
        first = entities[min(rows)]
        space = first.space or "scanner"
        paths = {stat: naming.group_statmap(task or None, space, contrast, stat, res=first.res) for stat in STATS}
        work = Unit(
            f"group-{task}-{contrast}", {f"sub-{subject}": stage.result_digest(f"sub-{subject}") for subject in rows},
            partial(_group_map, stage.out, formula, entities, rows, paths, config.unit), paths["z"],
        )  # fmt: skip
        try:
            lines.append(stage.do(work))
            done[f"{task}: {formula}" if config.unit == "run" and task else formula] = paths["z"]
        except FmrisynthError as error:
            stage.failed[f"group {contrast}"] = str(error)
    if config.reports and done:
        stage.do(_group_page(stage.out, done, example))
    return lines


def _group_page(out: Path, done: Mapping[str, Path], example: Callable[[], tuple[str, pd.DataFrame]]) -> Unit:
    def make() -> None:
        from fmrisynth.glm.pages import FEW, write_group_page

        about = {formula: read_json(naming.image_sidecar(out / path)) for formula, path in done.items()}
        models = {
            formula: f"{keys['Model']}, n = {(n := keys['Subjects'])}" + (f"; n = {n} is few" if n < FEW else "")
            for formula, keys in about.items()
        }
        space = naming.parse_entities(next(iter(done.values())).name)["space"]
        write_group_page(out, done, models, read_origin(out), space, example())

    return Unit("report-group", {"maps": [out / path for path in done.values()]}, make, Path("group.html"))


def _group_map(
    out: Path,
    formula: str,
    entities: dict[str, naming.Entities],
    rows: dict[str, dict[str, Any]],
    paths: dict[str, Path],
    unit: str,
) -> str:
    effect_paths = [out / subject_map_path(entities[subject], row, "effect") for subject, row in rows.items()]
    variance_paths = [out / subject_map_path(entities[subject], row, "variance") for subject, row in rows.items()]
    dofs = [float(row["dof"]) for row in rows.values()]
    estimate, mask_XYZ, _, model = combine_subjects(effect_paths, variance_paths, dofs)
    about = {
        "Contrast": formula, "Model": model, "Subjects": len(rows),
        f"{unit.capitalize()}s": sum(int(row["n_blocks"]) for row in rows.values()),
        **read_origin(out).sidecar(),
    }  # fmt: skip
    peak = write_maps(
        out, paths, estimate, mask_XYZ, grid_of(effect_paths[0], entities[min(rows)].space or "scanner"), about
    )
    if np.isnan(estimate.z).all():
        return (
            f"{formula}: the {len(rows)} subjects' maps are identical; there is no between-subject variance, so no z."
        )
    over = f" over {unit}s" if len(rows) == 1 else ""
    return f"{formula}: {model}{over}, n = {len(rows)}, peak {peak}."

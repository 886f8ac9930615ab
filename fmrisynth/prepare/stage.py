"""The stage itself: participant by participant, run by run, each a unit of work (`fmrisynth.stage`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fmrisynth.bids import naming
from fmrisynth.bids.atomic import settle
from fmrisynth.bids.digests import files_of
from fmrisynth.bids.sidecars import write_tsv
from fmrisynth.bids.sources import choose_subjects, read_participants
from fmrisynth.config.prepare import PrepareConfig
from fmrisynth.data.blocks import ATTRIBUTES, RUN, Block, finish_subject, read_subject, subjects_of, write_block
from fmrisynth.data.grid import MNI_3MM, Grid, native_grid
from fmrisynth.errors import FmrisynthError
from fmrisynth.prepare import anatomy, report
from fmrisynth.prepare.cut import brain_mask, cut_run
from fmrisynth.prepare.plan import Job, PlannedRun, SubjectPlan, check_labels, is_our_disk, open_job, plan_subject
from fmrisynth.progress import StageSummary, count, log, reason_of, track
from fmrisynth.stage import Stage, Unit

OPERATIONAL = ("bids_database_dir", "on_bad_run")
"""Settings that may change between calls."""

README = """Every block instance is a short run of its own: `desc-<condition>_bold` (image), `boldref` (temporal mean of the
source run), `desc-brain_mask`, and events. `sub-*/sub-*_scans.tsv` lists the blocks with their condition and split; it is
written last, so a participant without it is not complete."""


def plan_prepare(source: Path, config: PrepareConfig, *, participant_labels: Sequence[str] | None = None) -> list[str]:
    """See `fmrisynth.prepare.plan_prepare`."""
    job = open_job(source, config)
    subjects = choose_subjects(job.source.root, job.source.subjects(), participant_labels)
    if config.unit == "anatomy":
        return anatomy.plan_lines(job, subjects)
    check_labels(job, subjects)
    lines = [f"{count(len(subjects), 'participant')} of {job.source.root}"]
    total: dict[str, dict[str, Any]] = {}
    for subject in track(subjects, "Reading events"):
        try:
            plan = plan_subject(job, subject)
        except Exception as error:
            lines.append(f"sub-{subject}: cannot be prepared: {reason_of(f'sub-{subject}', error)}")
            continue
        lines.append(f"sub-{subject} ({job.split_of(subject)}): {plan.n_windows} blocks")
        for run in plan.runs:
            mask = run.source.mask.name if run.source.mask else "no mask file"
            lines.append(
                f"  {run.source.name}: {run.timing.n_frames} frames, TR {run.timing.tr_s:g} s, {mask}, "
                f"{len(run.source.events)} events, {len(run.windows)} of {len(run.windows) + len(run.dropped)} blocks"
            )
        lines += [f"  {note}" for note in plan.notes]
        report.add_counts(total, report.count_blocks(plan, job.labels))
    return lines + report.table_lines(total)


def prepare_dataset(
    source: Path,
    out: Path,
    config: PrepareConfig,
    *,
    participant_labels: Sequence[str] | None = None,
    force: bool = False,
) -> StageSummary:
    """See `fmrisynth.prepare.prepare_dataset`."""
    job = open_job(source, config)
    known = job.source.subjects()
    subjects = choose_subjects(job.source.root, known, participant_labels)
    if not subjects:
        raise FmrisynthError(f"{source}: expected at least one participant, found none; check the path.")
    people = read_participants(source)
    title, readme = "fmrisynth block dataset", README
    columns: tuple[str, ...] = ("sex", "age")
    if config.unit == "anatomy":
        tables = anatomy.people_of(job, subjects)
        title, readme, columns = "T1-weighted anatomies", anatomy.README, config.anatomy.attributes
        people = {subject: people.get(subject, {}) | tables.attributes(subject, None, columns) for subject in known}
    else:
        check_labels(job, subjects)
    stage = Stage.begin(
        "prepare", out, config, sources=[source], known=[f"sub-{subject}" for subject in known], free=OPERATIONAL,
        title=title, readme=readme, origin=job.origin, force=force,
    )  # fmt: skip

    def work(subject: str) -> Unit:
        if config.unit == "anatomy":
            return anatomy.participant(stage.out, job, subject, tables)
        return _participant(stage, job, subject, people.get(subject, {}))

    stage.each(subjects, lambda subject: stage.do(work(subject)), "Preparing participants")
    return _finish(stage, job, people, columns)


def _participant(stage: Stage, job: Job, subject: str, person: Mapping[str, str]) -> Unit:
    plan, split = plan_subject(job, subject), job.split_of(subject)
    return Unit(
        f"sub-{subject}",
        about={
            "images": files_of([(run.source.bold, run.source.mask) for run in plan.runs]),
            "events or timing": plan, "split": split, "row in participants.tsv": _attributes(None, person),
        },
        make=lambda: _prepare_subject(stage, job, plan, split, person),
        index=naming.subject_scans(subject), folder=Path(f"sub-{subject}"),
    )  # fmt: skip


def _prepare_subject(stage: Stage, job: Job, plan: SubjectPlan, split: str, person: Mapping[str, str]) -> None:
    subject = plan.subject
    if plan.n_windows == 0:
        counts = report.count_blocks(plan, job.labels)
        n_found = sum(entry["found"] for entry in counts.values())
        what = f"all {n_found} blocks were dropped" if n_found else "no block of the conditions asked for was found"
        why = "; ".join(plan.notes[:3])
        raise FmrisynthError(
            f"{job.source.root}: participant {subject}: {what}{f' ({why})' if why else ''}; see `prepare --dry-run`."
        )
    space = _Space.of(plan, job.config.native)
    blocks: list[Block] = []
    runs: list[PlannedRun] = []
    notes = list(plan.notes)
    for run in plan.runs:
        try:
            rows = stage.part(_run(stage, job, run, space, split, person)) if run.windows else []
            blocks += [Block(**row | {"root": stage.out, "bold": Path(row["bold"])}) for row in rows]
            runs.append(run)
        except FmrisynthError as error:
            if job.config.on_bad_run == "fail" or is_our_disk(error):
                raise
            log.warning("%s", error)
            notes.append(f"{run.source.name}: left out: {error}")
    if not blocks:
        raise FmrisynthError(
            f"{job.source.root}: participant {subject}: no run could be used ({'; '.join(notes[:3])})."
        )
    done = replace(plan, runs=tuple(runs), notes=tuple(notes))
    report.write_subject_report(stage.out, subject, split, report.count_blocks(done, job.labels), done.notes)
    finish_subject(stage.out, subject, blocks)


def _run(stage: Stage, job: Job, run: PlannedRun, space: _Space, split: str, person: Mapping[str, str]) -> Unit:
    grid, attributes = space.grid(run), _attributes(run, person)
    first = space.first_run if space.first_run is not None else run
    names = [naming.block_bold(p.entities(run.source, grid), p.window.block.condition.camel) for p in run.windows]
    return Unit(
        naming.run_label(run.source.subject, run.source.name),
        about={
            "image": files_of([run.source.bold, run.source.mask, first.source.bold, first.source.mask]),
            "events or timing": run, "names": names, "split": split, "attributes": attributes,
        },
        make=lambda: _write_run(job, stage.out, run, grid, space.mask(run), split, attributes),
        index=naming.block_companion(names[-1], "sidecar"),
    )  # fmt: skip


@dataclass(frozen=True)
class _Space:
    """Target grids of a participant's runs, and brain masks on the source grids."""

    native: bool
    native_grid: Grid | None = None
    first_run: PlannedRun | None = None
    first_mask_XYZ: np.ndarray | None = None

    @classmethod
    def of(cls, plan: SubjectPlan, native: bool) -> _Space:
        """In native space all runs share the grid around the brain of the first one that is cut."""
        if not native:
            return cls(False)
        first = next(run for run in plan.runs if run.windows)
        mask_XYZ = brain_mask(first.source, first.header, native=True)
        assert mask_XYZ is not None
        grid, _ = native_grid(first.header.shape, first.header.affine, mask_XYZ)
        return cls(True, grid, first, mask_XYZ)

    def grid(self, run: PlannedRun) -> Grid:
        """The run's target grid."""
        if self.native_grid is not None:
            return self.native_grid
        return replace(MNI_3MM, space=run.source.space or MNI_3MM.space)

    def mask(self, run: PlannedRun) -> np.ndarray | None:
        """The run's brain mask on its own grid; None where there is none to be had."""
        first = self.first_run
        if first is not None and (run is first or (run.source.mask is None and _same_grid(run, first))):
            return self.first_mask_XYZ
        return brain_mask(run.source, run.header, native=self.native)


def _same_grid(one: PlannedRun, other: PlannedRun) -> bool:
    return one.header.on_grid_of(other.header)


def _write_run(
    job: Job, out: Path, run: PlannedRun, grid: Grid, mask_XYZ: np.ndarray | None, split: str,
    attributes: Mapping[str, str],
) -> list[dict[str, Any]]:  # fmt: skip
    """Write the blocks of a run; returns their records without the dataset's folder."""
    rows, written = [], None
    cut = cut_run(run, grid, mask_XYZ)
    for planned, data in cut.blocks():
        block, window = planned.window.block, planned.window
        written = write_block(
            out, planned.entities(run.source, grid), block.condition.camel, data, grid,
            condition=block.condition.label, onset_s=_clean(window.onset_s), duration_s=_clean(block.duration_s),
            tr_s=window.tr_s, split=split, attributes=attributes, source=run.source.name,
            source_onset_s=_clean(block.onset_s), events=planned.events,
            sidecar=({"StartTime": _clean(window.start_s)} if block.condition.label == RUN else {}) | {
                "SourceRun": run.source.name,
                "SourceOnset": _clean(block.onset_s),
                "SourceRepetitionTime": run.timing.tr_s,
                "SourceFirstFrame": _clean(run.timing.first_frame_s),
                "FrameTimes": run.timing.clock,
                "BadFrames": sorted(cut.bad_frames),
                "Doubts": [*run.source.warnings, *cut.doubts],
                "WindowStart": _clean(window.start_s),
                "IntensityFactor": cut.factor,
                "BrainMask": cut.mask_source,
                "PhaseEncoding": run.source.phase_encoding or "n/a",
                "ConfigHash": job.config.digest(),
            },
            origin=job.origin, same_run=written,
        )  # fmt: skip
        rows.append(asdict(replace(written, root=Path())) | {"root": "", "bold": written.bold.as_posix()})
    return rows


def _attributes(run: PlannedRun | None, person: Mapping[str, str]) -> dict[str, str]:
    phase_encoding = run.source.phase_encoding if run is not None else None
    known: dict[str, str | None] = {
        "phase_encoding": phase_encoding,
        "sex": person.get("sex"),
        "age": person.get("age"),
    }
    return {name: value for name in ATTRIBUTES if (value := known.get(name)) not in (None, "", "n/a")}


def _clean(seconds: float) -> float:
    """Microseconds are enough, and keep 1e-16 out of tables."""
    return round(float(seconds), 6) + 0.0


def _finish(stage: Stage, job: Job, people: Mapping[str, Mapping[str, str]], columns: Sequence[str]) -> StageSummary:
    out, failed = stage.out, stage.failed
    content: dict[str, Any] = {}

    def write(subjects: Sequence[str]) -> None:
        rows = []
        for subject in subjects:
            try:
                blocks, person = read_subject(out, subject), people.get(subject, {})
            except FmrisynthError as error:  # of a participant that was not asked for in this call
                failed[subject] = f"{error} `fmrisynth prepare` makes it again when it is asked for."
                continue
            row: dict[str, Any] = {"participant_id": f"sub-{subject}"} | {name: person.get(name) for name in columns}
            rows.append(row | {"split": blocks[0].split if blocks else None, "n_blocks": len(blocks)})
        content.update(report.write_dataset_report(out, subjects, failed))
        if rows:
            write_tsv(out / "participants.tsv", ("participant_id", *columns, "split", "n_blocks"), rows)

    finished = settle(lambda: _finished_subjects(out), write)
    lines = report.table_lines(content["Conditions"])
    already = f", {len(stage.kept)} had been there" if stage.kept else ""
    splits = ", ".join(f"{name} {n}" for name, n in content["Splits"].items())
    lines.append(
        f"{len(stage.made)} participants prepared{already}, {len(failed)} failed; {len(finished)} in the dataset ({splits})."
    )
    empty = [name for name, n in content["Splits"].items() if n == 0]
    if empty and job.config.split.all is None and finished:
        lines.append(
            f"No participant is in {' or '.join(empty)}: the split is by hash, so with few participants a share may be "
            "empty; set split.train, split.val and split.test, another seed, or split.all."
        )
    has_families = job.source.kind == "hcp" or any("family_id" in person for person in people.values())
    if not job.families and has_families and job.config.split.all is None:
        lines.append(
            "Split by participant: cohorts of this kind may hold relatives, give split.families to keep families together."
        )
    lines.append(f"Details: {out / report.DATASET_REPORT}")
    return stage.summary(lines)


def _finished_subjects(out: Path) -> list[str]:
    try:
        return subjects_of(out)
    except FmrisynthError:
        return []

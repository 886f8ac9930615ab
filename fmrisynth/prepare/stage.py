"""The stage itself: participant by participant, restartable, and one that fails does not stop the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fmrisynth.bids import naming
from fmrisynth.bids.atomic import remove_leftovers, settle, write_text
from fmrisynth.bids.lock import exclusive
from fmrisynth.bids.provenance import write_dataset_description, write_run_log
from fmrisynth.bids.sidecars import write_tsv
from fmrisynth.bids.sources import choose_subjects, read_json, read_participants
from fmrisynth.config.load import dump_yaml
from fmrisynth.config.prepare import PrepareConfig
from fmrisynth.data.blocks import (
    ATTRIBUTES,
    Block,
    finish_subject,
    is_finished,
    read_subject,
    subjects_of,
    write_block,
)
from fmrisynth.data.grid import MNI_3MM, Grid, native_grid
from fmrisynth.errors import FmrisynthError, UsageError
from fmrisynth.parse import parse_yaml
from fmrisynth.prepare import report
from fmrisynth.prepare.cut import brain_mask, cut_run
from fmrisynth.prepare.plan import (
    Job,
    PlannedRun,
    PlannedWindow,
    SubjectPlan,
    check_labels,
    open_job,
    plan_subject,
)
from fmrisynth.progress import StageSummary, log, reason_of, track

SETTINGS = Path("logs", "prepare_config.yaml")
"""The settings a dataset was begun with; a later call must have the same."""

OPERATIONAL = ("bids_database_dir", "on_bad_run")
"""Settings that may change between calls."""

README = """Every block instance is a short run of its own: `desc-<condition>_bold` (image), `boldref` (temporal mean of the
source run), `desc-brain_mask`, and events. `sub-*/sub-*_scans.tsv` lists the blocks with their condition and split; it is
written last, so a participant without it is not complete."""


def plan_prepare(source: Path, config: PrepareConfig, *, participant_labels: Sequence[str] | None = None) -> list[str]:
    """See `fmrisynth.prepare.plan_prepare`."""
    job = open_job(source, config)
    subjects = choose_subjects(job.source.root, job.source.subjects(), participant_labels)
    check_labels(job, subjects)
    lines: list[str] = []
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
    source: Path, out: Path, config: PrepareConfig, *, participant_labels: Sequence[str] | None = None
) -> StageSummary:
    """See `fmrisynth.prepare.prepare_dataset`."""
    job = open_job(source, config)
    subjects = choose_subjects(job.source.root, job.source.subjects(), participant_labels)
    if not subjects:
        raise FmrisynthError(f"{source}: expected at least one participant, found none; check the path.")
    people = read_participants(source)
    _check_out(source, out)
    check_labels(job, [subject for subject in subjects if not is_finished(out, subject)])
    with exclusive(out, "settings"):
        _begin(out, source, config)

    failed: dict[str, str] = {}
    already = [subject for subject in subjects if is_finished(out, subject)]
    todo = [subject for subject in subjects if subject not in set(already)]
    for subject in track(todo, "Preparing participants"):
        try:
            with exclusive(out, f"sub-{subject}"):
                if not is_finished(out, subject):  # another process may have been at it
                    _prepare_subject(job, out, subject, people.get(subject, {}))
        except Exception as error:
            failed[subject] = reason_of(f"sub-{subject}", error)
    return _finish(job, out, people, failed, n_already=len(already), n_new=len(todo) - len(failed))


def _check_out(source: Path, out: Path) -> None:
    if out.resolve() == source.resolve() or source.resolve().is_relative_to(out.resolve()):
        raise UsageError(f"{out}: the output would lie over the input; choose another folder.")
    description = out / "dataset_description.json"
    ours = out.is_dir() or not out.exists()
    if description.exists():
        makers = read_json(description).get("GeneratedBy") or [{}]
        ours = makers[0].get("Name") == "fmrisynth"
    has_subjects = any(path.is_dir() for path in out.glob("sub-*"))
    if has_subjects and not (out / SETTINGS).exists():  # in this order: another process writes them the other way round
        ours = False
    if not ours:
        raise UsageError(
            f"{out}: expected an empty folder or a dataset begun by `fmrisynth prepare`; choose another one."
        )


def _begin(out: Path, source: Path, config: PrepareConfig) -> None:
    """Write settings, description and logs, or check that the dataset was begun with the same settings."""
    before = out / SETTINGS
    now = config.model_dump(mode="json")
    if before.exists():
        try:
            then = dict(parse_yaml(before.read_text(encoding="utf-8")) or {})
        except (OSError, ValueError, TypeError) as error:
            raise FmrisynthError(f"{before}: expected the settings of this dataset, found {error}; mend it.") from None
        changed = sorted(k for k in now.keys() | then.keys() if now.get(k) != then.get(k) and k not in OPERATIONAL)
        if changed:
            shown = ", ".join(f"{key} was {then.get(key)}, is {now.get(key)}" for key in changed)
            raise UsageError(
                f"{out}: this dataset was begun with other settings ({shown}); use them, or another folder."
            )
    else:
        write_text(before, dump_yaml(config))
    write_dataset_description(out, "fmrisynth block dataset", sources=[source], readme=README)
    write_run_log(out, "prepare", config)


def _prepare_subject(job: Job, out: Path, subject: str, person: Mapping[str, str]) -> None:
    plan = plan_subject(job, subject)
    if plan.n_windows == 0:
        counts = report.count_blocks(plan, job.labels)
        n_found = sum(entry["found"] for entry in counts.values())
        what = f"all {n_found} blocks were dropped" if n_found else "no block of the conditions asked for was found"
        why = "; ".join(plan.notes[:3])
        raise FmrisynthError(
            f"{job.source.root}: participant {subject}: {what}{f' ({why})' if why else ''}; see `prepare --dry-run`."
        )
    split = job.split_of(subject)
    space = _Space.of(plan, job.config.native)
    blocks: list[Block] = []
    runs: list[PlannedRun] = []
    notes = list(plan.notes)
    for run in plan.runs:
        try:
            blocks += list(_write_run(job, out, run, space, split, person)) if run.windows else []
            runs.append(run)
        except FmrisynthError as error:
            if job.config.on_bad_run == "fail" or _is_our_disk(error):
                raise
            log.warning("%s", error)
            notes.append(f"{run.source.name}: left out: {error}")
    if not blocks:
        raise FmrisynthError(
            f"{job.source.root}: participant {subject}: no run could be used ({'; '.join(notes[:3])})."
        )
    done = replace(plan, runs=tuple(runs), notes=tuple(notes))
    _remove_strays(out, subject, blocks)
    report.write_subject_report(out, done, split, report.count_blocks(done, job.labels))
    finish_subject(out, subject, blocks)


def _is_our_disk(error: FmrisynthError) -> bool:
    return isinstance(error.__cause__, OSError)


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
    job: Job, out: Path, run: PlannedRun, space: _Space, split: str, person: Mapping[str, str]
) -> Iterator[Block]:
    """Write the blocks of a run; those that an earlier call completed are only listed."""
    digest = job.config.digest()
    grid = space.grid(run)
    attributes = _attributes(run, person)
    if all(_is_written(out, run, planned, grid, digest) for planned in run.windows):
        for planned in run.windows:
            yield _record(out, run, planned, grid, split, attributes)
        return
    cut = cut_run(run, grid, space.mask(run))
    for planned, data in cut.blocks():
        block, window = planned.window.block, planned.window
        yield write_block(
            out, planned.entities(run.source, grid), block.condition.camel, data, grid,
            condition=block.condition.label, onset_s=_clean(window.onset_s), duration_s=_clean(block.duration_s),
            tr_s=window.tr_s, split=split, attributes=attributes, source=run.source.name,
            source_onset_s=_clean(block.onset_s),
            sidecar={
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
                "ConfigHash": digest,
            },
        )  # fmt: skip


def _is_written(out: Path, run: PlannedRun, planned: PlannedWindow, grid: Grid, digest: str) -> bool:
    """Whether the block's sidecar, its last file, is there and says what we are about to write."""
    sidecar = out / naming.block_companion(_bold(run, planned, grid), "sidecar")
    if not sidecar.exists():
        return False
    content = read_json(sidecar)
    wanted = {
        "SourceRun": run.source.name, "SourceOnset": _clean(planned.window.block.onset_s),
        "WindowStart": _clean(planned.window.start_s), "ConfigHash": digest,
    }  # fmt: skip
    return all(content.get(key) == value for key, value in wanted.items())


def _record(
    out: Path, run: PlannedRun, planned: PlannedWindow, grid: Grid, split: str, attributes: Mapping[str, str]
) -> Block:
    window, block = planned.window, planned.window.block
    return Block(
        root=out, subject=run.source.subject, condition=block.condition.label, bold=_bold(run, planned, grid),
        onset_s=_clean(window.onset_s), duration_s=_clean(block.duration_s), tr_s=window.tr_s,
        n_frames=window.n_frames, split=split, attributes=attributes, source=run.source.name,
        source_onset_s=_clean(block.onset_s),
    )  # fmt: skip


def _bold(run: PlannedRun, planned: PlannedWindow, grid: Grid) -> Path:
    return naming.block_bold(planned.entities(run.source, grid), planned.window.block.condition.camel)


def _attributes(run: PlannedRun, person: Mapping[str, str]) -> dict[str, str]:
    known = {"phase_encoding": run.source.phase_encoding, "sex": person.get("sex"), "age": person.get("age")}
    return {name: value for name in ATTRIBUTES if (value := known.get(name)) not in (None, "", "n/a")}


def _clean(seconds: float) -> float:
    """Microseconds are enough, and keep 1e-16 out of tables."""
    return round(float(seconds), 6) + 0.0


def _remove_strays(out: Path, subject: str, blocks: Sequence[Block]) -> None:
    """Delete what killed or differently planned earlier calls left in the participant's folder."""
    expected = set()
    for block in blocks:
        for kind in ("sidecar", "reference", "mask", "events"):
            companion = naming.block_companion(block.bold, kind)
            expected |= {companion, companion.with_name(companion.name.replace(".nii.gz", ".json"))}
        expected.add(block.bold)
    folder = out / f"sub-{subject}"
    if folder.is_symlink():
        raise FmrisynthError(
            f"{folder}: expected a folder of this dataset, found a link; nothing is deleted behind it."
        )
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(out) not in expected:
            path.unlink()


def _finish(
    job: Job, out: Path, people: Mapping[str, Mapping[str, str]], failed: dict[str, str], *,
    n_already: int, n_new: int,
) -> StageSummary:  # fmt: skip
    finished = settle(lambda: _finished_subjects(out), lambda subjects: _write_lists(out, subjects, people, failed))
    content = report.dataset_report(out, finished, failed)
    for folder in (out, out / "logs", out / "logs" / "prepare"):
        remove_leftovers(folder)
    summary = StageSummary(failed=failed)
    summary.lines += report.table_lines(content["Conditions"])
    already = f", {n_already} had been there" if n_already else ""
    splits = ", ".join(f"{name} {n}" for name, n in content["Splits"].items())
    summary.lines.append(
        f"{n_new} participants prepared{already}, {len(failed)} failed; {len(finished)} in the dataset ({splits})."
    )
    empty = [name for name, n in content["Splits"].items() if n == 0]
    if empty and job.config.split.all is None and finished:
        summary.lines.append(
            f"No participant is in {' or '.join(empty)}: the split is by hash, so with few participants a share may be "
            "empty; set split.train, split.val and split.test, another seed, or split.all."
        )
    has_families = job.source.kind == "hcp" or any("family_id" in person for person in people.values())
    if not job.families and has_families and job.config.split.all is None:
        summary.lines.append(
            "Split by participant: cohorts of this kind may hold relatives, give split.families to keep families together."
        )
    summary.lines.append(f"Details: {out / report.DATASET_REPORT}")
    return summary


def _finished_subjects(out: Path) -> list[str]:
    try:
        return subjects_of(out)
    except FmrisynthError:
        return []


def _write_lists(
    out: Path, subjects: Sequence[str], people: Mapping[str, Mapping[str, str]], failed: Mapping[str, str]
) -> None:
    report.write_dataset_report(out, subjects, failed)
    if subjects:
        _write_participants(out, subjects, people)


def _write_participants(out: Path, subjects: Sequence[str], people: Mapping[str, Mapping[str, str]]) -> None:
    rows = []
    for subject in subjects:
        blocks = read_subject(out, subject)
        person = people.get(subject, {})
        rows.append(
            {
                "participant_id": f"sub-{subject}", "sex": person.get("sex"), "age": person.get("age"),
                "split": blocks[0].split if blocks else None, "n_blocks": len(blocks),
            }
        )  # fmt: skip
    write_tsv(out / "participants.tsv", ("participant_id", "sex", "age", "split", "n_blocks"), rows)

"""What will be cut from a participant's runs, decided from headers and events alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fmrisynth.bids import hcp
from fmrisynth.bids.discover import open_source
from fmrisynth.bids.events import conditions_of_task, find_blocks
from fmrisynth.bids.naming import Entities
from fmrisynth.bids.sources import Source, SourceRun, clean_label
from fmrisynth.conditions import ConditionTable, load_table, make_label, suggest
from fmrisynth.config.prepare import ALL_CONDITIONS, PrepareConfig
from fmrisynth.data.grid import Grid
from fmrisynth.data.nifti import Header, read_header
from fmrisynth.data.splits import read_families, split_of
from fmrisynth.data.windows import Dropped, Timing, Window, plan_windows
from fmrisynth.errors import FmrisynthError, UsageError
from fmrisynth.progress import log

TR_RANGE_S = (0.1, 20.0)
"""Repetition times outside are a wrong unit, not a protocol."""

TR_TOLERANCE = 0.01
"""Header and sidecar may differ by so much, relative."""


@dataclass(frozen=True)
class Job:
    """Everything that holds for all participants of one call.

    Attributes
    ----------
    source : Source
        The input.
    config : PrepareConfig
        The settings.
    table : ConditionTable
        Condition table, with the user's own merged in.
    labels : tuple of str or None
        Conditions asked for; None asks for every condition that occurs.
    families : mapping
        Subject -> family.
    """

    source: Source
    config: PrepareConfig
    table: ConditionTable
    labels: tuple[str, ...] | None
    families: Mapping[str, str]

    def split_of(self, subject: str) -> str:
        """The subject's split."""
        return split_of(subject, self.config.seed, self.config.split, self.families)


@dataclass(frozen=True)
class PlannedWindow:
    """A window and the name its block will get."""

    window: Window
    run_number: int

    def entities(self, run: SourceRun, grid: Grid) -> Entities:
        """Entities of the block's files on a grid."""
        direction = run.entities.get("dir")
        return Entities(
            sub=run.subject,
            ses=clean_label(run.session) if run.session else None,
            task=clean_label(self.window.block.condition.task),
            dir=clean_label(direction) if direction else None,
            run=self.run_number,
            space=grid.space,
            res=grid.resolution,
        )


@dataclass(frozen=True)
class PlannedRun:
    """One source run with the windows to cut from it."""

    source: SourceRun
    header: Header
    timing: Timing
    windows: tuple[PlannedWindow, ...]
    dropped: tuple[Dropped, ...]


@dataclass(frozen=True)
class SubjectPlan:
    """A participant's runs that hold blocks, in order, and remarks on the others."""

    subject: str
    runs: tuple[PlannedRun, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def n_windows(self) -> int:
        """Blocks that will be cut."""
        return sum(len(run.windows) for run in self.runs)


def open_job(root: Path, config: PrepareConfig) -> Job:
    """Open the input and settle which conditions are asked for."""
    table = load_table(config.condition_table)
    asked = None if ALL_CONDITIONS in config.conditions else config.conditions
    for label in asked or ():
        table.get(label)
    source = open_source(root, config, table, asked)
    families = read_families(config.split.families) if config.split.families else {}
    if asked == ():
        known = source.kind == "hcp" or any(table.task_conditions(task) for task in source.tasks())
        asked = tuple(table.default_labels) if known else None
    return Job(source, config, table, asked, families)


def check_labels(job: Job, subjects: list[str]) -> None:
    """Refuse a condition that is neither in the table nor in the events of any of the subjects.

    Raises
    ------
    UsageError
        With the nearest known spellings.
    """
    unknown = {label for label in job.labels or () if label not in job.table.conditions}
    seen: dict[str, None] = {}
    for subject in subjects if unknown else ():
        try:
            runs = job.source.runs(subject)
        except FmrisynthError:
            continue  # reported when the participant is prepared
        for run in runs:
            for event in run.events:
                condition = job.table.match(run.task, event.label)
                seen[condition.label if condition else make_label(run.task, event.label)] = None
            for condition in conditions_of_task(run.task, run.events, job.table, sorted(unknown)):
                if any(make_label("t", e.label) == make_label("t", condition.stem) for e in run.events):
                    unknown.discard(condition.label)
        if not unknown:
            return
    if unknown:
        label = min(unknown)
        raise UsageError(
            f"There is no condition {label!r} in the condition table or in the events of {job.source.root}; "
            f"{suggest(label, dict.fromkeys([*seen, *job.table.labels]))}"
        )


def plan_subject(job: Job, subject: str) -> SubjectPlan:
    """Plan one participant.

    Raises
    ------
    FmrisynthError
        The participant's files cannot be used, with `on_bad_run` ``fail``.
    """
    config = job.config
    counters: dict[tuple, int] = {}
    runs: list[PlannedRun] = []
    notes: list[str] = []
    for run in job.source.runs(subject):
        if run.mask is None and config.mask is not None:
            run = replace(run, mask=config.mask)
        conditions = conditions_of_task(run.task, run.events, job.table, job.labels)
        blocks = find_blocks(
            run.events, conditions, job.table,
            merge_gap_s=config.blocks.merge_gap_s, rows_are_blocks=run.events_are_blocks,
        )  # fmt: skip
        if not blocks:
            if conditions and not run.events:
                notes.append(f"{run.name}: no events file, or an empty one")
            continue
        try:
            header = read_header(run.bold, ndim=4)
            timing = run_timing(run, header, config)
        except FmrisynthError as error:
            if config.on_bad_run == "fail":
                raise
            log.warning("%s", error)
            notes.append(f"{run.name}: left out: {error}")
            continue
        if job.source.kind == "hcp" and not np.isclose(timing.tr_s, hcp.TR_S, rtol=TR_TOLERANCE):
            notes.append(f"{run.name}: TR {timing.tr_s:g} s, HCP's protocol has {hcp.TR_S:g} s; check the header")
        kept, dropped = plan_windows(blocks, timing, config.window, config.blocks, config.tr_s)
        planned = []
        for window in kept:
            key = (run.session, window.block.condition.task, run.entities.get("dir"))
            counters[key] = counters.get(key, 0) + 1
            planned.append(PlannedWindow(window, counters[key]))
        runs.append(PlannedRun(run, header, timing, tuple(planned), tuple(dropped)))
    return SubjectPlan(subject, tuple(runs), tuple(notes))


def run_timing(run: SourceRun, header: Header, config: PrepareConfig) -> Timing:
    """The times of a run's frames, after checking the repetition time.

    Raises
    ------
    FmrisynthError
        Header and sidecar contradict each other, or neither has a plausible value.
    """
    tr_s = config.source_tr_s
    if tr_s is None:
        if run.tr_s and header.tr_s and not np.isclose(run.tr_s, header.tr_s, rtol=TR_TOLERANCE):
            raise FmrisynthError(
                f"{run.bold}: the header says TR {header.tr_s:g} s, the sidecar {run.tr_s:g} s; correct the wrong one, "
                "or give the true one as source_tr_s."
            )
        tr_s = run.tr_s or header.tr_s
    if not TR_RANGE_S[0] <= tr_s <= TR_RANGE_S[1]:
        found = f"found {tr_s:g} s" if tr_s else "found none"
        raise FmrisynthError(
            f"{run.bold}: expected a repetition time of {TR_RANGE_S[0]:g} to {TR_RANGE_S[1]:g} s in the header or the "
            f"sidecar, {found}; give the true one as source_tr_s."
        )
    return Timing(header.shape[3], float(tr_s), run.first_frame_s)

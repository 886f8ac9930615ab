"""What will be cut from a participant's runs, decided from headers and events alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fmrisynth.bids.discover import open_source
from fmrisynth.bids.events import Event, conditions_of_task, find_blocks
from fmrisynth.bids.headers import Header
from fmrisynth.bids.naming import Entities
from fmrisynth.bids.origin import Origin, read_origin
from fmrisynth.bids.runs import Run, Timing, check_mask
from fmrisynth.bids.sources import Images, Source, clean_label
from fmrisynth.conditions import ConditionTable, fold, load_table, make_label, suggest
from fmrisynth.config.prepare import ALL_CONDITIONS, PrepareConfig
from fmrisynth.data.grid import Grid
from fmrisynth.data.splits import read_families, split_of
from fmrisynth.data.windows import Dropped, Window, events_of_window, plan_windows, run_window
from fmrisynth.errors import FmrisynthError, UsageError
from fmrisynth.progress import log


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
    origin : Origin
        What the input says that it is.
    """

    source: Source
    config: PrepareConfig
    table: ConditionTable
    labels: tuple[str, ...] | None
    families: Mapping[str, str]
    origin: Origin

    def split_of(self, subject: str) -> str:
        """The subject's split."""
        return split_of(subject, self.config.seed, self.config.split, self.families)


@dataclass(frozen=True)
class PlannedWindow:
    """A window, the name its block will get, and what happens in and before it.

    Times are seconds from its first frame (of a run: from its start).
    """

    window: Window
    run_number: int
    events: tuple[Event, ...] = ()

    def entities(self, run: Run, grid: Grid) -> Entities:
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

    source: Run
    windows: tuple[PlannedWindow, ...]
    dropped: tuple[Dropped, ...]

    @property
    def header(self) -> Header:
        """Header of its image."""
        return self.source.check()[0]

    @property
    def timing(self) -> Timing:
        """When its frames were acquired."""
        return self.source.check()[1]


@dataclass(frozen=True)
class SubjectPlan:
    """A participant's runs that hold blocks, in order, those that should and cannot be used, and remarks on all of them."""

    subject: str
    runs: tuple[PlannedRun, ...]
    left_out: tuple[Run, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def n_windows(self) -> int:
        """Blocks that will be cut."""
        return sum(len(run.windows) for run in self.runs)


def is_our_disk(error: FmrisynthError) -> bool:
    """Whether a failure is one of the disk and no fault of the input."""
    return isinstance(error.__cause__, OSError)


def open_job(root: Path, config: PrepareConfig) -> Job:
    """Open the input and settle which conditions are asked for."""
    table = load_table(config.condition_table)
    asked = None if ALL_CONDITIONS in config.conditions else _labels(config.conditions, table)
    images: Images = "t1w" if config.unit == "anatomy" else "native" if config.native else "mni"
    source = open_source(root, config, table, asked, images=images)
    families = read_families(config.split.families) if config.split.families else {}
    if asked == ():
        known = source.kind == "hcp" or any(table.task_conditions(task) for task in source.tasks())
        asked = tuple(table.default_labels) if known else None
    return Job(source, config, table, asked, families, read_origin(root))


def _labels(given: Sequence[str], table: ConditionTable) -> tuple[str, ...]:
    """The labels of conditions in any spelling.

    Raises
    ------
    UsageError
        Naming all that are not of the form of a label.
    """
    labels, wrong = [], []
    for text in given:
        try:
            labels.append(table.get(text).label)
        except UsageError as error:
            wrong.append(str(error))
    if wrong:
        raise UsageError(" ".join(wrong))
    return tuple(dict.fromkeys(labels))


def check_labels(job: Job, subjects: list[str]) -> None:
    """Refuse conditions that are neither in the table nor in the events of any of the subjects.

    Raises
    ------
    UsageError
        With the nearest known spelling of each.
    """
    unknown = {
        label: fold(job.table.get(label).stem) for label in job.labels or () if label not in job.table.conditions
    }
    seen: dict[str, None] = {}
    for subject in subjects if unknown else ():
        try:
            runs = job.source.runs(subject)
        except FmrisynthError:
            continue  # reported when the participant is prepared
        for run in runs:
            types = {fold(event.label) for event in run.events}
            for event in run.events:
                condition = job.table.match(run.task, event.label)
                seen[condition.label if condition else make_label(run.task, event.label)] = None
            for condition in conditions_of_task(run.task, run.events, job.table, sorted(unknown)):
                if unknown[condition.label] in types:
                    del unknown[condition.label]
        if not unknown:
            return
    if unknown:
        known = dict.fromkeys([*seen, *job.table.labels])
        errors = [
            UsageError(
                f"There is no condition {label!r} in the condition table or in the events of {job.source.root}; "
                f"{suggest(label, known)}"
            )
            for label in sorted(unknown)
        ]
        raise UsageError(" ".join(map(str, errors)))


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
    left_out: list[Run] = []
    notes: list[str] = []
    for run in job.source.runs(subject):
        conditions = conditions_of_task(run.task, run.events, job.table, job.labels)
        blocks = find_blocks(
            run.events, conditions, job.table,
            merge_gap_s=config.blocks.merge_gap_s, rows_are_blocks=run.events_are_blocks,
        )  # fmt: skip
        unread = [p.text for p in run.problems if p.name == "events" and p.severity == "error" and not run.events]
        if not blocks and not (conditions and unread):
            doubts = unread or run.warnings
            if not run.events and (conditions or (job.labels is None and doubts)):
                notes += doubts or [f"{run.name}: no events file, or an empty one"]
                left_out.append(run)
            continue
        try:
            header, timing = run.check()
            if run.mask is None and config.mask is not None:
                check_mask(config.mask, header)
                run = replace(run, mask=config.mask)
        except FmrisynthError as error:
            if config.on_bad_run == "fail":
                raise
            log.warning("%s", error)
            notes.append(f"{run.name}: left out: {error}")
            left_out.append(run)
            continue
        notes += run.warnings
        for text in run.warnings:
            log.warning("%s", text)
        if config.unit == "run":
            task = conditions[0].task if conditions else clean_label(run.task)
            kept, dropped = [run_window(timing, task, config.tr_s)], list[Dropped]()
        else:
            kept, dropped = plan_windows(
                blocks, timing, config.window, config.blocks, config.tr_s, bad_frames=run.bad_frames
            )
        every = find_blocks(
            run.events, conditions_of_task(run.task, run.events, job.table, None), job.table,
            merge_gap_s=config.blocks.merge_gap_s, rows_are_blocks=run.events_are_blocks,
        )  # fmt: skip
        planned = []
        for window in kept:
            key = (run.session, window.block.condition.task, run.entities.get("dir"))
            counters[key] = counters.get(key, 0) + 1
            events = _labelled_events(run, job.table) if config.unit == "run" else events_of_window(window, every)
            planned.append(PlannedWindow(window, counters[key], events))
        runs.append(PlannedRun(run, tuple(planned), tuple(dropped)))
    return SubjectPlan(subject, tuple(runs), tuple(left_out), tuple(notes))


def _labelled_events(run: Run, table: ConditionTable) -> tuple[Event, ...]:
    """The events of a run with our labels; of HCP's EV files those of the condition table, because the others repeat them."""
    found = []
    for event in run.events:
        condition = table.match(run.task, event.label)
        if condition is None and run.events_are_blocks:
            continue
        try:
            label = condition.label if condition else make_label(run.task, event.label)
        except UsageError:  # nothing in it that can be written
            continue
        found.append(event._replace(label=label))
    return tuple(found)

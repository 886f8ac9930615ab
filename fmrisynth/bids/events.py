"""Events files, and how their rows become blocks.

The rules are those of the condition table (``conditions.yaml``): ``rows``, ``same`` and ``majority``.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple

from fmrisynth.bids.sidecars import read_tsv, write_tsv
from fmrisynth.conditions import Condition, ConditionTable, condition_from_label, fold, make_label
from fmrisynth.errors import FmrisynthError, UsageError

RESTART_S = 60.0
_MISSING = ("", "n/a", "nan", "NaN")
_RUN_COLUMNS = ("run", "runid", "runnumber", "runnr", "runname", "session", "sessionid", "ses")


class Event(NamedTuple):
    """One row of an events file; seconds after the start of the run, and how strong against 1 (column ``modulation``, as in nilearn)."""

    onset_s: float
    duration_s: float
    label: str
    modulation: float = 1.0


@dataclass(frozen=True)
class FoundBlock:
    """One block of one condition; seconds after the start of the run."""

    condition: Condition
    onset_s: float
    duration_s: float

    @property
    def end_s(self) -> float:
        """End of the block."""
        return self.onset_s + self.duration_s


@dataclass(frozen=True)
class EventsTable:
    """What an events file holds, and what is odd about it.

    Attributes
    ----------
    events : tuple of Event
        Ordered by onset, repeated rows once.
    columns : tuple of str
        Its header.
    n_duplicates : int
        Rows that repeat an event.
    n_restarts : int
        How often the onsets fall back by more than a minute, in a table that is not listed by trial type.
    several_runs : dict
        Columns that name runs or sessions, in tables where the onsets start again with their value -> the values.
    """

    events: tuple[Event, ...]
    columns: tuple[str, ...]
    n_duplicates: int = 0
    n_restarts: int = 0
    several_runs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def read_events(path: Path) -> EventsTable:
    """Read a BIDS ``events.tsv``.

    Rows without a trial type or an onset (``n/a``) are left out, all of them where there is no column
    ``trial_type``, which BIDS does not demand; a missing duration counts as 0.

    Raises
    ------
    FmrisynthError
        Missing columns, commas instead of tabs, cells that are not numbers.
    """
    rows = read_tsv(path, ("onset", "duration"))
    found: list[Event] = []
    for number, row in enumerate(rows, start=2):
        label = row.get("trial_type", "").strip()
        if label in _MISSING or row["onset"].strip() in _MISSING:
            continue
        onset_s = _number(path, number, "onset", row["onset"])
        duration = row["duration"].strip()
        duration_s = 0.0 if duration in _MISSING else _number(path, number, "duration", duration)
        if duration_s < 0:
            raise FmrisynthError(f"{path}: expected a duration of 0 or more in line {number}, found {duration_s:g} s.")
        modulation = row.get("modulation", "").strip()
        strength = 1.0 if modulation in _MISSING else _number(path, number, "modulation", modulation)
        found.append(Event(onset_s, duration_s, label, strength))
    once = sorted(set(found))
    labels = [event.label for event in found]
    listed_by_type = len(list(groupby(labels))) == len(set(labels))
    falls = sum(after.onset_s < before.onset_s - RESTART_S for before, after in pairwise(found))
    return EventsTable(
        tuple(once), tuple(rows[0]) if rows else ("trial_type",), len(found) - len(once),
        0 if listed_by_type else falls, _several_runs(rows),
    )  # fmt: skip


def _several_runs(rows: Sequence[Mapping[str, str]]) -> dict[str, tuple[str, ...]]:
    found = {}
    for name in (name for name in (rows[0] if rows else ()) if fold(name) in _RUN_COLUMNS):
        changes = [(one, two) for one, two in pairwise(rows) if one[name] != two[name]]
        if any(_is_before(two["onset"], one["onset"]) for one, two in changes):
            found[name] = tuple(dict.fromkeys(row[name].strip() for row in rows))
    return found


def _is_before(one: str, other: str) -> bool:
    try:
        return float(one) < float(other)
    except ValueError:
        return False


def read_ev(path: Path, label: str) -> tuple[Event, ...]:
    """Read an HCP explanatory variable: onset, duration and amplitude per row, no header.

    An empty file means that the condition did not occur; rows of amplitude 0 are left out.

    Raises
    ------
    FmrisynthError
        If a row is not three numbers separated by blanks or tabs.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise FmrisynthError(f"{path}: the EV file cannot be read ({error}).") from None
    events = []
    for number, line in enumerate(lines, start=1):
        cells = line.split()
        if not cells:
            continue
        if len(cells) != 3:
            comma = " (separated by commas)" if "," in line else ""
            raise FmrisynthError(
                f"{path}: expected onset, duration and amplitude separated by tabs in line {number}, "
                f"found {line.strip()!r}{comma}; correct the EV file."
            )
        onset_s, duration_s, amplitude = (_number(path, number, "EV", cell) for cell in cells)
        if amplitude != 0:
            events.append(Event(onset_s, duration_s, label, amplitude))
    return tuple(sorted(events))


def write_events(path: Path, events: Iterable[Event]) -> None:
    """Write an events file in order of onset, with the column ``modulation`` where it says something."""
    names = ("onset", "duration", "trial_type", "modulation")
    rows = [(float(e.onset_s), float(e.duration_s), e.label, float(e.modulation)) for e in sorted(events)]
    columns = names if any(row[3] != 1 for row in rows) else names[:3]
    write_tsv(path, columns, [dict(zip(names, row, strict=True)) for row in rows])


def conditions_of_task(
    task: str, events: Iterable[Event], table: ConditionTable, labels: Sequence[str] | None
) -> list[Condition]:
    """The conditions to look for in a run.

    Parameters
    ----------
    task : str
        Task spelling of the run.
    events : iterable of Event
        Its events; trial types outside the table get automatic labels where `labels` is None.
    table : ConditionTable
        The condition table.
    labels : sequence of str or None
        Condition labels asked for; None asks for every condition that occurs.
    """
    folded = fold(task)
    if labels is not None:
        return [c for c in map(table.get, labels) if folded in c.tasks]
    found = {c.label: c for c in table.task_conditions(task)}
    fillers = {name for condition in found.values() for name in condition.mixes_with}
    for trial_type in dict.fromkeys(event.label for event in events):
        if table.match(task, trial_type) is None and fold(trial_type) not in fillers:
            try:
                condition = condition_from_label(make_label(task, trial_type))
            except UsageError:  # nothing in it that can be written
                continue
            found.setdefault(condition.label, condition)
    return list(found.values())


def find_blocks(
    events: Sequence[Event],
    conditions: Sequence[Condition],
    table: ConditionTable,
    *,
    merge_gap_s: float,
    rows_are_blocks: bool = False,
) -> list[FoundBlock]:
    """Merge the rows of a run's events into blocks.

    Parameters
    ----------
    events : sequence of Event
        All events of one run, in order of onset.
    conditions : sequence of Condition
        Conditions of the run's task to look for.
    table : ConditionTable
        The table; ``majority`` counts trials of the task's other conditions too.
    merge_gap_s : float
        Rows with a shorter gap between them belong to one block, seconds.
    rows_are_blocks : bool, default False
        Every row is a block already, whatever the condition table says (HCP's EV files).

    Returns
    -------
    list of FoundBlock
        In order of onset.
    """
    blocks: list[FoundBlock] = []
    for condition in conditions:
        if rows_are_blocks or condition.blocks == "rows":
            own = [event for event in events if fold(event.label) in condition.trial_types]
            groups = [[event] for event in own]
        elif condition.blocks == "same":
            groups = _neighbours(events, condition.trial_types, merge_gap_s)
        else:
            groups = _majority_groups(events, condition, table, merge_gap_s)
        for group in groups:
            onset_s = group[0].onset_s
            end_s = max(event.onset_s + event.duration_s for event in group)
            blocks.append(FoundBlock(condition, onset_s, end_s - onset_s))
    return sorted(blocks, key=lambda block: (block.onset_s, block.condition.label))


def _neighbours(events: Sequence[Event], names: Iterable[str], merge_gap_s: float) -> list[list[Event]]:
    """Runs of neighbouring rows whose trial type is in `names`.

    A row of another type that is at least half as long as ours (so not a button press) ends a block.
    """
    names = set(names)
    own = [event for event in events if fold(event.label) in names]
    if not own:
        return []
    rival_s = 0.5 * statistics.median(event.duration_s for event in own)
    rivals_s = [
        e.onset_s for e in events if fold(e.label) not in names and e.duration_s > 0 and e.duration_s >= rival_s
    ]
    groups = [[own[0]]]
    end_s = own[0].onset_s + own[0].duration_s
    for event in own[1:]:
        before = groups[-1][-1].onset_s
        interrupted = bisect_right(rivals_s, before) < bisect_left(rivals_s, event.onset_s)
        if event.onset_s - end_s < merge_gap_s and not interrupted:
            groups[-1].append(event)
        else:
            groups.append([event])
        end_s = max(end_s, event.onset_s + event.duration_s)
    return groups


def _majority_groups(
    events: Sequence[Event], condition: Condition, table: ConditionTable, merge_gap_s: float
) -> list[list[Event]]:
    """Blocks of mixed trials in which this condition's own trial types are the most frequent."""
    siblings = [c for c in table.conditions.values() if c.task == condition.task and c != condition]
    owner = {name: name for name in condition.mixes_with}
    for sibling in [*siblings, condition]:
        owner.update(dict.fromkeys(sibling.trial_types, sibling.label))
    chosen = []
    for group in _neighbours(events, owner, merge_gap_s):
        ranking = Counter(owner[fold(event.label)] for event in group).most_common(2)
        tie = len(ranking) > 1 and ranking[0][1] == ranking[1][1]
        if ranking[0][0] == condition.label and not tie:
            chosen.append(group)
    return chosen


def _number(path: Path, line: int, column: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        comma = "; decimal commas must be points" if "," in cell else ""
        raise FmrisynthError(
            f"{path}: expected a number of seconds in column {column} of line {line}, found {cell!r}{comma}."
        )
    return value

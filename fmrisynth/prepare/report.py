"""How many blocks were found, kept and dropped, and why; per participant and for the dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fmrisynth.bids.atomic import write_json
from fmrisynth.bids.sources import read_json
from fmrisynth.errors import FmrisynthError
from fmrisynth.prepare.plan import SubjectPlan

DATASET_REPORT = Path("logs", "prepare_report.json")


def subject_report_path(subject: str) -> Path:
    """The counts of one participant, relative to the dataset."""
    return Path("logs", "prepare", f"sub-{subject}.json")


def count_blocks(plan: SubjectPlan, labels: Iterable[str] | None) -> dict[str, dict[str, Any]]:
    """Condition -> ``{"found", "kept", "dropped": {reason: n}}``; asked-for conditions appear even with 0."""
    counts: dict[str, dict[str, Any]] = {label: _zero() for label in labels or ()}
    for run in plan.runs:
        for planned in run.windows:
            entry = counts.setdefault(planned.window.block.condition.label, _zero())
            entry["found"] += 1
            entry["kept"] += 1
        for dropped in run.dropped:
            entry = counts.setdefault(dropped.block.condition.label, _zero())
            entry["found"] += 1
            entry["dropped"][dropped.reason] = entry["dropped"].get(dropped.reason, 0) + 1
    return counts


def write_subject_report(out: Path, subject: str, split: str, counts: Mapping[str, Any], notes: Iterable[str]) -> None:
    """Write one participant's counts."""
    content = {"Subject": subject, "Split": split, "Conditions": counts, "Notes": list(notes)}
    write_json(out / subject_report_path(subject), content)


def write_dataset_report(out: Path, subjects: Iterable[str], failed: Mapping[str, str]) -> dict[str, Any]:
    """Write ``logs/prepare_report.json``; returns its content."""
    content = _dataset_report(out, subjects, failed)
    write_json(out / DATASET_REPORT, content)
    return content


def _dataset_report(out: Path, subjects: Iterable[str], failed: Mapping[str, str]) -> dict[str, Any]:
    """Add up the participants' counts."""
    conditions: dict[str, dict[str, Any]] = {}
    splits: Counter[str] = Counter()
    notes: dict[str, list[str]] = {}
    for subject in subjects:
        try:
            content = read_json(out / subject_report_path(subject))
        except FmrisynthError:
            continue  # it is made again when the participant is asked for
        splits[content["Split"]] += 1
        if content["Notes"]:
            notes[subject] = content["Notes"]
        add_counts(conditions, content["Conditions"])
    return {
        "Participants": sum(splits.values()),
        "Splits": {name: splits.get(name, 0) for name in ("train", "val", "test")},
        "Conditions": conditions,
        "Notes": notes,
        "Failed": dict(failed),
    }


def add_counts(total: dict[str, dict[str, Any]], more: Mapping[str, Any]) -> None:
    """Add the counts of one participant to a total."""
    for label, entry in more.items():
        into = total.setdefault(label, _zero())
        into["found"] += entry["found"]
        into["kept"] += entry["kept"]
        for reason, n in entry["dropped"].items():
            into["dropped"][reason] = into["dropped"].get(reason, 0) + n


def table_lines(conditions: Mapping[str, Any]) -> list[str]:
    """The counts as a small table of text."""
    width = max([len("condition"), *map(len, conditions)])
    lines = [f"{'condition':<{width}}  {'found':>6}  {'kept':>6}  dropped"]
    for label, entry in conditions.items():
        reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(entry["dropped"].items()))
        lines.append(f"{label:<{width}}  {entry['found']:>6}  {entry['kept']:>6}  {reasons or '0'}")
    return lines


def _zero() -> dict[str, Any]:
    return {"found": 0, "kept": 0, "dropped": {}}

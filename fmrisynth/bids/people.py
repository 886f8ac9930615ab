"""Who the people of an input are: their attributes, from the tables of the dataset and beside it."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fmrisynth.bids.sidecars import read_tsv
from fmrisynth.bids.sources import clean_label, read_participants
from fmrisynth.conditions import fold
from fmrisynth.errors import FmrisynthError, UsageError

SUBJECT_COLUMNS = ("participantid", "subject", "subjectid", "sub")
"""Folded names of the column that says who a row is about."""

SPELLINGS = {"sex": ("gender",), "age": ("ageinyrs",)}
"""Further folded names of columns: those of HCP's tables."""


@dataclass(frozen=True)
class People:
    """Attributes of people by name, from the tables of a dataset.

    Parameters
    ----------
    roots : sequence of Path
        Folders with ``participants.tsv`` and ``sub-*/sub-*_sessions.tsv``, the most trusted first.
    tables : sequence of Path
        Further tables, TSV or CSV, with a row for each person: HCP's unrestricted and restricted ones.
    """

    roots: Sequence[Path]
    tables: Sequence[Path] = ()

    @cached_property
    def _listed(self) -> list[dict[str, dict[str, str]]]:
        """Of each ``participants.tsv``: subject -> folded column -> value."""
        return [{s: _folded(row) for s, row in read_participants(root).items()} for root in self.roots]

    @cached_property
    def _further(self) -> list[dict[str, dict[str, str]]]:
        """The same of `tables`."""
        return [{s: _folded(row) for s, row in read_people(path).items()} for path in self.tables]

    def attributes(self, subject: str, session: str | None, names: Iterable[str]) -> dict[str, str]:
        """What is known of a person, in a session: ``sessions.tsv`` before ``participants.tsv`` before further tables.

        Raises
        ------
        FmrisynthError
            A table cannot be read.
        """
        listed = [[table[subject]] for table in self._listed if subject in table]
        if session is not None:
            listed = [*([s[session]] for root in self.roots if session in (s := _sessions(root, subject))), *listed]
        further = [
            table[subject] for table in self._further if subject in table
        ]  # together: years before ranges of years
        return {name: value for name in names if (value := _known([*listed, further], name)) is not None}

    def refuse_unknown(self, names: Iterable[str], subjects: Iterable[str]) -> None:
        """Refuse names that no table has as a column; sex and age may be missing everywhere.

        Raises
        ------
        UsageError
            With the columns that there are.
        """
        wanted = {name: {fold(name), *SPELLINGS.get(name, ())} for name in names if name not in SPELLINGS}
        columns = {
            column: None for table in [*self._listed, *self._further] for row in table.values() for column in row
        }
        for subject in subjects:
            if not (missing := [name for name, spelt in wanted.items() if not spelt & columns.keys()]):
                return
            for root in self.roots:
                try:
                    columns |= {column: None for row in _sessions(root, subject).values() for column in row}
                except FmrisynthError:
                    continue  # reported when the participant is prepared
        if missing := [name for name, spelt in wanted.items() if not spelt & columns.keys()]:
            known = ", ".join(column for column in columns if column not in (*SUBJECT_COLUMNS, "sessionid"))
            raise UsageError(
                f"{self.roots[0]}: no table of people has a column {missing[0]!r} (participants.tsv, sessions.tsv, "
                f"anatomy.tables); columns are {known or 'none'}."
            )


def _folded(row: Mapping[str, str]) -> dict[str, str]:
    return {fold(column): value for column, value in reversed(list(row.items()))}


def _known(groups: Iterable[Sequence[Mapping[str, str]]], name: str) -> str | None:
    """The first known value of an attribute, in the order of the groups of rows, and in a group in that of the spellings."""
    for rows in groups:
        for column in (*SPELLINGS.get(name, ()), fold(name)):
            for row in rows:
                value = row.get(column, "").strip()
                if value.lower() not in ("", "n/a", "nan"):
                    return value
    return None


def _sessions(root: Path, subject: str) -> dict[str, dict[str, str]]:
    """Session -> folded column -> value, from a person's ``sessions.tsv``; empty where there is none."""
    path = root / f"sub-{subject}" / f"sub-{subject}_sessions.tsv"
    if not path.exists():
        return {}
    found: dict[str, dict[str, str]] = {}
    for row in read_tsv(path, ("session_id",)):
        session = clean_label(row["session_id"].removeprefix("ses-"))
        if found.get(session, _folded(row)) != _folded(row):
            raise FmrisynthError(
                f"{path}: session {row['session_id']} is listed twice with different values; keep one row."
            )
        found[session] = _folded(row)
    return found


def read_people(path: Path) -> dict[str, dict[str, str]]:
    """Subject -> column -> value, from a TSV or CSV table with a row for each person.

    Raises
    ------
    UsageError
        No such table, or it has no column that says who a row is about.
    FmrisynthError
        Ragged rows, or a person in two rows that differ.
    """
    header, rows = read_cells(path, "table of people")
    at = next((i for name in SUBJECT_COLUMNS for i, column in enumerate(header) if fold(column) == name), None)
    if at is None:
        raise UsageError(
            f"{path}: expected a column that says who a row is about (Subject or participant_id), found {', '.join(header)}."
        )
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        subject, values = clean_label(row[at].strip()), dict(zip(header, row, strict=True))
        if found.get(subject, values) != values:
            raise FmrisynthError(f"{path}: participant {subject} is listed twice with different values; keep one row.")
        found[subject] = values
    return found


def read_cells(path: Path, what: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a TSV or CSV table.

    Raises
    ------
    UsageError
        Missing, unreadable or empty.
    FmrisynthError
        A row is shorter or longer than the header.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        cells = list(csv.reader(lines, delimiter="\t" if lines and "\t" in lines[0] else ","))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: the {what} cannot be read ({error}).") from None
    if not cells:
        raise UsageError(f"{path}: the {what} is empty; expected a header and a row for each person.")
    rows = []
    for number, row in enumerate(cells[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(cells[0]):
            raise FmrisynthError(
                f"{path}: line {number} has {len(row)} cells, the header {len(cells[0])}; correct the table."
            )
        rows.append(row)
    return cells[0], rows

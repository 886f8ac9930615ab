"""What `prepare` reads: one typed record per source run, whatever the layout on disk.

`fmrisynth.bids.hcp` and `fmrisynth.bids.discover` both produce a `Source`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fmrisynth import parse
from fmrisynth.bids.events import Event
from fmrisynth.bids.sidecars import read_tsv
from fmrisynth.errors import FmrisynthError, UsageError


@dataclass(frozen=True)
class SourceRun:
    """One functional run of the input.

    Attributes
    ----------
    subject : str
        Label without ``sub-``, letters and digits.
    session : str or None
        Session label.
    task : str
        Task in the source's own spelling (``GAMBLING``, ``HcpGambling``).
    bold : Path
        4D image.
    mask : Path or None
        Brain mask on the same grid; None where the source has none.
    events : tuple of Event
        Rows of the events (or EV) files, in order of onset.
    space : str or None
        BIDS space label; None is the scanner's own.
    name : str
        Path of `bold` relative to its dataset, for records.
    entities : mapping
        BIDS entities of the file name, where there are any.
    phase_encoding : str or None
        ``LR``, ``ap``, ``j-`` ... as the source says it.
    tr_s : float or None
        Repetition time that a sidecar declares, seconds; None where only the header knows.
    first_frame_s : float
        Time of the first frame on the clock of the events, seconds (fMRIPrep's ``StartTime``).
    events_are_blocks : bool
        Whether each row is a whole block already (HCP's EV files).
    """

    subject: str
    session: str | None
    task: str
    bold: Path
    mask: Path | None
    events: tuple[Event, ...]
    space: str | None
    name: str
    entities: Mapping[str, str] = field(default_factory=dict)
    phase_encoding: str | None = None
    tr_s: float | None = None
    first_frame_s: float = 0.0
    events_are_blocks: bool = False


class Source(Protocol):
    """A dataset that can list its subjects and the runs of each."""

    @property
    def root(self) -> Path:
        """The dataset's folder."""

    @property
    def kind(self) -> str:
        """``hcp`` or ``bids``."""

    def subjects(self) -> list[str]:
        """Subject labels, sorted."""

    def tasks(self) -> list[str]:
        """Task spellings that occur in the dataset, sorted."""

    def runs(self, subject: str) -> list[SourceRun]:
        """The subject's runs in a fixed order; raises `FmrisynthError` for a broken subject."""


def clean_label(name: str) -> str:
    """A BIDS-safe label from a folder name: ``sub-`` dropped, letters and digits kept."""
    return re.sub(r"[^0-9A-Za-z]", "", name.removeprefix("sub-"))


def choose_subjects(source: Source, labels: Sequence[str] | None) -> list[str]:
    """The subjects asked for, in the dataset's order.

    Raises
    ------
    UsageError
        If a label is not in the dataset.
    """
    known = source.subjects()
    if labels is None:
        return known
    asked = [clean_label(label) for label in labels]
    missing = sorted(set(asked) - set(known))
    if missing:
        shown = ", ".join(known[:10]) + (", ..." if len(known) > 10 else "")
        raise UsageError(
            f"{source.root}: there is no participant {', '.join(missing)}; found {len(known)}: {shown or 'none'}."
        )
    return [label for label in known if label in set(asked)]


def read_participants(root: Path) -> dict[str, dict[str, str]]:
    """Rows of ``participants.tsv`` by subject label; empty where there is no such table.

    Raises
    ------
    FmrisynthError
        If a subject is listed twice with different values.
    """
    path = root / "participants.tsv"
    if not path.exists():
        return {}
    found: dict[str, dict[str, str]] = {}
    for row in read_tsv(path, ("participant_id",)):
        label = clean_label(row["participant_id"])
        if found.get(label, row) != row:
            raise FmrisynthError(
                f"{path}: participant {row['participant_id']} is listed twice with different values; keep one row."
            )
        found[label] = row
    return found


def read_json(path: Path) -> dict:
    """A JSON object.

    Raises
    ------
    FmrisynthError
        Unreadable, or not an object.
    """
    try:
        content = parse.read_json(path)
    except (OSError, ValueError) as error:
        raise FmrisynthError(f"{path}: expected a JSON object, it cannot be read ({error}); mend it.") from None
    if not isinstance(content, dict):
        raise FmrisynthError(f"{path}: expected a JSON object, found {type(content).__name__}; mend it.")
    return content

"""A dataset as a list of participants with runs, whatever the layout on disk.

`fmrisynth.bids.hcp` and `fmrisynth.bids.discover` both produce a `Source`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from fmrisynth import parse
from fmrisynth.bids.runs import Run
from fmrisynth.bids.sidecars import read_tsv
from fmrisynth.errors import FmrisynthError, UsageError

if TYPE_CHECKING:
    from fmrisynth.bids.structural import T1w

Images = Literal["mni", "native", "any", "t1w"]
"""Which images are wanted: BOLD preprocessed in MNI space, in the scanner's own, or the best that a run has; or T1w in MNI space."""


class Source(Protocol):
    """A dataset that can list its subjects and the runs of each, or, opened for them, the T1w of each."""

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

    def runs(self, subject: str) -> list[Run]:
        """The subject's runs in a fixed order; raises `FmrisynthError` for a broken subject."""

    def anatomies(self, subject: str) -> list[T1w]:
        """The subject's T1w, one a session; raises `FmrisynthError` for a broken subject."""

    @property
    def roots(self) -> list[Path]:
        """Folders where tables of people may stand."""


def clean_label(name: str) -> str:
    """A BIDS-safe label from a folder name: ``sub-`` dropped, letters and digits kept."""
    return re.sub(r"[^0-9A-Za-z]", "", name.removeprefix("sub-"))


def choose_subjects(root: Path, known: Iterable[str], labels: Sequence[str] | None) -> list[str]:
    """The participants asked for, in the dataset's order; all without `labels`.

    Parameters
    ----------
    root : Path
        The dataset, for the message.
    known : iterable of str
        Its participants, without ``sub-``.
    labels : sequence of str or None
        As a user writes them, with or without ``sub-``, or several with commas between them.

    Raises
    ------
    UsageError
        If a label is not in the dataset.
    """
    known = list(known)
    if not labels:
        return known
    asked = {clean_label(label) for several in labels for label in several.split(",")}
    missing = sorted(asked - set(known))
    if missing:
        shown = ", ".join(known[:10]) + (", ..." if len(known) > 10 else "")
        near = [name for label in missing for name in get_close_matches(label, known, n=1, cutoff=0.8)]
        meant = f" (did you mean {', '.join(near)}?)" if near else ""
        raise UsageError(
            f"{root}: there is no sub-{', sub-'.join(missing)}{meant}; found {len(known)}: {shown or 'none'}."
        )
    return [label for label in known if label in asked]


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
        raise FmrisynthError(f"{path}: expected a JSON object, it cannot be read ({error}); correct it.") from None
    if not isinstance(content, dict):
        raise FmrisynthError(f"{path}: expected a JSON object, found {type(content).__name__}; correct it.")
    return content

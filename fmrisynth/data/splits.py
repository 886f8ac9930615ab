"""Training, validation and test subjects, by hash: adding a subject never moves another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from fmrisynth.bids.people import SUBJECT_COLUMNS, read_cells
from fmrisynth.bids.sources import clean_label
from fmrisynth.conditions import fold
from fmrisynth.config.prepare import SplitConfig
from fmrisynth.errors import FmrisynthError, UsageError

SPLITS = ("train", "val", "test")

_FAMILY_COLUMNS = ("familyid", "family", "pedigreeid", "motherid")


def split_of(subject: str, seed: int, config: SplitConfig, families: Mapping[str, str] | None = None) -> str:
    """The split of a subject: ``train``, ``val`` or ``test``.

    Parameters
    ----------
    subject : str
        Label.
    seed : int
        Another seed gives another split.
    config : SplitConfig
        Shares. They hold on average; with few subjects a split may well be empty.
    families : mapping, optional
        Subject -> family; a subject without a family is a family of its own.

    Notes
    -----
    SHA-256 of ``seed/unit`` gives a number in [0, 1), where the unit is the family or the subject. It depends on
    nothing else, so a subject keeps its split when others are added and in every job of an array.
    """
    if config.all is not None:
        return config.all
    family = (families or {}).get(subject)
    unit = f"sub-{subject}" if family is None else f"family-{family}"
    digest = hashlib.sha256(f"{seed}/{unit}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < config.train:
        return "train"
    return "val" if position < config.train + config.val else "test"


def read_families(path: Path) -> dict[str, str]:
    """Subject -> family, from a TSV or CSV table (HCP's restricted table has ``Subject`` and ``Family_ID``).

    Raises
    ------
    FmrisynthError
        Unreadable table, missing columns, or a subject in two families.
    """
    columns, rows = read_cells(path, "family table")
    header = [fold(name) for name in columns]
    subject_at = next((header.index(name) for name in SUBJECT_COLUMNS if name in header), None)
    family_at = next((header.index(name) for name in _FAMILY_COLUMNS if name in header), None)
    if subject_at is None or family_at is None:
        raise UsageError(
            f"{path}: expected a subject and a family column (Subject and Family_ID, or participant_id and family_id), "
            f"found {', '.join(columns)}."
        )
    families: dict[str, str] = {}
    for row in rows:
        subject, family = clean_label(row[subject_at].strip()), row[family_at].strip()
        if family in ("", "n/a"):
            continue
        if families.get(subject, family) != family:
            raise FmrisynthError(
                f"{path}: participant {subject} is in two families ({families[subject]} and {family}); keep one row."
            )
        families[subject] = family
    return families

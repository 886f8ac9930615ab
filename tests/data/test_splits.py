"""Splits by hash: stable, of the right size, and no subject or family in two of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmrisynth.config.prepare import SplitConfig
from fmrisynth.data.splits import read_families, split_of
from fmrisynth.errors import FmrisynthError, UsageError

DEFAULT = SplitConfig()


def test_shares() -> None:
    counts = Counter(split_of(f"{100000 + n}", 0, DEFAULT) for n in range(10_000))
    assert counts["train"] == pytest.approx(9000, abs=120)
    assert counts["val"] == pytest.approx(500, abs=90)
    assert counts["test"] == pytest.approx(500, abs=90)


def test_known_values() -> None:
    """Frozen: a release must never move a subject of a published model to another split."""
    subjects = ["100307", "100408", "101107", "103414", "105115", "01", "02", "sub02"]
    half = SplitConfig(train=0.5, val=0.25, test=0.25)
    assert [split_of(s, 0, half) for s in subjects] == [
        "train",
        "train",
        "train",
        "train",
        "test",
        "val",
        "val",
        "test",
    ]


@given(st.sets(st.text("abc0123", min_size=1, max_size=6), max_size=40), st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_adding_subjects_moves_nobody(subjects, seed) -> None:
    config = SplitConfig(train=0.4, val=0.3, test=0.3)
    families = {subject: subject[0] for subject in subjects if len(subject) % 2}
    alone = {subject: split_of(subject, seed, config, families) for subject in subjects}
    more = families | {f"new{n}": "a" for n in range(5)}
    assert all(split_of(subject, seed, config, more) == split for subject, split in alone.items())
    for family in set(families.values()):
        assert len({alone[subject] for subject, own in families.items() if own == family}) == 1


def test_seed_and_override() -> None:
    config = SplitConfig(train=0.5, val=0.25, test=0.25)
    first = [split_of(str(n), 0, config) for n in range(100)]
    assert first != [split_of(str(n), 1, config) for n in range(100)]
    assert {split_of(str(n), 0, SplitConfig(all="test")) for n in range(100)} == {"test"}
    with pytest.raises(ValueError, match="must add up to 1"):
        SplitConfig(train=0.5)


@pytest.mark.parametrize(
    "text",
    [
        "Subject,Family_ID,Age\n100307,51488_81401,27\n100408,51730_81615,33\n101107,51488_81401,24\n",
        "participant_id\tfamily_id\nsub-100307\tA\nsub-100408\tB\nsub-101107\tA\nsub-1\tn/a\n\n",
    ],
    ids=["HCP", "BIDS"],
)
def test_read_families(tmp_path: Path, text: str) -> None:
    path = tmp_path / "families"
    path.write_text(text)
    families = read_families(path)
    assert sorted(families) == ["100307", "100408", "101107"]
    assert families["100307"] == families["101107"] != families["100408"]


@pytest.mark.parametrize(
    ("text", "message", "kind"),
    [
        ("Subject,Age\n1,2\n", "expected a subject and a family column", UsageError),
        ("", "the family table is empty", UsageError),
        ("Subject,Family_ID\n1,A\n1,B\n", r"participant 1 is in two families \(A and B\)", FmrisynthError),
        ("Subject,Family_ID\n1\n", "line 2 has 1 cells", FmrisynthError),
    ],
)
def test_bad_family_tables(tmp_path: Path, text: str, message: str, kind) -> None:
    path = tmp_path / "families.csv"
    path.write_text(text)
    with pytest.raises(kind, match=message):
        read_families(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_families(tmp_path / "nowhere.csv")

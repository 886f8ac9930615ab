"""Rows of events files become the right number of blocks."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from fmrisynth.bids.events import Event, conditions_of_task, find_blocks, read_ev, read_events
from fmrisynth.conditions import condition_from_label, load_table
from fmrisynth.errors import FmrisynthError

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
TABLE = load_table()


def blocks_of(events, task, labels=None, *, merge_gap_s=2.0, rows=False):
    conditions = conditions_of_task(task, events, TABLE, labels)
    return find_blocks(events, conditions, TABLE, merge_gap_s=merge_gap_s, rows_are_blocks=rows)


def test_trials_merge_into_one_block() -> None:
    events = [Event(10 + k, 0.9, "face") for k in range(16)] + [Event(60 + k, 0.9, "face") for k in range(16)]
    (first, second) = blocks_of(events, "oneback", ["oneback_face"])
    assert (first.onset_s, first.duration_s) == (10, pytest.approx(15.9))
    assert second.onset_s == 60


def test_interleaved_types_are_no_blocks_but_button_presses_do_not_matter() -> None:
    interleaved = sorted([Event(2 * k, 1, "a") for k in range(8)] + [Event(2 * k + 1, 1, "b") for k in range(8)])
    assert [block.duration_s for block in blocks_of(interleaved, "x", ["x_a"])] == [1] * 8
    presses = sorted([Event(2 * k, 1, "a") for k in range(8)] + [Event(2 * k + 1.2, 0.3, "press") for k in range(8)])
    assert [block.duration_s for block in blocks_of(presses, "x", ["x_a"])] == [15]


def test_gap_is_strict_and_nested_rows_do_not_shorten_a_block() -> None:
    assert len(blocks_of([Event(0, 1, "a"), Event(3, 1, "a")], "x", ["x_a"])) == 2
    assert len(blocks_of([Event(0, 1, "a"), Event(2.99, 1, "a")], "x", ["x_a"])) == 1
    (block,) = blocks_of([Event(0, 20, "a"), Event(1, 1, "a"), Event(19, 3, "a")], "x", ["x_a"])
    assert block.duration_s == 22


def test_majority_rule() -> None:
    def block(start, types):
        return [Event(start + 3.6 * k, 3.6, kind) for k, kind in enumerate(types)]

    p, r, n = "punishment", "reward", "neutral"
    events = block(8, [r, p, p, p, r, p, p, p]) + block(52, [r, p, r, r, r, r, p, r]) + block(96, [p, p, r, r, n, n])
    assert [b.onset_s for b in blocks_of(events, "HcpGambling", ["gambling_loss"])] == [8]
    assert [b.onset_s for b in blocks_of(events, "HcpGambling", ["gambling_win"])] == [52]  # the third is a tie


def test_all_conditions_of_an_unknown_task() -> None:
    events = [Event(0, 16, "Face"), Event(20, 16, "two words"), Event(40, 16, "???")]
    assert [c.label for c in conditions_of_task("1-back", events, TABLE, None)] == ["1back_face", "1back_two_words"]
    assert conditions_of_task("1-back", events, TABLE, ["gambling_loss"]) == []


def test_hcp_rows_are_blocks_even_when_they_touch() -> None:
    events = [Event(10, 27.5, "2bk_places"), Event(37.5, 27.5, "2bk_places")]
    assert len(blocks_of(events, "WM", ["wm_2bk_places"], rows=True)) == 2


def test_read_events(tmp_path: Path) -> None:
    path = tmp_path / "events.tsv"
    path.write_text("onset\tduration\ttrial_type\textra\n5\tn/a\tb\t1\n1.5\t2\ta\tn/a\nn/a\t1\ta\t0\n3\t1\tn/a\t0\n")
    assert read_events(path).events == (Event(1.5, 2, "a"), Event(5, 0, "b"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("onset,duration,trial_type\n1,2,a\n", "separated by commas, BIDS wants tabs"),
        ("onset\tlength\ttrial_type\n1\t2\ta\n", "expected a column named duration"),
        ("onset\tduration\ttrial_type\n1\t-2\ta\n", "expected a duration of 0 or more in line 2"),
        ("onset\tduration\ttrial_type\n1,5\t2\ta\n", "line 2, found '1,5'; decimal commas"),
        ("onset\tduration\ttrial_type\n1\tinf\ta\n", "column duration of line 2, found 'inf'"),
        ("onset\tduration\ttrial_type\n1\t2\n", "line 2 has 2 cells, the header has 3"),
        ("", "the table is empty"),
    ],
)
def test_bad_events_are_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "sub-01_events.tsv"
    path.write_text(text)
    with pytest.raises(FmrisynthError, match=message) as caught:
        read_events(path)
    assert "sub-01_events.tsv" in str(caught.value)


def test_read_ev(tmp_path: Path) -> None:
    path = tmp_path / "loss.txt"
    path.write_text("64.3\t28.0\t1\n  10.0 28.0 1.0 \n\n80 28 0\n")
    assert read_ev(path, "loss") == (Event(10, 28, "loss"), Event(64.3, 28, "loss"))
    path.write_text("")
    assert read_ev(path, "loss") == ()
    path.write_text("10.0,28.0,1\n")
    with pytest.raises(FmrisynthError, match=r"loss\.txt: expected onset.*separated by commas"):
        read_ev(path, "loss")


# The 140 real event files of the IBC dataset. The reference count takes another route: it never merges by gaps, but
# divides the number of trials by what the paradigm puts into a block, or asks pandas for the mode of each stretch.


def _reference_count(label: str, path: Path) -> int:
    frame = pd.read_csv(path, sep="\t")
    if label in ("language_story", "social_mental"):
        return int((frame.trial_type == label.split("_")[1]).sum())
    if label == "gambling_loss":  # blocks lie more than 10 s apart
        block = (frame.onset.diff() > 10).cumsum()
        return sum(kinds.mode().tolist() == ["punishment"] for _, kinds in frame.groupby(block).trial_type)
    name, trials = {
        "emotion_fear": ("face", 6), "relational_relation": ("relational", 4),
        "motor_rh": ("right_hand", 10), "wm_2bk_places": ("2back_place", 10),
    }[label]  # fmt: skip
    n_trials = int((frame.trial_type == name).sum())
    assert n_trials % trials == 0, path
    return n_trials // trials


TASKS = {
    "emotion_fear": "HcpEmotion", "gambling_loss": "HcpGambling", "language_story": "HcpLanguage",
    "relational_relation": "HcpRelational", "motor_rh": "HcpMotor", "social_mental": "HcpSocial",
    "wm_2bk_places": "HcpWm",
}  # fmt: skip


@pytest.mark.parametrize("label", TASKS)
def test_ibc_block_counts(label: str) -> None:
    root = SHARED_DATA / "ibc-hcp-events"
    if not root.is_dir():
        pytest.skip(f"the IBC event files are not at {root}")
    files = sorted(root.glob(f"sub-*/ses-*/func/*_task-{TASKS[label]}_*_events.tsv"))
    assert len(files) == 20
    for path in files:
        found = blocks_of(read_events(path).events, TASKS[label], TABLE.default_labels)
        assert {block.condition.label for block in found} == {label}
        assert len(found) == _reference_count(label, path) > 0, path.name
        assert all(8 < block.duration_s < 60 for block in found), path.name


def test_every_hcp_condition_occurs_in_ibc() -> None:
    root = SHARED_DATA / "ibc-hcp-events"
    if not root.is_dir():
        pytest.skip(f"the IBC event files are not at {root}")
    seen = set()
    for path in sorted(root.glob("sub-01/ses-*/func/*_events.tsv")):
        task = path.name.split("_task-")[1].split("_")[0]
        seen |= {block.condition.label for block in blocks_of(read_events(path).events, task)}
    assert set(TABLE.labels) <= seen
    assert len(TABLE.labels) == 23


def test_real_hcp_motor_timing() -> None:
    root = SHARED_DATA / "hcp-layout"
    if not root.is_dir():
        pytest.skip(f"the HCP layout files are not at {root}")
    for direction in ("LR", "RL"):
        frame = pd.read_csv(root / f"sub-100307_tfMRI_MOTOR_{direction}_blocks.tsv", sep="\t")
        own = frame[frame.trial_type == "RightHand"]
        events = sorted(Event(o, d, "rh") for o, d in zip(own.onset, own.duration, strict=True))
        found = find_blocks(events, [condition_from_label("motor_rh")], TABLE, merge_gap_s=2.0, rows_are_blocks=True)
        assert len(found) == 2

"""The condition table and what users can do with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmrisynth.conditions import condition_from_label, fold, load_table, make_label, suggest
from fmrisynth.errors import UsageError

TABLE = load_table()


def test_the_hcp_battery() -> None:
    assert len(TABLE.labels) == 23
    assert TABLE.default_labels == [
        "wm_2bk_places", "emotion_fear", "gambling_loss", "language_story", "relational_relation", "motor_rh",
        "social_mental",
    ]  # fmt: skip
    n_conditions = {"wm": 8, "emotion": 2, "gambling": 2, "language": 2, "relational": 2, "motor": 5, "social": 2}
    for task, n in n_conditions.items():
        assert len(TABLE.task_conditions(task.upper())) == n


def test_every_spelling_names_one_condition() -> None:
    for task in {c.task for c in TABLE.conditions.values()}:
        names = [name for c in TABLE.task_conditions(task) for name in c.trial_types]
        assert len(names) == len(set(names)), task
    tasks = [(name, c.task) for c in TABLE.conditions.values() for name in c.tasks]
    assert len({name for name, _ in tasks}) == len(set(tasks))


@pytest.mark.parametrize(
    ("task", "trial_type", "label"),
    [
        ("WM", "2bk_places", "wm_2bk_places"),
        ("HcpWm", "2back_place", "wm_2bk_places"),
        ("HcpGambling", "punishment", "gambling_loss"),
        ("gambling", "reward", "gambling_win"),
        ("EMOTION", "fear", "emotion_fear"),
        ("HcpSocial", "mental", "social_mental"),
        ("SOCIAL", "ment", "social_mental"),
        ("motor", "right_hand", "motor_rh"),
        ("relational", "relation", "relational_relation"),
        ("oneback", "face", None),
        ("gambling", "loss_event", None),
        ("HcpMotor", "right_hand_cue", None),
    ],
)
def test_spellings(task: str, trial_type: str, label: str | None) -> None:
    found = TABLE.match(task, trial_type)
    assert (found.label if found else None) == label


def test_names_for_files() -> None:
    condition = TABLE.get("wm_2bk_places")
    assert (condition.stem, condition.camel, condition.contrast) == ("2bk_places", "2bkPlaces", "wm2bkPlaces")
    assert TABLE.get("gambling_loss").contrast == "gamblingLoss"


def test_own_conditions() -> None:
    label = make_label("one-back", "Two words")
    assert label == "oneback_two_words"
    condition = condition_from_label(label)
    assert fold("Two words") in condition.trial_types
    assert fold("one-back") in condition.tasks
    assert TABLE.get(label) == condition
    with pytest.raises(UsageError, match="'face' is not a condition label: expected <task>_<condition>"):
        TABLE.get("face")


@given(st.text(max_size=20), st.text(max_size=20))
def test_any_names_make_a_label_that_finds_them_again(task: str, trial_type: str) -> None:
    if not fold(task) or not fold(trial_type):
        return
    condition = condition_from_label(make_label(task, trial_type))
    assert fold(task) in condition.tasks
    assert fold(trial_type) in condition.trial_types


def test_user_table(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "tasks:\n  faces: {names: [FaceTask], blocks: rows}\n"
        "conditions:\n  faces_happy: {trial_types: [smile]}\n  gambling_loss: {ev: loss, trial_types: [minus]}\n"
    )
    table = load_table(path)
    happy = table.match("face-task", "Smile")
    assert happy is not None
    assert (happy.label, happy.blocks) == ("faces_happy", "rows")
    assert table.match("gambling", "minus").label == "gambling_loss"
    assert len(table.labels) == 24
    assert load_table().match("gambling", "minus") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "expected a condition table with a 'conditions' mapping"),
        ("conditions: [1]\n", "expected a condition table"),
        ("conditions: {a_b: 3}\n", "the condition table is malformed"),
        ("a: [\n", "cannot be read as YAML"),
    ],
)
def test_bad_user_table(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        load_table(path)
    with pytest.raises(UsageError, match="cannot be read"):
        load_table(tmp_path / "nowhere.yaml")


def test_suggestions() -> None:
    assert "did you mean gambling_loss" in suggest("gambling_los", TABLE.labels)
    assert suggest("zzz", ["a_b"]) == "known are a_b."


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("MOTOR:cue", "motor_cue"),
        ("MOTOR:rh", "motor_rh"),
        ("REASONING:rel", "relational_relation"),
        ("WM 2bk:places", "wm_2bk_places"),
        ("LANGUAGE:story", "language_story"),
        ("fear_CS+", "fear_cs_plus"),
    ],
)
def test_labels_as_the_field_writes_them(text: str, label: str) -> None:
    assert TABLE.get(text).label == label


@pytest.mark.parametrize(
    "names",
    [
        ("CS+", "CS-"),
        ("+5", "-5", "5"),
        ("a<b", "a>b", "a=b"),
        ("0.5", "5", "05"),
        ("快", "慢"),
        ("schön", "schon"),
        ("50%", "50"),
    ],
)
def test_names_that_differ_in_meaning_stay_apart(names: tuple[str, ...]) -> None:
    conditions = [condition_from_label(make_label("fear", name)) for name in names]
    for which in ("label", "camel", "contrast"):
        values = [getattr(condition, which) for condition in conditions]
        assert len({value.lower() for value in values}) == len(names)
        assert all(value.isascii() and value.replace("_", "").isalnum() for value in values)
    assert all(len(condition.trial_types) == 1 for condition in conditions)


@given(st.text(max_size=12), st.text(max_size=12))
def test_different_spellings_have_different_file_names(one: str, other: str) -> None:
    """Also where a file system does not tell upper from lower case."""
    if fold(one) and fold(other) and fold(one) != fold(other):
        a, b = (condition_from_label(make_label("t", name)).camel.lower() for name in (one, other))
        assert a != b

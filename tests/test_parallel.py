"""Shares of participants in processes of their own."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from fmrisynth.errors import FmrisynthError
from fmrisynth.parallel import side_by_side


def note(folder: Path, labels: list[str]) -> None:
    for label in labels:
        (folder / label).write_text(f"{os.getpid()} {os.environ['OMP_NUM_THREADS']}")
    if "bad" in labels:
        raise FmrisynthError("this one cannot be read")


def break_down(labels: list[str]) -> None:
    raise ZeroDivisionError


def test_each_participant_is_worked_on_once_and_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    labels = [f"{n:02d}" for n in range(9)] + ["bad"]
    side_by_side(partial(note, tmp_path), labels, 2, "work")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(labels)
    found = [path.read_text().split() for path in tmp_path.iterdir()]
    assert str(os.getpid()) not in {process for process, _ in found}
    assert {threads for _, threads in found} == {"1"}
    assert os.environ["OMP_NUM_THREADS"] == "7"


@pytest.mark.parametrize(("labels", "n"), [(["01", "02"], 1), (["01"], 4), ([], 4)])
def test_one_process_leaves_the_work_to_the_call_that_follows(tmp_path, labels, n):
    side_by_side(partial(note, tmp_path), labels, n, "work")
    assert not list(tmp_path.iterdir())


def test_a_bug_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        side_by_side(break_down, ["01", "02"], 2, "work")

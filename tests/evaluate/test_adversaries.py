"""The benchmark that turns real blocks into what bad generators write, in small."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from fmrisynth.data.blocks import Block
from fmrisynth.glm.windows import Window
from tests.evaluate.conftest import CONDITIONS, GRID, Maker, brain_mask, smooth_map


def _benchmark():
    path = Path(__file__).parents[2] / "benchmarks" / "adversaries.py"
    spec = importlib.util.spec_from_file_location("adversaries", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["adversaries"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def people(truth) -> list[Window]:
    """40 people with two blocks of each condition, in memory."""
    maker, rng, mask = Maker(truth), np.random.default_rng(3), brain_mask()
    windows = []
    for index in range(40):
        reference = (10_000 * (1 + 0.15 * smooth_map(rng)).clip(0.4))[mask].astype(np.float32)
        for condition in CONDITIONS:
            own = truth[condition] + 0.5 * smooth_map(rng)
            for _ in range(2):
                block = Block(Path(), f"{index:02d}", condition, Path("x_bold.nii.gz"), 0.0, 18.0, 1.44, 12)
                windows.append(Window(block, maker.window(rng, own)[mask].T.astype(np.float32), reference))
    return windows


def test_each_fault_is_found_and_other_people_pass(people):
    bench = _benchmark()
    names = [
        bench.REAL, bench.COPIES, bench.ONE_PERSON, "amplitude x 1.5", "late by 2.9 s", "shuffled labels", "one shared anatomy",
        "class mean + white noise",
    ]  # fmt: skip
    study = bench.Bench(people, GRID, brain_mask(), 12, 20, 2, classifiers_every=2)
    assert all(set(deal.other).isdisjoint(deal.peers) for deal in study.deals)
    found = {name: study.answers(name) for name in names}
    assert "fail" not in found["class mean + white noise"]["copies"]  # a blend is a copy of nobody
    assert len(found[bench.REAL]["corr"]) == 2
    assert len(found[bench.REAL]["forest_classifier"]) == 1
    for name in names[1:]:
        assert any(found[name][key][0] == "fail" for key in bench.ADVERSARIES[name][1]), (name, found[name])
    failed = [key for key, answers in found[bench.REAL].items() if "fail" in answers]
    assert len(failed) <= 2, failed
    text = bench.table(found)
    assert text.count("\n") == len(bench.CHECKS) + 1
    assert "| `forest_classifier` | 0/1 |" in text
    assert "| amplitude x 1.5 | `gain` | 2/2 | 0.34 to 1.00 |" in bench.power_table(found)
    assert f"of {2 * (len(bench.CHECKS) - 2) + 2} checks in 2 deals" in bench.real_line(found)


def test_every_adversary_names_checks_that_exist():
    bench = _benchmark()
    keys = {check.key for check in bench.CHECKS}
    assert all(set(own) <= keys for _, own in bench.ADVERSARIES.values())
    assert len(bench.ADVERSARIES) == 16

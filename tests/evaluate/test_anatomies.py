"""`fmrisynth evaluate --unit anatomy` on people whose attributes are planted."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fmrisynth.bids.naming import Entities
from fmrisynth.cli.main import run
from fmrisynth.data.blocks import BlockData, finish_subject, write_block
from fmrisynth.data.grid import make_grid
from fmrisynth.evaluate.anatomies import cells, spread_ratio

GRID = make_grid((16, 16, 16), np.diag([6.0, 6.0, 6.0, 1.0]), "MNI152NLin6Asym")
CENTRE = np.stack(np.meshgrid(*[np.arange(16) - 7.5] * 3, indexing="ij"))


def write_people(root, n, seed, *, obey=True, split=None, spread=1.0, said=True):
    """Balls that shrink with age and are brighter in front in men; some noise of their own."""
    rng = np.random.default_rng(seed)
    for k in range(n):
        age, sex = float(rng.integers(20, 81)), "FM"[rng.integers(2)]
        true_age, true_sex = (age, sex) if obey else (50.0, "F")
        mask = np.linalg.norm(CENTRE, axis=0) < 7.2 - 0.02 * (true_age - 50)
        image = (
            1.0 + (0.25 if true_sex == "M" else 0.0) * (CENTRE[1] > 0) + spread * 0.05 * rng.standard_normal(mask.shape)
        )
        image = np.where(mask, 10_000 * image, 0.0).astype(np.float32)
        block = write_block(
            root, Entities(sub=f"{k:03d}", task="anatomy"), "epi", BlockData(image[..., None], image, mask), GRID,
            condition="anatomy_epi", onset_s=0.0, duration_s=1.0, tr_s=1.0,
            split=split if split is None or k < 0.7 * n else "test", attributes={"age": f"{age:g}", "sex": sex} if said else {},
        )  # fmt: skip
        finish_subject(root, f"{k:03d}", [block])
    return root


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """What it sees has tests of its own."""
    monkeypatch.setattr("fmrisynth.evaluate.anatomies.compare_slices", lambda *_, **__: None)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return write_people(tmp_path_factory.mktemp("real"), 90, 1, split="train")


def found(real, synthetic, out):
    assert run(["evaluate", str(out), "--unit", "anatomy", "--real", str(real), "--synthetic", str(synthetic)]) == 0
    return json.loads((out / "metrics.json").read_text())


def test_people_as_asked_are_recognised(real, tmp_path):
    metrics = found(real, write_people(tmp_path / "s", 40, 2), tmp_path / "out")
    age, sex = (next(a for a in metrics["attributes"] if a["name"] == name) for name in ("age", "sex"))
    assert age["asked"][0] > 0.9 < age["real"][0]
    assert 0.8 < age["slope_asked"] < 1.2
    assert sex["asked"][0] > 0.9 < sex["real"][0]
    assert metrics["spread"][1] < 1 < metrics["spread"][2]
    assert 0.8 < metrics["privacy"]["ratio"] < 1.2
    assert "Anatomies" in (tmp_path / "out" / "report.html").read_text()


def test_people_who_were_not_made_as_asked_are_found_out(real, tmp_path):
    metrics = found(real, write_people(tmp_path / "s", 40, 3, obey=False), tmp_path / "out")
    age, sex = (next(a for a in metrics["attributes"] if a["name"] == name) for name in ("age", "sex"))
    assert abs(age["asked"][0]) < 0.5
    assert sex["asked"][0] < 0.7
    assert metrics["spread"][2] < 1


def test_copies_of_training_people_are_found(real, tmp_path):
    metrics = found(real, write_people(tmp_path / "s", 40, 1), tmp_path / "out")
    assert metrics["privacy"]["ratio"] < 0.1
    assert metrics["privacy"]["n_close"] == 40


def test_what_was_left_open_is_said(real, tmp_path):
    metrics = found(real, write_people(tmp_path / "s", 30, 4, said=False), tmp_path / "out")
    age = next(a for a in metrics["attributes"] if a["name"] == "age")
    assert age["asked"] is None
    assert age["n_open"] == 30
    assert abs(age["typical_open"] - age["typical_real"]) < 12


def test_too_few_people_are_refused(real, tmp_path, capsys):
    few = write_people(tmp_path / "few", 5, 5)
    ask = ["evaluate", str(tmp_path / "out"), "--unit", "anatomy", "--real", str(real), "--synthetic", str(few)]
    assert run(ask) == 1
    assert "expected at least 20 people, found 5" in capsys.readouterr().err


def test_cells_are_means():
    volume = np.random.default_rng(0).standard_normal((8, 4, 6))
    assert cells(volume)[0] == pytest.approx(volume[:4, :4, :4].mean())
    assert len(cells(volume)) == 2 * 1 * 2


def test_the_interval_of_a_spread_covers_equal_spreads():
    rng, inside = np.random.default_rng(3), 0
    for _ in range(40):
        one, other = rng.standard_normal((2, 40, 30)) * np.linspace(0.1, 2, 30)
        _, low, high = spread_ratio(one, other, rng)
        inside += low < 1 < high
    assert inside >= 33

"""Every input with a planted answer gives that answer, or one sentence that names the file and the cause."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fmrisynth.cli.main import run
from tests.reliability.planted_cases import CASES, VARIANTS, Variant

PLACES = {"left": (-38, -24, 56), "right": (22, -88, 0)}
RADIUS_MM = 10.0


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Callable[[str], Path]:
    """Make a case's input once, by its own script."""
    found: dict[str, Path] = {}

    def make(case: str) -> Path:
        script = CASES / case / "make.py"
        if not script.is_file():
            pytest.skip(f"the cases with planted answers are not beside this checkout ({CASES})")
        if case not in found:
            found[case] = tmp_path_factory.mktemp("case") / case
            environment = os.environ | {"PYTHONPATH": str(CASES / "_lib"), "PYTHONDONTWRITEBYTECODE": "1"}
            subprocess.run(
                [sys.executable, str(script), str(found[case])], check=True, env=environment, capture_output=True
            )
        return found[case]

    return make


def measure(path: Path, place: str) -> tuple[float, float]:
    """Mean effect in a ball, and the distance of the largest |effect| from its centre, in mm."""
    image = nib.load(path)
    effect = image.get_fdata()
    world = nib.affines.apply_affine(image.affine, np.indices(effect.shape).reshape(3, -1).T).reshape(*effect.shape, 3)
    distance = np.linalg.norm(world - np.array(PLACES[place]), axis=-1)
    peak = np.unravel_index(np.abs(effect).argmax(), effect.shape)
    return float(effect[(distance <= RADIUS_MM) & (effect != 0)].mean()), float(distance[peak])


def analyse(source: Path, out: Path, options: tuple[str, ...] = ()) -> int:
    settings = [word for option in ("reports=false", *options) for word in ("--set", option)]
    return run(["glm", str(source), str(out), "--unit", "run", *settings])


def effects(out: Path, names: tuple[str, str]) -> dict[str, tuple[float, float]]:
    found = {}
    for place, name in zip(PLACES, names, strict=True):
        (path,) = (out / "sub-01").rglob(f"*contrast-{name}_stat-effect_statmap.nii.gz")
        found[place] = measure(path, place)
    return found


@pytest.fixture(scope="module")
def baseline(made, tmp_path_factory) -> dict[str, tuple[float, float]]:
    out = tmp_path_factory.mktemp("baseline")
    assert analyse(made("00-baseline"), out) == 0
    return effects(out, ("handLeft", "handRight"))


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "/".join(filter(None, (v.case, v.folder, *v.options))))
def test_planted_answer_or_refusal(variant: Variant, made, baseline, tmp_path, capsys):
    status = analyse(made(variant.case) / variant.folder, tmp_path / "out", variant.options)
    said = re.sub(r"\s+", " ", capsys.readouterr().err)
    together = said.replace(" ", "")  # warnings are wrapped to the width of a terminal
    if variant.refused:
        assert status == 1
        assert re.search(variant.refused, said), said
        assert not list((tmp_path / "out").rglob("*_statmap.nii.gz"))
        return
    assert status == 0, said
    assert re.search(variant.said.replace(" ", ""), together), said
    for place, (effect, away_mm) in effects(tmp_path / "out", variant.names).items():
        assert effect == pytest.approx(baseline[place][0], rel=0.1)
        assert away_mm <= RADIUS_MM


def test_every_case_is_listed():
    if not CASES.is_dir():
        pytest.skip(f"the cases with planted answers are not beside this checkout ({CASES})")
    listed = defaultdict(list)
    for variant in VARIANTS:
        listed[variant.case].append(variant.folder)
    elsewhere = {"06-stale-rerun", "17-sampler-gaussian"}  # finished work and samplers: no matter of reading a run
    assert {path.name for path in CASES.iterdir() if path.name[0].isdigit()} == set(listed) | elsewhere


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["st0", "st15", "old20", "nostc"])
def test_blocks_and_runs_share_the_clock(folder, made, tmp_path):
    """The same effects from blocks whatever moment of the TR the frames stand for."""
    out = {}
    for name in (folder, "st15"):
        blocks = tmp_path / name
        assert run(["prepare", str(made("14-starttime") / name), str(blocks), "--condition", "all"]) == 0
        assert (
            run(["glm", str(blocks), str(tmp_path / f"{name}-maps"), "--set", "drift=linear", "--set", "reports=false"])
            == 0
        )
        out[name] = effects(tmp_path / f"{name}-maps", ("handLeft", "handRight"))
        if folder == "st15":
            break
    for place in PLACES:
        assert out[folder][place][0] == pytest.approx(out["st15"][place][0], rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "rel"), [("10-nan-zero/c_zero", 0.1), ("10-nan-zero/d_nomask", 0.1), ("07-confounds/nss", 0.25)]
)
def test_blocks_of_damaged_volumes(folder, rel, made, tmp_path):
    """Empty and unsteady volumes, and NaN where there is no brain, do not reach the blocks."""
    found = {}
    for name in ("00-baseline", folder):
        case, _, inside = name.partition("/")
        out = tmp_path / case
        assert run(["prepare", str(made(case) / inside), str(out), "--condition", "all"]) == 0
        assert (
            run(["glm", str(out), str(tmp_path / f"{case}-maps"), "--set", "drift=linear", "--set", "reports=false"])
            == 0
        )
        found[name] = effects(tmp_path / f"{case}-maps", ("handLeft", "handRight"))
    for place in PLACES:
        assert found[folder][place][0] == pytest.approx(found["00-baseline"][place][0], rel=rel)

"""`fmrisynth sample` with the bundled model, through the command line."""

from __future__ import annotations

import filecmp
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from fmrisynth.cli.main import run
from fmrisynth.data.blocks import BlockData, read_blocks
from fmrisynth.data.grid import make_grid
from fmrisynth.glm.design import window_design
from fmrisynth.sample.preview import make_scene

FAST = ["--steps", "2", "--seed", "7"]


def digest_tree(root: Path) -> dict[str, bytes]:
    """Content of every file but the logs, which carry the time's own identifiers."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "logs" not in path.parts
    }


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "out"
    assert run(["sample", "--condition", "gambling_loss", "--n", "4", "--seed", "7", str(out)]) == 0
    return out


def test_four_synthetic_subjects(four):
    blocks = read_blocks(four)
    assert len(blocks) == 4
    arrays = []
    for block in blocks:
        image = nib.load(block.path)
        assert image.shape == (48, 64, 64, 12)
        np.testing.assert_allclose(image.header.get_zooms(), (3, 3, 3, 1.44), rtol=1e-6)
        data = block.load()
        assert np.isfinite(data.bold_XYZT).all()
        inside = data.bold_XYZT[data.mask_XYZ]
        assert inside.std(axis=1).mean() > 1.0
        assert (data.bold_XYZT[~data.mask_XYZ] == 0).all()
        sidecar = json.loads(block.path.with_name(block.path.name.replace(".nii.gz", ".json")).read_text())
        assert sidecar["Synthetic"] is True
        assert sidecar["Condition"] == "gambling_loss"
        arrays.append(data.bold_XYZT)
    for i in range(4):
        for j in range(i):
            assert not np.allclose(arrays[i], arrays[j])
    assert (four / "figures").is_dir()


def validator_errors(root: Path) -> list:
    validator = shutil.which("bids-validator-deno") or str(Path(sys.executable).with_name("bids-validator-deno"))
    done = subprocess.run([validator, str(root), "--json"], capture_output=True, text=True, check=False)
    issues = json.loads(done.stdout)["issues"]["issues"]
    return [issue for issue in issues if issue.get("severity") == "error"]


def test_validator_reports_no_error(four):
    assert validator_errors(four) == []


def test_nilearn_loads_the_dataset(four):
    from nilearn.glm.first_level import first_level_from_bids

    models, images, events, _ = first_level_from_bids(
        four, "gambling", space_label="MNI152NLin6Asym", derivatives_folder=".", slice_time_ref=0.0
    )
    assert len(models) == len(images) == 4
    assert list(events[0][0]["trial_type"]) == ["gambling_loss"]


def test_same_bytes_for_any_batch_size_shard_and_interruption(tmp_path):
    ask = ["sample", "--condition", "motor_rh", "--n", "3", *FAST]
    assert run([*ask, "--batch-size", "3", str(tmp_path / "a")]) == 0
    assert run([*ask, "--batch-size", "1", "--shard", "2/2", str(tmp_path / "b")]) == 0
    assert len(read_blocks(tmp_path / "b")) == 1
    assert run([*ask, "--batch-size", "2", str(tmp_path / "b")]) == 0
    a, b = digest_tree(tmp_path / "a"), digest_tree(tmp_path / "b")
    assert a.keys() == b.keys()
    assert [name for name in a if a[name] != b[name]] == []


def test_same_bytes_for_any_number_of_arithmetic_threads(tmp_path):
    ask = ["sample", "--condition", "gambling_loss", *FAST]
    assert run([*ask, str(tmp_path / "here")]) == 0
    threads = {**os.environ, "OMP_NUM_THREADS": "2" if os.environ["OMP_NUM_THREADS"] == "1" else "1"}
    subprocess.run([sys.executable, "-m", "fmrisynth", *ask, str(tmp_path / "other")], env=threads, check=True)
    assert digest_tree(tmp_path / "here") == digest_tree(tmp_path / "other")


def test_second_call_does_no_work_and_changes_nothing(four):
    before = digest_tree(four)
    assert run(["sample", "--condition", "gambling_loss", "--n", "4", "--seed", "7", str(four)]) == 0
    assert digest_tree(four) == before


def test_other_settings_in_the_same_folder_are_refused(four, capsys):
    before = digest_tree(four)
    assert run(["sample", "--condition", "gambling_loss", "--n", "4", "--seed", "8", str(four)]) == 2
    assert "begun with other settings (Seed was 7, is 8)" in capsys.readouterr().err
    assert digest_tree(four) == before


def test_misspelt_condition(tmp_path, capsys):
    assert run(["sample", "--condition", "gambling_los", "--n", "1", str(tmp_path / "out")]) == 2
    assert "did you mean gambling_loss" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [None, b"not json", b"{}"])
def test_a_checkpoint_that_is_not_one(content, tmp_path, capsys):
    model = tmp_path / "model"
    model.mkdir()
    if content is not None:
        (model / "checkpoint.json").write_bytes(content)
    status = run(["sample", "--condition", "motor_rh", "--checkpoint", str(model), str(tmp_path / "out")])
    assert status == 1
    error = capsys.readouterr().err
    assert str(model) in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_preview_is_a_picture(four):
    pictures = list((four / "figures").glob("*_preview.png"))
    assert len(pictures) == 1
    assert pictures[0].read_bytes().startswith(b"\x89PNG")
    assert pictures[0].stat().st_size > 10_000


def test_timelapse_has_a_picture_of_every_frame(four):
    (path,) = (four / "figures").glob("*_timelapse.gif")
    with Image.open(path) as moving:
        assert moving.n_frames == 12
        frames = []
        for number in (0, 6):
            moving.seek(number)
            frames.append(np.asarray(moving.convert("RGB"), int))
    assert np.abs(frames[0] - frames[1]).max() > 100


def test_pictures_cut_the_brain_where_the_response_is_whichever_way_the_array_runs(rng):
    """A response in one place; the same brain stored right to left gives the same picture."""
    drawn = []
    noise_XYZT = rng.standard_normal((20, 22, 18, 12))
    for sign in (1, -1):
        affine = np.diag([3.0 * sign, 3, 3, 1])
        affine[:3, 3] = (-30 if sign > 0 else 27), -33, -27
        grid = make_grid((20, 22, 18), affine, "scanner")
        mask_XYZ = np.zeros(grid.shape, bool)
        mask_XYZ[2:18, 2:20, 2:16] = True
        response_T = window_design(0.0, 15.0, 12, 1.44).matrix_TP[:, 0]
        bold_XYZT = 10_000 + 30 * noise_XYZT
        bold_XYZT[4:8, 10:14, 6:10] += 300 * response_T
        reference_XYZ = np.where(mask_XYZ, 10_000.0, 0)
        data = BlockData(bold_XYZT, reference_XYZ, mask_XYZ)
        if sign < 0:
            data = BlockData(bold_XYZT[::-1], reference_XYZ, mask_XYZ[::-1])
        drawn.append(make_scene(data, grid, 1.44, 0.0, 15.0))
    assert drawn[0].peak_mm == pytest.approx(drawn[1].peak_mm)
    assert all(scene.has_sides for scene in drawn)
    assert drawn[0].peak == drawn[1].peak
    assert all(
        low <= index + 2 < high for index, (low, high) in zip(drawn[0].peak, ((4, 8), (10, 14), (6, 10)), strict=True)
    )
    np.testing.assert_allclose(drawn[0].change_XYZT, drawn[1].change_XYZT, atol=1e-4)
    assert drawn[0].course_T[:2].mean() == pytest.approx(0, abs=0.3)
    assert drawn[0].course_T[-4:].mean() > 1


def test_same_files_when_run_again_elsewhere(four, tmp_path):
    again = tmp_path / "again"
    assert run(["sample", "--condition", "gambling_loss", "--n", "1", "--seed", "7", str(again)]) == 0
    name = "sub-synthGamblingLoss0001"
    for path in (again / name / "func").iterdir():
        assert filecmp.cmp(path, four / name / "func" / path.name, shallow=False)


@pytest.mark.slow
def test_killed_at_random_and_called_again_gives_the_same_dataset(tmp_path):
    ask = ["sample", "--condition", "motor_rh", "--n", "4", *FAST]
    assert run([*ask, str(tmp_path / "whole")]) == 0
    whole = digest_tree(tmp_path / "whole")
    draw = random.Random(3)
    killed = 0
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-m", "fmrisynth", *ask, str(tmp_path / "broken")], stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        # Wait until it writes, then kill at a random moment of the writing.
        while process.poll() is None and not (tmp_path / "broken").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 1.5))
        process.kill()
        killed += process.wait() == -signal.SIGKILL
        for scans in (tmp_path / "broken").glob("sub-*/sub-*_scans.tsv"):
            name = scans.parent.name
            for path in scans.parent.rglob("*.*"):
                if not path.name.startswith("."):
                    assert path.read_bytes() == whole[path.relative_to(tmp_path / "broken").as_posix()], name
    assert killed >= 1
    assert run([*ask, str(tmp_path / "broken")]) == 0
    assert digest_tree(tmp_path / "broken") == whole

"""`--report` and `--format nii`: what they write, and that everything downstream reads it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fmrisynth.cli.main import run
from fmrisynth.data.blocks import read_blocks
from fmrisynth.glm.effects import subject_effects
from fmrisynth.report.methods import methods_of
from tests.sample.test_run import FAST, digest_tree, validator_errors

ASK = ["sample", "--condition", "motor_rh", "--condition", "language_story", "--n", "2", *FAST]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "out"
    assert run([*ASK, "--format", "nii", "--set", "preview=false", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "out"
    assert run([*ASK, "--report", str(out)]) == 0
    return out


def test_plain_images_hold_the_same_voxels(plain, packed):
    assert not list(plain.rglob("*.nii.gz"))
    assert len(list(plain.rglob("*.nii"))) == len(list(packed.rglob("*.nii.gz"))) == 4 * 3
    for one, other in zip(read_blocks(plain), read_blocks(packed), strict=True):
        assert one.path.name.endswith("_bold.nii")
        a, b = one.load(), other.load()
        np.testing.assert_array_equal(a.bold_XYZT, b.bold_XYZT)
        np.testing.assert_array_equal(a.reference_XYZ, b.reference_XYZ)
        np.testing.assert_array_equal(a.mask_XYZ, b.mask_XYZ)
        np.testing.assert_array_equal(np.asarray(nib.load(one.path).dataobj), np.asarray(nib.load(other.path).dataobj))
    names = {name for name in digest_tree(packed) if not name.startswith(("figures/", "report"))}
    names = {re.sub(r"\.nii(\.gz)?", ".nii", name) for name in names}
    assert names == set(digest_tree(plain))


def test_the_validator_and_nilearn_read_plain_images(plain):
    assert validator_errors(plain) == []
    from nilearn.glm.first_level import first_level_from_bids

    models, images, _, _ = first_level_from_bids(
        plain, "motor", space_label="MNI152NLin6Asym", derivatives_folder=".", slice_time_ref=0.0,
        sub_labels=["synthMotorRh0001", "synthMotorRh0002"],
    )  # fmt: skip
    assert len(models) == len(images) == 2


def test_glm_and_evaluate_read_plain_images(plain, packed, tmp_path):
    for root in (plain, packed):
        assert run(["glm", str(root), str(tmp_path / root.parent.name), "--set", "reports=false"]) == 0
    a, b = (sorted((tmp_path / r.parent.name / "group").glob("*_stat-z_statmap.nii.gz")) for r in (plain, packed))
    assert [p.name for p in a] == [p.name for p in b]
    assert len(a) == 2
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(np.asarray(nib.load(one).dataobj), np.asarray(nib.load(other).dataobj))


def test_another_format_in_the_same_folder_is_refused(plain, capsys):
    assert run([*ASK, str(plain)]) == 2
    assert "Format was nii, is nii.gz" in capsys.readouterr().err


def test_unknown_format(tmp_path, capsys):
    assert run([*ASK, "--format", "mgz", str(tmp_path / "out")]) == 2
    assert "nii.gz" in capsys.readouterr().err


def test_report_is_complete_in_itself_and_says_what_was_asked(packed):
    html = (packed / "report.html").read_text(encoding="utf-8")
    text = re.sub(r'"data:[^"]*"', '""', html)
    assert not re.search(r'src="(?!"|data:)', text)
    links = re.findall(r'href="(?!#|"|data:)([^"]*)"', text)
    assert len(links) == 5  # two glass brains, slices, correlations and courses, for papers
    assert {(packed / link).read_bytes()[:5] for link in links} == {b"%PDF-"}
    assert not re.search("https?:", text)
    for words in ("motor_rh", "language_story", "2 of 2", "ab2", "Activation maps", "Time courses", "Provenance"):
        assert words in text
    assert html.count("data:image/") >= 9  # the same five, two previews, two time-lapses


def test_the_methods_name_the_model_and_the_folder_says_how_people_look(packed):
    sidecar = json.loads(
        read_blocks(packed)[0].path.with_name(read_blocks(packed)[0].path.name.replace(".nii.gz", ".json")).read_text()
    )
    text = " ".join(methods_of(packed))
    assert f"SHA-256 {sidecar['CheckpointSHA256'][:12]})" in text
    assert f"ablation of a hybrid CNN-Transformer [@seo2025] with {sidecar['Network'].partition(', ')[2]}" in text
    assert "4 samples of 2 conditions (language_story, motor_rh; 4 synthetic subjects; 12 frames each)" in text
    assert "Reference volume: an anatomy drawn by model" in text
    assert "reference volume and brain mask differ from person to person" in (packed / "README.md").read_text()
    for path in packed.rglob("*_boldref.json"):
        assert "drawn by model" in json.loads(path.read_text())["Description"]


def test_where_all_look_alike_the_folder_says_so(tmp_path):
    assert run([*ASK, "--anatomy", "mean", "--report", str(tmp_path / "out")]) == 0
    assert "Reference volume: mean anatomy of the people" in " ".join(methods_of(tmp_path / "out"))
    assert "All synthetic people share one anatomy" in (tmp_path / "out" / "README.md").read_text()
    for path in (tmp_path / "out").rglob("*_boldref.json"):
        assert "the same for all samples" in json.loads(path.read_text())["Description"]


def test_report_numbers_are_those_of_the_glm(packed):
    text = (packed / "report.html").read_text(encoding="utf-8")
    table = subject_effects(read_blocks(packed))
    for condition in ("motor_rh", "language_story"):
        mean_V = table.effects_RV[table.where(condition)].mean(axis=0)
        row = re.search(rf'<th scope="row">{condition}</th>(.*?)</tr>', text, re.S)
        assert row is not None
        cells = re.findall(r"<td[^>]*>([^<]*)</td>", row.group(1))
        assert float(cells[2]) == pytest.approx(float(mean_V.max()), abs=0.0051)


def test_two_processes_of_torchrun_write_the_dataset_of_one(packed, tmp_path):
    ask = [
        *ASK[: ASK.index("--n")],
        "-n",
        "2",
        *FAST,
        "--set",
        "preview=false",
    ]  # torchrun takes --n for its own --nnodes
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "fmrisynth"]
    done = subprocess.run(
        [*launcher, *ask, "--device", "cpu", str(tmp_path / "two")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4 samples in") == 1  # one process speaks
    one = {name: b for name, b in digest_tree(packed).items() if not name.startswith(("figures/", "report", "index"))}
    two = {name: b for name, b in digest_tree(tmp_path / "two").items() if name != "index.html"}  # it links the report
    assert two == one


def test_report_of_a_shard_says_what_is_missing(packed, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(packed, out)
    ask = ["sample", "--condition", "motor_rh", "--n", "4", "--shard", "1/4", *FAST, "--report"]
    assert run([*ask, str(out)]) == 0  # motor 1 of 4, which is there
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "2 of the 4 samples asked for are not there yet" in text
    assert "2 of 4" in text

"""The whole chain through the command line: a phantom as BIDS derivatives, the BIDS-App call, and each command."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fmrisynth.bids.origin import KEY, parse_origin, read_origin
from fmrisynth.cli.main import main, run
from fmrisynth.data.blocks import read_blocks, subjects_of
from fmrisynth.models.checkpoint import load_denoiser


def call(*words: object) -> int:
    """Run the command line as a user types it and return the exit status."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def phantom_bids(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("phantom") / "phantom_bids"
    status = call(
        "simulate", root, "--layout", "bids", "--resolution", "3", "--n-subjects", "3", "--tasks", "MOTOR", "--seed", "5",
        "--set", "directions=[LR]",
    )  # fmt: skip
    assert status == 0
    return root


@pytest.fixture(scope="module")
def labels(phantom_bids) -> list[str]:
    return sorted(path.name.removeprefix("sub-") for path in phantom_bids.glob("sub-*") if path.is_dir())


@pytest.fixture(scope="module")
def app_out(phantom_bids, labels, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("app") / "out"
    work = out.parent / "work"
    asked = ["--participant-label", *labels[:2], "--n-cpus", "2", "-w", work]
    with pytest.MonkeyPatch.context() as patch:  # the option sets both for the rest of the process
        patch.setattr(tempfile, "tempdir", None)
        patch.setenv("TMPDIR", tempfile.gettempdir())
        assert call(phantom_bids, out, "participant", *asked) == 0
    assert any((work / "bids-index").iterdir())
    return out


def test_participant_level_does_its_work(app_out, labels):
    assert subjects_of(app_out) == labels[:2]
    assert {block.condition for block in read_blocks(app_out)} == {"motor_rh"}
    for label in labels[:2]:
        assert (app_out / "latents" / f"sub-{label}_latents.safetensors").is_file()
        assert list((app_out / "glm").rglob(f"sub-{label}*contrast-motorRh_stat-z_statmap.nii.gz"))
        page = (app_out / "glm" / f"sub-{label}.html").read_text()
        assert "<html" in page
        assert "http://" not in page.replace("http://www.w3.org", "")


def test_repeated_form_adds_a_participant_and_keeps_the_others(app_out, phantom_bids, labels):
    before = {p: p.read_bytes() for p in app_out.glob("sub-*/func/*.nii.gz")}
    assert call(phantom_bids, app_out, "participant", "--participant-label", f"sub-{labels[2]}") == 0
    assert subjects_of(app_out) == labels
    assert {path: path.read_bytes() for path in before} == before


def test_group_level_compares_with_a_synthetic_cohort(app_out, phantom_bids):
    assert call(phantom_bids, app_out, "group", "--n", "2") == 0
    z_map = app_out / "glm/group/task-motor_space-MNI152NLin6Asym_res-3_contrast-motorRh_stat-z_statmap.nii.gz"
    assert np.isfinite(nib.load(z_map).get_fdata()).any()
    assert len(subjects_of(app_out / "synthetic")) == 2
    metrics = json.loads((app_out / "evaluation" / "metrics.json").read_text())
    assert metrics
    assert "<html" in (app_out / "evaluation" / "report.html").read_text()


def test_every_output_says_that_nobody_was_measured(app_out):
    """Of the levels before: blocks, maps, samples, comparison, and every page."""
    sidecars = [path for path in app_out.rglob("sub-*.json") if "logs" not in path.parts]
    assert len(sidecars) > 30
    assert [path for path in sidecars if not is_phantom(path)] == []
    descriptions = list(app_out.rglob("dataset_description.json"))
    assert {path.parent.relative_to(app_out).as_posix() for path in descriptions} == {
        ".", "latents", "glm", "synthetic", "synthetic-glm", "evaluation",
    }  # fmt: skip
    assert all(is_phantom(path) for path in descriptions)
    pages = list(app_out.rglob("*.html"))
    assert pages
    assert [page for page in pages if 'class="banner loud"' not in page.read_text()] == []
    assert "Synthetic against phantom task fMRI" in (app_out / "evaluation" / "report.html").read_text()


def is_phantom(path: Path) -> bool:
    return parse_origin(json.loads(path.read_text())[KEY]).is_phantom


def test_group_level_before_participant_level_is_refused(phantom_bids, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    assert call(phantom_bids, tmp_path / "out", "group") == 1
    assert "participant" in capsys.readouterr().err


def test_unknown_participant_is_named(phantom_bids, tmp_path, capsys):
    assert call(phantom_bids, tmp_path / "out", "participant", "--participant-label", "nobody") in (1, 2)
    assert "nobody" in capsys.readouterr().err


def test_own_model_from_own_blocks(app_out, tmp_path):
    latents, model, synthetic = tmp_path / "latents", tmp_path / "model", tmp_path / "synthetic"
    assert call("tokenize", app_out, latents, "--preset", "smoke", "--set", "report=false") == 0
    assert call("train", latents, model, "--preset", "smoke", "--steps", "4") == 0
    assert call("train", latents, model, "--preset", "smoke", "--steps", "4") == 0
    assert call("sample", synthetic, "--checkpoint", model, "--all-conditions", "--n", "1", "--steps", "2") == 0
    (block,) = read_blocks(synthetic)
    assert block.condition == "motor_rh"
    assert np.isfinite(block.load().bold_XYZT).all()
    assert is_phantom(latents / "dataset_description.json")
    assert read_origin(synthetic).statement == load_denoiser(model).card.origin.statement
    assert "phantom (simulated) data (" in read_origin(synthetic).statement


def test_dry_run_from_a_relative_path_lists_and_writes_nothing(phantom_bids, labels, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(phantom_bids.parent)
    assert run(["prepare", phantom_bids.name, str(tmp_path / "out"), "--dry-run"]) == 0
    listed = capsys.readouterr().out
    assert all(label in listed for label in labels)
    assert "unexpected" not in listed
    assert not (tmp_path / "out").exists()

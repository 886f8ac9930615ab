"""Cohorts on disk."""

import subprocess
import sys

import numpy as np
import pytest

from fmrisynth.config.prepare import PrepareConfig
from fmrisynth.config.simulate import SimulateConfig
from fmrisynth.data.blocks import read_blocks
from fmrisynth.errors import UsageError
from fmrisynth.simulate import simulate_blocks, simulate_cohort

SMALL = {"n_subjects": 1, "tasks": ("RELATIONAL",), "directions": ("LR",), "resolution_mm": 3, "seed": 5}


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantom")
    for layout in ("hcp", "bids", "blocks"):
        summary = simulate_cohort(root / layout, SimulateConfig(layout=layout, **SMALL))
        assert not summary.failed
    return root


def test_prepare_of_either_tree_equals_the_direct_blocks(trees, tmp_path):
    from fmrisynth.prepare import prepare_dataset

    direct = read_blocks(trees / "blocks")
    assert len(direct) == 3
    for layout in ("hcp", "bids"):
        prepare_dataset(trees / layout, tmp_path / layout, PrepareConfig(seed=5, conditions=("relational_relation",)))
        prepared = read_blocks(tmp_path / layout)
        assert len(prepared) == len(direct)
        for a, b in zip(direct, prepared, strict=True):
            assert (a.condition, a.split, a.onset_s) == (b.condition, b.split, b.onset_s)
            assert a.source_onset_s == pytest.approx(b.source_onset_s, abs=1e-3)
            one, two = a.load(), b.load()
            inside = one.mask_XYZ & two.mask_XYZ
            assert inside.sum() > 0.99 * max(one.mask_XYZ.sum(), two.mask_XYZ.sum())
            for x, y in ((one.reference_XYZ, two.reference_XYZ), (one.bold_XYZT, two.bold_XYZT)):
                x, y = x[inside], y[inside]
                assert np.corrcoef(x.ravel(), y.ravel())[0, 1] > 0.999
            change = [d.bold_XYZT[inside] / d.bold_XYZT[inside].mean(1, keepdims=True) for d in (one, two)]
            assert np.corrcoef(change[0].ravel(), change[1].ravel())[0, 1] > 0.98


def test_t1w_of_either_tree_is_that_of_the_anatomies(trees, tmp_path):
    """From the tree to latents through the command line."""
    from fmrisynth.cli.main import run
    from fmrisynth.data.latents import LatentDataset
    from tests.sample.test_run import validator_errors

    direct_at = tmp_path / "direct"
    asked = ["--layout", "anatomy", "--set", "modality=T1w", "--n-subjects", "1", "--seed", "5"]
    assert run(["simulate", str(direct_at), *asked]) == 0
    (direct,) = read_blocks(direct_at)
    assert direct.condition == "anatomy_t1w"
    expected = direct.load()
    for layout in ("hcp", "bids"):
        out = tmp_path / layout
        ask = ["--set", "split.all=train", "--set", "anatomy.attributes=[sex,age,site]"]
        if layout == "hcp":
            ask += ["--set", f"anatomy.tables=[{trees / 'hcp' / 'families.csv'}]"]
        assert run(["prepare", str(trees / layout), str(out), "--unit", "anatomy", *ask]) == 0
        (block,) = read_blocks(out)
        assert (block.condition, dict(block.attributes)) == (direct.condition, dict(direct.attributes))
        found = block.load()
        np.testing.assert_array_equal(found.mask_XYZ, expected.mask_XYZ)
        np.testing.assert_allclose(found.reference_XYZ, expected.reference_XYZ, atol=0.1)  # two roundings to int16
    assert validator_errors(out) == []
    latents = tmp_path / "latents"
    assert run(["tokenize", str(out), str(latents), "--preset", "anatomy"]) == 0
    (row,) = LatentDataset.open(latents).rows
    assert (row.condition, row.attributes["sex"]) == ("anatomy_t1w", direct.attributes["sex"])


def test_second_call_writes_nothing_new(trees):
    files = {p: p.stat().st_mtime_ns for p in (trees / "hcp").rglob("*.nii.gz")}
    summary = simulate_cohort(trees / "hcp", SimulateConfig(layout="hcp", **SMALL))
    assert {p: p.stat().st_mtime_ns for p in (trees / "hcp").rglob("*.nii.gz")} == files
    assert "earlier call" in summary.lines[0]


def test_other_settings_in_the_same_folder_are_refused(trees):
    with pytest.raises(UsageError, match="seed"):
        simulate_cohort(trees / "hcp", SimulateConfig(layout="hcp", **(SMALL | {"seed": 6})))


def test_hcp_tree_has_the_traps(trees):
    evs = {p.name for p in (trees / "hcp").rglob("EVs/*.txt")}
    assert {"relation.txt", "match.txt", "error.txt", "Sync.txt"} <= evs


def test_bids_validator_accepts_the_derivative(trees):
    pytest.importorskip("bids_validator_deno")
    import json
    from pathlib import Path

    command = [str(Path(sys.executable).with_name("bids-validator-deno")), str(trees / "bids"), "--format", "json"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    issues = json.loads(found.stdout)["issues"]["issues"]
    assert [i for i in issues if i["severity"] == "error"] == []
    assert found.returncode == 0


def test_ground_truth_is_beside_the_data(trees):
    from safetensors.numpy import load_file

    folder = trees / "blocks" / "ground_truth"
    truth = load_file(next(folder.glob("sub-*_truth.safetensors")))
    assert truth["percent"].shape == (1, len(truth["voxels"]))
    assert 0.5 < np.abs(truth["percent"]).max() < 8
    assert len(list((folder / "group").glob("*_statmap.nii.gz"))) == 1


def test_unknown_condition_is_refused(tmp_path):
    with pytest.raises(UsageError, match="did you mean"):
        simulate_blocks(tmp_path / "x", SimulateConfig(**SMALL), ["relational_relatio"])


@pytest.mark.slow
def test_hcps_own_grid_is_as_noisy_as_the_direct_blocks_once_prepared(tmp_path):
    from fmrisynth.data.nifti import read_header
    from fmrisynth.prepare import prepare_dataset
    from fmrisynth.simulate import Phantom

    config = SimulateConfig(n_subjects=1, tasks=("EMOTION",), directions=("LR",), seed=5)
    simulate_cohort(tmp_path / "hcp", config)
    header = read_header(next((tmp_path / "hcp").rglob("tfMRI_EMOTION_LR.nii.gz")), ndim=4)
    assert header.shape == (91, 109, 91, 176)
    assert header.tr_s == pytest.approx(0.72)
    prepare_dataset(tmp_path / "hcp", tmp_path / "prepared", PrepareConfig(conditions=("emotion_fear",)))
    prepared = read_blocks(tmp_path / "prepared")
    direct = list(Phantom(config).subject(0).blocks("emotion_fear"))
    assert len(prepared) == len(direct) == 2  # the third is cut by the end of the run
    for block, data in zip(prepared, direct, strict=True):
        found = block.load()
        inside = found.mask_XYZ & data.mask_XYZ
        assert inside.sum() > 0.98 * data.mask_XYZ.sum()
        assert np.corrcoef(found.reference_XYZ[inside], data.reference_XYZ[inside])[0, 1] > 0.95
        spread = [
            np.median((d.bold_XYZT[inside] / d.reference_XYZ[inside][:, None]).std(axis=1)) for d in (found, data)
        ]
        assert spread[0] == pytest.approx(spread[1], rel=0.05)


def test_blocks_of_a_cohort_with_a_disorder_say_who_is_ill(tmp_path):
    config = SimulateConfig(
        layout="blocks", n_subjects=2, seed=1, tasks=("MOTOR",), directions=("LR",), anatomy={"patients": 1.0}
    )
    simulate_cohort(tmp_path / "ill", config)
    assert {block.attributes["diagnosis"] for block in read_blocks(tmp_path / "ill")} == {"patient"}
    with pytest.raises(ValueError, match="not for the layout hcp"):
        SimulateConfig(layout="hcp", anatomy={"patients": 0.5})

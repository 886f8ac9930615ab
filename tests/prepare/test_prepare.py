"""`prepare_dataset` on the three kinds of input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fmrisynth.bids.sidecars import read_tsv
from fmrisynth.config.glm import GlmConfig
from fmrisynth.config.prepare import PrepareConfig
from fmrisynth.data.blocks import read_blocks, read_subject, subjects_of
from fmrisynth.data.grid import MNI_3MM
from fmrisynth.errors import UsageError
from fmrisynth.glm.estimand import estimates, read_events
from fmrisynth.prepare import plan_prepare, prepare_dataset


def test_hcp_tree(hcp_tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = prepare_dataset(hcp_tree, out, PrepareConfig())
    assert summary.failed == {}
    assert subjects_of(out) == ["100307", "100408"]
    blocks = read_blocks(out)
    names = [(b.subject, b.condition, b.entities["dir"], b.entities["run"]) for b in blocks]
    assert names == [
        ("100307", "gambling_loss", "LR", "01"), ("100307", "gambling_loss", "LR", "02"),
        ("100307", "gambling_loss", "RL", "01"), ("100307", "gambling_loss", "RL", "02"),
        ("100307", "motor_rh", "LR", "01"), ("100307", "motor_rh", "LR", "02"),
        ("100408", "gambling_loss", "LR", "01"), ("100408", "gambling_loss", "LR", "02"),
    ]  # fmt: skip
    block = blocks[4]
    assert (block.source_onset_s, block.duration_s, block.onset_s) == (11.009, 12.155, 0.0)
    assert block.attributes["phase_encoding"] == "LR"
    assert block.source == "100307/MNINonLinear/Results/tfMRI_MOTOR_LR/tfMRI_MOTOR_LR.nii.gz"
    data = block.load()
    assert data.bold_XYZT.shape == (48, 64, 64, 12)
    assert block.load_grid().same_as(MNI_3MM)
    assert data.reference_XYZ[data.mask_XYZ].mean() == pytest.approx(10_000, rel=1e-3)
    assert (data.bold_XYZT[~data.mask_XYZ] == 0).all()
    assert 15_000 < data.mask_XYZ.sum() < 70_000
    report = json.loads((out / "logs" / "prepare_report.json").read_text())
    assert report["Conditions"]["gambling_loss"] == {"found": 6, "kept": 6, "dropped": {}}
    assert report["Conditions"]["emotion_fear"]["found"] == 0
    # The other blocks of the run whose response reaches into the window: what its map really estimates.
    found = [(e.condition, e.onset_s, e.duration_s) for e in read_events(blocks[1])]
    assert found == [("gambling_loss", -35.0, 28.0), ("gambling_win", -6.0, 5.0), ("gambling_loss", 0.0, 20.0)]
    assert [e.condition for e in read_events(block)] == ["motor_rh", "motor_lh"]
    formula = estimates(blocks[1:2], {"gambling_loss": 1.0}, GlmConfig())
    assert "gambling_loss - " in formula
    assert "gambling_win" in formula


def test_fmriprep_tree(fmriprep_tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = prepare_dataset(fmriprep_tree, out, PrepareConfig())
    assert summary.failed == {}
    blocks = read_blocks(out)
    assert [(b.subject, b.condition) for b in blocks] == [("01", "gambling_loss"), ("02", "gambling_loss")]
    assert blocks[0].space == "MNI152NLin6Asym"
    assert blocks[0].attributes == {"sex": "F", "age": "31"}
    assert blocks[0].duration_s == pytest.approx(7 * 3.5 + 3.4)
    rows = read_tsv(out / "participants.tsv")
    assert [row["participant_id"] for row in rows] == ["sub-01", "sub-02"]
    # The folder of derivatives on its own is enough when it stands in its usual place.
    again = plan_prepare(fmriprep_tree / "derivatives" / "fmriprep", PrepareConfig())
    assert again[1].startswith("sub-01 (")
    assert again[1].endswith("1 blocks")
    assert "task-gambling_run-1_space-MNI152NLin6Asym_res-2_desc-preproc_bold.nii.gz: 60 frames, TR 1 s" in again[2]


def test_native_keeps_the_grid(raw_tree: Path, tmp_path: Path) -> None:
    import nibabel as nib

    out = tmp_path / "out"
    config = PrepareConfig(native=True, tr_s=2.0, slice_time_ref=0, split={"all": "test"}, window={"align": "frame"})
    assert prepare_dataset(raw_tree, out, config).failed == {}
    blocks = read_blocks(out)
    assert [b.condition for b in blocks] == ["oneback_face", "oneback_house"]
    assert {b.split for b in blocks} == {"test"}
    block = blocks[0]
    data, grid = block.load(), block.load_grid()
    assert all(side % 16 == 0 for side in grid.shape)
    # With its own grid and TR and windows on frames, preparing is cropping and scaling: compare with nibabel.
    source = nib.load(raw_tree / "sub-02" / "func" / "sub-02_task-oneback_run-1_bold.nii.gz")
    shift = np.rint(np.linalg.inv(source.affine) @ grid.affine)[:3, 3].astype(int)
    ijk = np.argwhere(data.mask_XYZ)
    raw = np.asarray(source.dataobj)[tuple((ijk + shift).T)][:, 5:17]
    factor = json.loads(block.path.with_name(block.path.name.replace(".nii.gz", ".json")).read_text())[
        "IntensityFactor"
    ]
    np.testing.assert_allclose(data.bold_XYZT[data.mask_XYZ], raw * factor, atol=1.0)


def test_raw_without_native_is_refused(raw_tree: Path, tmp_path: Path) -> None:
    from fmrisynth.errors import FmrisynthError

    with pytest.raises(FmrisynthError, match=r"none of them in MNI space.*fMRIPrep.*--native"):
        prepare_dataset(raw_tree, tmp_path / "out", PrepareConfig())
    assert not (tmp_path / "out").exists()


def test_second_call_changes_nothing(hcp_tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare_dataset(hcp_tree, out, PrepareConfig(), participant_labels=["sub-100408", "100408"])
    assert subjects_of(out) == ["100408"]
    before = {p: p.stat().st_mtime_ns for p in out.rglob("sub-*") if p.is_file() and "logs" not in p.parts}
    summary = prepare_dataset(hcp_tree, out, PrepareConfig())
    assert any("1 participants prepared, 1 had been there" in line for line in summary.lines)
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    with pytest.raises(UsageError, match=r"other settings \(seed was 0, is 1\)"):
        prepare_dataset(hcp_tree, out, PrepareConfig(seed=1))


def test_a_bad_participant_does_not_stop_the_others(hcp_tree: Path, tmp_path: Path) -> None:
    bold = hcp_tree / "100307/MNINonLinear/Results/tfMRI_GAMBLING_RL/tfMRI_GAMBLING_RL.nii.gz"
    content = bold.read_bytes()
    bold.write_bytes(content[: len(content) // 2])
    out = tmp_path / "out"
    summary = prepare_dataset(hcp_tree, out, PrepareConfig())
    assert list(summary.failed) == ["100307"]
    assert "tfMRI_GAMBLING_RL.nii.gz" in summary.failed["100307"]
    assert subjects_of(out) == ["100408"]
    bold.write_bytes(content)  # repaired: the next call completes the dataset
    assert prepare_dataset(hcp_tree, out, PrepareConfig()).failed == {}
    assert len(read_subject(out, "100307")) == 6


def test_unknown_condition_and_participant(hcp_tree: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean gambling_loss"):
        prepare_dataset(hcp_tree, tmp_path / "out", PrepareConfig(conditions=("gambling_los",)))
    with pytest.raises(UsageError, match=r"there is no sub-999.*100307, 100408"):
        plan_prepare(hcp_tree, PrepareConfig(), participant_labels=["999"])

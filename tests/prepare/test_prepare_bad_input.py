"""Bad input: one sentence each, and the participants beside the bad one are prepared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fmrisynth.config.prepare import PrepareConfig
from fmrisynth.data.blocks import read_blocks, subjects_of
from fmrisynth.errors import FmrisynthError, UsageError
from fmrisynth.prepare import plan_prepare, prepare_dataset
from tests.prepare.conftest import AFFINE, SHAPE, HcpRun, brain, make_bold, make_fmriprep, make_hcp_run, save, write_ev

ONE_BLOCK = {"rh": [(11.0, 12.0)]}


def truncate(run: HcpRun) -> None:
    content = run.bold.read_bytes()
    run.bold.write_bytes(content[: len(content) * 2 // 3])


def not_a_number(run: HcpRun) -> None:
    bold = make_bold(90, 1).astype(np.float32)
    bold[11, 14, 11, 40] = np.nan
    bold[12, 14, 11, 41] = np.inf
    save(run.bold, bold, tr_s=0.72)


def three_dimensions(run: HcpRun) -> None:
    save(run.bold, make_bold(2, 1)[..., 0])


def no_tr(run: HcpRun) -> None:
    save(run.bold, make_bold(90, 1), tr_s=0.0)


def tr_in_milliseconds(run: HcpRun) -> None:
    save(run.bold, make_bold(90, 1), tr_s=720.0)


def oblique(run: HcpRun) -> None:
    c, s = np.cos(0.1), np.sin(0.1)
    tilted = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ AFFINE
    save(run.bold, make_bold(90, 1), tilted, tr_s=0.72)
    save(run.mask, brain().astype(np.uint8), tilted)


def not_mni(run: HcpRun) -> None:
    plain = np.diag([8.0, 8, 8, 1])
    save(run.bold, make_bold(90, 1), plain, tr_s=0.72)
    save(run.mask, brain().astype(np.uint8), plain)


def mask_of_another_shape(run: HcpRun) -> None:
    save(run.mask, np.ones((20, 20, 20), dtype=np.uint8))


def mask_at_another_place(run: HcpRun) -> None:
    moved = AFFINE.copy()
    moved[0, 3] -= 8
    save(run.mask, brain().astype(np.uint8), moved)


def empty_mask(run: HcpRun) -> None:
    save(run.mask, np.zeros(SHAPE, dtype=np.uint8))


def no_signal(run: HcpRun) -> None:
    save(run.bold, np.zeros((*SHAPE, 90), dtype=np.int16), tr_s=0.72)


def demeaned(run: HcpRun) -> None:
    bold = make_bold(90, 1).astype(np.float32)
    save(run.bold, bold - bold.mean(axis=-1, keepdims=True) - 1, tr_s=0.72)


def commas(run: HcpRun) -> None:
    (run.evs / "rh.txt").write_text("11.0,12.0,1\n")


def all_past_the_end(run: HcpRun) -> None:
    write_ev(run.evs / "rh.txt", [(60.0, 12.0), (400.0, 12.0)])


def twice(run: HcpRun) -> None:
    make_hcp_run(run.folder.parents[3], "sub-100307", "MOTOR_LR", ONE_BLOCK)


def folder_in_circles(run: HcpRun) -> None:
    results = run.folder.parent
    results.rename(results.with_name("Moved"))
    results.symlink_to(results)


CASES: list[tuple[Callable[[HcpRun], None], str]] = [
    (truncate, r"tfMRI_MOTOR_LR\.nii\.gz: .*get it again"),
    (not_a_number, r"tfMRI_MOTOR_LR\.nii\.gz: 2 voxels inside the brain mask are NaN or infinite.*run it again"),
    (three_dimensions, r"expected a 4D image, found 3D \(23 x 28 x 23\)"),
    (no_tr, r"expected a repetition time .* found none; give the true one as source_tr_s"),
    (tr_in_milliseconds, r"expected a repetition time .* found 720 s"),
    (oblique, r"rotated by 5\.7 degrees against the target grid.*fMRIPrep"),
    (not_mni, r"the image holds \d+% of the box of the MNI brain.*not MNI space: run fMRIPrep"),
    (
        mask_of_another_shape,
        r"the mask \(20 x 20 x 20\) is not on the grid of tfMRI_MOTOR_LR\.nii\.gz \(23 x 28 x 23\)",
    ),
    (mask_at_another_place, r"brainmask_fs\.2\.nii\.gz: .*their affines differ; resample the mask"),
    (empty_mask, r"brainmask_fs\.2\.nii\.gz: the brain mask is empty"),
    (no_signal, r"no voxel with signal inside the brain mask"),
    (demeaned, r"no voxel with signal inside the brain mask|positive mean in the brain"),
    (commas, r"rh\.txt: expected onset, duration and amplitude.*separated by commas"),
    (all_past_the_end, r"participant 100307: all 2 blocks were dropped"),
    (twice, r"100307, sub-100307 are one participant \(100307\)"),
    (folder_in_circles, r"Results: the folder cannot be read"),
]


@pytest.mark.parametrize(("spoil", "message"), CASES, ids=[spoil.__name__ for spoil, _ in CASES])
def test_one_sentence_and_the_others_go_on(tmp_path: Path, spoil, message: str) -> None:
    root, out = tmp_path / "hcp", tmp_path / "out"
    bad = make_hcp_run(root, "100307", "MOTOR_LR", ONE_BLOCK, seed=1)
    make_hcp_run(root, "100408", "MOTOR_LR", ONE_BLOCK, seed=2)
    spoil(bad)
    summary = prepare_dataset(root, out, PrepareConfig())
    assert list(summary.failed) == ["100307"]
    reason = summary.failed["100307"]
    import re

    assert re.search(message, reason), reason
    assert "\n" not in reason
    assert "Traceback" not in reason
    assert subjects_of(out) == ["100408"]
    assert [block.subject for block in read_blocks(out)] == ["100408"]
    assert json.loads((out / "logs/prepare_report.json").read_text())["Failed"] == {"100307": reason}
    assert not [path for path in out.rglob(".*") if path.is_file() and path.name != ".bidsignore"]


def test_nan_outside_the_brain_does_no_harm(tmp_path: Path) -> None:
    results = {}
    for name, value in (("clean", 0.0), ("nan", np.nan)):
        run = make_hcp_run(tmp_path / name, "100307", "MOTOR_LR", ONE_BLOCK, seed=1)
        bold = make_bold(90, 1).astype(np.float32)
        bold[~brain()] = value
        save(run.bold, bold, tr_s=0.72)
        assert prepare_dataset(tmp_path / name, tmp_path / f"out-{name}", PrepareConfig()).failed == {}
        results[name] = read_blocks(tmp_path / f"out-{name}")[0].load()
    np.testing.assert_array_equal(results["nan"].bold_XYZT, results["clean"].bold_XYZT)


def test_windows_that_cannot_be_cut_are_counted(tmp_path: Path) -> None:
    """A run of 64.8 s: past the end, before the start, overlapping, too short."""
    root, out = tmp_path / "hcp", tmp_path / "out"
    rows = [(-2.0, 12.0), (5.0, 12.0), (10.0, 12.0), (25.0, 4.0), (30.0, 12.0), (50.0, 12.0), (400.0, 12.0)]
    make_hcp_run(root, "100307", "MOTOR_LR", {"rh": rows})
    prepare_dataset(root, out, PrepareConfig())
    assert [block.source_onset_s for block in read_blocks(out)] == [5.0, 30.0]
    report = json.loads((out / "logs/prepare_report.json").read_text())
    assert report["Conditions"]["motor_rh"] == {
        "found": 7,
        "kept": 2,
        "dropped": {
            "starts before the run": 1, "overlaps another block": 1, "too short": 1, "runs past the end": 2,
        },
    }  # fmt: skip


def test_a_repetition_time_that_is_not_hcps_is_noted(tmp_path: Path) -> None:
    run = make_hcp_run(tmp_path / "hcp", "100307", "MOTOR_LR", ONE_BLOCK)
    save(run.bold, make_bold(90, 1), tr_s=1.0)  # what a tool that lost the header would leave
    lines = plan_prepare(tmp_path / "hcp", PrepareConfig())
    assert any("TR 1 s, HCP's protocol has 0.72 s; check the header" in line for line in lines)
    assert not any(
        "check the header" in line for line in plan_prepare(tmp_path / "hcp", PrepareConfig(source_tr_s=0.72))
    )


def test_a_damaged_run_can_be_left_out(tmp_path: Path) -> None:
    root, out = tmp_path / "hcp", tmp_path / "out"
    truncate(make_hcp_run(root, "100307", "MOTOR_LR", ONE_BLOCK, seed=1))
    make_hcp_run(root, "100307", "MOTOR_RL", ONE_BLOCK, seed=2)
    assert list(prepare_dataset(root, out, PrepareConfig()).failed) == ["100307"]
    summary = prepare_dataset(root, out, PrepareConfig(on_bad_run="skip"))
    assert summary.failed == {}
    assert [block.entities["dir"] for block in read_blocks(out)] == ["RL"]
    notes = json.loads((out / "logs/prepare_report.json").read_text())["Notes"]["100307"]
    assert len(notes) == 1
    assert "MOTOR_LR" in notes[0]


def test_header_and_sidecar_contradict_each_other(tmp_path: Path) -> None:
    root = make_fmriprep(tmp_path / "bids")
    sidecar = next((root / "derivatives").rglob("sub-01*MNI152NLin6Asym*_bold.json"))
    sidecar.write_text(json.dumps({"RepetitionTime": 2.0}))
    summary = prepare_dataset(root, tmp_path / "out", PrepareConfig())
    assert list(summary.failed) == ["01"]
    assert "the header says TR 1 s, the sidecar 2 s; correct the wrong one" in summary.failed["01"]
    again = prepare_dataset(root, tmp_path / "again", PrepareConfig(source_tr_s=1.0))
    assert again.failed == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("onset,duration,trial_type\n5,28,punishment\n", "separated by commas, BIDS wants tabs"),
        ("onset\tduration\n5\t28\n", "expected a column named trial_type, found onset, duration"),
        ("onset\tduration\ttrial_type\n", "no block of the conditions asked for was found"),
    ],
)
def test_bad_events(tmp_path: Path, text: str, message: str) -> None:
    root = make_fmriprep(tmp_path / "bids")
    next(root.glob("sub-01/func/*_events.tsv")).write_text(text)
    summary = prepare_dataset(root, tmp_path / "out", PrepareConfig())
    assert list(summary.failed) == ["01"]
    assert message in summary.failed["01"]
    assert (
        any(message in line for line in plan_prepare(root, PrepareConfig()) if line.startswith("sub-01"))
        or not text[30:]
    )


def test_duplicated_participant_in_the_table(tmp_path: Path) -> None:
    root = make_fmriprep(tmp_path / "bids")
    with open(root / "participants.tsv", "a") as table:
        table.write("sub-01\tM\t99\n")
    with pytest.raises(FmrisynthError, match="sub-01 is listed twice"):
        prepare_dataset(root, tmp_path / "out", PrepareConfig())


def test_output_that_is_not_ours(hcp_tree: Path, fmriprep_tree: Path) -> None:
    for out in (hcp_tree, fmriprep_tree):
        before = sorted(out.rglob("*"))
        with pytest.raises(
            UsageError, match="expected an empty folder or one that `fmrisynth prepare` began, found other"
        ):
            prepare_dataset(hcp_tree, out, PrepareConfig())
        assert sorted(out.rglob("*")) == before


DISK_FULL = """
import resource, sys
from pathlib import Path
from fmrisynth.config.prepare import PrepareConfig
from fmrisynth.prepare import prepare_dataset
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # a write beyond this fails, as on a full disk
summary = prepare_dataset(Path(sys.argv[1]), Path(sys.argv[2]), PrepareConfig())
print(summary.failed["100307"])
"""


def test_disk_full(tmp_path: Path) -> None:
    root, out = tmp_path / "hcp", tmp_path / "out"
    make_hcp_run(root, "100307", "MOTOR_LR", ONE_BLOCK)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", DISK_FULL, str(root), str(out)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "could not be written (File too large); free space" in done.stdout
    assert "continues where it stopped" in done.stdout
    assert not list(out.rglob("*_bold.nii.gz"))
    assert not list(out.rglob("*_scans.tsv"))
    assert prepare_dataset(root, out, PrepareConfig()).failed == {}
    assert len(read_blocks(out)) == 1


def test_empty_and_marked_volumes_do_not_reach_the_blocks(tmp_path: Path) -> None:
    """Two volumes of zeros inside a block and three bright ones at the start, against the same run without them."""
    results = {}
    for name in ("clean", "spoilt"):
        root = make_fmriprep(tmp_path / name, ("01",), n_frames=80)
        events = next(root.glob("sub-01/func/*_events.tsv"))
        events.write_text("onset\tduration\ttrial_type\n0\t20\tpunishment\n40\t20\tpunishment\n")
        if name == "spoilt":
            bold = next((root / "derivatives").rglob("*6Asym_res-2_desc-preproc_bold.nii.gz"))
            values = make_bold(80, 1)
            values[..., :3] *= 2
            values[..., 48:50] = 0
            save(bold, values, tr_s=1.0)
            marks = bold.with_name("sub-01_task-gambling_run-1_desc-confounds_timeseries.tsv")
            rows = [[int(frame == k) for k in range(3)] for frame in range(80)]
            names = [f"non_steady_state_outlier0{k}" for k in range(3)]
            marks.write_text("\n".join("\t".join(map(str, row)) for row in [names, *rows]) + "\n")
        summary = prepare_dataset(root, tmp_path / f"out-{name}", PrepareConfig())
        assert summary.failed == {}
        results[name] = read_blocks(tmp_path / f"out-{name}")
    assert [block.source_onset_s for block in results["clean"]] == [0.0, 40.0]
    (block,) = results["spoilt"]  # the first one lies in the marked volumes
    assert block.source_onset_s == 40.0
    clean, spoilt = results["clean"][1].load(), block.load()
    np.testing.assert_allclose(spoilt.reference_XYZ, clean.reference_XYZ, rtol=0.02, atol=1)
    inside = clean.reference_XYZ > 3000
    ratio = spoilt.bold_XYZT[inside] / clean.bold_XYZT[inside]
    assert np.abs(ratio - 1).max() < 0.03
    sidecar = json.loads(block.path.with_name(block.path.name.replace(".nii.gz", ".json")).read_text())
    assert sidecar["BadFrames"] == [0, 1, 2, 48, 49]
    assert "2 volumes are empty (the first is 48" in sidecar["Doubts"][0]
    assert sidecar["FrameTimes"] == "0.5 of the repetition time"
    counts = json.loads((tmp_path / "out-spoilt/logs/prepare_report.json").read_text())["Conditions"]["gambling_loss"]
    assert counts["dropped"] == {"lies in volumes that are no signal": 1}


def test_all_wrong_conditions_in_one_call(tmp_path: Path) -> None:
    root = tmp_path / "hcp"
    make_hcp_run(root, "100307", "MOTOR_LR", {"rh": [(11.0, 12.0)], "cue": [(30.0, 12.0)]})
    config = PrepareConfig(conditions=("MOTOR:rx", "MOTOR:rh", "MOTOR:kue", "MOTOR:cue"))
    for action in (lambda: plan_prepare(root, config), lambda: prepare_dataset(root, tmp_path / "out", config)):
        with pytest.raises(
            UsageError, match=r"no condition 'motor_kue'.*no condition 'motor_rx'.*did you mean motor_r"
        ):
            action()
    good = PrepareConfig(conditions=("MOTOR:cue", "MOTOR:rh"))
    prepare_dataset(root, tmp_path / "out", good)
    assert [block.condition for block in read_blocks(tmp_path / "out")] == ["motor_rh", "motor_cue"]
    with pytest.raises(UsageError, match=r"'rh' is not a condition label.*'lh' is not a condition label"):
        plan_prepare(root, PrepareConfig(conditions=("rh", "lh")))


@pytest.mark.parametrize("how", ["standardised", "offset"])
def test_an_image_that_lost_its_mean_is_refused(tmp_path: Path, how: str) -> None:
    run = make_hcp_run(tmp_path / "hcp", "100307", "MOTOR_LR", ONE_BLOCK)
    bold = make_bold(90, 1).astype(np.float32)
    centred = (bold - bold.mean(axis=-1, keepdims=True)) / np.maximum(bold.std(axis=-1, keepdims=True), 1e-3)
    save(run.bold, centred if how == "standardised" else centred + 1.0, tr_s=0.72)
    summary = prepare_dataset(tmp_path / "hcp", tmp_path / "out", PrepareConfig())
    assert "tfMRI_MOTOR_LR.nii.gz: expected BOLD intensities" in summary.failed["100307"]

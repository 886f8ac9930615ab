"""Settings, real data, and what others may rely on in a prepared dataset."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fmrisynth.bids.sidecars import read_tsv
from fmrisynth.config.prepare import PrepareConfig
from fmrisynth.data.blocks import read_blocks
from fmrisynth.data.grid import MNI_3MM, mni_brain_mask
from fmrisynth.errors import FmrisynthError, UsageError
from fmrisynth.prepare import plan_prepare, prepare_dataset
from tests.prepare.conftest import (
    AFFINE,
    brain,
    make_bold,
    make_fmriprep,
    make_hcp_run,
    save,
    write_ev,
    write_events,
)

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def test_values_equal_the_usual_libraries(tmp_path: Path) -> None:
    """One HCP run, against nilearn in space and a scipy spline in time."""
    from nilearn.image import resample_img
    from scipy.interpolate import CubicSpline
    from scipy.ndimage import convolve1d
    from scipy.signal import firwin

    run = make_hcp_run(tmp_path / "hcp", "100307", "MOTOR_LR", {"rh": [(11.009, 12.155)]}, seed=3)
    prepare_dataset(tmp_path / "hcp", tmp_path / "out", PrepareConfig())
    (block,) = read_blocks(tmp_path / "out")
    data = block.load()
    target = {"target_affine": MNI_3MM.affine, "target_shape": MNI_3MM.shape, "interpolation": "linear"}
    bold = resample_img(nib.load(run.bold), **target, copy_header=True, force_resample=True).get_fdata()
    times = 0.72 * (np.arange(bold.shape[3]) + 0.5)  # frames stand for the middle of their TR
    filtered = convolve1d(bold[data.mask_XYZ], firwin(13, 0.5, window="lanczos"), axis=-1, mode="nearest")
    window = CubicSpline(times, filtered, axis=-1)(11.009 + 1.44 * np.arange(12))
    scale = 10_000 / bold.mean(axis=-1)[data.mask_XYZ].mean()
    ours = data.bold_XYZT[data.mask_XYZ]
    assert np.corrcoef(ours.ravel(), (window * scale).ravel())[0, 1] > 0.9999
    reference = data.reference_XYZ[data.mask_XYZ]
    np.testing.assert_allclose(reference, bold.mean(axis=-1)[data.mask_XYZ] * scale, rtol=2e-3, atol=1)
    bright = reference > 3000
    change, expected = (x[bright] / reference[bright][:, None] for x in (ours, window * scale))
    assert np.corrcoef(change.ravel(), expected.ravel())[0, 1] > 0.999


def test_intensity_scaling_is_recorded_and_can_be_undone(tmp_path: Path) -> None:
    root = tmp_path / "hcp"
    run = make_hcp_run(root, "100307", "MOTOR_LR", {"rh": [(10.8, 12.0)]}, seed=3)
    values = make_bold(90, 3).astype(np.float32)
    outs = {}
    for name, (slope, intercept) in {"plain": (1, 0), "slope": (0.01, 0), "intercept": (0.01, 5)}.items():
        image = nib.Nifti1Image(np.rint((values - intercept) / slope).astype(np.int32), AFFINE)
        image.header.set_slope_inter(slope, intercept)
        image.header.set_xyzt_units("mm", "sec")
        image.header.set_zooms((8, 8, 8, 0.72))
        nib.save(image, run.bold)
        prepare_dataset(root, tmp_path / name, PrepareConfig())
        (block,) = read_blocks(tmp_path / name)
        sidecar = json.loads(block.path.with_name(block.path.name.replace(".nii.gz", ".json")).read_text())
        outs[name] = block.load().bold_XYZT
        undone = block.load().reference_XYZ / sidecar["IntensityFactor"]
        inside = block.load().mask_XYZ
        assert undone[inside].mean() == pytest.approx(values[brain()].mean(), rel=0.1)
    np.testing.assert_allclose(outs["slope"], outs["plain"], atol=2)
    np.testing.assert_allclose(outs["intercept"], outs["plain"], atol=2)


def test_a_run_without_mask_gets_the_mni_brain(tmp_path: Path) -> None:
    run = make_hcp_run(tmp_path / "hcp", "100307", "MOTOR_LR", {"rh": [(11.0, 12.0)]})
    run.mask.unlink()
    assert prepare_dataset(tmp_path / "hcp", tmp_path / "out", PrepareConfig()).failed == {}
    (block,) = read_blocks(tmp_path / "out")
    data = block.load()
    assert not (data.mask_XYZ & ~mni_brain_mask()).any()
    assert (data.reference_XYZ[data.mask_XYZ] > 0).all()
    assert data.mask_XYZ.sum() > 0.7 * mni_brain_mask().sum()


def test_own_conditions(tmp_path: Path) -> None:
    root = tmp_path / "hcp"
    run = make_hcp_run(root, "100307", "MOTOR_LR", {"rh": [(11.0, 12.0)], "cue": [(5.0, 9.0), (30.0, 9.0)]})
    write_ev(run.evs / "rest.txt", [(23.0, 15.0)])
    both = PrepareConfig(conditions=("motor_rh", "motor_cue"), blocks={"overlap_s": 5.0})
    prepare_dataset(root, tmp_path / "a", both)
    assert [b.condition for b in read_blocks(tmp_path / "a")] == ["motor_cue", "motor_rh", "motor_cue"]
    table = tmp_path / "mine.yaml"
    table.write_text("conditions:\n  motor_rest: {}\n")
    prepare_dataset(root, tmp_path / "b", PrepareConfig(condition_table=table, conditions=("all",)))
    assert {b.condition for b in read_blocks(tmp_path / "b")} == {"motor_rh", "motor_rest"}


def test_unknown_tasks_beside_hcp_tasks(tmp_path: Path) -> None:
    root = make_fmriprep(tmp_path / "bids", ("01",))
    func = root / "derivatives/fmriprep/sub-01/func"
    save(func / "sub-01_task-faces_space-MNI152NLin6Asym_res-2_desc-preproc_bold.nii.gz", make_bold(60, 9), tr_s=1.0)
    write_events(root / "sub-01/func/sub-01_task-faces_events.tsv", [(5, 16, "happy"), (30, 16, "sad")])
    prepare_dataset(root, tmp_path / "seven", PrepareConfig())
    assert {b.condition for b in read_blocks(tmp_path / "seven")} == {"gambling_loss"}
    prepare_dataset(root, tmp_path / "all", PrepareConfig(conditions=("all",)))
    assert {b.condition for b in read_blocks(tmp_path / "all")} == {"gambling_loss", "faces_happy", "faces_sad"}
    with pytest.raises(UsageError, match=r"no condition 'faces_hapy'.*did you mean faces_happy"):
        prepare_dataset(root, tmp_path / "x", PrepareConfig(conditions=("faces_hapy",)))


def test_another_mni_template_keeps_its_name(tmp_path: Path) -> None:
    root = make_fmriprep(tmp_path / "bids", ("01",))
    for path in root.rglob("*MNI152NLin6Asym*"):
        path.unlink()
    prepare_dataset(root, tmp_path / "out", PrepareConfig())
    (block,) = read_blocks(tmp_path / "out")
    assert block.space == "MNI152NLin2009cAsym"
    assert block.load_grid().shape == MNI_3MM.shape


def test_families_and_splits(tmp_path: Path) -> None:
    root = tmp_path / "hcp"
    subjects = [f"10{n}" for n in range(1000, 1006)]
    for n, subject in enumerate(subjects):
        make_hcp_run(root, subject, "MOTOR_LR", {"rh": [(11.0, 12.0)]}, n_frames=45, seed=n)
    table = tmp_path / "restricted.csv"
    table.write_text("Subject,Family_ID\n" + "".join(f"{s},F{n // 3}\n" for n, s in enumerate(subjects)))
    config = PrepareConfig(split={"families": table, "train": 0.4, "val": 0.3, "test": 0.3}, seed=3)
    summary = prepare_dataset(root, tmp_path / "out", config)
    rows = read_tsv(tmp_path / "out" / "participants.tsv")
    split = {row["participant_id"].removeprefix("sub-"): row["split"] for row in rows}
    assert sorted(split) == subjects
    for family in (subjects[:3], subjects[3:]):
        assert len({split[s] for s in family}) == 1
    assert all(b.split == split[b.subject] for b in read_blocks(tmp_path / "out"))
    assert any("No participant is in" in line for line in summary.lines)  # two families cannot fill three splits
    assert not any("relatives" in line for line in summary.lines)


def test_jobs_of_an_array_make_the_same_dataset(tmp_path: Path) -> None:
    root = tmp_path / "hcp"
    for n, subject in enumerate(("100307", "100408")):
        make_hcp_run(root, subject, "MOTOR_LR", {"rh": [(11.0, 12.0)]}, seed=n)
    prepare_dataset(root, tmp_path / "one", PrepareConfig())
    code = (
        "import sys; from pathlib import Path; from fmrisynth.prepare import prepare_dataset; "
        "from fmrisynth.config.prepare import PrepareConfig; "
        "s = prepare_dataset(Path(sys.argv[1]), Path(sys.argv[2]), PrepareConfig(), participant_labels=[sys.argv[3]]); "
        "sys.exit(len(s.failed))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    jobs = [
        subprocess.Popen([sys.executable, "-c", code, str(root), str(tmp_path / "two"), label], env=environment)
        for label in ("100307", "100408")
    ]
    assert [job.wait() for job in jobs] == [0, 0]
    for path in (tmp_path / "one").rglob("sub-*"):
        if path.is_file() and "logs" not in path.parts:
            assert (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes() == path.read_bytes()


def test_native_runs_share_a_grid(raw_tree: Path, tmp_path: Path) -> None:
    func = raw_tree / "sub-02" / "func"
    first = func / "sub-02_task-oneback_run-1_bold.nii.gz"
    image = nib.load(first)
    moved = image.affine.copy()
    moved[:3, 3] += moved[:3, 0]  # the second run was planned one voxel to the side
    save(func / "sub-02_task-oneback_run-2_bold.nii.gz", np.asarray(image.dataobj), moved, tr_s=2.0, xform=1)
    events = func / "sub-02_task-oneback_run-1_events.tsv"
    shutil.copy(events, events.with_name("sub-02_task-oneback_run-2_events.tsv"))
    assert prepare_dataset(raw_tree, tmp_path / "out", PrepareConfig(native=True)).failed == {}
    blocks = read_blocks(tmp_path / "out")
    assert len(blocks) == 4
    assert all(b.load_grid().same_as(blocks[0].load_grid()) for b in blocks)
    one, two = blocks[0].load(), blocks[2].load()
    both = one.mask_XYZ[:-1] & two.mask_XYZ[1:]
    a, b = one.bold_XYZT[:-1][both], two.bold_XYZT[1:][both]
    assert both.sum() > 0.8 * one.mask_XYZ.sum()
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.9999
    turned = image.affine @ np.array([[0.98, -0.2, 0, 0], [0.2, 0.98, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    save(func / "sub-02_task-oneback_run-2_bold.nii.gz", np.asarray(image.dataobj), turned, tr_s=2.0, xform=1)
    failed = prepare_dataset(raw_tree, tmp_path / "turned", PrepareConfig(native=True)).failed
    assert "run-2_bold.nii.gz: the run is rotated by 11.5 degrees against the participant's first run" in failed["02"]


def test_start_time_of_slice_timing_correction(tmp_path: Path) -> None:
    """Frames that fMRIPrep moved to the middle of the TR are taken at that time."""
    root = make_fmriprep(tmp_path / "bids", ("01",))
    sidecar = next((root / "derivatives").rglob("sub-01*MNI152NLin6Asym*_bold.json"))
    sidecar.write_text(json.dumps({"RepetitionTime": 1.0, "StartTime": 0.5}))
    config = PrepareConfig(window={"align": "frame"}, tr_s=1.0)
    assert prepare_dataset(root, tmp_path / "out", config).failed == {}
    (block,) = read_blocks(tmp_path / "out")
    content = json.loads(block.path.with_name(block.path.name.replace(".nii.gz", ".json")).read_text())
    assert (content["SourceOnset"], content["WindowStart"], block.onset_s) == (5.0, 4.5, 0.5)
    source = nib.load(next((root / "derivatives").rglob("sub-01*MNI152NLin6Asym*_bold.nii.gz")))
    image = nib.load(block.path)
    world = np.array([0, -18, 8, 1.0])
    ijk = np.rint(np.linalg.inv(image.affine) @ world)[:3].astype(int)
    at = np.linalg.inv(source.affine) @ image.affine @ np.array([*ijk, 1.0])
    from scipy.ndimage import map_coordinates

    bold = np.asarray(source.dataobj, dtype=float)
    expected = [map_coordinates(bold[..., k], at[:3, None], order=1)[0] for k in range(4, 16)]
    ours = image.get_fdata()[tuple(ijk)] / content["IntensityFactor"]
    np.testing.assert_allclose(ours, expected, rtol=1e-3)


@pytest.mark.parametrize("kind", ["dynamics", "global"])
def test_normalisations_of_prepared_blocks_are_undone(hcp_tree: Path, tmp_path: Path, kind) -> None:
    from fmrisynth.data.normalisation import PSC_LIMIT, denormalise, normalise

    prepare_dataset(hcp_tree, tmp_path / "out", PrepareConfig(), participant_labels=["100408"])
    data = read_blocks(tmp_path / "out")[0].load()
    values = normalise(data.bold_XYZT, data.reference_XYZ, data.mask_XYZ, kind)
    back = denormalise(values, data.reference_XYZ, data.mask_XYZ, kind)
    kept = data.mask_XYZ[..., None] & (np.abs(values) < (PSC_LIMIT if kind == "dynamics" else np.inf))
    assert kept.sum() > 0.99 * data.mask_XYZ.sum() * 12
    np.testing.assert_allclose(back[kept], data.bold_XYZT[kept], rtol=1e-4, atol=0.5)


def test_plan_writes_nothing_and_lists_everything(hcp_tree: Path) -> None:
    before = sorted(hcp_tree.rglob("*"))
    lines = plan_prepare(hcp_tree, PrepareConfig())
    assert sorted(hcp_tree.rglob("*")) == before
    assert sum("tfMRI_" in line for line in lines) == 4
    assert any(
        "tfMRI_MOTOR_LR.nii.gz: 90 frames, TR 0.72 s, brainmask_fs.2.nii.gz, 3 events, 2 of 2 blocks" in line
        for line in lines
    )
    assert any(line.split() == ["gambling_loss", "6", "6", "0"] for line in lines)


@pytest.mark.skipif(
    shutil.which("bids-validator-deno") is None and not (Path(sys.executable).parent / "bids-validator-deno").exists(),
    reason="bids-validator-deno is not installed",
)
def test_the_bids_validator_has_no_objection(hcp_tree: Path, raw_tree: Path, tmp_path: Path) -> None:
    validator = shutil.which("bids-validator-deno") or str(Path(sys.executable).parent / "bids-validator-deno")
    prepare_dataset(
        hcp_tree, tmp_path / "hcp-out", PrepareConfig(conditions=("motor_rh",)), participant_labels=["100307"]
    )
    prepare_dataset(raw_tree, tmp_path / "raw-out", PrepareConfig(native=True))
    for name in ("hcp-out", "raw-out"):
        done = subprocess.run([validator, "--json", str(tmp_path / name)], capture_output=True, text=True)
        issues = json.loads(done.stdout)["issues"]["issues"]
        errors = [issue for issue in issues if issue["severity"] == "error"]
        assert errors == []
        assert done.returncode == 0


def shared(name: str) -> Path:
    path = SHARED_DATA / name
    if not path.is_dir():
        pytest.skip(f"the real data are not at {path}")
    return path


def test_real_run_in_its_own_space(tmp_path: Path) -> None:
    """One real full-size run: 192 single images become 12 blocks, two of each of six categories."""
    root = shared("studyforrest-localizer")
    summary = prepare_dataset(root, tmp_path / "out", PrepareConfig(native=True, split={"all": "train"}))
    assert summary.failed == {}
    blocks = read_blocks(tmp_path / "out")
    counts = {c: sum(b.condition == c for b in blocks) for c in sorted({b.condition for b in blocks})}
    assert counts == {f"oneback_{c}": 2 for c in ("body", "face", "house", "object", "scene", "scramble")}
    assert all(15 < b.duration_s < 17 for b in blocks)
    grid = blocks[0].load_grid()
    assert all(side % 16 == 0 for side in grid.shape)
    assert all(b.load_grid().same_as(grid) for b in blocks[1:])
    source = nib.load(next(root.rglob("*_bold.nii.gz")))
    data = blocks[0].load()
    shift = np.rint(np.linalg.inv(source.affine) @ grid.affine)[:3, 3].astype(int)
    ijk = np.argwhere(data.mask_XYZ)[::500]
    mean = source.get_fdata(dtype=np.float32)[tuple((ijk + shift).T)].mean(axis=-1)
    ours = data.reference_XYZ[tuple(ijk.T)]
    assert np.corrcoef(mean, ours)[0, 1] > 0.99999


def test_twelve_real_runs_of_one_subject(tmp_path: Path) -> None:
    """Haxby at 25 mm: twelve runs of eight blocks on one grid, with the mask that comes with the data."""
    root = shared("haxby-lowres")
    config = PrepareConfig(native=True, mask=root / "masks" / "brain.nii.gz", split={"all": "train"}, tr_s=2.5)
    assert prepare_dataset(root, tmp_path / "out", config).failed == {}
    blocks = read_blocks(tmp_path / "out")
    assert len(blocks) == 96
    assert all(sum(b.condition == c for b in blocks) == 12 for c in {b.condition for b in blocks})
    assert [int(b.entities["run"]) for b in blocks] == list(range(1, 97))
    sources = [b.source for b in blocks]
    assert sources == sorted(sources)  # run-02 before run-10
    mask = nib.load(root / "masks" / "brain.nii.gz")
    assert blocks[0].load_mask().sum() == (np.asarray(mask.dataobj) > 0).sum()
    assert len({b.load_grid() for b in blocks}) == 1


def test_real_trees_without_images(tmp_path: Path) -> None:
    """The skeletons hold no brain data; each participant says so, none crashes."""
    root = shared("bids-skeletons")
    config = PrepareConfig(derivatives=(root / "ds000001-fmriprep",), conditions=("all",))
    summary = prepare_dataset(root / "ds001", tmp_path / "a", config)
    assert sorted(summary.failed) == ["10", "11"]
    assert all("the image is empty (0 bytes)" in reason for reason in summary.failed.values())
    summary = prepare_dataset(root / "synthetic", tmp_path / "b", PrepareConfig(conditions=("all",)))
    assert sorted(summary.failed) == ["01", "02"]
    assert all("promises" in reason and "get it again" in reason for reason in summary.failed.values())
    with pytest.raises(FmrisynthError, match="140 events files"):
        prepare_dataset(shared("ibc-hcp-events"), tmp_path / "c", PrepareConfig())
    assert not (tmp_path / "c").exists()

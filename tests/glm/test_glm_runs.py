"""The whole-run GLM: discovery, confounds, and the real localizer run against its published reference."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fmrisynth.bids.confounds import read_confounds
from fmrisynth.config.glm import GlmConfig
from fmrisynth.errors import FmrisynthError, UsageError
from fmrisynth.glm import run_glm
from fmrisynth.glm.run_model import condition_name
from fmrisynth.glm.runs import localise_formula, open_runs, run_units

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
LOCALIZER = DATA / "studyforrest-localizer"


def make_bids(root: Path, *, derivatives=False, n_runs=2, subjects=("01", "02"), task="tapping") -> Path:
    """A tiny BIDS dataset, optionally with an fMRIPrep-style copy; right > left by 2 % in one corner."""
    rng = np.random.default_rng(4)
    n_frames, tr_s = 60, 2.0
    for subject in subjects:
        for run in range(1, n_runs + 1):
            stem = f"sub-{subject}_task-{task}_run-{run}"
            raw = root / f"sub-{subject}" / "func"
            raw.mkdir(parents=True, exist_ok=True)
            events = [("onset", "duration", "trial_type")]
            right = np.zeros(n_frames)
            for start, name in ((10, "right hand"), (40, "left-hand"), (70, "right hand"), (95, "n/a")):
                events.append((start, 15, name))
                if name == "right hand":
                    right[(start + 4) // 2 : (start + 19) // 2] = 1
            (raw / f"{stem}_events.tsv").write_text("\n".join("\t".join(map(str, row)) for row in events) + "\n")
            bold = 1000 + 3 * rng.standard_normal((8, 8, 8, n_frames))
            bold[:4, :4, :4] += 20 * right
            if not derivatives:  # a raw image has air around the head
                bold = np.pad(bold, [(4, 4)] * 3 + [(0, 0)]) + 5 * rng.random((16, 16, 16, n_frames))
            image = nib.Nifti1Image(bold.astype(np.float32), np.diag([3.0, 3, 3, 1]))
            image.header.set_zooms((3, 3, 3, tr_s))
            sidecar = {"RepetitionTime": tr_s, "TaskName": task}
            if derivatives:
                func = root / "derivatives" / "fmriprep" / f"sub-{subject}" / "func"
                func.mkdir(parents=True, exist_ok=True)
                space = f"{stem}_space-MNI152NLin6Asym_res-3"
                nib.save(image, func / f"{space}_desc-preproc_bold.nii.gz")
                (func / f"{space}_desc-preproc_bold.json").write_text(
                    json.dumps(sidecar | {"SliceTimingCorrected": True, "StartTime": 0.97})
                )
                nib.save(
                    nib.Nifti1Image(np.ones((8, 8, 8), np.uint8), image.affine),
                    func / f"{space}_desc-brain_mask.nii.gz",
                )
                table = ["trans_x\trot_z\tcsf\tframewise_displacement"]
                table += [
                    f"{rng.random():.4f}\t{rng.random():.4f}\t{rng.random():.4f}\t{'n/a' if t == 0 else 0.1}"
                    for t in range(n_frames)
                ]
                (func / f"{stem}_desc-confounds_timeseries.tsv").write_text("\n".join(table) + "\n")
            else:
                nib.save(image, raw / f"{stem}_bold.nii.gz")
                (root / f"task-{task}_bold.json").write_text(json.dumps(sidecar))
    return root


def runs_of(root: Path, subject: str):
    return open_runs(root, GlmConfig(unit="run")).runs(subject)


def test_raw_dataset_with_inherited_sidecar(tmp_path):
    source = open_runs(make_bids(tmp_path), GlmConfig(unit="run"))
    assert {subject: len(source.runs(subject)) for subject in source.subjects()} == {"01": 2, "02": 2}
    first = source.runs("01")[0]
    assert (first.timing.tr_s, first.timing.first_frame_s, first.problems) == (2.0, 1.0, ())
    found = [path.name for run in source.runs("02") for path in run.events_files]
    assert found == [f"sub-02_task-tapping_run-{r}_events.tsv" for r in (1, 2)]


def test_every_file_that_a_run_is_read_from_counts(tmp_path):
    """Also sidecars that the image inherits: they are what the unit of work is about."""
    root = make_bids(tmp_path / "ds", derivatives=True, n_runs=2, subjects=("01",))
    (root / "task-tapping_bold.json").write_text('{"RepetitionTime": 2.0}')
    (root / "sub-01" / "sub-01_bold.json").write_text("{}")
    config = GlmConfig(unit="run")
    units, broken = run_units(open_runs(root, config), ["01"], tmp_path / "out", config)
    assert broken == {}
    assert sorted(units["01"].about["files"]) == sorted(path for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize("where", ["root", "fmriprep"])
def test_fmriprep_outputs_find_their_events_masks_and_confounds(tmp_path, where):
    root = make_bids(tmp_path / "ds", derivatives=True)
    run = runs_of(root if where == "root" else root / "derivatives" / "fmriprep", "01")[1]
    assert run.events_files == (root / "sub-01/func/sub-01_task-tapping_run-2_events.tsv",)
    assert run.mask is not None
    assert run.timing.first_frame_s == 0.97
    assert list(run.confounds.regressors("auto")) == ["trans_x", "rot_z", "csf"]
    assert run.confounds.regressors("none") == {}
    assert run.problems == ()
    with pytest.raises(FmrisynthError, match="one row per frame"):
        read_confounds(run.confounds_file, 59)


def test_two_subjects_two_runs(tmp_path):
    root = make_bids(tmp_path / "ds", derivatives=True)
    config = GlmConfig(unit="run", contrasts=("right = right_hand - left_hand",), smoothing_fwhm_mm=0)
    summary = run_glm(root, tmp_path / "out", config)
    assert not summary.failed
    assert "First-level design matrix, one example: sub-01/" in (tmp_path / "out/group.html").read_text()
    z = nib.load(
        tmp_path / "out/group/task-tapping_space-MNI152NLin6Asym_res-3_contrast-right_stat-z_statmap.nii.gz"
    ).get_fdata()
    first = next((tmp_path / "out/sub-01").rglob("*contrast-right_stat-effect_statmap.nii.gz"))
    effect = nib.load(first).get_fdata()
    assert 1.2 < effect[:4, :4, :4].mean() < 2.6
    assert abs(effect[5:, 5:, 5:].mean()) < 0.2
    assert z.shape == (8, 8, 8)


def test_native_subjects_get_no_group_map(tmp_path):
    root = make_bids(tmp_path / "ds")
    config = GlmConfig(unit="run", smoothing_fwhm_mm=0, reports=False)
    summary = run_glm(root, tmp_path / "out", config)
    assert any("scanner spaces" in line for line in summary.lines)
    assert not (tmp_path / "out/group").exists()
    assert len(list((tmp_path / "out/sub-01").rglob("*stat-z*.nii.gz"))) == 2


def test_clear_refusals(tmp_path):
    root = make_bids(tmp_path / "ds", n_runs=1, subjects=("01",))
    config = GlmConfig(unit="run", reports=False)
    with pytest.raises(UsageError, match="did you mean right_hand"):
        run_glm(root, tmp_path / "out", config.model_copy(update={"contrasts": ("righthand",)}))
    with pytest.raises(FmrisynthError, match="has no run of task 'other'"):
        run_glm(root, tmp_path / "out", config.model_copy(update={"task": "other"}))
    next(root.rglob("*_events.tsv")).write_text("onset\tduration\n1\t2\n")
    with pytest.raises(FmrisynthError, match="expected a column named trial_type"):
        run_glm(root, tmp_path / "out", config)


def test_names():
    assert condition_name("right hand") == "right_hand"
    assert condition_name("2back") == "c2back"
    assert localise_formula("wm_2back - wm_rest", {"c2back", "rest"}, {"wm"}) == "c2back - rest"
    assert localise_formula("oneback_face - oneback_bird", {"face"}, {"oneback"}) == "face - oneback_bird"
    assert (
        localise_formula("MOTOR:cue - REASONING:rel", {"cue", "relation"}, {"motor", "relational"}) == "cue - relation"
    )
    assert (
        localise_formula("WM 2bk:places - WM:0bk_body", {"c2bk_places", "c0bk_body"}, {"wm"})
        == "c2bk_places - c0bk_body"
    )


def test_a_failed_task_is_said_again_and_its_subject_stays_in_the_group(tmp_path):
    """Also by calls for others; the next call for the subject tries again."""
    root, out = tmp_path / "ds", tmp_path / "out"
    for task in ("tapping", "waving"):
        make_bids(root, derivatives=True, n_runs=1, task=task)
    confounds = next(root.rglob("sub-01_task-waving_run-1_desc-confounds_timeseries.tsv"))
    whole = confounds.read_text()
    confounds.write_text("csf\nmoon\n")
    config = GlmConfig(unit="run", smoothing_fwhm_mm=0, reports=False)
    both, one = (["01", "02"], ["02"])
    for labels in (both, one):
        summary = run_glm(root, out, config, participant_labels=labels)
        assert list(summary.failed) == ["01 task-waving"]
        assert sum("n = 2" in line for line in summary.lines) == 2  # the two conditions of tapping
    confounds.write_text(whole)
    summary = run_glm(root, out, config, participant_labels=one)
    assert "its input changed" in summary.failed["01"]
    assert "The group maps are without sub-01: no finished maps." in summary.lines
    summary = run_glm(root, out, config)
    assert not summary.failed
    assert sum("n = 2" in line for line in summary.lines) == 4


@pytest.mark.slow
def test_real_localizer_equals_nilearn_and_its_reference(tmp_path):
    """Face and place areas of a real run, as its README gives them, and nilearn's own maps voxel by voxel."""
    if not LOCALIZER.exists():
        pytest.skip("the studyforrest localizer is not beside this checkout (../shared/data)")
    import pandas as pd
    from nilearn.glm.first_level import FirstLevelModel

    formulas = {"ffa": "face - (object + scramble) / 2", "ppa": "(scene + house) - (face + object)"}
    config = GlmConfig(unit="run", contrasts=tuple(f"{k} = {v}" for k, v in formulas.items()))
    summary = run_glm(LOCALIZER, tmp_path, config)
    assert not summary.failed
    stem = LOCALIZER / "sub-02/func/sub-02_task-oneback_run-1"
    model = FirstLevelModel(t_r=2.0, slice_time_ref=0.5, hrf_model="spm", drift_model="cosine", high_pass=0.01,
                            noise_model="ar1", smoothing_fwhm=5)  # fmt: skip
    events = pd.read_csv(f"{stem}_events.tsv", sep="\t")[["onset", "duration", "trial_type"]]
    model.fit(f"{stem}_bold.nii.gz", events=events)
    for name, peak_z, where in (("ffa", 7.7, (39, -37, -18)), ("ppa", 9.8, (28, -38, 3))):
        path = next((tmp_path / "sub-02").rglob(f"*contrast-{name}_stat-z_statmap.nii.gz"))
        ours = nib.load(path)
        z = ours.get_fdata()
        reference = model.compute_contrast(formulas[name], output_type="z_score").get_fdata()
        left_out = (z == 0) & (reference != 0)  # its mean is below 5 % of the brain's median: no percent signal change
        assert left_out.sum() == 1
        np.testing.assert_allclose(z[~left_out], reference[~left_out], atol=1e-4)
        voxel = np.unravel_index(np.argmax(z), z.shape)
        assert abs(z[voxel] - peak_z) < 0.1
        np.testing.assert_allclose(nib.affines.apply_affine(ours.affine, voxel), where, atol=1.5)
    assert (tmp_path / "sub-02.html").stat().st_size > 50_000

"""The whole-run GLM on runs with something odd: the planted answer, or a refusal in one sentence."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fmrisynth.cli.main import run
from fmrisynth.config.glm import GlmConfig
from fmrisynth.errors import FmrisynthError, UsageError
from fmrisynth.glm import run_glm
from fmrisynth.glm.maps import index_path
from fmrisynth.glm.run_model import condition_names, contrast_estimate, fit_runs, run_design, scan_run
from fmrisynth.glm.runs import open_runs
from tests.glm.test_glm_runs import make_bids

PLAIN = GlmConfig(unit="run", smoothing_fwhm_mm=0, reports=False, noise_model="ols")


def bold_of(root: Path, number: int = 1) -> Path:
    return next(root.rglob(f"derivatives/**/sub-01*_run-{number}_*_bold.nii.gz"))


def change(path: Path, edit) -> None:
    image = nib.load(path)
    nib.save(nib.Nifti1Image(edit(image.get_fdata()).astype(np.float32), image.affine, image.header), path)


def runs(root: Path, config: GlmConfig = PLAIN):
    return open_runs(root, config).runs("01")


def right(root: Path, config: GlmConfig = PLAIN) -> tuple[float, tuple[str, ...]]:
    """Mean effect of ``right hand`` in its corner (2 % planted), and the doubts."""
    fitted = fit_runs(runs(root, config), config)
    estimate, _ = contrast_estimate(fitted, {"right_hand": 1.0})
    effect = np.zeros(fitted.mask_XYZ.shape)
    effect[fitted.mask_XYZ] = estimate.effect
    return float(effect[:4, :4, :4].mean()), fitted.doubts


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_bids(tmp_path / "ds", derivatives=True, subjects=("01",))


def test_equals_nilearn_bit_by_bit(root):
    """Design, masking, scaling and noise model of two runs, against ``FirstLevelModel``."""
    import pandas as pd
    from nilearn.glm.first_level import FirstLevelModel

    config = GlmConfig(unit="run", smoothing_fwhm_mm=5.0)
    found = runs(root, config)
    fitted = fit_runs(found, config)
    estimate, n_runs = contrast_estimate(fitted, {"right_hand": 1.0, "left_hand": -1.0})
    model = FirstLevelModel(
        t_r=2.0, slice_time_ref=0.97 / 2, hrf_model="spm", high_pass=0.01, noise_model="ar1", smoothing_fwhm=5.0,
        signal_scaling=0, mask_img=str(found[0].mask),
    )  # fmt: skip
    events, confounds = [], []
    for one in found:
        table = pd.read_csv(one.events_files[0], sep="\t").dropna()
        events.append(table.assign(trial_type=table.trial_type.replace({"right hand": "r", "left-hand": "l"})))
        confounds.append(pd.read_csv(one.confounds_file, sep="\t")[["trans_x", "rot_z", "csf"]])
    model.fit([str(one.bold) for one in found], events=events, confounds=confounds)
    theirs = model.compute_contrast("r - l", output_type="all")
    assert n_runs == 2
    np.testing.assert_allclose(
        estimate.effect, theirs["effect_size"].get_fdata()[fitted.mask_XYZ], rtol=1e-5, atol=1e-7
    )
    np.testing.assert_allclose(estimate.variance, theirs["effect_variance"].get_fdata()[fitted.mask_XYZ], rtol=1e-4)


def test_marked_and_empty_frames_are_dropped(root):
    clean, _ = right(root)
    for number in (1, 2):

        def spoil(bold):
            bold[..., :2] *= 1.8
            bold[..., 30:32] = 0
            return bold

        change(bold_of(root, number), spoil)
        path = next(root.rglob(f"*_run-{number}_desc-confounds_timeseries.tsv"))
        lines = path.read_text().splitlines()
        marks = [f"non_steady_state_outlier0{k}" for k in range(2)]
        lines = [lines[0] + "\t" + "\t".join(marks)] + [
            f"{line}\t{int(t == 0)}\t{int(t == 1)}" for t, line in enumerate(lines[1:])
        ]
        path.write_text("\n".join(lines) + "\n")
    for config in (PLAIN, PLAIN.model_copy(update={"confounds": "none"})):
        found, doubts = right(root, config)
        assert found == pytest.approx(clean, rel=0.05)
        assert sum("2 volumes (30 and 31) are empty" in text for text in doubts) == 2
        assert sum("2 volumes (0 and 1) are marked as non-steady-state" in text for text in doubts) == 2


def test_bright_first_frames_that_nobody_marked_are_said(root):
    def brighten(bold):
        bold[..., 0] *= 1.3
        return bold

    change(bold_of(root), brighten)
    _, doubts = right(root)
    assert any("volume 0 is brighter than the rest by 3" in text for text in doubts)


@pytest.mark.parametrize("how", ["demeaned", "standardised", "nearly"])
def test_an_image_without_its_mean_is_refused(root, how):
    def spoil(bold):
        centred = bold - bold.mean(axis=3, keepdims=True)
        return {
            "demeaned": centred,
            "standardised": centred / bold.std(axis=3, keepdims=True),
            "nearly": centred + 2.0,
        }[how]

    change(bold_of(root), spoil)
    with pytest.raises(FmrisynthError, match=rf"{bold_of(root).name}: .*mean was removed.*from before that step"):
        right(root)


def test_small_intensities_are_scaled_too(root):
    """nilearn divides by at least 1, so intensities below it would not be percent."""
    clean, _ = right(root)
    for number in (1, 2):
        change(bold_of(root, number), lambda bold: bold / 4000)
    assert right(root)[0] == pytest.approx(clean, rel=1e-3)


def test_voxels_without_signal_or_finite_values_are_left_out(root):
    def spoil(bold):
        bold[7, 7, 7] = np.nan
        bold[6, 7, 7] /= 100
        return bold

    change(bold_of(root), spoil)
    fitted = fit_runs(runs(root), PLAIN)
    assert fitted.mask_XYZ.sum() == 8**3 - 2
    assert any("1 voxels inside the brain mask are NaN or infinite" in text for text in fitted.doubts)


def test_confounds_for_one_run_only(root):
    next(root.rglob("*_run-2_desc-confounds_timeseries.tsv")).unlink()
    with pytest.raises(
        FmrisynthError, match=r"run-2_.*bold\.nii\.gz: this run has no confounds file.*run-1_.*confounds=none"
    ):
        right(root)
    assert right(root, PLAIN.model_copy(update={"confounds": "none"}))[0] > 1.2


def test_the_sidecar_says_what_was_modelled(root, tmp_path):
    assert run(["glm", str(root), str(tmp_path / "out"), "--unit", "run", "--set", "reports=false"]) == 0
    about = json.loads(next((tmp_path / "out/sub-01").rglob("*RightHand*effect*.json")).read_text())
    assert "confounds (auto)" in about["Model"]
    assert about["FrameTimes"] == ["StartTime of the sidecar"] * 2
    assert (about["DroppedFrames"], about["Doubts"]) == ([0, 0], [])
    group = json.loads(next((tmp_path / "out/group").glob("*RightHand*effect*.json")).read_text())
    assert group["Runs"] == 2
    assert "Blocks" not in group


def rewrite_events(root: Path, number: int, edit) -> None:
    path = next(root.rglob(f"sub-01_*_run-{number}_events.tsv"))
    path.write_text(edit(path.read_text()))


def test_a_condition_outside_the_run_gives_no_map(root, tmp_path, capsys):
    for number in (1, 2):
        rewrite_events(root, number, lambda text: text.replace("40\t15\tleft-hand", "140\t15\tleft-hand"))
    assert run(["glm", str(root), str(tmp_path / "out"), "--unit", "run", "--set", "reports=false"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "condition left_hand has no event inside the usable frames" in said
    assert "1 of 3 events begin after the end of the run" in said
    assert [p.name for p in (tmp_path / "out/group").glob("*stat-z*.nii.gz")] == [
        "task-tapping_space-MNI152NLin6Asym_res-3_contrast-tappingRightHand_stat-z_statmap.nii.gz"
    ]


def test_a_condition_that_another_one_equals_gives_no_map(root):
    for number in (1, 2):
        rewrite_events(root, number, lambda text: text + "40\t15\tboth\n")
    fitted = fit_runs(runs(root), PLAIN)
    assert contrast_estimate(fitted, {"left_hand": 1.0}) is None
    assert contrast_estimate(fitted, {"right_hand": 1.0}) is not None
    assert any(
        re.search("left_hand is a combination of others .* listed under two names", text) for text in fitted.doubts
    )


def test_signs_and_scripts_stay_apart(root, tmp_path):
    names = {"right hand": "CS+", "left-hand": "CS-"}
    for number in (1, 2):
        rewrite_events(
            root, number, lambda text: text.replace("right hand", names["right hand"]).replace("left-hand", "CS-")
        )
    assert run(["glm", str(root), str(tmp_path / "out"), "--unit", "run", "--contrast", "d = CS_plus - CS_minus"]) == 0
    effect = nib.load(next((tmp_path / "out/sub-01").rglob("*contrast-d_stat-effect*.nii.gz"))).get_fdata()
    assert 1.2 < effect[:4, :4, :4].mean() < 2.6


def test_two_names_that_become_one_are_refused(root):
    for number in (1, 2):
        rewrite_events(root, number, lambda text: text.replace("right hand", "c1").replace("left-hand", "1"))
    with pytest.raises(FmrisynthError, match=r"trial types 'c1' and '1' would both be called c1; rename one"):
        condition_names(runs(root))


def test_a_bad_run_of_another_task_does_no_harm(root, tmp_path, capsys):
    stop = root / "sub-01/func/sub-01_task-stop_events.tsv"
    stop.write_text("onset\tduration\tcondition\n1\t2\tgo\n")
    image = bold_of(root)
    image.with_name("sub-01_task-stop_space-MNI152NLin6Asym_res-3_desc-preproc_bold.nii.gz").write_bytes(b"no image")
    command = ["glm", str(root), str(tmp_path / "out"), "--unit", "run", "--set", "reports=false"]
    assert run([*command, "--contrast", "right_hand"]) == 0
    assert "expected a column named trial_type, found onset, duration, condition" in " ".join(
        capsys.readouterr().err.split()
    )
    stop.write_text("onset\tduration\ttrial_type\n1\t2\tgo\n")
    out = tmp_path / "again"
    assert run([*command[:2], str(out), *command[3:], "--contrast", "right_hand"]) == 0  # stop is not needed
    assert (
        run([*command[:2], str(tmp_path / "all"), *command[3:]]) == 1
    )  # every condition, go too: said, the others made
    assert "task-stop" in capsys.readouterr().err
    assert list((tmp_path / "all/sub-01").rglob("*RightHand*stat-z*.nii.gz"))
    assert list((tmp_path / "all/group").rglob("*RightHand*stat-z*.nii.gz"))
    again = [*command[:2], str(tmp_path / "all"), *command[3:]]
    assert run(again) == 1  # it does not count as finished, and is said again
    assert "task-stop" in capsys.readouterr().err
    assert not (tmp_path / "all" / index_path("01")).exists()
    for path in root.rglob("*task-stop*"):
        path.unlink()
    assert run(again) == 0
    assert (tmp_path / "all" / index_path("01")).exists()


def test_hcp_trees_are_read_too(hcp_tree_with_movement, tmp_path):
    """HCP's EVs, masks and movement regressors, through the same command."""
    out = tmp_path / "out"
    assert (
        run(["glm", str(hcp_tree_with_movement), str(out), "--unit", "run", "--participant-label", "sub-100307"]) == 0
    )
    about = json.loads(next(out.rglob("sub-100307*motorRh_stat-effect*.json")).read_text())
    assert "confounds (auto)" in about["Model"]


@pytest.fixture
def hcp_tree_with_movement(tmp_path: Path) -> Path:
    from tests.prepare.conftest import make_hcp_run

    rng = np.random.default_rng(0)
    for direction in ("LR", "RL"):
        one = make_hcp_run(
            tmp_path / "hcp", "100307", f"MOTOR_{direction}", {"rh": [(11.0, 12.0)], "lh": [(35.0, 12.0)]}
        )
        np.savetxt(one.folder / "Movement_Regressors.txt", rng.normal(size=(90, 12)))
    return tmp_path / "hcp"


def test_frame_times_of_the_design(root):
    (first, _) = runs(root)
    design = run_design(first, condition_names([first]), PLAIN)
    np.testing.assert_allclose(design.index[:3], [0.97, 2.97, 4.97])
    assert list(scan_run(first, np.ones((8, 8, 8), bool), PLAIN).kept) == list(range(60))


def test_dry_run_checks_the_same_and_lists_the_doubts(root, tmp_path, capsys):
    command = ["glm", str(root), str(tmp_path / "out"), "--unit", "run"]
    wrong = ["--contrast", "rigth_hand", "--contrast", "left_hnad - right_hand"]
    for how in ([], ["--dry-run"]):
        assert run([*command, *wrong, *how]) == 2
        said = capsys.readouterr().err
        assert "'rigth_hand'; did you mean right_hand" in said
        assert "'left_hnad'; did you mean left_hand" in said
    rewrite_events(root, 1, lambda text: text + "140\t15\tleft-hand\n")
    assert run([*command, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "TR 2 s, first frame at 0.97 s (StartTime of the sidecar)" in said
    assert "warning: " in said
    assert "1 of 4 events begin after the end" in said


def test_labels_of_participants_with_and_without_sub(root, tmp_path):
    out = tmp_path / "out"
    assert (
        run(["glm", str(root), str(out), "--unit", "run", "--set", "reports=false", "--participant-label", "sub-01"])
        == 0
    )
    with pytest.raises(UsageError, match=r"there is no sub-07; found 1: 01"):
        run_glm(root, out, PLAIN, participant_labels=["sub-07"])


def test_an_effect_that_hangs_on_a_clock_that_nobody_says(root):
    """A confound that follows the task takes up what a wrong clock leaves: a quarter of the effect, known from the design."""
    for path in root.rglob("*_bold.json"):
        path.write_text('{"RepetitionTime": 2.0}')
    _, doubts = right(root)
    assert doubts == ()
    response = run_design(runs(root)[0], {"right hand": "right", "left-hand": "left"}, PLAIN)["right"].to_numpy()
    rng = np.random.default_rng(1)
    for path in root.rglob("*_desc-confounds_timeseries.tsv"):
        lines = [line.split("\t") for line in path.read_text().splitlines()]
        for cells, value in zip(
            lines[1:], np.roll(response, 1) + 0.05 * rng.standard_normal(len(response)), strict=True
        ):
            cells[lines[0].index("trans_x")] = f"{value:.4f}"
        path.write_text("\n".join("\t".join(cells) for cells in lines) + "\n")
    with pytest.raises(
        FmrisynthError, match=r"_run-1_.*bold\.nii\.gz: no file says which moment .*right_hand would be wrong"
    ):
        right(root)
    for moment in (0.0, 0.5):  # whoever says it is believed
        right(root, PLAIN.model_copy(update={"slice_time_ref": moment}))
    for path in root.rglob("*_bold.json"):
        path.write_text('{"RepetitionTime": 2.0, "SliceTimingCorrected": false}')
    right(root)

"""The reader of runs: one clock, and every doubt about a run by name."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fmrisynth.bids.confounds import read_confounds
from fmrisynth.bids.discover import BidsSource, open_source
from fmrisynth.bids.runs import Run
from fmrisynth.conditions import load_table
from fmrisynth.config.glm import GlmConfig
from fmrisynth.config.prepare import PrepareConfig
from fmrisynth.errors import FmrisynthError
from fmrisynth.glm.run_model import fit_runs
from fmrisynth.prepare import plan_prepare
from tests.prepare.conftest import make_hcp_run

STEM = "sub-01_task-hand"
SPACE = f"{STEM}_space-MNI152NLin6Asym_desc-preproc"
AFFINE = np.diag([8.0, 8, 8, 1])
EVENTS = [(10, 15, "left"), (40, 15, "right")]


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def table(rows, header=("onset", "duration", "trial_type")) -> str:
    return "\n".join("\t".join(map(str, row)) for row in [header, *rows]) + "\n"


def image(path: Path, n_frames: int = 40, tr_s: float = 2.0, affine=AFFINE, *, codes=(4, 4), qform=None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    bold = nib.Nifti1Image(np.full((4, 4, 4, n_frames), 1000, np.int16), affine)
    bold.set_sform(affine, codes[0])
    bold.set_qform(affine if qform is None else qform, codes[1])
    bold.header.set_xyzt_units("mm", "sec")
    bold.header.set_zooms((8, 8, 8, tr_s))
    nib.save(bold, path)
    return path


def study(root: Path, *, sidecar: dict | None = None, events: str = table(EVENTS), **kwargs) -> Path:
    """A raw dataset with fMRIPrep's output; one run."""
    write(root / "dataset_description.json", {"Name": "x", "BIDSVersion": "1.8.0"})
    func = root / "derivatives/fmriprep/sub-01/func"
    image(func / f"{SPACE}_bold.nii.gz", **kwargs)
    write(func / f"{SPACE}_bold.json", {"RepetitionTime": 2.0} if sidecar is None else sidecar)
    write(root / f"sub-01/func/{STEM}_events.tsv", events)
    return root


def only_run(root: Path, config=None, images="mni") -> Run:
    (run,) = open_source(root, config or PrepareConfig(), load_table(), images=images).runs("01")
    return run


def problems(run: Run) -> list[tuple[str, str]]:
    return [(problem.name, problem.severity) for problem in run.problems]


@pytest.mark.parametrize(
    ("sidecar", "first_frame_s"),
    [
        ({}, 1.0),
        ({"SliceTimingCorrected": False}, 1.0),
        ({"SliceTimingCorrected": True}, 1.0),  # fMRIPrep before 21 corrected to the middle and wrote no StartTime
        ({"SliceTimingCorrected": True, "StartTime": 0.0}, 0.0),
        ({"SliceTimingCorrected": True, "StartTime": 0.97}, 0.97),
        ({"StartTime": 0.97}, 0.97),
        ({"SliceTimingCorrected": False, "StartTime": 0.97}, 1.0),
        ({"DelayTime": 0.8}, 0.6),
    ],
)
def test_one_clock_for_prepare_and_glm(tmp_path: Path, sidecar: dict, first_frame_s: float) -> None:
    root = study(tmp_path, sidecar={"RepetitionTime": 2.0} | sidecar)
    for_blocks, for_runs = only_run(root), only_run(root, GlmConfig(unit="run"), "any")
    assert for_blocks.timing == for_runs.timing
    assert for_blocks.timing.first_frame_s == pytest.approx(first_frame_s)
    assert for_blocks.timing.clock


def test_the_middle_of_the_repetition_time_can_be_changed(tmp_path: Path) -> None:
    assert only_run(study(tmp_path), PrepareConfig(slice_time_ref=0)).timing.first_frame_s == 0


def test_start_time_outside_the_repetition_time(tmp_path: Path) -> None:
    run = only_run(study(tmp_path, sidecar={"RepetitionTime": 2.0, "StartTime": 970}))
    with pytest.raises(FmrisynthError, match=r"StartTime within the repetition time \(0 to 2 s\).*found 970 s"):
        run.check()


def test_repetition_time_along_the_inheritance_chain(tmp_path: Path) -> None:
    root = study(tmp_path, sidecar={"SkullStripped": False}, tr_s=2.0)
    write(root / "derivatives/fmriprep/task-hand_bold.json", {"RepetitionTime": 2.0, "StartTime": 0.5})
    assert only_run(root).timing.first_frame_s == 0.5
    write(root / "derivatives/fmriprep/task-hand_bold.json", {"RepetitionTime": 1.0})
    for config, images in ((PrepareConfig(), "mni"), (GlmConfig(unit="run"), "any")):
        with pytest.raises(FmrisynthError, match=r"the header says TR 2 s, the sidecar 1 s.*source_tr_s"):
            only_run(root, config, images).check()
        known = config.model_copy(update={"source_tr_s": 2.0})
        assert only_run(root, known, images).check()[1].tr_s == 2.0


def test_sidecars_and_events_of_others_are_not_taken(tmp_path: Path) -> None:
    root = study(tmp_path)
    (root / f"sub-01/func/{STEM}_events.tsv").unlink()
    func = root / "derivatives/fmriprep/sub-01/func"
    for entity in ("acq-slow", "ce-gadolinium", "rec-moco", "echo-1"):
        write(root / f"sub-01/func/{STEM}_{entity}_events.tsv", table(EVENTS))
        write(func / f"{STEM}_{entity}_bold.json", {"RepetitionTime": 7.0})
        write(func / f"{STEM}_{entity}_desc-confounds_timeseries.tsv", "trans_x\n" * 3)
    write(root / "sub-02/func/task-hand_bold.json", {"RepetitionTime": 9.0})  # of another participant's folder
    run = only_run(root)
    assert (run.events, run.confounds_file) == ((), None)
    assert run.metadata["RepetitionTime"] == 2.0


def test_echoes_are_no_runs_of_their_own(tmp_path: Path) -> None:
    root = study(tmp_path)
    func = root / "derivatives/fmriprep/sub-01/func"
    for echo in (1, 2, 3):
        image(func / f"{STEM}_echo-{echo}_desc-preproc_bold.nii.gz")
    assert only_run(root, GlmConfig(unit="run"), "any").name.endswith(f"{SPACE}_bold.nii.gz")
    (func / f"{SPACE}_bold.nii.gz").unlink()
    run = only_run(root, GlmConfig(unit="run"), "any")  # three echoes, one run
    assert problems(run) == [("echo", "error")]
    with pytest.raises(FmrisynthError, match=r"echo-1_desc-preproc_bold\.nii\.gz: this is one echo"):
        run.check()


def test_run_1_and_run_01_belong_together(tmp_path: Path) -> None:
    write(tmp_path / "dataset_description.json", {"Name": "x", "BIDSVersion": "1.8.0"})
    func = tmp_path / "derivatives/fmriprep/sub-01/func"
    image(func / "sub-01_task-hand_run-1_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz")
    write(func / "sub-01_task-hand_run-01_desc-confounds_timeseries.tsv", "trans_x\n" + "0.1\n" * 40)
    write(tmp_path / "sub-01/func/sub-01_task-hand_run-01_events.tsv", table(EVENTS))
    run = only_run(tmp_path)
    assert len(run.events) == 2
    assert run.confounds is not None


def test_two_pipelines_are_said(tmp_path: Path) -> None:
    root = study(tmp_path)
    image(root / f"derivatives/other/sub-01/func/{SPACE}_bold.nii.gz")
    run = only_run(root)
    assert "fmriprep" in str(run.bold)
    assert problems(run) == [("pipelines", "warning")]
    chosen = only_run(root, PrepareConfig(derivatives=(root / "derivatives/other",)))
    assert "other" in str(chosen.bold)
    assert chosen.problems == ()


def test_sides_that_cannot_be_known(tmp_path: Path) -> None:
    with pytest.raises(FmrisynthError, match=r"expected an sform or qform.*which side is left cannot be known"):
        only_run(study(tmp_path / "none", codes=(0, 0))).check()
    flipped = AFFINE.copy()
    flipped[0, 0] = -8
    run = only_run(study(tmp_path / "both", qform=flipped))
    assert problems(run) == [("orientation", "warning")]
    assert "sform and qform of the header differ by up to 48 mm; the sform is taken" in run.warnings[0]
    assert only_run(study(tmp_path / "q", codes=(0, 1))).problems == ()


MILLISECONDS = [(1000 * onset, 1000 * duration, name) for onset, duration, name in EVENTS]


@pytest.mark.parametrize(
    ("events", "severity", "message"),
    [
        (table(MILLISECONDS), "error", "between 10000 and 40000 s, the run .* lasts 80 s; onsets must be in seconds"),
        (table([(0, 0, "left"), *MILLISECONDS]), "error", "onsets must be in seconds"),
        (table([*EVENTS, (90, 15, "left")]), "warning", "1 of 3 events begin after the end of the run"),
        (table([*EVENTS, EVENTS[0]]), "warning", "1 rows repeat an event"),
        (table([*EVENTS, (60, 5, "Left")]), "warning", "'Left' and 'left' differ in spelling only"),
        (table([(1, 2, 3)], ("onset", "duration", "kind")), "warning", "expected a column named trial_type, found onset"),
        (
            table([(10, 5, "a", 1), (20, 5, "b", 1), (10, 5, "b", 2), (20, 5, "a", 2)], ("onset", "duration", "trial_type", "run")),
            "error", r"its column run names several runs \(1, 2\) whose onsets start again",
        ),
        (
            table([(0, 5, "a"), (70, 5, "b"), (2, 5, "a"), (71, 5, "b")]),
            "warning", "the onsets start again 1 times",
        ),
        ("onset\tduration\ttrial_type\n1,5\t2\ta\n", "error", "decimal commas"),
    ],
)  # fmt: skip
def test_doubts_about_events(tmp_path: Path, events: str, severity: str, message: str) -> None:
    import re

    run = only_run(study(tmp_path, events=events))
    (problem,) = run.problems
    assert problem.severity == severity
    assert re.search(message, problem.text), problem.text
    assert f"{STEM}_events.tsv" in problem.text


def test_events_listed_by_trial_type_are_no_doubt(tmp_path: Path) -> None:
    rows = [(0, 5, "a"), (70, 5, "a"), (2, 5, "b"), (71, 5, "b")]
    assert only_run(study(tmp_path, events=table(rows))).problems == ()


def test_a_broken_run_does_not_hide_the_others(tmp_path: Path) -> None:
    root = study(tmp_path)
    func = root / "derivatives/fmriprep/sub-01/func"
    other = "sub-01_task-rest_space-MNI152NLin6Asym_desc-preproc"
    write(func / f"{other}_bold.nii.gz", "no image")
    write(func / f"{other}_bold.json", "{")
    hand, rest = BidsSource(root, PrepareConfig()).runs("01")
    assert hand.problems == ()
    assert problems(rest) == [("sidecar", "error"), ("image", "error")]


def test_a_broken_run_of_another_task_does_not_hide_a_condition(tmp_path: Path) -> None:
    root = study(tmp_path)
    func = root / "derivatives/fmriprep/sub-01/func"
    image(func / "sub-01_task-rest_echo-1_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz")
    other = "sub-01_task-stop_space-MNI152NLin6Asym_desc-preproc"
    write(func / f"{other}_bold.nii.gz", "no image")
    write(func / f"{other}_bold.json", {"RepetitionTime": "2.0"})
    write(root / "sub-01/func/sub-01_task-stop_events.tsv", table([(1, 2, 3)], ("onset", "duration", "kind")))
    lines = plan_prepare(root, PrepareConfig(conditions=("hand_left",)))
    assert lines[1].endswith("1 blocks")
    lines = plan_prepare(root, PrepareConfig(conditions=("all",)))
    assert lines[1].endswith("2 blocks")
    assert any("stop_events.tsv: expected a column named trial_type" in line for line in lines)


def test_confounds_that_cannot_be_read_matter_to_those_who_need_them(tmp_path: Path) -> None:
    root = study(tmp_path)
    write(root / f"derivatives/fmriprep/sub-01/func/{STEM}_desc-confounds_timeseries.tsv", "")
    run = only_run(root)
    run.check()
    assert problems(run) == [("confounds", "warning")]
    with pytest.raises(FmrisynthError, match=r"confounds_timeseries\.tsv: the table is empty"):
        fit_runs([run], GlmConfig(unit="run"))


def test_surfaces_are_not_enough(tmp_path: Path) -> None:
    write(tmp_path / "dataset_description.json", {"Name": "x", "BIDSVersion": "1.8.0"})
    write(tmp_path / "sub-01/func/sub-01_task-hand_space-fsLR_den-91k_bold.dtseries.nii", "")
    write(tmp_path / "sub-01/func/sub-01_task-hand_hemi-L_space-fsaverage5_bold.func.gii", "")
    for config, images in ((PrepareConfig(), "mni"), (GlmConfig(unit="run"), "any")):
        with pytest.raises(FmrisynthError, match=r"2 BOLD files on surfaces \(GIFTI or CIFTI.*volumes are needed"):
            open_source(tmp_path, config, load_table(), images=images).subjects()


def test_grayordinates_of_hcp_are_not_enough(tmp_path: Path) -> None:
    run = make_hcp_run(tmp_path, "100307", "MOTOR_LR", {"rh": [(11.0, 12.0)]})
    run.bold.rename(run.folder / "tfMRI_MOTOR_LR_Atlas_MSMAll.dtseries.nii")
    with pytest.raises(
        FmrisynthError, match=r"dtseries\.nii: .* no volumes; volumes are needed: tfMRI_MOTOR_LR\.nii\.gz"
    ):
        open_source(tmp_path, PrepareConfig(), load_table()).runs("100307")


def test_confounds_in_names_of_all_times(tmp_path: Path) -> None:
    new = write(tmp_path / "new.tsv", table(
        [("n/a", 0.1, 1, 0), (0.2, 0.2, 0, 0), (0.4, 0.2, 0, 1)],
        ("trans_x", "white_matter", "non_steady_state_outlier00", "motion_outlier00"),
    ))  # fmt: skip
    old = write(tmp_path / "old.tsv", table(
        [("n/a", 0.1, 1), (0.2, 0.2, 0), (0.4, 0.2, 0)], ("X", "WhiteMatter", "NonSteadyStateOutlier00"),
    ))  # fmt: skip
    found = read_confounds(new, 3)
    assert found.bad_frames == {0, 2}
    np.testing.assert_allclose(found.regressors("auto")["trans_x"], [0.3, 0.2, 0.4])  # the mean where it is n/a
    same = read_confounds(old, 3)
    assert list(same.regressors("auto")) == ["trans_x", "white_matter"]
    assert same.bad_frames == {0}


def test_strategies_are_nilearns(tmp_path: Path) -> None:
    """Against nilearn's own selection of columns and frames, on a table like fMRIPrep's."""
    from nilearn.interfaces.fmriprep import load_confounds_strategy

    rng = np.random.default_rng(1)
    names = [
        f"{a}_{b}{c}"
        for a in ("trans", "rot")
        for b in "xyz"
        for c in ("", "_derivative1", "_power2", "_derivative1_power2")
    ]
    names += [
        f"{a}{c}" for a in ("csf", "white_matter") for c in ("", "_derivative1", "_power2", "_derivative1_power2")
    ]
    columns = {name: rng.normal(size=60) for name in names}
    columns |= {"framewise_displacement": rng.uniform(0, 0.3, 60), "std_dvars": rng.uniform(0.8, 1.2, 60)}
    columns["framewise_displacement"][[20, 23, 40]] = 0.9
    columns |= {f"cosine0{k}": rng.normal(size=60) for k in range(2)}
    columns |= {f"non_steady_state_outlier0{k}": np.eye(60)[k] for k in range(2)}
    image(tmp_path / f"{SPACE}_bold.nii.gz", 60)
    write(tmp_path / f"{STEM}_desc-confounds_timeseries.json", {})
    path = write(
        tmp_path / f"{STEM}_desc-confounds_timeseries.tsv", table(zip(*columns.values(), strict=True), tuple(columns))
    )
    ours = read_confounds(path, 60)
    for strategy in ("simple", "scrubbing"):
        theirs, kept = load_confounds_strategy(str(tmp_path / f"{SPACE}_bold.nii.gz"), denoise_strategy=strategy)
        assert set(ours.regressors(strategy)) == {name for name in theirs.columns if not name.startswith("cosine")}
        assert sorted(set(range(60)) - set(map(int, kept))) == sorted(ours.dropped(strategy))

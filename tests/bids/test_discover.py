"""BIDS datasets: which image, mask, events and sidecar belong together. Most images are empty files."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path

import pytest

from fmrisynth.bids.discover import BidsSource, open_source
from fmrisynth.bids.events import Event
from fmrisynth.bids.sources import choose_subjects, read_participants
from fmrisynth.conditions import load_table
from fmrisynth.config.prepare import PrepareConfig
from fmrisynth.errors import FmrisynthError, UsageError

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
TABLE = load_table()
EVENTS = "onset\tduration\ttrial_type\n1\t20\tface\n"


def touch(root: Path, *names: str, text: str = "") -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def describe(root: Path, kind: str = "raw") -> None:
    touch(root, "dataset_description.json", text=json.dumps({"Name": "x", "BIDSVersion": "1.8.0", "DatasetType": kind}))


def fmriprep_like(tmp_path: Path) -> Path:
    root = tmp_path / "ds"
    deriv = root / "derivatives" / "fmriprep"
    describe(root)
    describe(deriv, "derivative")
    touch(root, "sub-01/ses-a/func/sub-01_ses-a_task-faces_dir-ap_run-01_bold.nii.gz")
    touch(root, "sub-01/ses-a/func/sub-01_ses-a_task-faces_dir-ap_run-01_events.tsv", text=EVENTS)
    touch(root, "sub-01/ses-a/func/sub-01_ses-a_task-faces_dir-pa_run-02_bold.nii.gz")
    touch(root, "task-faces_events.tsv", text=EVENTS.replace("face", "house"))
    touch(root, "task-faces_bold.json", text=json.dumps({"RepetitionTime": 2.0, "PhaseEncodingDirection": "j"}))
    for stem in ("sub-01_ses-a_task-faces_dir-ap_run-1", "sub-01_ses-a_task-faces_dir-pa_run-2"):
        func = "sub-01/ses-a/func/"
        for space in ("space-MNI152NLin2009cAsym_res-2", "space-MNI152NLin6Asym_res-2", "space-T1w"):
            touch(
                deriv, f"{func}{stem}_{space}_desc-preproc_bold.nii.gz", f"{func}{stem}_{space}_desc-brain_mask.nii.gz"
            )
        touch(deriv, f"{func}{stem}_space-MNI152NLin6Asym_desc-smoothAROMAnonaggr_bold.nii.gz")
        touch(
            deriv, f"{func}{stem}_space-MNI152NLin6Asym_res-2_desc-preproc_bold.json",
            text=json.dumps({"RepetitionTime": 2.0, "StartTime": 0.95}),
        )  # fmt: skip
    return root


def test_fmriprep(tmp_path: Path) -> None:
    root = fmriprep_like(tmp_path)
    source = open_source(root, PrepareConfig(), TABLE)
    assert source.kind == "bids"
    assert source.subjects() == ["01"]
    assert source.tasks() == ["faces"]
    first, second = source.runs("01")
    assert first.name.endswith("dir-ap_run-1_space-MNI152NLin6Asym_res-2_desc-preproc_bold.nii.gz")
    assert first.mask is not None
    assert first.mask.name.endswith("dir-ap_run-1_space-MNI152NLin6Asym_res-2_desc-brain_mask.nii.gz")
    assert (first.session, first.task, first.space) == ("a", "faces", "MNI152NLin6Asym")
    assert (first.metadata["RepetitionTime"], first.metadata["StartTime"], first.phase_encoding) == (2.0, 0.95, "ap")
    assert first.events == (Event(1, 20, "face"),)  # its own file, run-01 for run-1
    assert second.events == (Event(1, 20, "house"),)  # inherited from the root


def test_derivatives_elsewhere(tmp_path: Path) -> None:
    root = fmriprep_like(tmp_path)
    elsewhere = tmp_path / "out" / "prep"
    elsewhere.parent.mkdir()
    (root / "derivatives" / "fmriprep").rename(elsewhere)
    from_raw = BidsSource(root, PrepareConfig(derivatives=(elsewhere,))).runs("01")
    from_derivative = BidsSource(elsewhere, PrepareConfig(raw=root)).runs("01")
    assert [run.events for run in from_raw] == [run.events for run in from_derivative]
    assert len(from_raw[0].events) == 1
    assert BidsSource(elsewhere, PrepareConfig()).runs("01")[0].events == ()  # no raw data, no events: said in the plan
    with pytest.raises(UsageError, match="no such derivatives folder"):
        BidsSource(root, PrepareConfig(derivatives=(tmp_path / "nowhere",))).subjects()


def test_native_takes_the_raw_image(tmp_path: Path) -> None:
    root = fmriprep_like(tmp_path)
    first, second = BidsSource(root, PrepareConfig(), "native").runs("01")
    assert first.name == "sub-01/ses-a/func/sub-01_ses-a_task-faces_dir-ap_run-01_bold.nii.gz"
    assert (first.space, first.mask) == (None, None)
    assert second.events == (Event(1, 20, "house"),)


def test_hcp_in_bids_without_events(tmp_path: Path) -> None:
    root = tmp_path / "xcpd"
    describe(root, "derivative")
    stem = "sub-100307/func/sub-100307_task-GAMBLING_dir-LR_space-MNI152NLin6Asym_res-2_desc-"
    touch(root, f"{stem}preproc_bold.nii.gz", f"{stem}brain_mask.nii.gz")
    (run,) = open_source(root, PrepareConfig(), TABLE).runs("100307")
    assert (run.task, run.phase_encoding, run.events) == ("GAMBLING", "LR", ())
    assert run.mask is not None


def test_sessions_and_participants(tmp_path: Path) -> None:
    root = fmriprep_like(tmp_path)
    touch(root, "sub-02/func/sub-02_task-faces_bold.nii.gz")
    source = BidsSource(root, PrepareConfig())
    assert source.subjects() == ["01", "02"]
    with pytest.raises(FmrisynthError, match="participant 02 has no BOLD image in MNI space"):
        source.runs("02")
    assert choose_subjects(root, source.subjects(), ["sub-02", "02"]) == ["02"]
    assert choose_subjects(root, ["01", "02", "03"], ["sub-03,01"]) == ["01", "03"]
    with pytest.raises(FmrisynthError, match="none of them in MNI space"):
        BidsSource(root, PrepareConfig(sessions=("ses-b",))).subjects()


def test_multi_echo_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "ds"
    describe(root)
    touch(root, *(f"sub-01/func/sub-01_task-x_echo-{echo}_bold.nii.gz" for echo in (1, 2)))
    (run,) = BidsSource(root, PrepareConfig(), "native").runs("01")
    with pytest.raises(FmrisynthError, match="combine the echoes"):
        run.check()


def test_duplicated_participants(tmp_path: Path) -> None:
    table = "participant_id\tsex\nsub-01\tF\nsub-01\tF\n"
    touch(tmp_path, "participants.tsv", text=table)
    assert read_participants(tmp_path) == {"01": {"participant_id": "sub-01", "sex": "F"}}
    touch(tmp_path, "participants.tsv", text=table + "sub-01\tM\n")
    with pytest.raises(FmrisynthError, match="sub-01 is listed twice with different values"):
        read_participants(tmp_path)


def test_database_is_built_once_and_then_only_read(tmp_path: Path) -> None:
    root, database = fmriprep_like(tmp_path), tmp_path / "db"
    config = PrepareConfig(bids_database_dir=database)
    names = [run.name for run in BidsSource(root, config).runs("01")]
    files = sorted(database.rglob("*.sqlite"))
    assert len(files) == 2  # raw and derivatives
    before = [(path.stat().st_mtime_ns, path.read_bytes()) for path in files]
    lock = sqlite3.connect(f"file:{files[0]}?mode=ro", uri=True)  # another job reads at the same time
    lock.execute("begin")
    lock.execute("select count(*) from files").fetchone()
    for path in files:
        path.chmod(0o444)
        path.parent.chmod(0o555)
    try:
        touch(root, "sub-07/func/sub-07_task-faces_run-01_bold.nii.gz")  # not seen: the index is not rebuilt
        again = BidsSource(root, config)
        assert again.subjects() == ["01"]
        assert [run.name for run in again.runs("01")] == names
    finally:
        lock.close()
        for path in files:
            path.parent.chmod(0o755)
    assert [(path.stat().st_mtime_ns, path.read_bytes()) for path in files] == before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "found neither"),
        (lambda root: (root / "MNINonLinear" / "Results").mkdir(parents=True), "this is one HCP subject"),
        (lambda root: touch(root, "sub-01/sub-01_scans.tsv", text="filename\tn_frames\n"), "was prepared already"),
    ],
)
def test_layouts_that_are_none(tmp_path: Path, make, message: str) -> None:
    make(tmp_path)
    with pytest.raises(UsageError, match=message):
        open_source(tmp_path, PrepareConfig(), TABLE)
    with pytest.raises(UsageError, match="there is no such folder"):
        open_source(tmp_path / "nowhere", PrepareConfig(), TABLE)


def test_hcp_tree_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "100307" / "MNINonLinear" / "Results").mkdir(parents=True)
    assert open_source(tmp_path, PrepareConfig(), TABLE).kind == "hcp"
    with pytest.raises(UsageError, match="HCP runs are in MNI space already"):
        open_source(tmp_path, PrepareConfig(), TABLE, images="native")


def shared(name: str) -> Path:
    path = SHARED_DATA / name
    if not path.is_dir():
        pytest.skip(f"the real data are not at {path}")
    return path


def test_real_fmriprep_tree() -> None:
    root = shared("bids-skeletons")
    config = PrepareConfig(derivatives=(root / "ds000001-fmriprep",))
    source = open_source(root / "ds001", config, TABLE)
    assert source.subjects() == ["10", "11"]
    runs = source.runs("10")
    assert [run.entities["run"] for run in runs] == ["1", "2", "3"]
    assert {run.space for run in runs} == {"MNI152NLin2009cAsym"}
    assert all("desc-preproc" in run.name and run.mask is not None and run.mask.exists() for run in runs)
    assert all(len(run.events) > 100 for run in runs)  # run-01 of the raw data for run-1 of the derivatives
    assert runs[0].metadata["RepetitionTime"] == 2.0


def test_real_tree_with_sessions_and_inherited_events() -> None:
    root = shared("bids-skeletons") / "synthetic"
    runs = open_source(root, PrepareConfig(), TABLE).runs("01")
    assert len(runs) == 6
    assert all(run.space == "MNI152NLin2009cAsym" for run in runs)
    nback = [run for run in runs if run.task == "nback"]
    assert [(run.session, run.entities["run"]) for run in nback] == [
        ("01", "01"),
        ("01", "02"),
        ("02", "01"),
        ("02", "02"),
    ]
    assert all(len(run.events) > 30 and run.metadata["RepetitionTime"] == 2.5 and run.mask is not None for run in nback)
    assert all(run.events == () for run in runs if run.task == "rest")


def test_real_events_without_images() -> None:
    with pytest.raises(FmrisynthError, match=r"expected BOLD images.*found none and 140 events files"):
        BidsSource(shared("ibc-hcp-events"), PrepareConfig()).subjects()


def test_unreadable_folder(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    describe(tmp_path)
    touch(tmp_path, "sub-01/func/sub-01_task-x_bold.nii.gz")
    (tmp_path / "sub-01").chmod(0)
    try:
        with pytest.raises(FmrisynthError):
            BidsSource(tmp_path, PrepareConfig(), "native").subjects()
    finally:
        (tmp_path / "sub-01").chmod(0o755)

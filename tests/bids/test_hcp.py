"""HCP trees: names, traps and damage. The images are empty files, since the walk does not open them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fmrisynth.bids.events import Event
from fmrisynth.bids.hcp import HcpSource, is_hcp_tree
from fmrisynth.conditions import load_table
from fmrisynth.errors import FmrisynthError

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
TABLE = load_table()


def make_run(root: Path, subject: str, name: str, *, mask: str | None = "brainmask_fs.2.nii.gz", **evs: str) -> Path:
    folder = root / subject / "MNINonLinear" / "Results" / f"tfMRI_{name}"
    (folder / "EVs").mkdir(parents=True)
    (folder / f"tfMRI_{name}.nii.gz").touch()
    if mask:
        (folder / mask).touch()
    for stem, text in evs.items():
        (folder / "EVs" / f"{stem}.txt").write_text(text)
    return folder


def test_walk(tmp_path: Path) -> None:
    make_run(tmp_path, "100307", "WM_RL", **{"2bk_places": "10\t27.5\t1\n"})
    make_run(tmp_path, "100307", "WM_LR", **{"2bk_places": "20\t27.5\t1\n"})
    make_run(tmp_path, "100307", "EMOTION_AP", fear="", neut="5\t18\t1\n")
    (tmp_path / "100307/MNINonLinear/Results/rfMRI_REST1_LR").mkdir()
    (tmp_path / "100307/MNINonLinear/Results/tfMRI_MOTOR_LR").mkdir()  # a folder without its image: a missing run
    (tmp_path / "100307/MNINonLinear/Results/tfMRI_WM").mkdir()  # HCP's level-2 results
    (tmp_path / "release-notes").mkdir()
    source = HcpSource(tmp_path, TABLE)
    assert source.subjects() == ["100307"]
    runs = source.runs("100307")
    assert [(run.task, run.phase_encoding) for run in runs] == [("EMOTION", "AP"), ("WM", "LR"), ("WM", "RL")]
    assert runs[0].events == (Event(5, 18, "neut"),)
    assert runs[1].events == (Event(20, 27.5, "2bk_places"),)
    assert runs[1].name == "100307/MNINonLinear/Results/tfMRI_WM_LR/tfMRI_WM_LR.nii.gz"
    assert all(run.events_are_blocks and run.space == "MNI152NLin6Asym" for run in runs)


@pytest.mark.parametrize("name", ["brainmask_fs.2.nii.gz", "brainmask_fs.2.0.nii.gz", "brainmask_fs.nii.gz", None])
def test_mask_names(tmp_path: Path, name: str | None) -> None:
    make_run(tmp_path, "100307", "MOTOR_LR", mask=name)
    (run,) = HcpSource(tmp_path, TABLE).runs("100307")
    assert (run.mask.name if run.mask else None) == name


def test_traps_beside_the_ev_files_are_never_opened(tmp_path: Path) -> None:
    folder = make_run(
        tmp_path, "100307", "GAMBLING_LR", loss="10\t28\t1\n", loss_event="not an EV at all\n", Sync="8.06\n",
        neut_event="", win="",
    )  # fmt: skip
    (folder / "EVs" / "GAMBLING_Stats.csv").write_text("a,b\n")
    (run,) = HcpSource(tmp_path, TABLE).runs("100307")
    assert run.events == (Event(10, 28, "loss"),)


def test_other_spelling_of_an_ev_file(tmp_path: Path) -> None:
    make_run(tmp_path, "100307", "SOCIAL_LR", ment="10\t23\t1\n")
    (run,) = HcpSource(tmp_path, TABLE).runs("100307")
    assert run.events == (Event(10, 23, "mental"),)


def test_condition_outside_the_table(tmp_path: Path) -> None:
    make_run(tmp_path, "100307", "MOTOR_LR", rh="1\t12\t1\n", cue="8\t3\t1\n")
    (run,) = HcpSource(tmp_path, TABLE, ["motor_cue"]).runs("100307")
    assert run.events == (Event(1, 12, "rh"), Event(8, 3, "cue"))


def test_one_participant_under_two_names(tmp_path: Path) -> None:
    make_run(tmp_path, "100307", "MOTOR_LR")
    make_run(tmp_path, "sub-100307", "MOTOR_LR")
    source = HcpSource(tmp_path, TABLE)
    assert source.subjects() == ["100307"]
    with pytest.raises(FmrisynthError, match="100307, sub-100307 are one participant"):
        source.runs("100307")


def test_unreadable_folder_is_that_participants_failure(tmp_path: Path) -> None:
    make_run(tmp_path, "100307", "MOTOR_LR")
    (tmp_path / "100408" / "MNINonLinear").mkdir(parents=True)
    loop = tmp_path / "100408" / "MNINonLinear" / "Results"
    loop.symlink_to(loop)  # cannot be listed, also not by root
    source = HcpSource(tmp_path, TABLE)
    assert source.subjects() == ["100307", "100408"]
    assert len(source.runs("100307")) == 1
    with pytest.raises(FmrisynthError, match=r"Results: the folder cannot be read .*permissions"):
        source.runs("100408")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_forbidden_folder_is_that_participants_failure(tmp_path: Path) -> None:
    make_run(tmp_path, "100307", "MOTOR_LR")
    make_run(tmp_path, "100408", "MOTOR_LR")
    (tmp_path / "100408").chmod(0)
    try:
        source = HcpSource(tmp_path, TABLE)
        assert source.subjects() == ["100307", "100408"]
        with pytest.raises(FmrisynthError, match="cannot be read"):
            source.runs("100408")
    finally:
        (tmp_path / "100408").chmod(0o755)


def test_real_release_paths(tmp_path: Path) -> None:
    listing = SHARED_DATA / "hcp-layout" / "sub-100206_paths.txt"
    if not listing.exists():
        pytest.skip(f"the HCP layout files are not at {listing.parent}")
    for line in listing.read_text().split():
        path = tmp_path / line
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("10.0\t25.0\t1.0\n" if path.parent.name == "EVs" else "")
    assert is_hcp_tree(tmp_path)
    runs = HcpSource(tmp_path, TABLE).runs("100206")
    assert [(run.task, run.phase_encoding) for run in runs] == [
        ("EMOTION", "LR"), ("EMOTION", "RL"), ("WM", "LR"), ("WM", "RL"),
    ]  # fmt: skip
    assert {event.label for event in runs[0].events} == {"fear", "neut"}
    assert {event.label for event in runs[2].events} == {c.stem for c in TABLE.task_conditions("WM")}
    assert all(run.mask is None for run in runs)  # this part of the release ships none

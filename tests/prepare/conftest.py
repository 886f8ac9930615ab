"""Tiny source trees: real layouts, 8 mm voxels, so that a whole preparation takes a fraction of a second."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

SHAPE = (23, 28, 23)
AFFINE = np.array([[-8.0, 0, 0, 90], [0, 8, 0, -126], [0, 0, 8, -72], [0, 0, 0, 1]])
"""HCP's box at 8 mm, with HCP's left-handed X axis."""


def brain(shape=SHAPE, affine=AFFINE) -> np.ndarray:
    """An ellipsoid about where the MNI brain is."""
    index = np.indices(shape).reshape(3, -1)
    xyz = (affine[:3, :3] @ index + affine[:3, 3:]).reshape(3, *shape)
    centre = np.array([0, -18, 8]).reshape(3, 1, 1, 1)
    radii = np.array([66, 84, 70]).reshape(3, 1, 1, 1)
    return (((xyz - centre) / radii) ** 2).sum(axis=0) < 1


def make_bold(n_frames: int, seed: int, shape=SHAPE, affine=AFFINE) -> np.ndarray:
    """Smooth anatomy times slowly varying percent signal, int16 (X, Y, Z, T)."""
    rng = np.random.default_rng(seed)
    inside = brain(shape, affine)
    anatomy = (4000 + 500 * rng.standard_normal(shape)) * inside
    signal = 1 + 0.01 * np.cumsum(rng.standard_normal((*shape, n_frames)) * 0.2, axis=-1)
    return (anatomy[..., None] * signal).clip(0, 30000).astype(np.int16)


def save(path: Path, array: np.ndarray, affine=AFFINE, tr_s: float | None = None, *, xform: int = 4) -> Path:
    """Write an image with nibabel, independently of our own writer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, xform)
    image.set_qform(affine, xform)
    if tr_s is not None:
        image.header.set_xyzt_units("mm", "sec")
        image.header.set_zooms((*image.header.get_zooms()[:3], tr_s))
    nib.save(image, path)
    return path


def write_events(path: Path, rows: list[tuple[float, float, str]]) -> Path:
    """A BIDS events table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["onset\tduration\ttrial_type", *(f"{o}\t{d}\t{t}" for o, d, t in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_ev(path: Path, rows: list[tuple[float, float]]) -> Path:
    """An HCP EV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{onset}\t{duration}\t1\n" for onset, duration in rows))
    return path


@dataclass(frozen=True)
class HcpRun:
    """One run folder of a tiny HCP tree."""

    folder: Path

    @property
    def bold(self) -> Path:
        return self.folder / f"{self.folder.name}.nii.gz"

    @property
    def mask(self) -> Path:
        return self.folder / "brainmask_fs.2.nii.gz"

    @property
    def evs(self) -> Path:
        return self.folder / "EVs"


def make_hcp_run(
    root: Path, subject: str, name: str, evs: dict[str, list[tuple[float, float]]], *, n_frames: int = 90, seed: int = 0
) -> HcpRun:
    """Write ``tfMRI_<name>`` of a subject, with the traps of the real release beside it."""
    run = HcpRun(root / subject / "MNINonLinear" / "Results" / f"tfMRI_{name}")
    save(run.bold, make_bold(n_frames, seed), tr_s=0.72)
    save(run.mask, brain().astype(np.uint8))
    for stem, rows in evs.items():
        write_ev(run.evs / f"{stem}.txt", rows)
    (run.evs / "Sync.txt").write_text("8.063\n")
    (run.evs / "loss_event.txt").write_text("3.0\t0.5\t1\n40.0\t0.5\t1\n")
    (run.evs / "neut_event.txt").write_text("")
    (run.evs / "GAMBLING_Stats.csv").write_text("ConditionName,Measure,Value\n")
    return run


GAMBLING = {"loss": [(5.0, 28.0), (40.0, 20.0)], "win": [(34.0, 5.0)]}
MOTOR = {"rh": [(11.009, 12.155), (30.0, 12.0)], "lh": [(23.2, 5.0)], "cue": [(8.0, 3.0)]}


@pytest.fixture
def hcp_tree(tmp_path: Path) -> Path:
    """Two subjects; the second has no MOTOR run."""
    root = tmp_path / "HCP_1200"
    make_hcp_run(root, "100307", "GAMBLING_LR", GAMBLING, seed=1)
    make_hcp_run(root, "100307", "GAMBLING_RL", GAMBLING, seed=2)
    make_hcp_run(root, "100307", "MOTOR_LR", MOTOR, seed=3)
    make_hcp_run(root, "100408", "GAMBLING_LR", GAMBLING, seed=4)
    (root / "100307" / "T1w").mkdir()
    (root / "manifest.txt").write_text("not a subject\n")
    return root


TRIALS = [(5.0 + 3.5 * k, 3.4, "punishment" if k % 4 else "neutral") for k in range(8)]
"""A gambling block: six punishment and two neutral trials, 28 s."""


def make_fmriprep(root: Path, subjects=("01", "02"), *, tr_s: float = 1.0, n_frames: int = 60) -> Path:
    """Raw BIDS with events, and ``derivatives/fmriprep`` with preprocessed images in two spaces."""
    description = {"Name": "tiny", "BIDSVersion": "1.8.0"}
    derivatives = root / "derivatives" / "fmriprep"
    derivatives.mkdir(parents=True)
    (root / "dataset_description.json").write_text(json.dumps(description))
    (derivatives / "dataset_description.json").write_text(
        json.dumps(description | {"DatasetType": "derivative", "GeneratedBy": [{"Name": "fMRIPrep"}]})
    )
    (root / "task-gambling_bold.json").write_text(json.dumps({"RepetitionTime": tr_s, "TaskName": "gambling"}))
    (root / "participants.tsv").write_text(
        "participant_id\tsex\tage\n" + "".join(f"sub-{s}\tF\t{30 + int(s)}\n" for s in subjects)
    )
    for subject in subjects:
        stem = f"sub-{subject}_task-gambling"
        raw = root / f"sub-{subject}" / "func" / f"{stem}_run-01"
        write_events(raw.with_name(f"{raw.name}_events.tsv"), TRIALS)
        save(raw.with_name(f"{raw.name}_bold.nii.gz"), make_bold(n_frames, int(subject)), tr_s=tr_s, xform=1)
        func = derivatives / f"sub-{subject}" / "func"
        for space in ("MNI152NLin6Asym_res-2", "MNI152NLin2009cAsym", "T1w"):
            name = f"{stem}_run-1_space-{space}"  # fMRIPrep may write the run index without its zero
            save(func / f"{name}_desc-preproc_bold.nii.gz", make_bold(n_frames, int(subject)), tr_s=tr_s)
            save(func / f"{name}_desc-brain_mask.nii.gz", brain().astype(np.uint8))
            (func / f"{name}_desc-preproc_bold.json").write_text(json.dumps({"RepetitionTime": tr_s}))
    return root


@pytest.fixture
def fmriprep_tree(tmp_path: Path) -> Path:
    """Two subjects, see `make_fmriprep`."""
    return make_fmriprep(tmp_path / "bids")


@pytest.fixture
def raw_tree(tmp_path: Path) -> Path:
    """One subject in scanner space, oblique, with unknown task and trials of 1 s merged into blocks."""
    root = tmp_path / "raw"
    root.mkdir()
    (root / "dataset_description.json").write_text(json.dumps({"Name": "raw", "BIDSVersion": "1.8.0"}))
    tilt = np.eye(4)
    c, s = np.cos(0.2), np.sin(0.2)
    tilt[1:3, 1:3] = [[c, -s], [s, c]]
    func = root / "sub-02" / "func"
    affine = tilt @ AFFINE
    save(func / "sub-02_task-oneback_run-1_bold.nii.gz", make_bold(40, 5, affine=affine), affine, tr_s=2.0, xform=1)
    faces = [(10.0 + k, 0.9, "face") for k in range(16)]
    houses = [(40.0 + k, 0.9, "house") for k in range(16)]
    write_events(func / "sub-02_task-oneback_run-1_events.tsv", faces + houses)
    return root

"""One run, or a subject's T1w, on disk: as the HCP release or as an fMRIPrep derivative."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fmrisynth.bids.atomic import write_text
from fmrisynth.bids.hcp import T1W, T1W_MASK
from fmrisynth.bids.naming import Entities, image_sidecar
from fmrisynth.bids.origin import PHANTOM
from fmrisynth.bids.sidecars import write_sidecar, write_tsv
from fmrisynth.conditions import load_table
from fmrisynth.data.nifti import write_image
from fmrisynth.simulate.images import write_run
from fmrisynth.simulate.phantom import PhantomRun, PhantomSubject


def hcp_image(run: PhantomRun) -> Path:
    """The image of a run in an HCP tree; the run's last file."""
    return Path(run.subject.label, "MNINonLinear", "Results", run.name, f"{run.name}.nii.gz")


def write_hcp_run(out: Path, run: PhantomRun) -> None:
    """Write a run as ``<id>/MNINonLinear/Results/tfMRI_<TASK>_<PE>/``.

    Beside the image: brain mask, single-band reference, twelve movement regressors (mm, degrees and their
    derivatives), and ``EVs/`` with everything HCP ships there, single trials and ``Sync.txt`` included.
    """
    image = out / hcp_image(run)
    folder = image.parent
    grid, space = run.subject.phantom.grid, run.subject.phantom.space
    table = load_table()
    evs: dict[str, list[tuple[float, float]]] = dict(run.paradigm.tables)
    for event in run.paradigm.events:
        condition = table.conditions.get(event.condition)
        if condition is not None:
            evs.setdefault(condition.stem, []).append((event.onset_s, event.duration_s))
    for name, rows in evs.items():
        write_text(folder / "EVs" / f"{name}.txt", "".join(f"{on:g}\t{duration:g}\t1\n" for on, duration in rows))
    write_text(folder / "EVs" / "Sync.txt", f"{8.0:g}\n")
    motion = run.noise_courses.motion_T6
    columns = np.concatenate([motion, np.gradient(motion, axis=0)], axis=1)
    write_text(
        folder / "Movement_Regressors.txt",
        "".join("  ".join(f"{value:10.6f}" for value in row) + "\n" for row in columns),
    )
    relative = np.sqrt((np.diff(motion[:, :3], axis=0) ** 2).sum(axis=1)).mean()
    write_text(folder / "Movement_RelativeRMS_mean.txt", f"{relative:.6f}\n")
    write_image(folder / "brainmask_fs.2.nii.gz", run.subject.mask_XYZ, grid.affine, dtype="uint8")
    reference = space.to_grid(run.reference_V.astype(np.float32))
    write_image(folder / f"{run.name}_SBRef.nii.gz", reference, grid.affine, dtype="int16")
    write_run(image, run)


def write_hcp_t1w(out: Path, subject: PhantomSubject) -> None:
    """Write a subject's ``MNINonLinear/T1w_restore_brain.nii.gz`` and its mask, on the grid of the runs."""
    values_V, mask_V = subject.t1w()
    space, image = subject.phantom.space, out / subject.label / T1W
    affine = subject.phantom.grid.affine
    write_image(image, space.to_grid(np.where(mask_V, values_V, np.float32(0))), affine, dtype="int16")
    write_image(image.with_name(T1W_MASK), space.to_grid(mask_V), affine, dtype="uint8")


def write_bids_t1w(out: Path, subject: PhantomSubject) -> None:
    """Write a subject's preprocessed T1w, with a rim of scalp, and its mask, on the grid of the runs."""
    values_V, mask_V = subject.t1w()
    space, grid = subject.phantom.space, subject.phantom.grid
    entities = Entities(sub=subject.label, space=grid.space, res=grid.resolution)
    common = {"Resolution": f"{grid.voxel_mm[0]:g} mm isotropic"} | PHANTOM.sidecar()
    image, mask = (
        out / entities.anatomical_path(suffix, ".nii.gz", desc=desc)
        for suffix, desc in (("T1w", "preproc"), ("mask", "brain"))
    )
    write_image(image, space.to_grid(values_V), grid.affine, dtype="int16")
    write_sidecar(image_sidecar(image), {"SkullStripped": False, "Synthetic": True} | common)
    write_image(mask, space.to_grid(mask_V), grid.affine, dtype="uint8")
    write_sidecar(image_sidecar(mask), {"Type": "Brain"} | common)


def _entities(run: PhantomRun) -> Entities:
    grid = run.subject.phantom.grid
    return Entities(
        sub=run.subject.label, task=run.task.lower(), dir=run.direction, space=grid.space, res=grid.resolution
    )


def bids_confounds(run: PhantomRun) -> Path:
    """The confounds of a run in a BIDS derivative; the run's last file."""
    return _entities(run).without_space().path("timeseries", ".tsv", desc="confounds")


def write_bids_run(out: Path, run: PhantomRun) -> None:
    """Write a run as an fMRIPrep-style derivative."""
    grid, entities = run.subject.phantom.grid, _entities(run)
    table = load_table()
    bold = out / entities.path("bold", ".nii.gz", desc="preproc")
    plain = entities.without_space()
    resolution = f"{grid.voxel_mm[0]:g} mm isotropic"
    rows = [
        {"onset": e.onset_s, "duration": e.duration_s, "trial_type": table.conditions[e.condition].stem}
        for e in run.paradigm.events
        if e.condition in table.conditions
    ]
    write_tsv(out / plain.path("events", ".tsv"), ("onset", "duration", "trial_type"), rows)
    write_sidecar(
        out / entities.path("bold", ".json", desc="preproc"),
        {
            "TaskName": run.task.lower(), "RepetitionTime": run.tr_s, "SkullStripped": False, "Resolution": resolution,
            "PhaseEncodingDirection": "i" if run.direction == "RL" else "i-", "StartTime": run.tr_s / 2, "Synthetic": True,
        } | PHANTOM.sidecar(),
    )  # fmt: skip
    write_image(out / entities.path("mask", ".nii.gz", desc="brain"), run.subject.mask_XYZ, grid.affine, dtype="uint8")
    write_sidecar(
        out / entities.path("mask", ".json", desc="brain"),
        {"Type": "Brain", "Resolution": resolution} | PHANTOM.sidecar(),
    )
    signals = write_run(bold, run)
    _write_confounds(out / bids_confounds(run), run, signals)


def _write_confounds(path: Path, run: PhantomRun, signals: np.ndarray) -> None:
    motion = run.noise_courses.motion_T6.astype(np.float64).copy()
    motion[:, 3:] = np.deg2rad(motion[:, 3:])
    steps = np.abs(np.diff(motion, axis=0))
    displacement = steps[:, :3].sum(axis=1) + 50.0 * steps[:, 3:].sum(axis=1)  # Power et al. 2012, 50 mm sphere
    names = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
    rows = []
    for frame in range(run.n_frames):
        row: dict[str, float | None] = {
            "global_signal": float(signals[frame, 0]), "white_matter": float(signals[frame, 1]),
            "csf": float(signals[frame, 2]),
            "framewise_displacement": float(displacement[frame - 1]) if frame else None,
        }  # fmt: skip
        rows.append(row | dict(zip(names, (float(v) for v in motion[frame]), strict=True)))
    write_tsv(path, tuple(rows[0]), rows)

"""Unit anatomy: the T1w of each session on an MNI grid, one frame, within the brain.

Axis legend: X, Y, Z voxel axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fmrisynth.bids import naming
from fmrisynth.bids.digests import files_of
from fmrisynth.bids.people import People
from fmrisynth.bids.sources import clean_label
from fmrisynth.bids.structural import T1w
from fmrisynth.conditions import condition_from_label
from fmrisynth.data.blocks import T1W, T1W_ITSELF, Block, BlockData, finish_subject, write_block
from fmrisynth.data.grid import MNI_GRIDS, Grid, mni_brain_mask
from fmrisynth.data.nifti import read_image
from fmrisynth.data.resample import SpatialResampler
from fmrisynth.errors import FmrisynthError
from fmrisynth.prepare import report
from fmrisynth.prepare.plan import Job, is_our_disk
from fmrisynth.progress import count, log, reason_of, track
from fmrisynth.stage import Unit

README = """Every file with the suffix `bold` is one volume: the T1-weighted image of a session within the brain, in the units of its
source. `boldref` is the same volume; `desc-brain_mask` is the brain. `sub-*/sub-*_scans.tsv` lists the sessions with attributes and split;
it is written last, so a participant without it is not complete."""

LEAST_SHARED = 0.5
"""A brain that covers less of the MNI brain is not in MNI space (people's cover 95 % and more)."""

THE_MASK_ITSELF = "voxels of the image above 0"


def people_of(job: Job, subjects: Sequence[str]) -> People:
    """Who the people are, from the dataset's tables and the settings'.

    Raises
    ------
    FmrisynthError
        A table cannot be read, or none has an attribute that is asked for.
    """
    config = job.config
    families = [config.split.families] if config.split.families else []
    people = People(job.source.roots, [*config.anatomy.tables, *families])
    people.refuse_unknown(config.anatomy.attributes, subjects)
    return people


def plan_lines(job: Job, subjects: Sequence[str]) -> list[str]:
    """The files that would be read, for ``--dry-run``."""
    people, n = people_of(job, subjects), 0
    lines = [f"{count(len(subjects), 'participant')} of {job.source.root}"]
    for subject in track(subjects, "Reading headers"):
        try:
            found = [
                (t1w, *t1w.check(), _attributes(job, people, t1w))
                for t1w in job.source.anatomies(subject)
            ]  # fmt: skip
        except Exception as error:
            lines.append(f"sub-{subject}: cannot be prepared: {reason_of(f'sub-{subject}', error)}")
            continue
        n += len(found)
        lines.append(f"sub-{subject} ({job.split_of(subject)}): {len(found)} T1w")
        for t1w, header, doubts, attributes in found:
            size = " x ".join(map(str, header.shape))
            who = ", ".join(f"{name} {attributes.get(name, 'n/a')}" for name in job.config.anatomy.attributes)
            lines.append(f"  {t1w.name}: {size}, {_mask_source(t1w)}, {who}")
            lines += [f"  {doubt}" for doubt in doubts]
    return [*lines, f"{n} T1w on a {_size(_grid(job))} grid"]


def participant(out: Path, job: Job, subject: str, people: People) -> Unit:
    """The sessions of one participant."""
    found = [(t1w, _attributes(job, people, t1w)) for t1w in job.source.anatomies(subject)]
    split = job.split_of(subject)
    return Unit(
        f"sub-{subject}",
        about={
            "images": files_of([(t1w.image, t1w.mask) for t1w, _ in found]), "sessions": [t1w.name for t1w, _ in found],
            "attributes": [attributes for _, attributes in found], "split": split,
        },
        make=lambda: _write_sessions(out, job, subject, found, split),
        index=naming.subject_scans(subject), folder=Path(f"sub-{subject}"),
    )  # fmt: skip


def _write_sessions(
    out: Path, job: Job, subject: str, found: Sequence[tuple[T1w, Mapping[str, str]]], split: str
) -> None:
    blocks: list[Block] = []
    notes: list[str] = []
    for t1w, attributes in found:
        try:
            block, doubts = _write(out, job, t1w, attributes, split)
            blocks.append(block)
            notes += doubts
        except FmrisynthError as error:
            if job.config.on_bad_run == "fail" or is_our_disk(error):
                raise
            log.warning("%s", error)
            notes.append(f"{t1w.name}: left out: {error}")
    if not blocks:
        raise FmrisynthError(
            f"{job.source.root}: participant {subject}: no T1w could be used ({'; '.join(notes[:3])})."
        )
    counts = {T1W: {"found": len(found), "kept": len(blocks), "dropped": {}}}
    if len(blocks) < len(found):
        counts[T1W]["dropped"] = {"left out": len(found) - len(blocks)}
    report.write_subject_report(out, subject, split, counts, notes)
    finish_subject(out, subject, blocks, job.config.anatomy.attributes)


def _write(
    out: Path, job: Job, t1w: T1w, attributes: Mapping[str, str], split: str
) -> tuple[Block, Sequence[str]]:  # fmt: skip
    grid = replace(_grid(job), space=t1w.space)
    data, doubts = resample_t1w(t1w, grid)
    for text in doubts:
        log.warning("%s", text)
    entities = naming.Entities(
        sub=t1w.subject, ses=clean_label(t1w.session) if t1w.session else None, task="anatomy",
        space=grid.space, res=grid.resolution,
    )  # fmt: skip
    sidecar: dict[str, Any] = {
        "SourceImage": t1w.name, "BrainMask": _mask_source(t1w), "IntensityUnits": "arbitrary, those of the source",
        "Doubts": list(doubts), "ConfigHash": job.config.digest(),
    }  # fmt: skip
    block = write_block(
        out, entities, condition_from_label(T1W).camel, data, grid, condition=T1W, onset_s=0.0, duration_s=job.config.tr_s,
        tr_s=job.config.tr_s, split=split, attributes=attributes, source=t1w.name, sidecar=sidecar, origin=job.origin,
        reference_is=T1W_ITSELF,
    )  # fmt: skip
    return block, doubts


def resample_t1w(t1w: T1w, grid: Grid) -> tuple[BlockData, tuple[str, ...]]:
    """A T1w on a grid as a block of one frame, and what is odd about it, in sentences.

    A voxel is the mean of the source's brain voxels under a triangle as wide as the coarser of the two voxels, so what lies outside
    the brain, skull or the zeros of an extracted brain, does not reach into it. Intensities are the source's.

    Raises
    ------
    FmrisynthError
        Files that cannot be right; a brain that is empty, not finite or not in MNI space.
    """
    header, doubts = t1w.check()
    image_XYZ = read_image(t1w.image, ndim=3).scaled()
    mask_XYZ = image_XYZ > 0 if t1w.mask is None else read_image(t1w.mask, ndim=3).scaled() > 0.5
    mask_path = t1w.mask or t1w.image
    if not mask_XYZ.any():
        raise FmrisynthError(f"{mask_path}: the brain is empty (no voxel above 0); make the file again.")
    n_bad = int((~np.isfinite(image_XYZ[mask_XYZ])).sum())
    if n_bad:
        raise FmrisynthError(
            f"{t1w.image}: {n_bad} voxels inside the brain are NaN or infinite, expected finite intensities; make it again."
        )
    resampler = SpatialResampler(header.shape, header.affine, grid, antialias=True)  # type: ignore[arg-type]
    try:
        share_XYZ = resampler(mask_XYZ)
    except FmrisynthError:
        raise FmrisynthError(
            f"{t1w.image}: the image axes are rotated by {resampler.rotation_degrees:.1f} degrees against MNI's, expected "
            "an image in MNI space; give the one that fMRIPrep or HCP resampled."
        ) from None
    on_grid_XYZ = share_XYZ >= 0.5
    brain_XYZ = mni_brain_mask(grid)
    shared = float((on_grid_XYZ & brain_XYZ).sum() / brain_XYZ.sum())
    if shared < LEAST_SHARED:
        raise FmrisynthError(
            f"{mask_path}: the brain covers {shared:.0%} of the MNI brain, expected at least {LEAST_SHARED:.0%}; it is not in "
            "MNI space, give the image that fMRIPrep or HCP resampled."
        )
    weighted_XYZ = resampler(np.where(mask_XYZ, image_XYZ, np.float32(0)))
    volume_XYZ = np.divide(weighted_XYZ, share_XYZ, out=np.zeros_like(weighted_XYZ), where=on_grid_XYZ)
    inside = volume_XYZ[on_grid_XYZ]
    if inside.mean(dtype=np.float64) <= 0 or inside.min() == inside.max():
        raise FmrisynthError(
            f"{t1w.image}: expected intensities that differ within the brain and have a positive mean, found "
            f"{inside.min():.4g} to {inside.max():.4g}; give the image before standardising."
        )
    return BlockData(volume_XYZ[..., None], volume_XYZ, on_grid_XYZ), doubts


def _attributes(job: Job, people: People, t1w: T1w) -> dict[str, str]:
    session = clean_label(t1w.session) if t1w.session else None
    return people.attributes(t1w.subject, session, job.config.anatomy.attributes)


def _grid(job: Job) -> Grid:
    return MNI_GRIDS[job.config.anatomy.resolution_mm]


def _size(grid: Grid) -> str:
    return f"{' x '.join(map(str, grid.shape))} x {grid.voxel_mm[0]:g} mm"


def _mask_source(t1w: T1w) -> str:
    return t1w.mask.name if t1w.mask is not None else THE_MASK_ITSELF

"""The ground truth of a phantom cohort, under ``ground_truth/``.

``group/`` holds the responses of a brain without peculiarities, one image per condition; a subject's file holds
its own true responses at the simulated voxels. Read by tests, benchmarks and `evaluate --truth` only.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fmrisynth.bids.atomic import write_bytes, write_json
from fmrisynth.bids.naming import group_statmap
from fmrisynth.conditions import load_table
from fmrisynth.data.nifti import write_image
from fmrisynth.simulate.activations import EVENT_LABELS
from fmrisynth.simulate.phantom import Phantom, PhantomSubject
from fmrisynth.simulate.space import load_templates, sample_template

FOLDER = "ground_truth"


def group_maps(phantom: Phantom, labels: list[str]) -> np.ndarray:
    """True responses of the group, (K, V), percent signal change."""
    grey = sample_template(load_templates()["gm"], phantom.space.coordinates_V3)
    rows = [EVENT_LABELS.index(label) for label in labels]
    return phantom.activations.group_map(phantom.space, grey, phantom.config.response)[rows]


def write_group(out: Path, phantom: Phantom, labels: list[str]) -> None:
    """Write the group's true maps, one float32 image per condition; those that exist are kept."""
    table, grid = load_table(), phantom.grid
    paths = [
        out / FOLDER / group_statmap(c.task, grid.space, c.contrast, "effect")
        for c in (table.conditions[label] for label in labels)
    ]
    if all(path.exists() for path in paths):
        return
    for path, values in zip(paths, group_maps(phantom, labels), strict=True):
        write_image(path, phantom.space.to_grid(values.astype(np.float32)), grid.affine)


def subject_file(out: Path, label: str) -> Path:
    """Path of a subject's truth."""
    return out / FOLDER / f"sub-{label}_truth.safetensors"


def write_subject(out: Path, subject: PhantomSubject, labels: list[str]) -> None:
    """Write a subject's true responses and HRF.

    Tensors: ``percent`` (K, V) float16, percent signal change at the plateau of a long block; ``delay``
    (K, V) float16, percent seconds; ``voxels`` (V, 3) int16, indices on the data's grid. The JSON beside it has
    the conditions, the HRF, family and events.
    """
    from safetensors.numpy import save

    path = subject_file(out, subject.label)
    if path.exists():
        return
    space, responses = subject.phantom.space, subject.responses
    rows = [EVENT_LABELS.index(label) for label in labels]
    numbers = space.to_grid(np.arange(1, len(space.support) + 1, dtype=np.int32))
    where = np.argwhere(numbers)
    voxels = where[np.argsort(numbers[numbers > 0])]
    events = {run.name: [[e.condition, e.onset_s, e.duration_s] for e in run.paradigm.events] for run in subject.runs()}
    write_json(
        path.with_suffix(".json"),
        {
            "Conditions": labels,
            "HrfDelay": responses.hrf_delay_s,
            "Family": subject.traits.family,
            "Zygosity": subject.traits.zygosity,
            "GridShape": list(subject.phantom.grid.shape),
            "Affine": subject.phantom.grid.affine.tolist(),
            "Events": events,
        },
    )
    tensors = {
        "percent": responses.percent_KV[rows].astype(np.float16),
        "delay": responses.delay_KV[rows].astype(np.float16),
        "voxels": voxels.astype(np.int16),
    }
    write_bytes(path, save(tensors))

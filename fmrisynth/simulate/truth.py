"""The ground truth of a phantom cohort, under ``ground_truth/``.

``group/`` holds the expected response of the population, one image per condition, and ``anatomy_effects`` what age, sex
and site do to the image; a subject's file holds its own true responses at the simulated voxels. Read by tests,
benchmarks and `evaluate --truth` only.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fmrisynth.bids.atomic import write_bytes, write_json
from fmrisynth.bids.naming import group_statmap
from fmrisynth.conditions import load_table
from fmrisynth.data.nifti import write_image
from fmrisynth.simulate.activations import EVENT_LABELS
from fmrisynth.simulate.anatomy import make_anatomy
from fmrisynth.simulate.people import MIDDLE_AGE, SITES, Person
from fmrisynth.simulate.phantom import Phantom, PhantomSubject
from fmrisynth.simulate.randomness import NoTraits
from fmrisynth.simulate.space import load_templates, sample_template

FOLDER = "ground_truth"


def group_maps(phantom: Phantom, labels: list[str]) -> np.ndarray:
    """True responses of the group, (K, V), percent signal change."""
    grey = sample_template(load_templates()["gm"], phantom.space.coordinates_V3)
    rows = [EVENT_LABELS.index(label) for label in labels]
    return phantom.activations.group_map(phantom.space, grey, phantom.config.response)[rows]


def anatomy_effects(phantom: Phantom) -> dict[str, np.ndarray]:
    """What age, sex, site and a diagnosis do to the typical brain, each (V,) float32, percent of the image's grand mean.

    Returns
    -------
    dict
        ``age`` per decade (around `MIDDLE_AGE`), ``sex`` men minus women, ``diagnosis`` patients minus controls,
        ``site_A``, ``site_B``, ... minus the mean of sites.
    """

    def image(age: int = MIDDLE_AGE, sex: str = "F", site: str = SITES[0], diagnosis: str = "control") -> np.ndarray:
        config, person = phantom.config, Person(age, sex, site, diagnosis)
        brain = make_anatomy(phantom.space, NoTraits(), person, config.anatomy, config.seed)
        mean_V = np.mean(list(brain.baseline.values()), axis=0)
        return 100.0 * mean_V / mean_V[brain.mask_V].mean()

    sites = [image(site=site) for site in SITES]
    effects = {
        "age": image(MIDDLE_AGE + 5) - image(MIDDLE_AGE - 5), "sex": image(sex="M") - image(sex="F"),
        "diagnosis": image(diagnosis="patient") - image(),
    }  # fmt: skip
    return effects | {f"site_{site}": own - np.mean(sites, axis=0) for site, own in zip(SITES, sites, strict=True)}


def group_index(phantom: Phantom, labels: list[str]) -> Path:
    """The last of the group's true maps, relative to the cohort."""
    return _group_paths(phantom, labels)[-1]


def _group_paths(phantom: Phantom, labels: list[str]) -> list[Path]:
    conditions = [load_table().conditions[label] for label in labels]
    return [Path(FOLDER) / group_statmap(c.task, phantom.grid.space, c.contrast, "effect") for c in conditions]


def write_group(out: Path, phantom: Phantom, labels: list[str]) -> None:
    """Write the group's true maps, one float32 image per condition, and the effects on anatomy."""
    from safetensors.numpy import save

    for path, values in zip(_group_paths(phantom, labels), group_maps(phantom, labels), strict=True):
        write_image(out / path, phantom.space.to_grid(values.astype(np.float32)), phantom.grid.affine)
    tensors = {name: values.astype(np.float32) for name, values in anatomy_effects(phantom).items()}
    write_bytes(out / FOLDER / "anatomy_effects.safetensors", save(tensors | {"voxels": _voxels(phantom)}))


def _voxels(phantom: Phantom) -> np.ndarray:
    """Indices of the simulated voxels on the data's grid, (V, 3) int16."""
    numbers = phantom.space.to_grid(np.arange(1, len(phantom.space.support) + 1, dtype=np.int32))
    return np.argwhere(numbers)[np.argsort(numbers[numbers > 0])].astype(np.int16)


def subject_file(out: Path, label: str) -> Path:
    """Path of a subject's truth."""
    return out / FOLDER / f"sub-{label}_truth.safetensors"


def write_subject(out: Path, subject: PhantomSubject, labels: list[str]) -> None:
    """Write a subject's true responses and HRF.

    Tensors: ``percent`` (K, V) float16, percent signal change at the plateau of a long block; ``delay``
    (K, V) float16, percent seconds; ``width`` (K, V) float16, percent times log width; ``voxels`` (V, 3) int16, indices on
    the data's grid. The JSON beside it has the conditions, the HRF, the person, family and events.
    """
    from safetensors.numpy import save

    path = subject_file(out, subject.label)
    responses, person = subject.responses, subject.person
    rows = [EVENT_LABELS.index(label) for label in labels]
    events = {run.name: [[e.condition, e.onset_s, e.duration_s] for e in run.paradigm.events] for run in subject.runs()}
    write_json(
        path.with_suffix(".json"),
        {
            "Conditions": labels,
            "HrfDelay": responses.hrf_delay_s,
            "HrfWidth": responses.hrf_width,
            "Age": person.age,
            "Sex": person.sex,
            "Site": person.site,
            **({"Diagnosis": person.diagnosis} if person.diagnosis else {}),
            "Restlessness": subject.restlessness,
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
        "width": responses.width_KV[rows].astype(np.float16),
        "voxels": _voxels(subject.phantom),
    }
    write_bytes(path, save(tensors))

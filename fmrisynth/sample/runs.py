"""Whole runs of synthetic people who do a given experiment: the virtual experiment.

Axis legend: T frames; K conditions, D descriptors; C latent channels; X, Y, Z voxel axes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmrisynth.bids import naming
from fmrisynth.bids.atomic import write_bytes
from fmrisynth.bids.digests import files_of
from fmrisynth.bids.events import Event, read_events
from fmrisynth.bids.sources import clean_label
from fmrisynth.conditions import load_table
from fmrisynth.config.sample import SampleConfig
from fmrisynth.data.blocks import RUN, Block, BlockData, finish_subject, write_block
from fmrisynth.data.occupancy import occupancy
from fmrisynth.diffusion.generate import Drawing, encode_labels
from fmrisynth.diffusion.rollout import roll_out
from fmrisynth.errors import FmrisynthError, UsageError
from fmrisynth.progress import log
from fmrisynth.sample.anatomy import Anatomy
from fmrisynth.sample.drawer import Drawer
from fmrisynth.sample.plan import sample_seed
from fmrisynth.stage import Unit

AFTER_LAST_EVENT_S = 16.0
"""A run goes on for so long, unless its duration is given: until the last response is over."""

MAX_RUN_S = 4 * 3600.0

TOO_STRONG = 2.0
"""A run one of whose windows varies so many times as much as training people do has run away: about what their strongest window has."""


@dataclass(frozen=True)
class Design:
    """One run that people shall do.

    Attributes
    ----------
    path : Path
        Its events file.
    entities : mapping
        BIDS entities of the file's name.
    events : tuple of Event
        Its rows, trial types as the model names them.
    on_TK : float32 array
        What the model is told of each frame (`fmrisynth.data.occupancy.occupancy`).
    """

    path: Path
    entities: dict[str, str]
    events: tuple[Event, ...]
    on_TK: np.ndarray

    @property
    def n_frames(self) -> int:
        """Length of the run."""
        return len(self.on_TK)

    @property
    def name(self) -> str:
        """What tells the run from others of one person."""
        return "_".join(
            f"{key}-{self.entities[key]}" for key in ("ses", "task", "acq", "dir", "run") if key in self.entities
        )


@dataclass(frozen=True)
class PersonRequest:
    """One synthetic person and the runs to be made of them."""

    subject: str
    index: int
    seed: int
    designs: tuple[Design, ...]

    def run_seed(self, design: Design) -> int:
        """Seed of one run; the events do not enter, so that two designs can be compared in one noise."""
        text = f"fmrisynth run {self.seed} {design.name}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def make_people(config: SampleConfig, conditions: Sequence[str], tr_s: float) -> list[PersonRequest]:
    """Who is to be made, in order, after sharding.

    An events file without a subject in its name is done by all ``n`` people; those of a BIDS tree by ``n`` people for each of its subjects.

    Raises
    ------
    FmrisynthError
        An events file cannot be used.
    UsageError
        A condition that the model does not know, or two files for one run.
    """
    designs = [_read_design(path, config, conditions, tr_s) for path in _event_files(config.events)]
    people = []
    for owner in dict.fromkeys(design.entities.get("sub") for design in designs):
        own = tuple(design for design in designs if design.entities.get("sub") == owner)
        if len({design.name for design in own}) < len(own):
            raise UsageError(
                f"{own[0].path.parent}: two events files name one run; tell them apart by task-, run- or ses- in their names."
            )
        for index in range(config.start_index, config.start_index + config.n):
            seed = sample_seed(config.seed, f"{RUN} {owner or ''}", index)
            subject = naming.synthetic_person(index, "" if owner is None else clean_label(owner))
            people.append(PersonRequest(subject, index, seed, own))
    k, n = config.shard
    return people[k - 1 :: n]


def _event_files(paths: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        inside = sorted(path.rglob("*_events.tsv")) if path.is_dir() else [path]
        if not inside:
            raise FmrisynthError(f"{path}: expected files *_events.tsv in this folder, found none.")
        found += inside
    return found


def _read_design(path: Path, config: SampleConfig, conditions: Sequence[str], tr_s: float) -> Design:
    entities = naming.parse_entities(path.name)
    if "task" not in entities:
        raise UsageError(f"{path}: expected a name like task-faces_events.tsv, found no task- in it; rename the file.")
    table = read_events(path)
    if not table.events:
        raise FmrisynthError(f"{path}: expected events with a trial_type, found none.")
    if table.several_runs or table.n_restarts:
        raise FmrisynthError(
            f"{path}: expected the events of one run, found onsets that start again; give one file per run."
        )
    events = tuple(
        event._replace(label=_known_label(event.label, entities["task"], conditions)) for event in table.events
    )
    last_s = max(event.onset_s + event.duration_s for event in events)
    length_s = config.duration_s or last_s + AFTER_LAST_EVENT_S
    if length_s > MAX_RUN_S:
        raise FmrisynthError(
            f"{path}: expected a run of at most {MAX_RUN_S / 3600:g} h, found events until {last_s:g} s; are onsets in seconds?"
        )
    if config.duration_s is not None and last_s > length_s:
        raise UsageError(
            f"{path}: its events go on until {last_s:g} s, the run ends after {length_s:g} s; give a longer --duration."
        )
    try:
        on_TK = occupancy(events, conditions, math.ceil(length_s / tr_s - 1e-6), tr_s)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    return Design(path, entities, events, on_TK)


def _known_label(trial_type: str, task: str, conditions: Sequence[str]) -> str:
    """The model's name of a trial type: the same, or what the condition table makes of it."""
    if trial_type in conditions:
        return trial_type
    condition = load_table().match(task, trial_type)
    return trial_type if condition is None else condition.label


class RunMaker:
    """Makes and writes the runs of synthetic people; a `Drawer` says with which model and settings."""

    def __init__(self, out: Path, drawer: Drawer, device: torch.device) -> None:
        assert drawer.model.event_telling is not None  # refused before, by `check_kind`
        self.out, self.drawer, self.device, self.telling = out, drawer, device, drawer.model.event_telling

    def unit(self, person: PersonRequest) -> Unit:
        """One person as a unit of work."""
        about = {
            "seed": person.seed, "runs": [[design.name, design.n_frames] for design in person.designs],
            "events": files_of([design.path for design in person.designs]),
            "descriptors": files_of([self.drawer.config.descriptors]),
            "anatomy": self.drawer.anatomies.about(person),
        }  # fmt: skip
        return Unit(
            f"sub-{person.subject}", about, lambda: self._write(person), naming.subject_scans(person.subject),
            Path(f"sub-{person.subject}"),
        )  # fmt: skip

    def windows(self, design: Design, seed: int, sidecar: dict[str, Any]) -> Iterator[torch.Tensor]:
        """Latents of a run, window by window, (C, n, x, y, z); the sidecar is told how strong the strongest is."""
        drawer, config, model = self.drawer, self.drawer.config, self.drawer.model
        labels_A = encode_labels(
            model.labels, model.conditions[0], drawer.told(tuple(config.attributes.items())), model.always
        )  # any condition: events are told
        labels_A[0] = 0
        drawing = Drawing(
            model, labels_A, sampler=drawer.settings["Sampler"], n_steps=drawer.settings["SamplerSteps"],
            guidance=config.guidance, guidance_interval=config.guidance_interval, eta=config.eta, device=self.device,
        )  # fmt: skip
        for latent_BCTXYZ in roll_out(drawing, self.telling, design.on_TK[None], [seed]):
            strength = round(float(drawing.strength(latent_BCTXYZ)), 3)
            sidecar["StrongestWindow"] = max(sidecar.get("StrongestWindow", 0.0), strength)
            yield latent_BCTXYZ[0]

    def frames(self, design: Design, seed: int, anatomy: Anatomy, sidecar: dict[str, Any]) -> Iterator[np.ndarray]:
        """Volumes of a run one by one, (X, Y, Z) float32."""
        noise_seed = seed if self.drawer.config.observation_noise else None
        return self.drawer.tokenizer.decode_run(
            self.windows(design, seed, sidecar), anatomy.reference_XYZ, anatomy.mask_XYZ, noise_seed=noise_seed
        )

    def _write(self, person: PersonRequest) -> None:
        drawer, info = self.drawer, self.drawer.tokenizer.info
        anatomy = drawer.anatomies.load(person, drawer.config.attributes)
        data = BlockData(np.zeros((*info.grid.shape, 0), np.float32), anatomy.reference_XYZ, anatomy.mask_XYZ)
        runs: list[Block] = []
        for design in person.designs:
            seed, found = person.run_seed(design), design.entities
            entities = naming.Entities(
                sub=person.subject, ses=found.get("ses"), task=found["task"], acq=found.get("acq"), dir=found.get("dir"),
                run=int(found["run"]) if "run" in found else None, space=info.grid.space, res=info.grid.resolution,
            )  # fmt: skip
            sidecar = {
                "StartTime": info.tr_s / 2, "Synthetic": True, "Seed": seed, "Network": drawer.network,
                "WindowFrames": self.telling.window_frames, **drawer.settings, **anatomy.sidecar(),
            }  # fmt: skip
            run = write_block(
                self.out, entities, naming.RUN_DESC, data, info.grid,
                condition=RUN, onset_s=-info.tr_s / 2, duration_s=design.n_frames * info.tr_s, tr_s=info.tr_s,
                attributes=drawer.config.attributes, events=design.events,
                sidecar=sidecar,  # written after the frames, which add to it
                origin=drawer.model.card.origin, extension=f".{drawer.config.format}",
                frames=self.frames(design, seed, anatomy, sidecar), n_frames=design.n_frames,
                reference_is=anatomy.reference_is,
            )  # fmt: skip
            if sidecar["StrongestWindow"] > TOO_STRONG:
                log.warning(
                    "%s: one of its windows varies %.1f times as much as people in training do; the run has run away, leave it out.",
                    run.path, sidecar["StrongestWindow"],
                )  # fmt: skip
            write_bytes(run.events_path, design.path.read_bytes())  # the user's own, with all its columns
            runs.append(run)
        finish_subject(self.out, person.subject, runs)

"""Write phantom cohorts: HCP tree, BIDS derivative, or block dataset, with the truth beside the data.

Subjects, and the runs of each, are units of work (`fmrisynth.stage`), so an interrupted call goes on where it stopped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fmrisynth.bids import naming
from fmrisynth.bids.atomic import settle, write_json, write_text
from fmrisynth.bids.events import Event
from fmrisynth.bids.origin import PHANTOM
from fmrisynth.bids.sidecars import write_tsv
from fmrisynth.conditions import condition_from_label, load_table
from fmrisynth.config.simulate import SimulateConfig
from fmrisynth.data.blocks import (
    EPI,
    GRAND_MEAN,
    RUN,
    RUN_MEAN,
    T1W,
    T1W_ITSELF,
    Block,
    BlockData,
    finish_subject,
    write_block,
)
from fmrisynth.data.splits import split_of
from fmrisynth.data.windows import RESPONSE_S
from fmrisynth.progress import StageSummary
from fmrisynth.simulate import truth
from fmrisynth.simulate.anatomy import make_anatomy
from fmrisynth.simulate.paradigms import CONDITIONS_BY_TASK
from fmrisynth.simulate.phantom import (
    BLOCK_TR_S,
    Phantom,
    PhantomBlock,
    PhantomRun,
    PhantomSubject,
    chosen_conditions,
    subject_index,
)
from fmrisynth.simulate.space import HCP_2MM, MNI_3MM_FULL, STANDARD
from fmrisynth.simulate.trees import (
    bids_confounds,
    hcp_image,
    write_bids_run,
    write_bids_t1w,
    write_hcp_run,
    write_hcp_t1w,
)
from fmrisynth.stage import Stage, Unit

NAME = "Phantom task-fMRI (synthetic)"
README = """
Simulated task-fMRI of people who do not exist, written by `fmrisynth simulate`. Design, noise and what is known
about its realism are described in the documentation (phantom). `ground_truth/` holds the true responses; analyses
must not read it.
"""

INSTANCES = ("blocks", "runs", "anatomy")
"""Layouts that are datasets of `fmrisynth.data.blocks`."""

_WHAT = {"blocks": "block instances", "anatomy": "anatomies"}

_FREE_TO_CHANGE = {"n_subjects", "first_subject"}
"""Settings in which a second call into the same folder may differ."""


def write_cohort(out: Path, config: SimulateConfig, *, force: bool = False) -> StageSummary:
    """See `fmrisynth.simulate.simulate_cohort`."""
    labels = chosen_conditions(config) if config.layout == "blocks" or config.mixed else _all_conditions(config)
    grid = STANDARD if config.layout in INSTANCES else HCP_2MM if config.resolution_mm == 2 else MNI_3MM_FULL
    phantom = Phantom(config, grid)
    subjects = [phantom.subject(config.first_subject + i) for i in range(config.n_subjects)]
    own = {subject.label for subject in subjects}
    stage = Stage.begin(
        "simulate", out, config, version=1 if config.layout in INSTANCES else 2, free=_FREE_TO_CHANGE, force=force, title=NAME,
        readme=README, origin=PHANTOM,
    )  # fmt: skip
    _write_people(out, phantom, own)
    with_truth = config.write_truth and config.layout != "anatomy"  # of responses
    if with_truth:
        stage.do(
            Unit(
                "truth",
                _tables(config),
                lambda: truth.write_group(out, phantom, labels),
                truth.group_index(phantom, labels),
            )
        )

    def work(index: int) -> int:
        # A subject keeps what was drawn for it; writing a fresh one each time keeps the cohort out of memory.
        return stage.do(_subject(stage, phantom.subject(index), labels, config))

    prefix = "" if config.layout == "hcp" else "sub-"
    written = stage.each([subject.index for subject in subjects], work, "Simulating subjects")
    _write_people(out, phantom, own)  # again: other jobs may have added theirs
    n_kept = sum(n for index, n in written.items() if f"{prefix}{phantom.subject(index).label}" in stage.kept)
    return stage.summary(
        [
            f"Phantom cohort of {config.n_subjects} subjects at {out}: {sum(written.values())} "
            f"{_WHAT.get(config.layout, 'runs')}" + (f", {n_kept} of them from an earlier call" if n_kept else "") + "."
        ]
    )


def _tables(config: SimulateConfig) -> dict[str, Any]:
    """The user's files that a cohort depends on, for `Unit.about`."""
    return {"tables": [path for path in (config.activations, config.atlas, *config.events) if path is not None]}


def _subject(stage: Stage, subject: PhantomSubject, labels: list[str], config: SimulateConfig) -> Unit:
    """A subject; its result is the number of its blocks or runs."""
    hcp = config.layout == "hcp"
    label = subject.label if hcp else f"sub-{subject.label}"

    def make() -> int:
        if config.layout == "blocks":
            n = _write_blocks(stage.out, subject, labels, config)
        elif config.layout == "runs":
            n = _write_runs(stage.out, subject, config)
        elif config.layout == "anatomy":
            n = _write_anatomies(stage.out, subject, config)
        else:
            (write_hcp_t1w if hcp else write_bids_t1w)(stage.out, subject)
            runs = list(subject.runs())
            for run in runs:
                stage.part(_run(stage.out, run, config))
            n = len(runs)
        if config.write_truth and config.layout != "anatomy":
            truth.write_subject(stage.out, subject, labels)
        return n

    index = naming.subject_scans(subject.label)
    if config.layout not in INSTANCES:
        index = truth.subject_file(Path(), subject.label)  # readers of trees look at each run
    return Unit(label, _tables(config), make, index, Path(label))


def _run(out: Path, run: PhantomRun, config: SimulateConfig) -> Unit:
    write, last = (write_hcp_run, hcp_image) if config.layout == "hcp" else (write_bids_run, bids_confounds)
    name = naming.run_label(run.subject.label, run.name)
    return Unit(name, _tables(config), lambda: write(out, run), last(run))


def _write_blocks(out: Path, subject: PhantomSubject, labels: list[str], config: SimulateConfig) -> int:
    blocks: list[Block] = []
    for run in subject.runs():
        wanted = [label for label in CONDITIONS_BY_TASK[run.task] if label in labels]
        before: Block | None = None
        for number, data in enumerate(run.blocks(*wanted) if wanted else (), start=1):
            condition = load_table().conditions[data.condition]
            before = _write_instance(
                out, run, condition.task, number, data, condition.camel, condition=data.condition, onset_s=data.onset_s,
                duration_s=data.duration_s, source_onset_s=data.source_onset_s, events=_events(run, data), same_run=before,
            )  # fmt: skip
            blocks.append(before)
    finish_subject(out, subject.label, blocks)
    return len(blocks)


def _write_runs(out: Path, subject: PhantomSubject, config: SimulateConfig) -> int:
    runs: list[Block] = []
    for run in subject.runs():
        reference_XYZ = np.where(subject.mask_XYZ, subject.phantom.space.to_grid(run.reference_V), 0.0)
        data = BlockData(run.resampled_XYZT(BLOCK_TR_S), reference_XYZ, subject.mask_XYZ)
        events = [Event(e.onset_s, e.duration_s, e.condition, e.modulation) for e in run.paradigm.events]
        runs.append(
            _write_instance(
                out, run, run.task.lower(), None, data, naming.RUN_DESC, condition=RUN, onset_s=-BLOCK_TR_S / 2,
                duration_s=run.n_frames * run.tr_s, events=events, extra={"StartTime": BLOCK_TR_S / 2},
            )
        )  # fmt: skip
    finish_subject(out, subject.label, runs)
    return len(runs)


def _write_anatomies(out: Path, subject: PhantomSubject, config: SimulateConfig) -> int:
    """The volume of each session: the same person, older by `years_between`."""
    space, grid, found = subject.phantom.space, subject.phantom.grid, []
    for session in range(config.sessions):
        person = subject.at_session(session)
        if config.modality == "T1w":
            condition, values_V, mask_V = T1W, *subject.t1w(session)
        else:
            anatomy = make_anatomy(space, subject.traits, person, config.anatomy, config.seed)
            condition, values_V, mask_V = EPI, anatomy.baseline[config.directions[0]], anatomy.mask_V
            values_V = values_V * (GRAND_MEAN / values_V[mask_V].mean())
        volume_XYZ = space.to_grid(np.where(mask_V, values_V, 0.0).astype(np.float32))
        entities = naming.Entities(
            sub=subject.label, ses=f"{session + 1:02d}" if config.sessions > 1 else None, task="anatomy",
            space=grid.space, res=grid.resolution,
        )  # fmt: skip
        units = {"IntensityUnits": "arbitrary"} if config.modality == "T1w" else {}
        data = BlockData(volume_XYZ[..., None], volume_XYZ, space.to_grid(mask_V))
        found.append(
            write_block(
                out, entities, condition_from_label(condition).camel, data, grid, condition=condition, onset_s=0.0,
                duration_s=BLOCK_TR_S, tr_s=BLOCK_TR_S, split=_split(subject),
                attributes=person.attributes, sidecar={"Synthetic": True} | units, origin=PHANTOM,
                reference_is=T1W_ITSELF if config.modality == "T1w" else RUN_MEAN,
            )
        )  # fmt: skip
    finish_subject(out, subject.label, found)
    return len(found)


def _split(subject: PhantomSubject) -> str:
    config = subject.phantom.config
    families = {subject.label: f"family{subject.traits.family:05d}"} if config.families.size > 1 else None
    return split_of(subject.label, config.seed, config.split, families)


def _write_instance(
    out: Path, run: PhantomRun, task: str, number: int | None, data: BlockData, desc: str,
    *, extra: dict[str, Any] | None = None, **about: Any,
) -> Block:  # fmt: skip
    """Write a block or a run of a subject; `about` goes to `write_block`."""
    subject, person, grid = run.subject, run.subject.person, run.subject.phantom.grid
    return write_block(
        out,
        naming.Entities(
            sub=subject.label, task=task, dir=run.direction, run=number, space=grid.space, res=grid.resolution
        ),
        desc, data, grid, tr_s=BLOCK_TR_S, split=_split(subject),
        source=f"{subject.label}/{run.name}",
        attributes={"phase_encoding": run.direction, "sex": person.sex, "age": str(person.age)}
        | ({"diagnosis": person.diagnosis} if person.diagnosis else {}),
        sidecar={"SourceRepetitionTime": run.tr_s, "PhaseEncoding": run.direction, "Synthetic": True} | (extra or {}),
        origin=PHANTOM, **about,
    )  # fmt: skip


def _events(run: PhantomRun, data: PhantomBlock) -> list[Event]:
    """The block and those of its run that end less than `RESPONSE_S` before the window or begin in it, seconds from its first frame."""
    first, last = data.source_onset_s, data.source_onset_s + BLOCK_TR_S * data.bold_XYZT.shape[3]
    return [
        Event(round(event.onset_s - first, 3), event.duration_s, event.condition)
        for event in run.paradigm.events
        if event.onset_s == first or (first - RESPONSE_S < event.onset_s + event.duration_s and event.onset_s < last)
    ]


def _all_conditions(config: SimulateConfig) -> list[str]:
    return [label for task in config.tasks for label in CONDITIONS_BY_TASK[task]]


def _write_people(out: Path, phantom: Phantom, own: set[str]) -> None:
    """Write who is in the cohort: these subjects, and those that other calls wrote into the folder."""
    prefix = "" if phantom.config.layout == "hcp" else "sub-"

    def look() -> list[str]:
        found = {path.name.removeprefix(prefix) for path in out.glob(f"{prefix}9[0-9][0-9][0-9][0-9][0-9]")}
        return sorted(own | found)

    def write(labels: list[str]) -> None:
        people = [phantom.subject(subject_index(label)) for label in labels]
        if phantom.config.layout == "hcp":
            write_text(out / "families.csv", _families_csv(people))
        else:
            _write_participants(out, people)

    settle(look, write)


def _families_csv(subjects: list[PhantomSubject]) -> str:
    """Table of people in the form of HCP's restricted table (which has no site)."""
    lines = ["Subject,Gender,Age_in_Yrs,Site,ZygositySR,Family_ID"]
    for subject in subjects:
        person, traits = subject.person, subject.traits
        lines.append(f"{subject.label},{person.sex},{person.age},{person.site},{traits.zygosity},{traits.family:05d}")
    return "\n".join(lines) + "\n"


def _write_participants(out: Path, subjects: list[PhantomSubject]) -> None:
    rows = [
        {"participant_id": f"sub-{subject.label}", **subject.person.attributes}
        | {"family_id": f"family{subject.traits.family:05d}", "zygosity": subject.traits.zygosity}
        for subject in subjects
    ]
    ill = {
        "diagnosis": {
            "Description": "With an effect on anatomy",
            "Levels": {"control": "healthy", "patient": "a disorder"},
        }
    }
    write_tsv(out / "participants.tsv", tuple(rows[0]), rows)
    write_json(
        out / "participants.json",
        {
            "sex": {"Description": "With an effect on anatomy", "Levels": {"F": "female", "M": "male"}},
            "age": {"Description": "With an effect on anatomy", "Units": "year"},
            "site": {"Description": "Simulated scanner, with an effect on intensities and noise"},
            **(ill if "diagnosis" in rows[0] else {}),
            "family_id": {"Description": "Relatives share part of anatomy and responses"},
            "zygosity": {"Description": "MZ, DZ or NotTwin"},
        },
    )

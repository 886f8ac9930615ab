"""Write phantom cohorts: HCP tree, BIDS derivative, or block dataset, with the truth beside the data.

Every file appears under its name when it is whole, and a unit of work (a run, a subject) is recognised by
the file that is written last, so an interrupted call goes on where it stopped.
"""

from __future__ import annotations

from pathlib import Path

from fmrisynth.bids import naming
from fmrisynth.bids.atomic import remove_leftovers, remove_temporaries, settle, write_json, write_text
from fmrisynth.bids.lock import exclusive
from fmrisynth.bids.provenance import write_dataset_description, write_run_log
from fmrisynth.bids.sidecars import write_tsv
from fmrisynth.conditions import load_table, suggest
from fmrisynth.config.simulate import SimulateConfig
from fmrisynth.data.blocks import Block, finish_subject, is_finished, write_block
from fmrisynth.data.splits import split_of
from fmrisynth.errors import FmrisynthError, UsageError
from fmrisynth.parse import read_json
from fmrisynth.progress import StageSummary, log, reason_of, track
from fmrisynth.simulate import truth
from fmrisynth.simulate.paradigms import CONDITIONS_BY_TASK
from fmrisynth.simulate.phantom import BLOCK_TR_S, Phantom, PhantomBlock, PhantomRun, PhantomSubject, subject_index
from fmrisynth.simulate.space import HCP_2MM, MNI_3MM_FULL, STANDARD
from fmrisynth.simulate.trees import write_bids_run, write_hcp_run

NAME = "Phantom task-fMRI (synthetic)"
README = """
Simulated task-fMRI of people who do not exist, written by `fmrisynth simulate`. Design, noise and what is known
about its realism are described in the documentation (phantom). `ground_truth/` holds the true responses; analyses
must not read it.
"""

_FREE_TO_CHANGE = {"n_subjects", "first_subject"}
"""Settings in which a second call into the same folder may differ."""


def write_cohort(out: Path, config: SimulateConfig) -> StageSummary:
    """See `fmrisynth.simulate.simulate_cohort`."""
    labels = _block_conditions(config) if config.layout == "blocks" else _all_conditions(config)
    with exclusive(out, "settings"):
        _claim_folder(out, config)
    for folder in (out, out / "logs", out / "ground_truth", out / "ground_truth" / "group"):
        remove_leftovers(folder)
    grid = STANDARD if config.layout == "blocks" else HCP_2MM if config.resolution_mm == 2 else MNI_3MM_FULL
    phantom = Phantom(config, grid)
    subjects = [phantom.subject(config.first_subject + i) for i in range(config.n_subjects)]
    if config.layout != "hcp":
        write_dataset_description(out, NAME, synthetic=True, readme=README)
    _write_people(out, phantom, {subject.label for subject in subjects})
    write_run_log(out / "ground_truth" if config.layout == "hcp" else out, "simulate", config)
    if config.write_truth:
        truth.write_group(out, phantom, labels)
    summary = StageSummary()
    n_written = n_units = 0
    # A subject keeps what was drawn for it; writing a fresh one each time keeps the cohort out of memory.
    for index in track([subject.index for subject in subjects], "Simulating subjects", total=len(subjects)):
        subject = phantom.subject(index)
        try:
            with exclusive(out, subject.label):
                written, units = _write_subject(out, subject, labels, config)
        except Exception as error:
            summary.failed[subject.label] = reason_of(subject.label, error)
            log.warning("%s", summary.failed[subject.label])
            continue
        n_written += written
        n_units += units
    _write_people(out, phantom, {subject.label for subject in subjects})  # again: other jobs may have added theirs
    unit = "block instances" if config.layout == "blocks" else "runs"
    summary.lines.append(
        f"Phantom cohort of {config.n_subjects} subjects at {out}: {n_units} {unit}"
        + (f", {n_units - n_written} of them from an earlier call" if n_written < n_units else "")
        + "."
    )
    return summary


def _write_subject(out: Path, subject: PhantomSubject, labels: list[str], config: SimulateConfig) -> tuple[int, int]:
    """Write one subject; returns how many units were written now, and how many there are."""
    folder = out / (subject.label if config.layout == "hcp" else f"sub-{subject.label}")
    remove_temporaries(folder)  # halves of files that a killed call left; who has the lock is alone here
    if config.layout == "blocks":
        written, total = _write_blocks(out, subject, labels, config)
    else:
        write = write_hcp_run if config.layout == "hcp" else write_bids_run
        done = [write(out, run) for run in subject.runs()]
        written, total = sum(done), len(done)
    if config.write_truth:
        truth.write_subject(out, subject, labels)
    return written, total


def _write_blocks(out: Path, subject: PhantomSubject, labels: list[str], config: SimulateConfig) -> tuple[int, int]:
    if is_finished(out, subject.label):
        from fmrisynth.data.blocks import read_subject

        return 0, len(read_subject(out, subject.label))
    families = {subject.label: f"family{subject.traits.family:05d}"} if config.families.size > 1 else None
    split = split_of(subject.label, config.seed, config.split, families)
    table = load_table()
    blocks: list[Block] = []
    person = subject.person
    grid = subject.phantom.grid
    for run in subject.runs():
        wanted = [label for label in CONDITIONS_BY_TASK[run.task] if label in labels]
        if not wanted:
            continue
        for number, data in enumerate(run.blocks(*wanted), start=1):
            condition = table.conditions[data.condition]
            entities = naming.Entities(
                sub=subject.label, task=condition.task, dir=run.direction, run=number, space=grid.space,
                res=grid.resolution,
            )  # fmt: skip
            blocks.append(
                write_block(
                    out, entities, condition.camel, data, grid, condition=data.condition, onset_s=data.onset_s,
                    duration_s=data.duration_s, tr_s=BLOCK_TR_S, split=split, source=f"{subject.label}/{run.name}",
                    source_onset_s=data.source_onset_s, neighbours=_neighbours(run, data),
                    attributes={"phase_encoding": run.direction, "sex": person.sex, "age": str(person.age)},
                    sidecar={"SourceRepetitionTime": run.tr_s, "PhaseEncoding": run.direction, "Synthetic": True},
                )
            )  # fmt: skip
    finish_subject(out, subject.label, blocks)
    return len(blocks), len(blocks)


def _neighbours(run: PhantomRun, data: PhantomBlock) -> list[tuple[str, float, float]]:
    """The other blocks of the run that end less than 32 s before the window or begin in it, seconds from its first frame."""
    first, last = data.source_onset_s, data.source_onset_s + BLOCK_TR_S * data.bold_XYZT.shape[3]
    return [
        (event.condition, round(event.onset_s - first, 3), event.duration_s)
        for event in run.paradigm.events
        if event.onset_s != first and first - 32.0 < event.onset_s + event.duration_s and event.onset_s < last
    ]


def _all_conditions(config: SimulateConfig) -> list[str]:
    return [label for task in config.tasks for label in CONDITIONS_BY_TASK[task]]


def _block_conditions(config: SimulateConfig) -> list[str]:
    available = _all_conditions(config)
    if config.conditions is None:
        return [label for label in load_table().default_labels if label in available]
    for label in config.conditions:
        if label not in available:
            raise UsageError(
                f"simulate: {label!r} is no condition of the tasks {', '.join(config.tasks)}; {suggest(label, available)}"
            )
    return list(config.conditions)


def _claim_folder(out: Path, config: SimulateConfig) -> None:
    """Refuse to mix cohorts of different settings in one folder."""
    path = out / "ground_truth" / "simulate.json"
    settings = config.model_dump(mode="json")
    kept = {key: value for key, value in settings.items() if key not in _FREE_TO_CHANGE}
    if path.exists():
        try:
            before = dict(read_json(path))
        except (OSError, ValueError, TypeError) as error:
            raise FmrisynthError(f"{path}: expected the settings of this cohort, found {error}; mend it.") from None
        differing = [key for key, value in kept.items() if before.get(key) != value]
        if differing:
            raise UsageError(
                f"{out}: holds a phantom cohort made with another {differing[0]}; give the same settings to go on with it, "
                "or another folder."
            )
        return
    write_json(path, kept)


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
        {
            "participant_id": f"sub-{subject.label}", "sex": subject.person.sex, "age": subject.person.age,
            "site": subject.person.site, "family_id": f"family{subject.traits.family:05d}",
            "zygosity": subject.traits.zygosity,
        }
        for subject in subjects
    ]  # fmt: skip
    write_tsv(out / "participants.tsv", tuple(rows[0]), rows)
    write_json(
        out / "participants.json",
        {
            "sex": {"Description": "With an effect on anatomy", "Levels": {"F": "female", "M": "male"}},
            "age": {"Description": "With an effect on anatomy", "Units": "year"},
            "site": {"Description": "Simulated scanner, with an effect on intensities and noise"},
            "family_id": {"Description": "Relatives share part of anatomy and responses"},
            "zygosity": {"Description": "MZ, DZ or NotTwin"},
        },
    )

"""HCP Young Adult trees, by directory walk (no index is needed).

``<subject>/MNINonLinear/Results/tfMRI_<TASK>_<LR|RL>/`` holds ``tfMRI_<TASK>_<LR|RL>.nii.gz``, a brain mask
and ``EVs/<condition>.txt``; ``<subject>/MNINonLinear/T1w_restore_brain.nii.gz`` is
the person's T1w. In the same folder lie traps: single-trial EVs (``loss_event.txt``), ``Sync.txt``,
``*_Stats.csv`` and empty files; only files named for a condition are opened.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from fmrisynth.bids.events import Event, read_ev
from fmrisynth.bids.runs import TR_TOLERANCE, Problem, Run, read_run
from fmrisynth.bids.sources import Images, clean_label
from fmrisynth.bids.structural import T1w
from fmrisynth.conditions import ConditionTable, fold
from fmrisynth.config.source import SourceConfig
from fmrisynth.errors import FmrisynthError

RESULTS = Path("MNINonLinear", "Results")
MASK_NAMES = ("brainmask_fs.2.nii.gz", "brainmask_fs.2.0.nii.gz", "brainmask_fs.nii.gz")
T1W = Path("MNINonLinear", "T1w_restore_brain.nii.gz")
T1W_MASK = "brainmask_fs.nii.gz"
SPACE = "MNI152NLin6Asym"
TR_S = 0.72
"""Repetition time of HCP's 3T protocol, seconds."""

_DEFAULTS = SourceConfig()
_RUN = re.compile(r"^tfMRI_(?P<task>[A-Za-z0-9]+?)(?P<repeat>\d?)_(?P<direction>LR|RL|AP|PA)$")


def is_hcp_tree(root: Path) -> bool:
    """Whether some folder under `root` has ``MNINonLinear/Results`` or a T1w."""
    return any(_has(entry, RESULTS, T1W) for entry in _folders(root))


@dataclass(frozen=True)
class HcpSource:
    """An HCP tree.

    Parameters
    ----------
    root : Path
        Folder that holds the subjects' folders.
    table : ConditionTable
        Conditions whose EV files are looked for.
    labels : sequence of str or None
        Conditions asked for; those outside the table are looked up by their stem.
    config : SourceConfig
        The user's own repetition time, and the moment of a frame within it.
    images : {"mni", "t1w"}
        Whether runs or T1w are wanted.
    """

    root: Path
    table: ConditionTable
    labels: Sequence[str] | None = None
    config: SourceConfig = _DEFAULTS
    images: Images = "mni"
    kind: str = "hcp"

    def subjects(self) -> list[str]:
        """Subject labels, sorted."""
        return sorted(self._subject_folders)

    def tasks(self) -> list[str]:
        """Task names of the battery; all subjects share it."""
        return sorted({c.task.upper() for c in self.table.conditions.values()})

    @property
    def roots(self) -> list[Path]:
        """The tree itself: HCP's tables lie elsewhere."""
        return [self.root]

    def anatomies(self, subject: str) -> list[T1w]:
        """The subject's T1w without skull, in MNI space (0.7 mm)."""
        folder = self._folder(subject)
        image = folder / T1W
        if not (image.is_file() or image.is_symlink()):
            raise FmrisynthError(
                f"{image}: participant {subject} has no T1w image; get it from the structural package of the release."
            )
        mask = image.with_name(T1W_MASK)
        there = mask.is_file() or mask.is_symlink()
        name = image.relative_to(self.root).as_posix()
        return [T1w(subject, None, image, mask if there else None, name, SPACE, is_extracted=True)]

    def _folder(self, subject: str) -> Path:
        folders = self._subject_folders.get(subject, [])
        if len(folders) > 1:
            raise FmrisynthError(
                f"{self.root}: the folders {', '.join(f.name for f in folders)} are one participant ({subject}); "
                "keep one of them or rename the others."
            )
        return folders[0]

    def runs(self, subject: str) -> list[Run]:
        """The subject's task runs, by name; runs that are missing on disk are simply not listed."""
        runs, surfaces = [], []
        for folder in _folders(self._folder(subject) / RESULTS):
            match = _RUN.match(folder.name)
            if match is None:
                continue
            bold = folder / f"{folder.name}.nii.gz"
            if bold.is_file() or bold.is_symlink():
                runs.append(self._run(subject, folder, bold, match["task"], match["direction"]))
            else:
                surfaces += [path for path in _files(folder) if path.name.endswith((".dtseries.nii", ".func.gii"))]
        if surfaces and not runs:
            raise FmrisynthError(
                f"{surfaces[0]}: participant {subject} has grayordinates (CIFTI, GIFTI) and no volumes; volumes are needed: "
                f"{surfaces[0].parent.name}.nii.gz in the same folder."
            )
        return runs

    def _run(self, subject: str, folder: Path, bold: Path, task: str, direction: str) -> Run:
        problems: list[Problem] = []
        events: tuple[Event, ...] = ()
        files: tuple[Path, ...] = ()
        try:
            events, files = self._events(folder / "EVs", task)
        except FmrisynthError as error:
            problems.append(Problem("events", "error", str(error)))
        movement = folder / "Movement_Regressors.txt"
        run = Run(
            subject=subject, session=None, task=task, bold=bold, space=SPACE, name=bold.relative_to(self.root).as_posix(),
            entities={"sub": subject, "task": task, "dir": direction, "space": SPACE}, phase_encoding=direction,
            mask=next((folder / name for name in MASK_NAMES if (folder / name).is_file()), None),
            events_files=files, events=events, events_are_blocks=True,
            confounds_file=movement if movement.is_file() else None,
        )  # fmt: skip
        run = read_run(run, self.config, problems)
        if run.timing and self.config.source_tr_s is None and not np.isclose(run.timing.tr_s, TR_S, rtol=TR_TOLERANCE):
            text = f"{bold}: TR {run.timing.tr_s:g} s, HCP's protocol has {TR_S:g} s; check the header"
            run = replace(run, problems=(*run.problems, Problem("repetition-time", "warning", text)))
        return run

    def _events(self, folder: Path, task: str) -> tuple[tuple[Event, ...], tuple[Path, ...]]:
        if not folder.is_dir():
            return (), ()
        conditions = {c.label: c for c in self.table.task_conditions(task)}
        for label in self.labels or ():
            if fold(task) in self.table.get(label).tasks:
                conditions.setdefault(label, self.table.get(label))
        files = {path.stem: path for path in _files(folder) if path.suffix == ".txt"}
        events: list[Event] = []
        used: list[Path] = []
        for condition in conditions.values():
            names = [name for name in files if fold(name) in condition.trial_types]
            if condition.stem in names:
                names = [condition.stem]
            for name in names[:1]:
                events.extend(read_ev(files[name], condition.stem))
                used.append(files[name])
        return tuple(sorted(events)), tuple(used)

    @cached_property
    def _subject_folders(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = defaultdict(list)
        for folder in _folders(self.root):
            if _has(folder, RESULTS, *([T1W] if self.images == "t1w" else [])):
                found[clean_label(folder.name)].append(folder)
        return dict(found)


def _has(folder: Path, *inside: Path) -> bool:
    try:
        return any((folder / path).exists() or (folder / path).is_symlink() for path in inside)
    except OSError:  # a participant's folder that cannot be entered is a participant, reported when it is read
        return bool(re.fullmatch(r"(sub-)?\d{4,}\w*", folder.name))


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in _entries(root) if _is_dir(path))


def _files(root: Path) -> list[Path]:
    return sorted(path for path in _entries(root) if not _is_dir(path))


def _entries(root: Path) -> list[Path]:
    try:
        with os.scandir(root) as entries:
            return [root / entry.name for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise FmrisynthError(
            f"{root}: the folder cannot be read ({error.strerror}); check that it exists and its permissions."
        ) from None


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return True

"""BIDS datasets: raw, fMRIPrep-style derivatives and both together, through pybids.

Names are indexed, metadata are not (that is what makes pybids slow); the few sidecars needed are read along
the inheritance chain. With a database folder the index is built once, under a temporary name, and only read
afterwards, so jobs of an array never lock each other out.
"""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fmrisynth.bids.atomic import temporary_name
from fmrisynth.bids.events import read_events
from fmrisynth.bids.hcp import HcpSource, is_hcp_tree
from fmrisynth.bids.naming import parse_entities
from fmrisynth.bids.sources import Source, SourceRun, clean_label, read_json
from fmrisynth.conditions import ConditionTable
from fmrisynth.config.prepare import PrepareConfig
from fmrisynth.errors import FmrisynthError, UsageError
from fmrisynth.progress import log

RUN_ENTITIES = ("sub", "ses", "task", "acq", "ce", "dir", "rec", "run", "echo", "part")
"""Entities that tell one acquisition from another."""

SPACE_ORDER = ("MNI152NLin6Asym", "MNI152NLin2009cAsym")
NATIVE_SPACES = (None, "func", "boldref", "scanner")
IMAGE_EXTENSIONS = (".nii.gz", ".nii")


def open_source(
    root: Path, config: PrepareConfig, table: ConditionTable, labels: Sequence[str] | None = None
) -> Source:
    """Recognise the layout of `root` and open it.

    Raises
    ------
    UsageError
        The folder does not exist, or is of no known layout.
    """
    if not root.is_dir():
        raise UsageError(f"{root}: there is no such folder; check the path of the input.")
    layout = _recognise(root) if config.layout == "auto" else config.layout
    if layout == "hcp":
        if config.native:
            raise UsageError("--native is for BIDS input in scanner space; HCP runs are in MNI space already.")
        source: Source = HcpSource(root, table, labels)
        if not source.subjects():
            raise UsageError(
                f"{root}: expected an HCP tree, found no <subject>/MNINonLinear/Results; give the folder that holds "
                "the subjects' folders."
            )
        return source
    return BidsSource(root, config)


def _recognise(root: Path) -> str:
    if (root / "MNINonLinear").is_dir():
        raise UsageError(f"{root}: this is one HCP subject; give the folder above it, with --participant-label.")
    if is_hcp_tree(root):
        return "hcp"
    if (root / "dataset_description.json").exists() or any(root.glob("sub-*")):
        table = next(root.glob("sub-*/sub-*_scans.tsv"), None)
        if table is not None and "n_frames" in table.read_text(encoding="utf-8", errors="replace"):
            raise UsageError(f"{root}: this is a block dataset already; give it to `fmrisynth tokenize`.")
        return "bids"
    raise UsageError(
        f"{root}: expected an HCP tree (<subject>/MNINonLinear/Results) or a BIDS dataset (sub-*), found neither; "
        "check the path."
    )


@dataclass(frozen=True)
class _File:
    """One indexed file."""

    root: Path
    path: Path
    entities: dict[str, str]

    @property
    def key(self) -> tuple:
        """What identifies the acquisition (``run-1`` and ``run-01`` are the same)."""
        return tuple(_value(self.entities, name) for name in RUN_ENTITIES)

    def applies_to(self, bold: dict[str, str]) -> bool:
        """Inheritance: every acquisition entity of this file's name is in the image's name too."""
        return all(_value(self.entities, name) == _value(bold, name) for name in RUN_ENTITIES if name in self.entities)

    @property
    def specificity(self) -> tuple[int, str]:
        """Order of the inheritance chain, most general first."""
        return sum(name in self.entities for name in RUN_ENTITIES), str(self.path)


def _value(entities: dict[str, str], name: str) -> str | int | None:
    value = entities.get(name)
    return int(value) if name in ("run", "echo") and value is not None and value.isdigit() else value


@dataclass(frozen=True)
class BidsSource:
    """A BIDS dataset; see `open_source`."""

    root: Path
    config: PrepareConfig
    kind: str = "bids"
    _cache: dict = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def _roots(self) -> list[tuple[Path, bool]]:
        """(folder, is derivative): where images and events are looked for."""
        roots = [(self.root, _is_derivative(self.root))]
        for folder in self.config.derivatives:
            if not folder.is_dir():
                raise UsageError(f"{folder}: there is no such derivatives folder; check the path.")
            roots.append((folder, True))
        if not self.config.derivatives and not roots[0][1] and (self.root / "derivatives").is_dir():
            inside = self.root / "derivatives"
            found = [inside] if (inside / "dataset_description.json").exists() else []
            found += sorted(p.parent for p in inside.glob("*/dataset_description.json"))
            roots += [(folder, True) for folder in found]
        if self.config.raw is not None:
            if not self.config.raw.is_dir():
                raise UsageError(f"{self.config.raw}: there is no such raw BIDS folder; check the path.")
            roots.append((self.config.raw, False))
        elif roots[0][1] and self.root.parent.name == "derivatives":
            roots.append((self.root.parent.parent, False))
        return [(folder.absolute(), derivative) for folder, derivative in roots]  # as pybids gives paths

    @cached_property
    def _files(self) -> list[_File]:
        files = []
        for number, (root, derivative) in enumerate(self._roots):
            for path in _index(root, derivative, self.config.bids_database_dir, number):
                files.append(_File(root, path, parse_entities(path.name)))
        return files

    @cached_property
    def _images(self) -> dict[str, list[_File]]:
        """Usable BOLD images by subject: one per acquisition."""
        everything = [
            f for f in self._files
            if f.entities["suffix"] == "bold" and f.entities["extension"] in IMAGE_EXTENSIONS and "sub" in f.entities
        ]  # fmt: skip
        if not everything:
            n_events = sum(f.entities["suffix"] == "events" for f in self._files)
            also = f" and {n_events} events files" if n_events else ""
            raise FmrisynthError(
                f"{self.root}: expected BOLD images (*_bold.nii.gz), found none{also}; get the image data first."
            )
        wanted = self._native_rank if self.config.native else self._mni_rank
        by_run: dict[tuple, list[tuple]] = defaultdict(list)
        for file in everything:
            rank = wanted(file.entities)
            if rank is not None and self._session_asked_for(file.entities):
                by_run[file.key].append((rank, str(file.path), file))
        if not by_run and not self.config.native:
            raise FmrisynthError(
                f"{self.root}: found {len(everything)} BOLD images, none of them in MNI space "
                "(space-MNI152..._desc-preproc_bold); run fMRIPrep first and give its output folder as INPUT, or "
                "use --native to keep each subject's own grid."
            )
        images: dict[str, list[_File]] = defaultdict(list)
        for key in sorted(by_run, key=_sortable):
            file = min(by_run[key])[2]
            images[clean_label(file.entities["sub"])].append(file)
        # Participants that have images of another kind only are listed too, so that they are reported.
        for file in everything:
            images.setdefault(clean_label(file.entities["sub"]), [])
        return dict(images)

    def _session_asked_for(self, entities: dict[str, str]) -> bool:
        asked = {clean_label(s.removeprefix("ses-")) for s in self.config.sessions}
        return not asked or entities.get("ses") in asked

    @staticmethod
    def _mni_rank(entities: dict[str, str]) -> tuple | None:
        space = entities.get("space", "")
        if not space.startswith("MNI152") or entities.get("desc", "preproc") != "preproc":
            return None
        order = SPACE_ORDER.index(space) if space in SPACE_ORDER else len(SPACE_ORDER)
        resolution = {"2": 0, "02": 0, "native": 2}.get(entities.get("res", ""), 1)
        return order, space, resolution

    @staticmethod
    def _native_rank(entities: dict[str, str]) -> tuple | None:
        if entities.get("space") not in NATIVE_SPACES or entities.get("desc", "preproc") != "preproc":
            return None
        if entities.get("part", "mag") != "mag":
            return None
        return (0 if "desc" in entities else 1,)  # a preprocessed image before a raw one

    def subjects(self) -> list[str]:
        """Subject labels, sorted."""
        return sorted(self._images)

    def tasks(self) -> list[str]:
        """Task spellings, sorted."""
        return sorted({f.entities["task"] for files in self._images.values() for f in files if "task" in f.entities})

    def runs(self, subject: str) -> list[SourceRun]:
        """The subject's runs, ordered by their entities."""
        files = self._images.get(subject, [])
        if not files:
            what = "in its own space" if self.config.native else "in MNI space"
            raise FmrisynthError(
                f"{self.root}: participant {subject} has no BOLD image {what}; preprocess this participant as the others."
            )
        labels = {f.entities["sub"] for f in files}
        if len(labels) > 1:
            raise FmrisynthError(
                f"{self.root}: {', '.join(sorted(labels))} are one participant ({subject}); rename one of them."
            )
        return [self._run(subject, file) for file in files]

    def _run(self, subject: str, file: _File) -> SourceRun:
        entities = file.entities
        if "echo" in entities:
            raise FmrisynthError(
                f"{file.path}: this is one echo of a multi-echo run; combine the echoes first (fMRIPrep does)."
            )
        metadata = self._metadata(entities)
        events = self._nearest("events", ".tsv", entities)
        return SourceRun(
            subject=subject,
            session=entities.get("ses"),
            task=entities.get("task", ""),
            bold=file.path,
            mask=self._mask(file),
            events=read_events(events.path) if events else (),
            space=entities.get("space") if str(entities.get("space")).startswith("MNI152") else None,
            name=file.path.relative_to(file.root).as_posix(),
            entities=entities,
            phase_encoding=entities.get("dir") or metadata.get("PhaseEncodingDirection"),
            tr_s=_seconds(file.path, metadata, "RepetitionTime"),
            first_frame_s=_seconds(file.path, metadata, "StartTime") or 0.0,
        )

    def _mask(self, bold: _File) -> Path | None:
        same = ("space", "res")
        for file in self._by_kind("mask", IMAGE_EXTENSIONS):
            brain = file.entities.get("desc") == "brain" or file.entities.get("label") == "brain"
            aligned = all(file.entities.get(name) == bold.entities.get(name) for name in same)
            if brain and aligned and file.key == bold.key:
                return file.path
        return None

    def _nearest(self, suffix: str, extension: str, bold: dict[str, str]) -> _File | None:
        fitting = [f for f in self._by_kind(suffix, (extension,), bold["sub"]) if f.applies_to(bold)]
        return max(fitting, key=lambda f: f.specificity, default=None)

    def _metadata(self, bold: dict[str, str]) -> dict:
        """Sidecars along the inheritance chain: raw before derivative, general before specific."""
        content: dict = {}
        for root, _ in sorted(self._roots, key=lambda entry: entry[1]):
            chain = [
                f for f in self._by_kind("bold", (".json",), bold["sub"])
                if f.root == root and f.applies_to(bold)
                and all(f.entities.get(n, bold.get(n)) == bold.get(n) for n in ("space", "res", "desc"))
            ]  # fmt: skip
            for file in sorted(chain, key=lambda f: f.specificity):
                content.update(self._json(file.path))
        return content

    def _json(self, path: Path) -> dict:
        if path not in self._cache:
            self._cache[path] = read_json(path)
        return self._cache[path]

    def _by_kind(self, suffix: str, extensions: Sequence[str], sub: str | None = None) -> list[_File]:
        """Files of one kind that belong to one subject or to none (so to all)."""
        key = (suffix, tuple(extensions), sub)
        if key not in self._cache:
            self._cache[key] = [
                f for f in self._files
                if f.entities["suffix"] == suffix and f.entities["extension"] in extensions
                and (sub is None or f.entities.get("sub", sub) == sub)
            ]  # fmt: skip
        return self._cache[key]


def _sortable(key: tuple) -> tuple[str, ...]:
    """Order of acquisitions: by entity, with numbers as numbers and missing entities first."""
    return tuple("" if part is None else f"{part:06d}" if isinstance(part, int) else part for part in key)


def _is_derivative(root: Path) -> bool:
    path = root / "dataset_description.json"
    return path.exists() and read_json(path).get("DatasetType") == "derivative"


def _seconds(image: Path, metadata: dict, key: str) -> float | None:
    value = metadata.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FmrisynthError(f"{image}: its sidecar has {key} = {value!r}, expected a number of seconds; mend it.")
    return float(value)


def _index(root: Path, derivative: bool, database_dir: Path | None, number: int) -> list[Path]:
    """Paths of all functional files of one dataset, sorted, from pybids."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from bids import BIDSLayout
        from bids.layout import BIDSLayoutIndexer

        indexer = BIDSLayoutIndexer(validate=False, index_metadata=False)
        options = {"validate": False, "indexer": indexer, "derivatives": False, "is_derivative": derivative}
        try:
            if database_dir is None:
                layout = BIDSLayout(root, **options)
            else:
                database = database_dir / f"{number}-{re.sub(r'[^0-9A-Za-z]+', '-', root.resolve().name)}"
                if not database.is_dir():
                    _build_database(root, database, options)
                layout = BIDSLayout(root, database_path=database, **options)
            found = layout.get(suffix=["bold", "events", "mask"], return_type="filename")
        except (OSError, ValueError) as error:
            raise FmrisynthError(f"{root}: the BIDS dataset cannot be indexed ({error}).") from None
    return sorted(Path(path) for path in found)


def _build_database(root: Path, database: Path, options: dict) -> None:
    from bids import BIDSLayout

    log.info("Building the pybids index of %s in %s", root, database)
    temporary = temporary_name(database)
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        layout = BIDSLayout(root, database_path=temporary, **options)
        layout.connection_manager.engine.dispose()
        temporary.rename(database)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not database.is_dir():  # another job may have been first
            raise FmrisynthError(f"{database}: the pybids index cannot be written ({error.strerror}).") from None

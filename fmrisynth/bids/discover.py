"""BIDS datasets: raw, fMRIPrep-style derivatives and both together, through pybids.

Names are indexed, metadata are not (that is what makes pybids slow); the few sidecars needed are read along
the inheritance chain. With a database folder the index is built once, under a temporary name, and only read
afterwards, so jobs of an array never lock each other out.
"""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from pathlib import Path

from fmrisynth.bids.atomic import temporary_name
from fmrisynth.bids.hcp import HcpSource, is_hcp_tree
from fmrisynth.bids.naming import RUN_DESC, parse_entities
from fmrisynth.bids.runs import Problem, Run, read_run
from fmrisynth.bids.sources import Images, Source, clean_label, read_json
from fmrisynth.bids.structural import T1w
from fmrisynth.conditions import ConditionTable
from fmrisynth.config.source import SourceConfig
from fmrisynth.errors import FmrisynthError, UsageError
from fmrisynth.progress import log

RUN_ENTITIES = ("sub", "ses", "task", "acq", "ce", "dir", "rec", "run")
"""Entities that tell one acquisition from another; its echoes and its phase images are no runs of their own."""

SPACE_ORDER = ("MNI152NLin6Asym", "MNI152NLin2009cAsym")
NATIVE_SPACES = (None, "func", "boldref", "scanner")
IMAGE_EXTENSIONS = (".nii.gz", ".nii")
SURFACE_EXTENSIONS = (".func.gii", ".dtseries.nii", ".gii", ".ptseries.nii")

SESSION_ENTITIES = ("sub", "ses")
"""Entities that tell one T1w from another: of several in a session one is taken."""


def open_source(
    root: Path,
    config: SourceConfig,
    table: ConditionTable,
    labels: Sequence[str] | None = None,
    *,
    images: Images = "mni",
) -> Source:
    """Recognise the layout of `root` and open it.

    Parameters
    ----------
    root : Path
        The input.
    config : SourceConfig
        Settings of the reader.
    table, labels
        The condition table, and the conditions asked for, for HCP's EV files; None asks for all.
    images : {"mni", "native", "any", "t1w"}
        Which image of a run, or of a session, is wanted.

    Raises
    ------
    UsageError
        The folder does not exist, or is of no known layout.
    """
    if not root.is_dir():
        raise UsageError(f"{root}: there is no such folder; check the path of the input.")
    layout = _recognise(root, images) if config.layout == "auto" else config.layout
    if layout == "hcp":
        if images == "native":
            raise UsageError("--native is for BIDS input in scanner space; HCP runs are in MNI space already.")
        source: Source = HcpSource(root, table, labels, config, images)
        if not source.subjects():
            raise UsageError(
                f"{root}: expected an HCP tree, found no <subject>/MNINonLinear/Results; give the folder that holds "
                "the subjects' folders."
            )
        return source
    return BidsSource(root, config, images)


def _recognise(root: Path, images: Images) -> str:
    if (root / "MNINonLinear").is_dir():
        raise UsageError(f"{root}: this is one HCP subject; give the folder above it, with --participant-label.")
    if is_hcp_tree(root):
        return "hcp"
    if (root / "dataset_description.json").exists() or any(root.glob("sub-*")):
        table = next(root.glob("sub-*/sub-*_scans.tsv"), None)
        text = "" if table is None else table.read_text(encoding="utf-8", errors="replace")
        if "n_frames" in text and not (images == "any" and f"_desc-{RUN_DESC}_bold" in text):
            raise UsageError(
                f"{root}: this was prepared already; give it to `fmrisynth tokenize` or `fmrisynth glm --unit block`."
            )
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
    derivative: bool

    @property
    def key(self) -> tuple:
        """What identifies the acquisition (``run-1`` and ``run-01`` are the same)."""
        return tuple(_value(self.entities, name) for name in RUN_ENTITIES)

    def applies_to(self, bold: _File) -> bool:
        """Inheritance: every entity of this file's name, and of its folders, is in the image's name too."""
        folders = dict(part.split("-", 1) for part in self.path.relative_to(self.root).parts[:-1] if "-" in part)
        own = {k: v for k, v in self.entities.items() if k not in ("suffix", "extension")}
        own |= {k: v for k, v in folders.items() if k in ("sub", "ses")}
        return all(_value(own, name) == _value(bold.entities, name) for name in own)

    @property
    def specificity(self) -> tuple[int, bool, int, str]:
        """Order of the inheritance chain, most general first."""
        n_entities = sum(name in self.entities for name in RUN_ENTITIES)
        return n_entities, not self.derivative, len(self.path.parts), str(self.path)


def _value(entities: dict[str, str], name: str) -> str | int | None:
    value = entities.get(name)
    return int(value) if name in ("run", "echo") and value is not None and value.isdigit() else value


@dataclass(frozen=True)
class BidsSource:
    """A BIDS dataset; see `open_source`."""

    root: Path
    config: SourceConfig
    images: Images = "mni"
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
            folders = [inside, *sorted(path for path in inside.iterdir() if path.is_dir())]
            roots += [(f, True) for f in folders if (f / "dataset_description.json").exists() or any(f.glob("sub-*"))]
        if self.config.raw is not None:
            if not self.config.raw.is_dir():
                raise UsageError(f"{self.config.raw}: there is no such raw BIDS folder; check the path.")
            roots.append((self.config.raw, False))
        elif roots[0][1] and self.root.absolute().parent.name == "derivatives":
            roots.append((self.root.absolute().parent.parent, False))
        return [(folder.absolute(), derivative) for folder, derivative in roots]  # as pybids gives paths

    @property
    def roots(self) -> list[Path]:
        """The dataset, its derivatives, and the raw data that it was made from."""
        return [root for root, _ in self._roots]

    @property
    def _suffix(self) -> str:
        return "T1w" if self.images == "t1w" else "bold"

    @property
    def _what(self) -> str:
        return "T1w" if self.images == "t1w" else "BOLD"

    def _acquisition(self, file: _File) -> tuple:
        """What candidates for one image have in common."""
        return file.key if self._suffix == "bold" else tuple(_value(file.entities, name) for name in SESSION_ENTITIES)

    @cached_property
    def _files(self) -> list[_File]:
        files = []
        for number, (root, derivative) in enumerate(self._roots):
            for path in _index(root, derivative, self.config.bids_database_dir, number):
                files.append(_File(root, path, parse_entities(path.name), derivative))
        return files

    @cached_property
    def _images(self) -> dict[str, list[list[_File]]]:
        """Usable images by subject: for each acquisition the candidates, the best one first."""
        everything = [
            f for f in self._files
            if f.entities["suffix"] == self._suffix and f.entities["extension"] in IMAGE_EXTENSIONS and "sub" in f.entities
        ]  # fmt: skip
        if not everything:
            raise FmrisynthError(self._no_images())
        by_run: dict[tuple, list[tuple[tuple, _File]]] = defaultdict(list)
        for file in everything:
            rank = self._rank(file.entities)
            if rank is not None and self._session_asked_for(file.entities):
                by_run[self._acquisition(file)].append((("echo" in file.entities, *rank, str(file.path)), file))
        if not by_run and self.images in ("mni", "t1w"):
            raise FmrisynthError(
                f"{self.root}: found {len(everything)} {self._what} images, none of them in MNI space "
                f"(space-MNI152..._desc-preproc_{self._suffix}); run fMRIPrep first and give its output folder as INPUT"
                + (", or use --native to keep each subject's own grid." if self.images == "mni" else ".")
            )
        images: dict[str, list[list[_File]]] = defaultdict(list)
        for key in sorted(by_run, key=_sortable):
            candidates = [file for _, file in sorted(by_run[key], key=itemgetter(0))]
            images[clean_label(candidates[0].entities["sub"])].append(candidates)
        # Participants that have images of another kind only are listed too, so that they are reported.
        for file in everything:
            images.setdefault(clean_label(file.entities["sub"]), [])
        return dict(images)

    def _no_images(self) -> str:
        if self.images == "t1w":
            return (
                f"{self.root}: expected T1w images (*_space-MNI152*_desc-preproc_T1w.nii.gz), found none; give fMRIPrep's "
                "output folder, with its anat folders."
            )
        surfaces = [
            f for f in self._files if f.entities["suffix"] == "bold" and f.entities["extension"] in SURFACE_EXTENSIONS
        ]
        if surfaces:
            return (
                f"{self.root}: found {len(surfaces)} BOLD files on surfaces (GIFTI or CIFTI, as {surfaces[0].path.name}) and no "
                "volumes; volumes are needed: *_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz (fMRIPrep with "
                "--output-spaces MNI152NLin6Asym:res-2)."
            )
        n_events = sum(f.entities["suffix"] == "events" for f in self._files)
        also = f" and {n_events} events files" if n_events else ""
        return f"{self.root}: expected BOLD images (*_bold.nii.gz), found none{also}; get the image data first."

    def _session_asked_for(self, entities: dict[str, str]) -> bool:
        asked = {clean_label(s.removeprefix("ses-")) for s in self.config.sessions}
        return not asked or entities.get("ses") in asked

    def _rank(self, entities: dict[str, str]) -> tuple | None:
        """How far an image is from what is wanted; None for one that is not."""
        space = entities.get("space", "")
        if entities.get("desc", "preproc") != "preproc" or entities.get("part", "mag") != "mag":
            return None
        in_mni, native = space.startswith("MNI152"), entities.get("space") in NATIVE_SPACES
        if (self.images in ("mni", "t1w") and not in_mni) or (self.images == "native" and not native):
            return None
        order = SPACE_ORDER.index(space) if space in SPACE_ORDER else len(SPACE_ORDER)
        ranks = {"2": 0, "02": 0, "native": 2} if self._suffix == "bold" else {"2": 2, "02": 2}
        resolution = ranks.get(entities.get("res", ""), 1)
        raw = "desc" not in entities and not in_mni  # a preprocessed image before a raw one
        return raw, not in_mni, order, space, resolution

    def subjects(self) -> list[str]:
        """Subject labels, sorted."""
        return sorted(self._images)

    def tasks(self) -> list[str]:
        """Task spellings, sorted."""
        files = [candidates[0] for runs in self._images.values() for candidates in runs]
        return sorted({f.entities["task"] for f in files if "task" in f.entities})

    def runs(self, subject: str) -> list[Run]:
        """The subject's runs, ordered by their entities."""
        return [self._run(subject, candidates) for candidates in self._candidates(subject)]

    def anatomies(self, subject: str) -> list[T1w]:
        """The subject's preprocessed T1w in MNI space, one a session."""
        found = []
        for file, *others in self._candidates(subject):
            alike = [f for f in others if self._rank(f.entities) == self._rank(file.entities)]
            doubts = (f"{file.path}: {alike[0].path} is a T1w of the same session and is not used.",) if alike else ()
            found.append(
                T1w(
                    subject, file.entities.get("ses"), file.path, self._mask(file), file.path.relative_to(file.root).as_posix(),
                    file.entities["space"], doubts=doubts,
                )
            )  # fmt: skip
        return found

    def _candidates(self, subject: str) -> list[list[_File]]:
        """For each acquisition of a subject the files, the best one first."""
        files = self._images.get(subject, [])
        if not files:
            what = {
                "native": "in its own space",
                "mni": "in MNI space",
                "any": "that is raw or preprocessed (desc-preproc)",
                "t1w": "in MNI space",
            }
            others = [f.path for f in self._by_kind((self._suffix,), IMAGE_EXTENSIONS, subject)]
            found = f", only others (as {others[0]})" if others else ""
            raise FmrisynthError(
                f"{self.root}: participant {subject} has no {self._what} image {what[self.images]}{found}; preprocess this participant "
                "as the others."
            )
        labels = {candidates[0].entities["sub"] for candidates in files}
        if len(labels) > 1:
            raise FmrisynthError(
                f"{self.root}: {', '.join(sorted(labels))} are one participant ({subject}); rename one of them."
            )
        return files

    def _run(self, subject: str, candidates: list[_File]) -> Run:
        file = candidates[0]
        entities = file.entities
        problems = []
        if "echo" in entities:
            problems.append(Problem("echo", "error", f"{file.path}: this is one echo of a multi-echo run; combine the echoes "
                                    "first (fMRIPrep does)."))  # fmt: skip
        rivals = [f for f in candidates[1:] if f.root != file.root and self._rank(f.entities) == self._rank(entities)]
        if rivals and "desc" in entities:
            problems.append(Problem("pipelines", "warning", f"{file.path}: {rivals[0].path} is the same run from another "
                                    "pipeline and is not used; name one folder as derivatives to choose."))  # fmt: skip
        metadata: dict = {}
        sidecars = self._sidecars(file)
        try:
            for path in sidecars:
                metadata |= self._json(path)
        except FmrisynthError as error:
            problems.append(Problem("sidecar", "error", str(error)))
        events = self._best(
            file, [f for f in self._by_kind(("events",), (".tsv",), entities["sub"]) if f.applies_to(file)]
        )
        space = str(entities.get("space"))
        run = Run(
            subject=subject,
            session=entities.get("ses"),
            task=entities.get("task", ""),
            bold=file.path,
            name=file.path.relative_to(file.root).as_posix(),
            space=space if space.startswith("MNI152") else None,
            entities=entities,
            phase_encoding=entities.get("dir") or metadata.get("PhaseEncodingDirection"),
            metadata=metadata,
            sidecars=sidecars,
            mask=self._mask(file),
            events_files=(events,) if events else (),
            confounds_file=self._confounds(file),
        )
        return read_run(run, self.config, problems)

    @staticmethod
    def _best(bold: _File, fitting: Iterable[_File]) -> Path | None:
        file = max(fitting, key=lambda f: f.specificity, default=None)
        return file.path if file else None

    def _mask(self, bold: _File) -> Path | None:
        def fits(file: _File) -> bool:
            brain = "brain" in (file.entities.get("desc"), file.entities.get("label"))
            aligned = all(file.entities.get(name) == bold.entities.get(name) for name in ("space", "res"))
            return brain and aligned and file.key == bold.key and "echo" not in file.entities

        return next((f.path for f in self._by_kind(("mask",), IMAGE_EXTENSIONS, bold.entities["sub"]) if fits(f)), None)

    def _confounds(self, bold: _File) -> Path | None:
        known = {*RUN_ENTITIES, "desc", "suffix", "extension"}  # a table of regions has seg- or atlas-
        fitting = [
            f for f in self._by_kind(("timeseries", "regressors", "confounds"), (".tsv",), bold.entities["sub"])
            if f.key == bold.key and f.root == bold.root and f.entities.keys() <= known
            and f.entities.get("desc", "confounds") == "confounds"
        ]  # fmt: skip
        return self._best(bold, fitting)

    def _sidecars(self, bold: _File) -> tuple[Path, ...]:
        """Sidecars along the inheritance chain: raw before derivative, general before specific."""
        chain = [f for f in self._by_kind(("bold",), (".json",), bold.entities["sub"]) if f.applies_to(bold)]
        return tuple(file.path for file in sorted(chain, key=lambda f: (f.derivative, f.specificity)))

    def _json(self, path: Path) -> dict:
        if path not in self._cache:
            self._cache[path] = read_json(path)
        return self._cache[path]

    def _by_kind(self, suffixes: Sequence[str], extensions: Sequence[str], sub: str) -> list[_File]:
        """Files of one kind that belong to one subject or to none (so to all)."""
        key = (tuple(suffixes), tuple(extensions), sub)
        if key not in self._cache:
            self._cache[key] = [
                f for f in self._files
                if f.entities["suffix"] in suffixes and f.entities["extension"] in extensions
                and f.entities.get("sub", sub) == sub
            ]  # fmt: skip
        return self._cache[key]


def _sortable(key: tuple) -> tuple[str, ...]:
    """Order of acquisitions: by entity, with numbers as numbers and missing entities first."""
    return tuple("" if part is None else f"{part:06d}" if isinstance(part, int) else part for part in key)


def _is_derivative(root: Path) -> bool:
    path = root / "dataset_description.json"
    if path.exists():
        return read_json(path).get("DatasetType") == "derivative"
    return root.absolute().parent.name == "derivatives"


def _index(root: Path, derivative: bool, database_dir: Path | None, number: int) -> list[Path]:
    """Paths of all files of one dataset that a reader may want, sorted, from pybids."""
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
            found = layout.get(
                suffix=["bold", "T1w", "events", "mask", "timeseries", "regressors", "confounds"],
                return_type="filename",
            )
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

"""One way to do a unit of work: a participant, a run, a sample, a fit, a group map.

A unit is finished when its record (``logs/units/<label>.json``) says that everything that determined it is what it is
now, and all files that it wrote are there and whole. The record is written last, when the files are on the disk. A unit
whose input changed is done again, and what hangs on it notices, because the unit's files are its input; so is one with
a missing or damaged file. A folder belongs to the command that began it, with the settings it began with.

Content is compared by SHA-256 (`fmrisynth.bids.digests`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fmrisynth.bids import naming
from fmrisynth.bids.atomic import recording, remove_leftovers, write_json, write_text
from fmrisynth.bids.digests import Look, digest_of
from fmrisynth.bids.lock import exclusive, remove_dead_locks
from fmrisynth.bids.origin import Origin
from fmrisynth.bids.provenance import DESCRIPTION_FILES, write_dataset_description, write_run_log
from fmrisynth.config.base import StageConfig
from fmrisynth.errors import FmrisynthError, UsageError
from fmrisynth.parse import read_json
from fmrisynth.progress import SHOWN, StageSummary, count, log, reason_of, some, track

T = TypeVar("T")
R = TypeVar("R")

CLAIM = Path("logs", "begun.json")
"""Who began the folder, from what, with which settings."""

SCRATCH_RECORD = "about.json"
"""In a unit's scratch folder: what its content was made from."""


class WrongFolder(UsageError):
    """The folder belongs to somebody else, or to other data or settings; no participant can be worked on."""


class Rehearsed(BaseException):
    """A command in a `rehearsal` came to where it would begin to write."""


in_rehearsal = ContextVar("in_rehearsal", default=False)


@contextmanager
def rehearsal() -> Iterator[None]:
    """Inside, a command refuses what it would refuse, and ends where it would begin to write, in `Stage.begin`."""
    token, level = in_rehearsal.set(True), log.level
    log.setLevel("ERROR")  # what it would say besides is said by its plan
    try:
        with suppress(Rehearsed):
            yield
    finally:
        log.setLevel(level)
        in_rehearsal.reset(token)


@dataclass(frozen=True)
class Unit:
    """A unit of work.

    Attributes
    ----------
    label : str
        ``sub-01``; also the name of the lock.
    about : mapping of str to Any
        Everything that determines the result and is no setting. Paths stand for the bytes of files; records, arrays,
        numbers and texts for themselves. The keys are for people: they are named when something changed.
    make : callable
        Does the work; what it returns must be plain JSON and is kept in the record. A mapping with ``failed`` says that a
        part could not be done: what hangs on the unit may use the rest, and the next call tries again.
    index : Path
        The file by which readers know that the unit is complete, relative to the output; removed before the unit is
        done again.
    folder : Path, optional
        Folder, relative to the output, in which files named for the unit belong to nobody else; those that `make` did
        not write are removed.
    scratch : Path, optional
        Folder, relative to the output, where an interrupted `make` keeps what it goes on from. It is emptied when the
        input changed meanwhile, and is no part of the result.
    """

    label: str
    about: Mapping[str, Any]
    make: Callable[[], Any]
    index: Path
    folder: Path | None = None
    scratch: Path | None = None


class Stage:
    """One call of a command on its output folder; see `Stage.begin`.

    Attributes
    ----------
    out : Path
        The output folder.
    made, kept : list of str
        Labels of the units done in this call, and of those found finished.
    again : dict of str to str
        Label -> why a unit that had been finished was done again.
    failed : dict of str to str
        Participant -> reason.
    sources : list of str
        Where the inputs lie.
    moved_from : str or None
        Where they lay when the folder was begun, if that is another place.
    is_new : bool
        Whether this call began the folder.
    """

    def __init__(self, command: str, out: Path, *, version: int = 1, force: bool = False) -> None:
        self.command, self.out, self.version, self.force = command, out, version, force
        self.made: list[str] = []
        self.kept: list[str] = []
        self.again: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self.sources: list[str] = []
        self.moved_from: str | None = None
        self.is_new = False

    @classmethod
    def begin(
        cls, command: str, out: Path, config: StageConfig, *, version: int = 1, sources: Sequence[Path] = (),
        known: Iterable[str] = (), settings: Mapping[str, Any] | None = None, free: Iterable[str] = (),
        title: str | None = None, readme: str = "", origin: Origin | None = None, force: bool = False, write: bool = True,
    ) -> Stage:  # fmt: skip
        """Begin an output folder, or go on with it.

        Parameters
        ----------
        command : str
            The command that owns the folder.
        out : Path
            The folder.
        config : StageConfig
            Its resolved values are logged.
        version : int
            Of the method: raised whenever equal input and settings give another result than before.
        sources : sequence of Path
            The inputs' folders. A folder that moved is known by its content.
        known : iterable of str
            Labels of all units that the inputs could give.
        settings : mapping, optional
            What must not differ from one call to the next; default: `config`.
        free : iterable of str
            Settings that may differ.
        title, readme, origin
            For ``dataset_description.json`` and ``README.md``; without a title none is written.
        force : bool
            Make everything asked for anew, also with other settings.
        write : bool
            False for all but one of several processes that work together.

        Raises
        ------
        WrongFolder
            Somebody else's folder, or begun from other data or with other settings.
        Rehearsed
            In a `rehearsal`; nothing was written.
        """
        stage = cls(command, out, version=version, force=force)
        now = dict(settings) if settings is not None else config.model_dump(mode="json")
        now = json.loads(json.dumps({key: value for key, value in now.items() if key not in set(free)}))
        stage.sources = [str(source.resolve()) for source in sources]
        defaults = {} if settings is not None else type(config).model_construct().model_dump(mode="json")
        stage._check_owner()  # before a lock is put into a folder that is not ours
        if not write:
            return stage
        with nullcontext() if in_rehearsal.get() else exclusive(out, "settings"):
            claim = stage._check_owner()
            stage.is_new = claim is None
            others = claim is not None and stage._check_same(claim, defaults, now, list(known))
            if in_rehearsal.get():
                raise Rehearsed
            for record in sorted((out / naming.unit_record("x").parent).glob("*.json")) if others else ():
                stage._forget(record, _read_record(record))
            if claim is None or force:
                content = {"Command": command, "Sources": stage.sources, "Settings": now}
                write_json(out / CLAIM, content)
        if title is not None and stage.moved_from is None:  # else whose folder it is remains to be seen
            write_dataset_description(out, title, sources=sources, origin=origin, readme=readme)
        write_run_log(out, command, config)
        for folder in (out, *(path for path in out.iterdir() if path.is_dir() and not path.name.startswith("sub-"))):
            remove_leftovers(folder)
        remove_leftovers(out / naming.unit_record("x").parent)
        remove_dead_locks(out)
        return stage

    def _check_owner(self) -> dict[str, Any] | None:
        """The claim on the folder; None where the folder is still nobody's."""
        path, found = self.out / CLAIM, "other files"
        # Looked at before the claim: another process may be beginning the folder at this moment.
        is_nobodys = not self.out.exists() or not _holds_files(self.out)
        if path.is_file():
            claim = _read(path)
            if claim is None:
                raise FmrisynthError(
                    f"{path}: expected what began this folder, it cannot be read; correct it or delete {self.out}."
                )
            if claim.get("Command") == self.command:
                return claim
            found = f"one that `fmrisynth {claim.get('Command')}` began"
        elif is_nobodys:
            return None
        raise WrongFolder(
            f"{self.out}: expected an empty folder or one that `fmrisynth {self.command}` began, found {found}; "
            "nothing was touched, choose another folder."
        )

    def _check_same(
        self,
        claim: Mapping[str, Any],
        defaults: dict[str, Any],
        now: dict[str, Any],
        known: list[str],
    ) -> bool:
        """Refuse other settings or sources; with `force`, say whether the settings are others."""
        then = flat_settings({k: v for k, v in defaults.items() if k in now} | dict(claim.get("Settings", {})))
        flat = flat_settings(now)
        changed = [key for key in dict.fromkeys([*flat, *then]) if flat.get(key) != then.get(key)]
        if changed and not self.force:
            shown = ", ".join(f"{key} was {then.get(key)}, is {flat.get(key)}" for key in changed)
            raise WrongFolder(
                f"{self.out}: this folder was begun with other settings ({shown}); use them, another folder, or --force to "
                "make everything anew."
            )
        if claim.get("Sources") != self.sources and not self.force:
            self.moved_from = ", ".join(claim.get("Sources", []))
            if not any((self.out / naming.unit_record(label)).is_file() for label in known):
                self._refuse_source("holds none of the finished ones")
        return bool(changed)

    def _refuse_source(self, found: str) -> None:
        raise WrongFolder(
            f"{self.out}: this folder was begun from {self.moved_from}, and the input now {found}; use another folder, or "
            "--force to make everything anew."
        )

    def each(self, names: Sequence[T], work: Callable[[T], R], description: str) -> dict[T, R]:
        """Work on participants one by one; one that fails does not stop the others.

        Returns
        -------
        dict
            Participant -> what `work` returned; those that failed are in `failed`.
        """
        done: dict[T, R] = {}
        for name in track(names, description):
            try:
                done[name] = work(name)
            except WrongFolder:
                raise
            except Exception as error:
                self.failed[str(name)] = reason_of(str(name), error)
                log.warning("%s: %s", name, self.failed[str(name)])
        return done

    def do(self, unit: Unit, *, wait: bool = True) -> Any:
        """Do a unit unless it is finished; returns what its `make` returned, now or then.

        One process at a time does it: others wait, or with ``wait=False`` are refused.
        """
        with exclusive(self.out, unit.label, wait=wait):
            result, why = self._do(unit)
        if why is None:
            self.kept.append(unit.label)
        else:
            self.made.append(unit.label)
            if why:
                self.again[unit.label] = why
        return result

    def part(self, unit: Unit) -> Any:
        """The same for a part of a unit that is being done: who has the lock on the whole has it on the parts."""
        return self._do(unit)[0]

    def _do(self, unit: Unit) -> tuple[Any, str | None]:
        """The result, and why it was made now (see `_why`)."""
        path = self.out / naming.unit_record(unit.label)
        record = _read_record(path)
        look = Look(record and record["Stamps"])
        about = look.flat(unit.about)
        why = self._why(record, about, look, force=self.force)
        if why is None and record is not None and isinstance(record["Result"], dict) and record["Result"].get("failed"):
            why = "a part of it had failed"
        if why is None and record is not None:
            if look.n_computed:  # so that the next call need not read the files
                with suppress(FmrisynthError):
                    write_text(path, json.dumps(record | {"Stamps": look.stamps}), last=True)
            with recording() as written:
                written.files |= {self.out / name: None for name in record["Outputs"]}  # they are the whole's, too
            return record["Result"], None
        if record is not None:
            if self.moved_from is not None and record["About"] != about:
                self._refuse_source(f"has another {unit.label} ({why})")
            log.debug("%s is made again: %s.", unit.label, why)
        if unit.folder is not None and (self.out / unit.folder).is_symlink():
            raise FmrisynthError(
                f"{self.out / unit.folder}: expected a folder of this dataset, found a link; nothing is written behind it."
            )
        self._remove([unit.index.as_posix()])
        self._forget(path, None)
        self._prepare_scratch(unit, about)
        with recording() as written:
            result = json.loads(json.dumps(unit.make()))
            outputs = self._outputs(unit, written.files)
            self._tidy(unit, outputs, record)
            stamps = Look()
            content = {
                "Version": self.version, "About": about, "Index": unit.index.as_posix(),
                "Outputs": {name: stamps.digest(self.out / name) for name in outputs}, "Result": result,
                "Stamps": look.stamps | stamps.stamps,
            }  # fmt: skip
            write_text(path, json.dumps(content), last=True)
            del written.files[path]
        return result, why

    def is_finished(self, unit: Unit) -> bool:
        """Whether all that a unit wrote is there, whole, and of its inputs as they are now; `force` aside."""
        record = _read_record(self.out / naming.unit_record(unit.label))
        look = Look(record and record["Stamps"])
        return record is not None and self._why(record, look.flat(unit.about), look, force=False) is None

    def result(self, label: str) -> Any:
        """What the `make` of a unit returned when it was last finished; None where it never was."""
        return (_read_record(self.out / naming.unit_record(label)) or {"Result": None})["Result"]

    def result_digest(self, label: str) -> str:
        """Digest of what a finished unit was made from and what it wrote, for what hangs on it."""
        record = _read_record(self.out / naming.unit_record(label)) or {}
        return digest_of([record.get(key) for key in ("Version", "About", "Outputs", "Result")])

    def records(self) -> list[str]:
        """Labels of all units that were finished once."""
        return sorted(path.stem for path in (self.out / naming.unit_record("x").parent).glob("*.json"))

    def drop(self, labels: Iterable[str]) -> None:
        """Remove what units wrote that are no longer asked for."""
        for label in labels:
            self._drop(label)
            log.info("%s: what it was made from is gone; its files were removed.", label)

    def _drop(self, label: str) -> None:
        path = self.out / naming.unit_record(label)
        record = _read_record(path)
        self._forget(path, record)
        self._remove(record["Outputs"] if record is not None else ())

    def withdraw(self, *copies: str) -> None:
        """Leave no folder where this call began it and finished nothing but `copies`, units made from what lies elsewhere.

        What an interrupted unit goes on from, and other processes' locks, keep the folder.
        """
        if not self.is_new or not set(self.records()) <= set(copies):
            return
        for label in copies:
            self._drop(label)
        files = [path for path in self.out.rglob("*") if path.is_file() and self.out / CLAIM.parent not in path.parents]
        if all(path.name in (SCRATCH_RECORD, *DESCRIPTION_FILES) for path in files):
            shutil.rmtree(self.out, ignore_errors=True)

    def summary(self, lines: Sequence[str] = ()) -> StageSummary:
        """What to tell: the stage's own lines, what was made again and why, and what failed."""
        claim = _read(self.out / CLAIM)
        if (
            self.moved_from is not None and self.kept and claim is not None
        ):  # proved by content: the new place is the true one
            write_json(self.out / CLAIM, claim | {"Sources": self.sources})
        told = list(lines)
        for label, why in list(self.again.items())[:SHOWN]:
            told.append(f"{label} was made again: {why}.")
        if len(self.again) > SHOWN:
            more = len(self.again) - SHOWN
            told.append(f"{count(more, 'other')} {'was' if more == 1 else 'were'} made again, too.")
        return StageSummary(lines=told, failed=self.failed)

    def _why(
        self, record: Mapping[str, Any] | None, about: Mapping[str, str], look: Look, *, force: bool
    ) -> str | None:
        """Why a unit must be done, in words; empty where it never was finished; None if it need not."""
        if record is None:
            return ""
        if force:
            return "--force asks for it"
        if record["Version"] != self.version:
            return "another version of the method made it"
        changed = [
            key for key in dict.fromkeys([*record["About"], *about]) if record["About"].get(key) != about.get(key)
        ]
        if changed:
            return f"changed since: {some(changed)}"
        damaged = []
        for name, digest in record["Outputs"].items():
            found = look.digest(self.out / name)
            if found != digest:
                damaged.append(f"{name} is {'damaged' if found else 'gone'}")
        return some(damaged) if damaged else None

    def _forget(self, path: Path, record: Mapping[str, Any] | None) -> None:
        if record is not None:
            self._remove([record["Index"]])
        with suppress(OSError):
            path.unlink(missing_ok=True)

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            with suppress(OSError):
                (self.out / name).unlink(missing_ok=True)

    def _outputs(self, unit: Unit, files: Iterable[Path]) -> list[str]:
        names = (path.relative_to(self.out) for path in files if path.exists())
        return [path.as_posix() for path in names if unit.scratch is None or unit.scratch not in path.parents]

    def _prepare_scratch(self, unit: Unit, about: Mapping[str, str]) -> None:
        if unit.scratch is None:
            return
        path, content = self.out / unit.scratch / SCRATCH_RECORD, {"Version": self.version, "About": about}
        if self.force or _read(path) != content:
            shutil.rmtree(self.out / unit.scratch, ignore_errors=True)
            write_json(path, content)

    def _tidy(self, unit: Unit, outputs: Sequence[str], record: Mapping[str, Any] | None) -> None:
        """Remove what earlier calls wrote for the unit and this one did not."""
        kept = set(outputs)
        self._remove(set(record["Outputs"] if record else ()) - kept)
        for folder in (self.out / part for part in (unit.folder, unit.scratch) if part is not None):
            for path in sorted(folder.rglob("*"), reverse=True):
                if path.is_dir() and not path.is_symlink():
                    if not any(path.iterdir()):
                        path.rmdir()
                elif (
                    path.name.startswith((".", f"{unit.label}_")) and path.relative_to(self.out).as_posix() not in kept
                ):
                    path.unlink()


def content_digest(root: Path, paths: Sequence[Path]) -> str:
    """Digest of the names and bytes of files; those of finished units in `root` are known and are not read."""
    stamps: dict[str, str] = {}
    for path in (root / naming.unit_record("x").parent).glob("*.json"):
        stamps |= (_read_record(path) or {"Stamps": {}})["Stamps"]
    look = Look(stamps)
    return digest_of([[path.relative_to(root).as_posix(), look.digest(path)] for path in paths])


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is none that can be read."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _read_record(path: Path) -> dict[str, Any] | None:
    """A unit's record; None where there is none that can be believed."""
    content = _read(path)
    kinds = {"Version": int, "About": dict, "Outputs": dict, "Index": str, "Stamps": dict}
    if content is None or "Result" not in content or not all(isinstance(content.get(k), kinds[k]) for k in kinds):
        return None
    names = [content["Index"], *content["Outputs"]]
    if any("\0" in name or Path(name).is_absolute() or ".." in Path(name).parts for name in names):
        return None
    return content


def _holds_files(folder: Path) -> bool:
    """Whether there is more in a folder than what is hidden, and a log folder that is just being begun."""
    return any(
        path.name == ".bidsignore" or (_holds_files(path) if path.name == CLAIM.parent.name and path.is_dir() else True)
        for path in folder.iterdir()
        if path.name == ".bidsignore" or not path.name.startswith(".")
    )


def flat_settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= (
            flat_settings(value, f"{prefix}{key}.")
            if isinstance(value, Mapping) and value
            else {f"{prefix}{key}": value}
        )
    return flat

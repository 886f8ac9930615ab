"""Files appear under their final name only when they are whole, and are on the disk before they count."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from fmrisynth.errors import FmrisynthError

T = TypeVar("T")

_UMASK = os.umask(0)
os.umask(_UMASK)

_PREFIX = ".tmp-"


@dataclass
class Written:
    """What `recording` saw: files in the order of their writing, and what is not known to be on the disk yet."""

    files: dict[Path, None] = field(default_factory=dict)
    unsynced: dict[Path, None] = field(default_factory=dict)

    def sync(self) -> None:
        """Put everything on the disk: the files first, then the folders that name them."""
        for path in sorted(self.unsynced, key=lambda path: (path.is_dir(), str(path))):
            sync_to_disk(path)
        self.unsynced.clear()


_recorder: ContextVar[Written | None] = ContextVar("_recorder", default=None)


@contextmanager
def recording() -> Iterator[Written]:
    """Note the files that this thread writes, and let them wait to be put on the disk together.

    That takes a third of the time that one after the other takes. Whoever relies on them writes a `last` file, or calls
    `Written.sync`. Within another `recording` the outer one sees them too, if nothing failed.
    """
    outer, written = _recorder.get(), Written()
    token = _recorder.set(written)
    try:
        yield written
    finally:
        _recorder.reset(token)
    if outer is not None:
        outer.files |= written.files
        outer.unsynced |= written.unsynced


@contextmanager
def atomic_path(path: Path, *, last: bool = False) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it to `path` on success, delete it on failure.

    The temporary name starts with a dot and ends with `path`'s own suffixes, so that writers that look
    at the extension work, and directory scans that skip hidden files never see half a file. It carries the
    owner's machine and process, so that two processes never share one.

    Parameters
    ----------
    path : Path
        The final name.
    last : bool, default False
        The file says that others are complete: everything recorded before is put on the disk first. Outside of a
        `recording` every file is put on the disk at once.

    Raises
    ------
    FmrisynthError
        If the folder cannot be written or the disk is full.
    """
    temporary, written = temporary_name(path), _recorder.get()
    try:
        folders = _make_folder(path.parent)
        yield temporary
        apply_umask(temporary)
        if written is None or last:
            if written is not None:
                written.sync()
            sync_to_disk(temporary)
        os.replace(temporary, path)
        if written is None or last:
            for folder in folders:
                sync_to_disk(folder)
        else:
            written.unsynced |= dict.fromkeys([path, *folders])
        if written is not None:
            written.files[path] = None
    except OSError as error:
        _discard(temporary)
        raise not_written(path, error) from error
    except BaseException:
        _discard(temporary)
        raise


def sync_to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive the death of the machine."""
    try:
        file = os.open(path, os.O_RDONLY)
    except (FileNotFoundError, PermissionError):
        return  # removed meanwhile by who wrote it; or a folder that takes files and does not list them
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):  # some file systems cannot
            raise
    finally:
        os.close(file)


def _make_folder(folder: Path) -> list[Path]:
    """Create a folder; returns it and those above it whose names for it are new."""
    changed = [folder]
    while not changed[-1].exists():
        changed.append(changed[-1].parent)
    folder.mkdir(parents=True, exist_ok=True)
    return changed


def temporary_name(path: Path) -> Path:
    """A name beside `path` that only this process uses."""
    return path.with_name(f"{_PREFIX}{owner()}.{path.name}")


def not_written(path: Path, error: OSError) -> FmrisynthError:
    """The sentence for a file that the disk or its permissions refuse."""
    return FmrisynthError(
        f"{path}: could not be written ({error.strerror or error}); free space or fix the permissions, "
        "then run the same command again: it continues where it stopped."
    )


def owner() -> str:
    """This process among all that may share a file system: machine, process number, time of its start.

    The time, in ticks since the machine started, tells a process from a later one with the same number.
    """
    return f"{_place()}-{os.getpid()}-{_started(os.getpid())}"


def may_be_running(name: str) -> bool:
    """Whether the process of an `owner` may be at work; False only if it certainly is not."""
    place, _, rest = name.partition("-")
    pid, _, started = rest.partition("-")
    if place != _place() or not pid.isdigit():
        return True
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return _started(int(pid)) in (started, "0")


def is_running_here(name: str) -> bool:
    """Whether the process of an `owner` certainly is at work, on this machine."""
    return name.partition("-")[0] == _place() and may_be_running(name)


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files that killed processes of this machine left in a folder (not below it)."""
    for path in folder.glob(f"{_PREFIX}*"):
        if not may_be_running(path.name.removeprefix(_PREFIX).partition(".")[0]):
            _discard(path)


def remove_temporaries(folder: Path) -> None:
    """Delete every temporary file in and below a folder; only for who holds the lock on it."""
    for path in folder.rglob(f"{_PREFIX}*"):
        _discard(path)


def settle(look: Callable[[], T], write: Callable[[T], object]) -> T:
    """Write a summary of what lies on disk, and again until nothing was added meanwhile.

    Processes that each finish a part and then write the summary of all need no lock: who writes last has looked
    after writing.
    """
    found = look()
    while True:
        write(found)
        again = look()
        if again == found:
            return found
        found = again


def apply_umask(path: Path) -> None:
    """Make a file as readable as the user's umask allows; some writers (safetensors) make private ones."""
    path.chmod(0o666 & ~_UMASK)


def write_bytes(path: Path, content: bytes, *, last: bool = False) -> None:
    """Write a file atomically; `last` as in `atomic_path`."""
    with atomic_path(path, last=last) as temporary:
        temporary.write_bytes(content)


def write_again(path: Path, source: Path) -> None:
    """Give a file a second name, or copy it where the file system has no hard links; atomically."""
    with atomic_path(path) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            temporary.write_bytes(source.read_bytes())


def write_text(path: Path, content: str, *, last: bool = False) -> None:
    """Write a UTF-8 text file atomically; `last` as in `atomic_path`."""
    write_bytes(path, content.encode("utf-8"), last=last)


def write_json(path: Path, content: Any) -> None:
    """Write an indented JSON file atomically; NaN and infinity are refused, not written."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


@cache
def _place() -> str:
    """Where process numbers mean the same: a machine, or a container with its own process numbers."""
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        namespace = 0
    return hashlib.sha256(f"{socket.gethostname()} {namespace}".encode()).hexdigest()[:8]


def _started(pid: int) -> str:
    """Start of a process in ticks since boot; 0 where the system does not tell."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
            return stream.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "0"


def _discard(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except IsADirectoryError:
        shutil.rmtree(path, ignore_errors=True)
    except OSError:
        pass  # what cannot be removed does no harm: nobody reads it

"""One writer at a time for a unit of work: a participant, a fit, a training run.

The lock is the kernel's (``flock``), so it ends with its process however that ends, and a file that a killed
process leaves behind locks nothing. Where a shared file system has no ``flock``, the lock is a file with its owner's
name and a beat: a contender on the owner's machine asks the kernel whether the owner lives, one elsewhere waits
whether the beat changes. No clock is compared with another.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fmrisynth.bids.atomic import is_running_here, may_be_running, not_written, owner, temporary_name
from fmrisynth.errors import FmrisynthError
from fmrisynth.progress import log

PATIENCE_S = 120.0
"""How long one that does not wait still waits for an owner on another machine; NFS frees a dead node's lock in 90 s."""

BEAT_S = 2.0
SILENCE_S = 30.0
"""Without ``flock``: an owner whose beat stands still for so long is dead."""

_POLL_S = 0.1
_NO_FLOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL)


@contextmanager
def exclusive(folder: Path, unit: str, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock on a unit of work.

    Parameters
    ----------
    folder : Path
        The output folder; the lock is the hidden file ``.<unit>.lock`` in it while it is held.
    unit : str
        Name of the unit, ``sub-01``.
    wait : bool, default True
        Wait until the other process is done (the caller then finds the work done), or refuse.

    Raises
    ------
    FmrisynthError
        Without `wait`: another process is at work on it. The folder cannot be written.
    """
    if "/" in unit:
        raise ValueError(unit)
    lock = _Lock(folder / f".{unit}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _acquire(lock, folder, unit, wait)
    except OSError as error:
        raise not_written(lock.path, error) from error
    try:
        yield
    finally:
        lock.release()


def remove_dead_locks(folder: Path) -> None:
    """Remove the lock files that killed processes left in a folder; what a process holds stays."""
    for path in [*folder.glob(".*.lock"), *folder.glob(".*.owner")]:
        lock = _Lock(path.with_suffix(".lock"))
        with suppress(OSError):
            if lock.try_once():
                lock.release()


def _acquire(lock: _Lock, folder: Path, unit: str, wait: bool) -> None:
    started = time.monotonic()
    told = False
    while not lock.try_once():
        who, where = lock.holder()
        waited_s = time.monotonic() - started
        if not wait and (is_running_here(who) or waited_s > PATIENCE_S):
            raise FmrisynthError(
                f"{folder}: expected to be the only one to write {unit}, found process {who.split('-')[1]} on {where} at "
                f"work on it; wait for it, or choose another folder (if that process has ended, delete {lock.path})."
            )
        if not told and waited_s > 1:
            log.info("%s: %s is being written by another process on %s; waiting for it.", folder, unit, where)
            told = True
        time.sleep(_POLL_S)


class _Lock:
    """A lock file; `try_once` until it says True, then `release`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._by_name = path.with_suffix(".owner")
        self._file: int | None = None
        self._beat: threading.Event | None = None
        self._seen = ("", 0.0)  # last beat of another's lock, and when it was first seen

    def try_once(self) -> bool:
        """Take the lock if it is free."""
        file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who had it removes the file, and a lock on a removed file is worth nothing. (NFS asks its server for the
            # state of a file that was just locked, and answers ESTALE for one that another machine removed.)
            state = os.fstat(file)
            if state.st_nlink > 0 and state.st_ino == self.path.stat().st_ino:
                self._file = file
                with suppress(OSError):  # on a full disk the lock holds all the same
                    os.truncate(file, 0)
                    os.pwrite(file, _signature(0).encode(), 0)
                return True
        except (BlockingIOError, FileNotFoundError):
            pass
        except OSError as error:
            if error.errno in _NO_FLOCK:
                os.close(file)
                self.path.unlink(missing_ok=True)
                return self._try_by_name()
            if error.errno != errno.ESTALE:
                os.close(file)
                raise
        os.close(file)
        return False

    def holder(self) -> tuple[str, str]:
        """Owner and machine of who has the lock, as far as known."""
        for path in (self._by_name, self.path):
            with suppress(OSError):
                words = path.read_text(encoding="utf-8", errors="replace").split()
                if len(words) == 3 and words[0].count("-") == 2:
                    return words[0], words[1]
        return "?-?-?", "an unknown machine"

    def release(self) -> None:
        """Give the lock up; only what was taken."""
        if self._beat is not None:
            self._beat.set()
            if self._text().startswith(owner()):
                self._by_name.unlink(missing_ok=True)
        if self._file is not None:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
            os.close(self._file)

    def _try_by_name(self) -> bool:
        try:
            file = os.open(self._by_name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            self._remove_if_dead()
            return False
        os.write(file, _signature(0).encode())
        os.close(file)
        self._beat = threading.Event()
        threading.Thread(target=self._keep_beating, args=(self._beat,), daemon=True).start()
        return True

    def _keep_beating(self, done: threading.Event) -> None:
        number = 0
        while not done.wait(BEAT_S):
            number += 1
            with suppress(OSError):
                file = os.open(self._by_name, os.O_WRONLY)  # never created anew here
                os.pwrite(file, _signature(number).encode(), 0)
                os.close(file)

    def _remove_if_dead(self) -> None:
        text = self._text()
        if text != self._seen[0] or self._seen[1] == 0.0:
            self._seen = (text, time.monotonic())
        known_dead = bool(text) and not may_be_running(text.split()[0])
        if not known_dead and time.monotonic() - self._seen[1] < SILENCE_S:
            return
        aside = temporary_name(self._by_name)
        with suppress(OSError):
            os.rename(self._by_name, aside)
            if aside.read_text(encoding="utf-8", errors="replace") != text:  # another contender was faster: put it back
                os.link(aside, self._by_name)
        with suppress(OSError):
            aside.unlink(missing_ok=True)

    def _text(self) -> str:
        try:
            return self._by_name.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""


def _signature(beat: int) -> str:
    return f"{owner()} {socket.gethostname()} {beat:010d}"

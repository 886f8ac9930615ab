"""Locks and the owners of temporary files, against real processes."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fmrisynth.bids import atomic, lock
from fmrisynth.bids.atomic import may_be_running, owner, remove_leftovers, settle, temporary_name, write_text
from fmrisynth.bids.lock import exclusive, remove_dead_locks
from fmrisynth.errors import FmrisynthError

HOLDER = """
import errno, fcntl, sys, time
from pathlib import Path
from fmrisynth.bids.lock import exclusive
if sys.argv[2] == "no_flock":
    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")
    fcntl.flock = flock
with exclusive(Path(sys.argv[1]), "work"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(params=["flock", "no_flock"])
def kind(request, monkeypatch) -> str:
    """With and without ``flock`` in this process too."""
    if request.param == "no_flock":

        def flock(*_):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        monkeypatch.setattr(fcntl, "flock", flock)
    return request.param


@pytest.fixture
def holder(tmp_path: Path, kind: str):
    """Another process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path, kind], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_is_refused_and_told_by_whom(holder, tmp_path):
    with (
        pytest.raises(FmrisynthError, match=rf"process {holder.pid} on {socket.gethostname()}"),
        exclusive(tmp_path, "work", wait=False),
    ):
        pass
    with exclusive(tmp_path, "other work", wait=False):
        pass


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_owners_lock_is_free_at_once(holder, tmp_path, number):
    holder.send_signal(number)
    holder.wait()
    assert list(tmp_path.glob(".work.*")), "the dead owner's file is still there"
    started = time.monotonic()
    with exclusive(tmp_path, "work", wait=False):
        pass
    assert time.monotonic() - started < 5
    assert list(tmp_path.iterdir()) == []


def test_waiting_ends_with_the_owner(holder, tmp_path):
    def end() -> None:
        holder.kill()
        holder.wait()  # a process that nobody waits for still has its number

    threading.Timer(0.5, end).start()
    with exclusive(tmp_path, "work"):
        pass


def test_threads_exclude_each_other(tmp_path, kind):
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        with exclusive(tmp_path, "work"):
            inside += 1
            most = max(most, inside)
            time.sleep(0.02)
            inside -= 1

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["no_flock"], indirect=True)
class TestOwnerOnAnotherMachine:
    """Without ``flock`` and without a way to ask for the process, only its beat tells."""

    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch, kind):
        monkeypatch.setattr(lock, "SILENCE_S", 0.6)
        monkeypatch.setattr(lock, "PATIENCE_S", 1.5)

    def test_silent_is_dead(self, tmp_path):
        (tmp_path / ".work.owner").write_text("0000abcd-77-123 node7 0000000003")
        with exclusive(tmp_path, "work", wait=False):
            assert owner() in (tmp_path / ".work.owner").read_text()

    def test_half_written_is_dead_when_silent(self, tmp_path):
        (tmp_path / ".work.owner").touch()
        with exclusive(tmp_path, "work", wait=False):
            pass

    def test_beating_is_alive(self, tmp_path):
        stop = threading.Event()

        def beat() -> None:
            number = 0
            while not stop.wait(0.1):
                number += 1
                with (tmp_path / ".work.owner").open("r+") as file:  # in place: never empty
                    file.write(f"0000abcd-77-123 node7 {number:010d}")

        (tmp_path / ".work.owner").write_text("0000abcd-77-123 node7 0000000000")
        thread = threading.Thread(target=beat)
        thread.start()
        try:
            with pytest.raises(FmrisynthError, match="process 77 on node7"), exclusive(tmp_path, "work", wait=False):
                pass
        finally:
            stop.set()
            thread.join()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FmrisynthError, match="could not be written"), exclusive(tmp_path / "file", "work"):
        pass


def test_leftovers_of_the_dead_are_removed_and_only_those(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "from fmrisynth.bids.atomic import owner; print(owner())"],
                          capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip
    place, pid, started = owner().split("-")
    names = {
        f".tmp-{dead}.x_bold.nii.gz": False,
        f".tmp-{owner()}.x_bold.nii.gz": True,
        f".tmp-0000abcd-{pid}-{started}.x.json": True,  # another machine: nobody here can know
        f".tmp-{place}-{pid}-1.x.json": False,  # our number, but of an earlier process
        ".hidden": True,
        "x.json": True,
    }
    for name in names:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert {name: (tmp_path / name).exists() for name in names} == names
    remove_leftovers(tmp_path / "no such folder")


def test_owners():
    assert may_be_running(owner())
    assert may_be_running("nonsense")
    assert temporary_name(Path("a/b_bold.nii.gz")).name.endswith(".b_bold.nii.gz")


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic.os, "replace", full)
    with pytest.raises(FmrisynthError, match="No space left on device"):
        write_text(tmp_path / "x.txt", "x")
    assert list(tmp_path.iterdir()) == []


def test_a_summary_is_written_until_it_holds():
    seen = iter([[1], [1, 2], [1, 2]])
    written: list[list[int]] = []
    assert settle(lambda: next(seen), written.append) == [1, 2]
    assert written == [[1], [1, 2]]


def test_locks_of_the_dead_are_removed_and_those_of_the_living_kept(holder, tmp_path):
    with exclusive(tmp_path, "other"):
        pass
    remove_dead_locks(tmp_path)
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".work")]
    holder.kill()
    holder.wait()
    remove_dead_locks(tmp_path)
    assert not list(tmp_path.iterdir())

"""What counts as finished is on the disk: fsync of files and folders before the name that says so."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import threading
import time
from pathlib import Path

import pytest

import fmrisynth.evaluate.page
from fmrisynth.bids.atomic import recording, write_text
from fmrisynth.cli.main import run
from tests.reliability.conftest import digests
from tests.reliability.faults import WRITERS

TELLING = ("_scans.tsv", "_latents.tsv", "_design.tsv")
"""Endings of the files by which readers know that others are complete."""


class Disk:
    """What would survive the death of the machine: watches renames and fsyncs below a folder."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.synced: dict[int, int] = {}  # inode -> time of the last modification that is on the disk
        self.lost: dict[Path, None] = {}  # names that are not on the disk yet
        self.told: list[tuple[Path, list[Path]]] = []  # names that say "complete", and what was not safe then
        replace, fsync, lock = os.replace, os.fsync, threading.Lock()

        def watched_fsync(file: int) -> None:
            fsync(file)
            state = os.fstat(file)
            self.synced[state.st_ino] = state.st_mtime_ns
            if stat.S_ISDIR(state.st_mode):
                with lock:
                    self.lost = {path: None for path in self.lost if path.parent.stat().st_ino != state.st_ino}

        def watched_replace(source, target) -> None:
            target = Path(target)
            inside = self.root in target.parents
            if inside and (target.parent.name == "units" or target.name.endswith(TELLING) or target.is_dir()):
                self.told.append((target, self.unsafe(target)))
            replace(source, target)
            if inside:
                with lock:
                    self.lost[target] = None

        monkeypatch.setattr(os, "fsync", watched_fsync)
        monkeypatch.setattr(os, "replace", watched_replace)

    def unsafe(self, about: Path | None = None) -> list[Path]:
        """Files that a crash now would lose or empty; of those `about` a unit if it is given."""
        found = []
        subject = re.match(r"sub-[0-9A-Za-z]+", about.name) if about is not None else None  # others work beside
        for path in self.root.rglob("*"):
            if not path.is_file() or path.name.startswith("."):
                continue
            if subject is not None and subject.group() not in str(path):
                continue
            state = path.stat()
            if self.synced.get(state.st_ino) != state.st_mtime_ns or path in self.lost:
                found.append(path)
        return found


@pytest.mark.parametrize("command", WRITERS)
def test_files_are_on_the_disk_before_they_count(command, world, tmp_path, monkeypatch):
    monkeypatch.setattr(fmrisynth.evaluate.page, "write_report", lambda path, *_: write_text(path, "<p>report</p>"))
    out = tmp_path / "out"
    disk = Disk(out, monkeypatch)
    assert run(world.arguments(command, out)) == 0
    logs = ("log.jsonl", "events.out")
    for name, unsafe in disk.told:
        assert [path for path in unsafe if not path.name.startswith(logs)] == [], f"when {name} got its name"
    assert disk.told or command == "train"
    assert [path for path in disk.unsafe() if not path.name.startswith(logs)] == []


def test_a_recording_waits_and_a_last_file_does_not(tmp_path, monkeypatch):
    disk = Disk(tmp_path, monkeypatch)
    with recording() as outer, recording() as written:
        write_text(tmp_path / "new" / "deep" / "a", "1")
        write_text(tmp_path / "b", "2")
        assert sorted(disk.unsafe()) == [tmp_path / "b", tmp_path / "new" / "deep" / "a"]
        write_text(tmp_path / "index_scans.tsv", "3", last=True)
        assert disk.told == [(tmp_path / "index_scans.tsv", [])]
        assert disk.unsafe() == []
    assert (
        list(outer.files)
        == list(written.files)
        == [tmp_path / "new" / "deep" / "a", tmp_path / "b", tmp_path / "index_scans.tsv"]
    )


def attempt(*words: object) -> bool:
    return subprocess.run([str(word) for word in words], capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path: Path):
    """A file system in a file, and a function that gives what a crash of the machine would have left of it."""
    image, place = tmp_path / "disk.img", tmp_path / "disk"
    places = [place]
    with open(image, "wb") as stream:
        stream.truncate(256 * 2**20)
    place.mkdir()
    if not (attempt("mkfs.ext4", "-q", "-F", image) and attempt("mount", "-o", "loop", image, place)):
        pytest.skip("a file system in a file cannot be mounted here (it takes root, loop devices and mkfs.ext4)")

    def crashed(number: int) -> Path:
        copy, there = tmp_path / f"copy{number}.img", tmp_path / f"crashed{number}"
        shutil.copyfile(image, copy)  # as the blocks are now: nothing is flushed first
        there.mkdir()
        assert attempt("mount", "-o", "loop", copy, there)
        places.append(there)
        return there

    yield place, crashed
    for mounted in places:
        attempt("umount", mounted)


@pytest.mark.slow
@pytest.mark.parametrize("command", WRITERS)
def test_death_of_the_machine(command, world, whole, start, disk):
    """Five seconds after the end, and in the middle: what is left on the disk is gone on with, to the same files."""
    place, crashed = disk
    running = start(world.arguments(command, place / "out"))
    while running.process.is_alive() and not list((place / "out").glob("logs/units/*")):
        time.sleep(0.02)
    there = [crashed(1)]
    assert running.wait().status == 0
    time.sleep(5)
    there.append(crashed(2))
    for left in there:
        done = start.run(world.arguments(command, left / "out"))
        assert done.status == 0, done.said
        assert digests(left / "out", command) == whole(command)

"""Two processes on one output: one is stopped in the middle of a file, the other comes and works."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.reliability.conftest import digests, strays
from tests.reliability.faults import each
from tests.reliability.processes import Fault, Running

ALONE = ("train", "evaluate")
MIDDLE = {"simulate": 7, "prepare": 12, "tokenize": 6, "train": 7, "sample": 5, "glm": 8, "evaluate": 6}


def wait_until_stopped(running: Running) -> None:
    """The process has sent itself SIGSTOP."""
    deadline = time.monotonic() + 600
    while Path(f"/proc/{running.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert running.process.is_alive(), running.wait().said
        assert time.monotonic() < deadline
        time.sleep(0.02)


@each("two processes", {
    "train": "The second one is refused with one sentence that names the first one's process and machine; the first is not disturbed.",
    "evaluate": "The second one is refused with one sentence that names the first one's process and machine; the first is not "
    "disturbed.",
    "tokenize": "One fits, the other waits and takes what was fitted; they share the participants; the same files as one process.",
    "sample": "They share the samples, one waits while the other is at a sample; the same files as one process.",
    "else": "They share the participants, one waits while the other is at a participant; the same files as one process.",
})  # fmt: skip
@pytest.mark.parametrize("no_flock", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["flock", "no_flock"])
def test_two_processes_on_one_output(command, no_flock, world, whole, start, tmp_path):
    ask, out = world.arguments(command, tmp_path / "out"), tmp_path / "out"
    first = start(ask, Fault(at_rename=MIDDLE[command], signal=signal.SIGSTOP, no_flock=no_flock))
    wait_until_stopped(first)
    half = [path for path in out.rglob(".tmp-*")]
    second = start(ask, Fault(no_flock=no_flock))
    if command in ALONE:
        done = second.wait()
        assert done.status == 1, done.said
        assert len(done.errors) == 1
        assert f"expected to be the only one to write {'training' if command == 'train' else 'evaluation'}" in done.said
        assert f"process {first.pid}" in done.said
    else:
        second.process.join(1.0)  # long enough to do harm
    assert half or command in ("train", "sample")  # a folder, and a thread that may have been quicker than the signal
    assert all(path.exists() for path in half), "the half file of a process at work was removed"
    os.kill(first.pid, signal.SIGCONT)
    assert first.wait().status == 0
    if command not in ALONE:
        done = second.wait()
        assert done.status == 0, done.said
    assert digests(out, command) == whole(command)
    assert strays(out) == []


def test_others_go_on_while_one_participant_is_being_written(world, whole, start, tmp_path):
    """Jobs of an array do not wait for each other."""
    ask, out = world.arguments("prepare", tmp_path / "out"), tmp_path / "out"
    first = start([*ask, "--participant-label", "100307"], Fault(at_rename=12, signal=signal.SIGSTOP))
    wait_until_stopped(first)
    assert start.run([*ask, "--participant-label", "100408"]).status == 0
    assert (out / "sub-100408" / "sub-100408_scans.tsv").exists()
    os.kill(first.pid, signal.SIGCONT)
    assert first.wait().status == 0
    assert digests(out) == whole("prepare")


def test_many_shards_at_once_list_every_sample(world, whole, start, tmp_path):
    ask, out = world.arguments("sample", tmp_path / "out"), tmp_path / "out"
    jobs = [start([*ask, "--shard", f"{k}/3"]) for k in (1, 2, 3)]
    assert [job.wait().status for job in jobs] == [0, 0, 0]
    assert digests(out) == whole("sample")


def test_killed_while_another_waits(world, whole, start, tmp_path):
    """The one that waits takes over at once."""
    ask, out = world.arguments("tokenize", tmp_path / "out"), tmp_path / "out"
    first = start(ask, Fault(at_rename=8, signal=signal.SIGSTOP))
    wait_until_stopped(first)
    second = start(ask)
    second.process.join(0.5)
    assert second.process.is_alive()
    os.kill(first.pid, signal.SIGKILL)
    assert second.wait().status == 0
    assert digests(out) == whole("tokenize")
    assert strays(out) == []

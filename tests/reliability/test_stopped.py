"""Stopped at any moment, and called again: the same output as without interruption, whatever the clock says."""

from __future__ import annotations

import os
import signal

from tests.reliability.conftest import damaged, digests, strays
from tests.reliability.faults import each
from tests.reliability.processes import Fault

MOMENTS = {"simulate": (7, 14), "prepare": (12, 30), "tokenize": (3, 10), "train": (7, 9, 12), "sample": (5, 16),
           "glm": (8, 40), "evaluate": (4, 7)}  # fmt: skip
"""After how many renamed files a command is stopped, one call after the other."""

YEARS_S = 10 * 365.25 * 86400


@each(
    "SIGKILL",
    "The same command continues; at the end every file is the one of an uninterrupted call, and none is left over.",
)
def test_killed_and_called_again(command, world, whole, start, tmp_path):
    ask, out = world.arguments(command, tmp_path / "out"), tmp_path / "out"
    for moment in MOMENTS[command]:
        done = start.run(ask, Fault(at_rename=moment))
        assert done.status == -signal.SIGKILL, done.said
        assert damaged(out, whole(command)) == []
    assert start.run(ask).status == 0
    assert digests(out, command) == whole(command)
    assert strays(out) == []


@each("SIGTERM", {
    "train": "A checkpoint is written, the exit status is 0 and the summary says how to continue; the same command continues to "
    "the last bit.",
    "else": "Half files are removed, the exit status is 143; the same command continues to the same files.",
})  # fmt: skip
def test_terminated_and_called_again(command, world, whole, start, tmp_path):
    ask, out = world.arguments(command, tmp_path / "out"), tmp_path / "out"
    done = start.run(ask, Fault(at_rename=MOMENTS[command][0] + 3, signal=signal.SIGTERM))
    if command == "train":
        assert done.status == 0
        assert "a signal asked to stop. Call again to continue." in done.said
    else:
        assert (done.status, done.said.splitlines()[-1]) == (
            143, "Terminated. The same command continues where this one stopped."
        )  # fmt: skip
    assert "Traceback" not in done.said
    assert strays(out) == []
    assert start.run(ask).status == 0
    assert digests(out, command) == whole(command)


@each("SIGINT", {
    "train": "A checkpoint is written, the exit status is 0 and the summary says how to continue; the same command continues to "
    "the last bit. A second Ctrl-C stops at once.",
    "else": "Half files are removed, the exit status is 130; the same command continues to the same files.",
})  # fmt: skip
def test_interrupted_and_called_again(command, world, whole, start, tmp_path):
    ask, out = world.arguments(command, tmp_path / "out"), tmp_path / "out"
    done = start.run(ask, Fault(at_rename=MOMENTS[command][0] + 3, signal=signal.SIGINT))
    if command == "train":
        assert done.status == 0
        assert "a signal asked to stop. Call again to continue." in done.said
        assert "Newest checkpoint: " in done.said
        assert list(out.glob("checkpoints/step-*/checkpoint.json"))
    else:
        assert (done.status, done.said.splitlines()[-1]) == (
            130, "Interrupted. The same command continues where this one stopped."
        )  # fmt: skip
    assert "Traceback" not in done.said
    assert strays(out) == []
    assert start.run(ask).status == 0
    assert digests(out, command) == whole(command)


@each(
    "clock change",
    "No decision depends on a clock: finished work is recognised by its content, years off in either direction.",
)
def test_clocks_are_not_believed(command, world, whole, start, tmp_path):
    ask, out = world.arguments(command, tmp_path / "out"), tmp_path / "out"
    assert start.run(ask, Fault(at_rename=MOMENTS[command][0], clock_shift_s=YEARS_S)).status == -signal.SIGKILL
    for path in out.rglob("*"):
        os.utime(path, (0, 0))
    assert start.run(ask, Fault(clock_shift_s=-YEARS_S)).status == 0
    assert digests(out, command) == whole(command)
    data = [p for p in out.rglob("*") if p.suffix in (".gz", ".safetensors") and "ground_truth/group" not in str(p)]
    if command == "glm":
        data = [path for path in data if "group" not in path.parts]  # made from the subjects' maps each time
    before = {path: path.stat().st_ino for path in data}
    for path in out.rglob("*"):
        os.utime(path, (4e9, 4e9))
    assert start.run(ask, Fault(clock_shift_s=-YEARS_S)).status == 0
    assert {path: path.stat().st_ino for path in data} == before, "finished work was made again"
    assert digests(out, command) == whole(command)

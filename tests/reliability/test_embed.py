"""`embed` draws maps, fits and encodes: stopped, spoilt or called on odd data, it goes on to the same files, or says why not."""

from __future__ import annotations

import os
import signal

import pytest

from tests.reliability.conftest import damaged, digests, strays
from tests.reliability.faults import each
from tests.reliability.processes import Fault
from tests.reliability.test_damage import cut_short
from tests.reliability.test_disk import copy_of, refused
from tests.reliability.test_stale import THEIRS, flip_bit, one_of_each_kind
from tests.reliability.test_stopped import YEARS_S
from tests.reliability.test_two_processes import wait_until_stopped

ONLY = ["embed"]
IN_MAPS, IN_FIT = 9, 24
"""After how many renamed files: among the maps, and among the checkpoints."""


@pytest.fixture
def ask(world, tmp_path):
    return world.arguments("embed", tmp_path / "out")


@each(
    "SIGKILL",
    "The same command continues; at the end every file is the one of an uninterrupted call, and none is left over.",
    ONLY,
)
def test_killed_and_called_again(command, ask, whole, start, tmp_path):
    for moment in (IN_MAPS, IN_FIT):
        assert start.run(ask, Fault(at_rename=moment)).status == -signal.SIGKILL
        assert damaged(tmp_path / "out", whole(command)) == []
    assert start.run(ask).status == 0
    assert digests(tmp_path / "out", command) == whole(command)
    assert strays(tmp_path / "out") == []


STOPPED = (
    "Among the maps half files are removed and the exit status is {}; in the fit a checkpoint is written, nothing is "
    "encoded and the exit status is 0. The same command continues to the same files."
)


@pytest.mark.parametrize(
    ("what", "status"),
    [
        pytest.param(getattr(signal, name), status, id=name,
                     marks=pytest.mark.fault(command="embed", fault=name, outcome=STOPPED.format(status)))
        for name, status in (("SIGTERM", 143), ("SIGINT", 130))
    ],
)  # fmt: skip
def test_stopped_and_called_again(what, status, ask, whole, start, tmp_path):
    out = tmp_path / "out"
    assert start.run(ask, Fault(at_rename=IN_MAPS, signal=what)).status == status
    assert strays(out) == []
    done = start.run(ask, Fault(at_rename=IN_FIT - 8, signal=what))  # some of the maps are there
    assert done.status == 0, done.said
    assert "a signal asked to stop. Call again to continue." in done.said
    assert list(out.glob("encoder/checkpoints/step-*/checkpoint.json"))
    assert not (out / "features.tsv").exists()
    assert start.run(ask).status == 0
    assert digests(out, "embed") == whole("embed")


@each("changed input", "The maps of that participant are made again; a fit that was started on other maps is refused, "
"exit status 2. With a "
      "given encoder what hangs on the maps is made again, and the summary says what and why; the output is the one "
      "of a fresh call.", ONLY)  # fmt: skip
def test_changed_input(command, world, start, tmp_path):
    root, out = copy_of(world, tmp_path), tmp_path / "out"
    fit = world.arguments(command, out, root)
    assert start.run(fit).status == 0
    apply = [*fit[:2], str(tmp_path / "applied"), "--encoder", str(out)]
    assert start.run(apply).status == 0
    before = digests(tmp_path / "applied")
    victim = next(iter(sorted(root.glob("planted/sub-01/func/*_bold.nii"))))
    content = bytearray(victim.read_bytes())
    content[-400_000:-300_000] = bytes(100_000)
    victim.write_bytes(content)
    done = start.run(apply)
    assert done.status == 0, done.said
    assert "sub-01 was made again" in done.said
    assert "features was made again" in done.said
    fresh = [*fit[:2], str(tmp_path / "fresh"), "--encoder", str(out)]
    assert start.run(fresh).status == 0
    assert digests(tmp_path / "applied") == digests(tmp_path / "fresh") != before
    weights = digests(out / "encoder")
    done = start.run(fit)
    assert done.status == 2, done.said
    assert "started on other flat maps" in done.said
    assert digests(out / "encoder") == weights


@each("changed setting", "Other maps: refused with the names of the settings, exit status 2; another fit: exit status "
      "2; nothing is touched.", ONLY)  # fmt: skip
def test_changed_setting(command, ask, whole, start, tmp_path):
    assert start.run(ask).status == 0
    for more, status, words in (
        (["--set", "maps.clip=2"], 2, "maps.clip was 3.0, is 2.0"),
        (["--set", "optimiser.learning_rate=0.01"], 2, "optimiser.learning_rate: was"),
    ):
        done = start.run([*ask, *more])
        assert (done.status, len(done.errors)) == (status, 1), done.said
        assert words in done.said
        assert digests(tmp_path / "out", command) == whole(command)


AGAIN = "Maps, features, pictures and probes are made again, and the summary says which and why; of the fit, as for `train`."


@pytest.mark.parametrize(
    "what",
    [
        pytest.param("gone", marks=pytest.mark.fault(command="embed", fault="deleted output", outcome=AGAIN)),
        pytest.param("damaged", marks=pytest.mark.fault(command="embed", fault="truncated output", outcome=AGAIN)),
    ],
)
def test_spoilt_output(what, ask, whole, start, tmp_path):
    out = tmp_path / "out"
    assert start.run(ask).status == 0
    for victim in one_of_each_kind(out, "embed"):
        if "encoder" in victim.relative_to(out).parts:
            continue
        victim.unlink() if what == "gone" else cut_short(victim)
    done = start.run(ask)
    assert done.status == 0, done.said
    assert f"is {what}" in done.said
    assert digests(out, "embed") == whole("embed")


@each("somebody's folder", "Refused in one sentence, exit status 2; not a byte of it changes.", ONLY)
def test_somebodys_folder(command, ask, start, tmp_path):
    for name, content in THEIRS.items():
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text(content)
    before = digests(tmp_path / "out")
    done = start.run(ask)
    assert (done.status, len(done.errors)) == (2, 1), done.said
    assert digests(tmp_path / "out") == before


@each("disk full", "One sentence that names the file, exit status 1; no half file; the same command continues.", ONLY)
def test_disk_full(command, ask, whole, start, tmp_path):
    refused(start.run(ask, Fault(max_file_bytes=20_000)), "File too large")
    assert damaged(tmp_path / "out", whole(command)) == []
    assert strays(tmp_path / "out") == []
    assert start.run(ask).status == 0
    assert digests(tmp_path / "out", command) == whole(command)


@each("read-only output", "One sentence that names the folder, exit status 1; nothing is written.", ONLY)
def test_read_only_output(command, ask, start, tmp_path, unprivileged):
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o555)
    refused(start.run(ask, unprivileged), "Permission denied")
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    "what",
    [
        pytest.param(what, marks=pytest.mark.fault(command="embed", fault=what, outcome=
            "That participant fails with one sentence, the others are mapped; nothing is fitted to a part of the "
            "people; exit status 1."))
        for what in ("corrupt input", "missing permissions")
    ],
)  # fmt: skip
def test_input_that_cannot_be_read(what, world, start, tmp_path, request):
    root, out = copy_of(world, tmp_path), tmp_path / "out"
    victim, fault = next(iter(sorted(root.glob("planted/sub-02/func/*_bold.nii")))), None
    if what == "corrupt input":
        cut_short(victim)
    else:
        fault = request.getfixturevalue("unprivileged")
        victim.chmod(0)
    done = start.run(world.arguments("embed", out, root), fault)
    refused(done, victim.name, "ermission")
    assert [error.partition(":")[0] for error in done.errors] == ["FAILED 02"], done.said
    assert (out / "maps" / "sub-04_flatmaps.tsv").exists()
    assert "Nothing was fitted: repair what failed" in done.said
    assert not (out / "encoder").exists()


@each("corrupt checkpoint", "A given encoder that was altered: one sentence, exit status 1; nothing is written. Of "
"the own fit, as for "
      "`train`.", ONLY)  # fmt: skip
def test_corrupt_checkpoint(command, world, ask, start, tmp_path):
    assert start.run(ask).status == 0
    flip_bit(tmp_path / "out" / "encoder" / "best" / "ema.safetensors")
    done = start.run([*ask[:2], str(tmp_path / "applied"), "--encoder", str(tmp_path / "out")])
    refused(done, "do not match their digest")
    assert not (tmp_path / "applied").exists()


@each(
    "clock change",
    "No decision depends on a clock: finished work is recognised by its content, years off in either direction.",
    ONLY,
)
def test_clocks_are_not_believed(command, ask, whole, start, tmp_path):
    out = tmp_path / "out"
    assert start.run(ask, Fault(at_rename=IN_FIT, clock_shift_s=YEARS_S)).status == -signal.SIGKILL
    for path in out.rglob("*"):
        os.utime(path, (0, 0))
    assert start.run(ask, Fault(clock_shift_s=-YEARS_S)).status == 0
    assert digests(out, command) == whole(command)
    kept = {path: path.stat().st_ino for path in out.glob("maps/*.safetensors")}
    assert start.run(ask).status == 0
    assert {path: path.stat().st_ino for path in kept} == kept


@each("two processes", "They share the participants' maps, one waits while the other is at one; while one fits, a "
"second one is refused with "
      "one sentence that names its process and machine; the first is not disturbed.", ONLY)  # fmt: skip
def test_two_processes_on_one_output(command, ask, whole, start, tmp_path):
    first = start(ask, Fault(at_rename=IN_FIT, signal=signal.SIGSTOP))
    wait_until_stopped(first)
    done = start.run(ask)
    refused(done, "expected to be the only one to write training")
    assert f"process {first.pid}" in done.said
    os.kill(first.pid, signal.SIGCONT)
    assert first.wait().status == 0
    assert digests(tmp_path / "out", command) == whole(command)
    assert strays(tmp_path / "out") == []


@each("out of memory", "One sentence that says so, exit status 1; the same command continues (also where the system "
"itself ends the process).",
      ONLY)  # fmt: skip
def test_out_of_memory(command, ask, whole, start, tmp_path):
    done = start.run(ask, Fault(memory_bytes=8_000_000))
    refused(done, "not enough memory")
    assert start.run(ask).status == 0
    assert digests(tmp_path / "out", command) == whole(command)

"""What a command says, and its exit status, when something unforeseen happens in it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest

import fmrisynth.glm
from fmrisynth.cli.main import run
from fmrisynth.errors import FmrisynthError, UsageError, one_line
from tests.reliability.processes import Fault


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (FmrisynthError("x.nii: expected this, found that; do so."), 1, "Error: x.nii: expected this"),
        (UsageError("no such thing"), 2, "Error: no such thing"),
        (MemoryError(), 1, "not enough memory (an allocation failed)"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), 1, "not enough memory"),
        (SystemError("error return without exception set"), 1, "not enough memory"),
        (SystemError("unknown opcode"), 70, "this is a bug in fmrisynth; run again with -v"),
        (RuntimeError("could not create a primitive"), 1, "not enough memory"),
        (RuntimeError("could not create a primitive descriptor for a convolution"), 70, "this is a bug in fmrisynth; run again with -v"),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"), 1, "not enough memory (CUDA out of memory"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/x.json"), 1, "out/x.json: No space left on device; free space"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "out/x.json"), 1, "out/x.json: Read-only file system; free space"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "out"), 1, "out: Permission denied; free space or fix the path"),
        (KeyboardInterrupt(), 130, "Interrupted. The same command continues"),
        (BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)), 1, ""),
        (ZeroDivisionError("division by zero"), 70, "this is a bug in fmrisynth; run again with -v"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)  # fmt: skip
@pytest.mark.parametrize("verbose", [False, True], ids=["quiet", "verbose"])
def test_every_failure_is_one_sentence(error, status, words, verbose, tmp_path, monkeypatch, capfd):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(fmrisynth.glm, "run_glm", fail)
    assert run(["glm", str(tmp_path), str(tmp_path / "out"), *(["-v"] if verbose else [])]) == status
    said = capfd.readouterr().err
    assert words in said
    assert ("Traceback" in said) == (verbose and status in (1, 2, 70) and not isinstance(error, BrokenPipeError))
    if words and not verbose:
        assert len(said.strip().splitlines()) == 1


def test_a_reader_that_went_away():
    """`fmrisynth --help | head -0`."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "fmrisynth", "--help"], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert done.returncode == 1
    assert done.stderr == ""


def test_interrupted(world, start, tmp_path):
    done = start.run(world.arguments("glm", tmp_path / "out"), Fault(at_rename=8, signal=signal.SIGINT))
    assert done.status == 130
    assert done.said.strip().endswith("Interrupted. The same command continues where this one stopped.")
    assert "Traceback" not in done.said


def test_names_from_files_cannot_move_the_cursor():
    assert one_line("a\x1b[2Jb\nc\td\x00") == "a\N{REPLACEMENT CHARACTER}[2Jb c d\N{REPLACEMENT CHARACTER}"
    assert len(one_line("x" * 10_000)) < 1_600
    assert str(FmrisynthError("a\nb")) == "a b"


def test_a_folder_that_is_a_link_is_not_cleaned(world, start, tmp_path):
    """Nothing is deleted outside the dataset."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("x")
    out = tmp_path / "out"
    ask = world.arguments("prepare", out)
    assert start.run([*ask, "--participant-label", "100408"]).status == 0
    (out / "sub-100307").symlink_to(precious)
    done = start.run(ask)
    assert done.status == 1
    assert "expected a folder of this dataset, found a link" in done.said
    assert (precious / "thesis.txt").exists()


@pytest.mark.parametrize("name", ["../../thesis_bold.nii.gz", "/etc/passwd.nii.gz", "func/../../x_bold.nii.gz"])
@pytest.mark.parametrize("command", ["tokenize", "glm", "evaluate"])
def test_an_index_cannot_lead_out_of_the_dataset(command, name, world, start, tmp_path):
    from tests.reliability.test_disk import copy_of

    root = copy_of(world, tmp_path)
    index = root / "blocks" / "sub-02" / "sub-02_scans.tsv"
    head, row, *rest = index.read_text().splitlines()
    index.write_text("\n".join([head, "\t".join([name, *row.split("\t")[1:]]), *rest]) + "\n")
    done = start.run(world.arguments(command, tmp_path / "out", root))
    assert done.status == 1
    assert "points outside the dataset" in done.said
    assert "Traceback" not in done.said

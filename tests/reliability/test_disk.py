"""Disks that are full, folders that may not be written, files that may not be read."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.reliability.conftest import World, damaged, digests, strays
from tests.reliability.faults import each
from tests.reliability.processes import Fault

MAX_FILE_BYTES = {"simulate": 20_000, "prepare": 20_000, "tokenize": 8_000, "train": 100_000, "sample": 8_000,
                  "glm": 2_000, "evaluate": 1_000}  # fmt: skip
"""Small files fit, the stage's largest do not."""


def refused(done, *words: str) -> None:
    """The command failed in sentences that name the file and the reason."""
    assert done.status == 1, done.said
    assert "Traceback" not in done.said
    assert "bug" not in done.said
    assert done.errors, done.said
    assert all(any(word in error for word in words) for error in done.errors), done.errors


@each("disk full", {
    "simulate": "The subject fails with one sentence, exit status 1; no half file; the same command continues.",
    "prepare": "The participant fails with one sentence, exit status 1; no half file; the same command continues.",
    "else": "One sentence that names the file, exit status 1; no half file; the same command continues.",
})  # fmt: skip
def test_disk_full(command, world, whole, start, tmp_path):
    ask, out = world.arguments(command, tmp_path / "out"), tmp_path / "out"
    refused(start.run(ask, Fault(max_file_bytes=MAX_FILE_BYTES[command])), "File too large")
    assert damaged(out, whole(command)) == []
    assert strays(out) == []
    done = start.run(ask)
    assert done.status == 0, done.said
    assert digests(out, command) == whole(command)


@pytest.mark.slow
@pytest.mark.parametrize("command", MAX_FILE_BYTES)
def test_disk_truly_full(command, world, whole, start, tmp_path):
    """The same on a file system of a few hundred kilobytes that really runs full."""
    out = tmp_path / "disk" / "out"
    out.parent.mkdir()
    size = "12k" if command == "evaluate" else "100k"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", out.parent], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        refused(start.run(world.arguments(command, out)), "No space left on device", "free space")
        assert damaged(out, whole(command)) == []
        subprocess.run(["mount", "-o", "remount,size=100m", out.parent], check=True)
        assert start.run(world.arguments(command, out)).status == 0
        assert digests(out, command) == whole(command)
    finally:
        start.end()
        subprocess.run(["umount", out.parent], check=True)


@each("read-only output", "One sentence that names the folder, exit status 1; nothing is written.")
def test_read_only_output(command, world, start, tmp_path, unprivileged):
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o555)
    refused(start.run(world.arguments(command, out), unprivileged), "Permission denied")
    assert list(out.iterdir()) == []


def copy_of(world: World, folder: Path) -> Path:
    """The world's inputs, to be spoilt."""
    return shutil.copytree(world.root, folder / "spoilt", symlinks=True)


FORBIDDEN = {
    "prepare": "hcp/100307/**/tfMRI_*.nii.gz",
    "tokenize": "blocks/sub-02/func/*rh_bold.nii.gz",
    "train": "latents/sub-02_latents.safetensors",
    "sample": "model/checkpoints/step-00000006/ema.safetensors",
    "glm": "blocks/sub-02/func/*rh_bold.nii.gz",
    "evaluate": "synthetic/sub-synth0001/func/*_bold.nii.gz",
}


@each("missing permissions", {
    "simulate": "A table of activations that may not be read: one sentence, exit status 2 (as for any option that cannot be used).",
    "prepare": "The participant with the unreadable file fails, the others are prepared; exit status 1.",
    "tokenize": "The participant with the unreadable file fails, the others are encoded; exit status 1.",
    "glm": "The participant with the unreadable file fails, the others get their maps; exit status 1.",
    "else": "One sentence that names the file, exit status 1.",
})  # fmt: skip
def test_input_that_may_not_be_read(command, world, start, tmp_path, unprivileged):
    if command == "simulate":
        table = tmp_path / "table.tsv"
        table.write_text("parcel\tmotor_rh\n1\t1.0\n")
        table.chmod(0)
        ask = [*world.arguments(command, tmp_path / "out"), "--activations", str(table), "--atlas", str(table)]
        done = start.run(ask, unprivileged)
        assert (done.status, len(done.errors)) == (2, 1), done.said
        assert "table.tsv" in done.errors[0]
        return
    root = copy_of(world, tmp_path)
    (victim,) = list(root.glob(FORBIDDEN[command]))[:1]
    victim.chmod(0)
    out = tmp_path / "out"
    refused(start.run(world.arguments(command, out, root), unprivileged), "Permission denied", "permission")
    if command in ("prepare", "tokenize", "glm"):
        others = {"prepare": "sub-100408/sub-100408_scans.tsv", "tokenize": "sub-05_latents.tsv",
                  "glm": "sub-05/sub-05_design.tsv"}  # fmt: skip
        assert (out / others[command]).exists()

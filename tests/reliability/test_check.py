"""`check` reads and prints. Stopped, spoilt or called on odd data, it says so, answers for what is there, and writes nothing."""

from __future__ import annotations

import signal
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.reliability.conftest import digests
from tests.reliability.faults import each
from tests.reliability.processes import Done, Fault
from tests.reliability.test_damage import cut_short
from tests.reliability.test_disk import FORBIDDEN, copy_of, refused

ONLY = ["check"]
AGAIN = "Nothing was written; the same command gives the whole answer."


def answer(done: Done) -> list[str]:
    """The lines of the table and the advice; progress has the time of day."""
    return [line for line in done.said.splitlines() if not line[:2].isdigit()]


def louder(path: Path, factor: float) -> None:
    """Multiply an image's fluctuations."""
    image = nib.load(path)
    values = np.asarray(image.dataobj, np.float64)
    mean = values.mean(axis=3, keepdims=True)
    nib.save(nib.Nifti1Image((mean + factor * (values - mean)).astype(np.int16), image.affine, image.header), path)


@each("changed input", "The answer is that of the data as they are now: nothing is kept between calls.", ONLY)
def test_changed_input(command, world, start, tmp_path):
    root = copy_of(world, tmp_path)
    ask = world.arguments(command, tmp_path, root)
    before = start.run(ask)
    kept = {path: path.read_bytes() for path in root.glob("blocks/sub-*/func/*_bold.nii.gz")}
    for path in kept:
        louder(path, 5.0)
    changed = start.run(ask)
    assert changed.status == 1
    assert "fluctuations" in "".join(answer(changed)[-3:])
    for path, content in kept.items():
        path.write_bytes(content)
    again = start.run(ask)
    assert (again.status, answer(again)) == (before.status, answer(before)) != (changed.status, answer(changed))


@pytest.mark.parametrize(
    ("what", "status"),
    [
        pytest.param(getattr(signal, name), status, id=name,
                     marks=pytest.mark.fault(command="check", fault=name, outcome=AGAIN + said))
        for name, status, said in (("SIGKILL", -9, ""), ("SIGTERM", 143, " The exit status is 143."),
                                   ("SIGINT", 130, " The exit status is 130."))
    ],
)  # fmt: skip
def test_stopped_and_called_again(what, status, world, start, tmp_path):
    ask, before = world.arguments("check", tmp_path), digests(world.root)
    done = start.run(ask, Fault(at_image=4, signal=what))
    assert done.status == status, done.said
    assert "Traceback" not in done.said
    assert "matters" not in done.said
    again, whole = start.run(ask), start.run(ask)
    assert (again.status, answer(again)) == (whole.status, answer(whole))
    assert any("matters" in line for line in answer(whole))
    assert digests(world.root) == before
    assert list(tmp_path.iterdir()) == []


@each("corrupt input", "One sentence that names the file, exit status 1.", ONLY)
def test_corrupt_input(command, world, start, tmp_path):
    root = copy_of(world, tmp_path)
    victim = next(iter(sorted(root.glob(FORBIDDEN["glm"]))))
    cut_short(victim)
    refused(start.run(world.arguments(command, tmp_path, root)), victim.name)


@each("corrupt checkpoint", "One sentence that names the file, exit status 1.", ONLY)
def test_corrupt_checkpoint(command, world, start, tmp_path):
    root = copy_of(world, tmp_path)
    victim = root / FORBIDDEN["sample"]
    cut_short(victim)
    refused(start.run(world.arguments(command, tmp_path, root)), victim.name)


@each("missing permissions", "One sentence that names the file, exit status 1.", ONLY)
def test_input_that_may_not_be_read(command, world, start, tmp_path, unprivileged):
    root = copy_of(world, tmp_path)
    victim = next(iter(sorted(root.glob(FORBIDDEN["glm"]))))
    victim.chmod(0)
    refused(start.run(world.arguments(command, tmp_path, root), unprivileged), "Permission denied", "permission")


@each("out of memory", "One sentence that says so, exit status 1.", ONLY)
def test_out_of_memory(command, world, start, tmp_path):
    ask, hits = world.arguments(command, tmp_path), 0
    for memory_bytes in (500_000, 8_000_000):
        done = start.run(ask, Fault(memory_bytes=memory_bytes))
        assert "Traceback" not in done.said, done.said
        if done.errors:
            refused(done, "not enough memory")
            hits += 1
    assert hits


@pytest.mark.parametrize("what", ["constant", "one block", "empty mask", "a mirrored affine", "no subject"])
def test_odd_data(what, world, start, tmp_path):
    """A verdict or one sentence, never a trace; a difference that matters is never called none."""
    root = copy_of(world, tmp_path)
    people = sorted((root / "blocks").glob("sub-*"))
    if what == "constant":
        for path in root.glob("blocks/sub-*/func/*_bold.nii.gz"):
            louder(path, 0.0)
    elif what == "one block":
        ask = [*world.arguments("check", tmp_path, root), "--n-blocks", "1"]
        assert any("matters" in line for line in answer(start.run(ask)))
        return
    elif what in ("empty mask", "a mirrored affine"):
        for path in root.glob(
            "blocks/sub-*/func/*_mask.nii.gz" if what == "empty mask" else "blocks/sub-*/func/*.nii.gz"
        ):
            image = nib.load(path)
            values, affine = np.asarray(image.dataobj), image.affine.copy()
            if what == "empty mask":
                values = np.zeros_like(values)
            else:
                affine[0] *= -1
            changed = nib.Nifti1Image(values, affine, image.header)
            changed.set_sform(affine, 4)
            changed.set_qform(affine, 4)
            nib.save(changed, path)
    else:
        for person in people:
            for path in sorted(person.rglob("*"), reverse=True):
                path.unlink() if path.is_file() else path.rmdir()
            person.rmdir()
    done = start.run(world.arguments("check", tmp_path, root))
    assert done.status == 1, done.said
    assert "Traceback" not in done.said
    assert "bug" not in done.said
    if what == "no subject":
        assert len(done.errors) == 1, done.said
    else:
        assert not done.errors, done.said
        assert any(line.rstrip().endswith(" yes") for line in answer(done)), done.said

"""Damaged inputs and checkpoints: one sentence, and the participants beside the bad one are done."""

from __future__ import annotations

from pathlib import Path

from tests.reliability.conftest import digests
from tests.reliability.faults import each
from tests.reliability.processes import Fault
from tests.reliability.test_disk import FORBIDDEN, copy_of, refused

OTHERS = {
    "prepare": "sub-100408/sub-100408_scans.tsv",
    "tokenize": "sub-05_latents.tsv",
    "glm": "sub-05/sub-05_design.tsv",
}
"""What the participant beside the bad one gets."""

PER_PARTICIPANT = "That participant fails with one sentence, the others are done; exit status 1."


def cut_short(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


@each("corrupt input", {
    "simulate": "A damaged table of activations: one sentence that names it, exit status 1 or 2; nothing is written.",
    "prepare": PER_PARTICIPANT, "tokenize": PER_PARTICIPANT, "glm": PER_PARTICIPANT,
    "else": "One sentence that names the file, exit status 1.",
}, [c for c in ("simulate", "prepare", "tokenize", "train", "glm", "evaluate")])  # fmt: skip
def test_corrupt_input(command, world, start, tmp_path):
    out = tmp_path / "out"
    if command == "simulate":
        table = tmp_path / "table.tsv"
        table.write_bytes(b"\x00\xff\x80" * 100)
        done = start.run([*world.arguments(command, out), "--activations", str(table), "--atlas", str(table)])
        assert done.status in (1, 2)
        assert len(done.errors) == 1
        assert "table.tsv" in done.errors[0]
        assert "Traceback" not in done.said
        return
    root = copy_of(world, tmp_path)
    victim = next(iter(sorted(root.glob(FORBIDDEN[command]))))
    cut_short(victim)
    done = start.run(world.arguments(command, out, root))
    refused(done, victim.name)
    if command in OTHERS:
        assert (out / OTHERS[command]).exists()
        assert len(done.errors) == 1


@each("corrupt checkpoint", {
    "tokenize": "A given tokenizer that was altered: one sentence, exit status 1; nothing is encoded with it.",
    "train": "The run continues from the newest checkpoint that is whole, to the same weights, and says so.",
    "evaluate": "A given tokenizer that was altered: one sentence, exit status 1.",
    "else": "One sentence that names the file, exit status 1; nothing is written.",
}, ["tokenize", "train", "sample", "evaluate"])  # fmt: skip
def test_corrupt_checkpoint(command, world, whole, start, tmp_path):
    root, out = copy_of(world, tmp_path), tmp_path / "out"
    ask = world.arguments(command, out, root)
    if command == "train":
        assert start.run([*ask[:-2], "--set", "log_every=1", "--set", "steps=4"]).status == 0
        cut_short(out / "checkpoints" / "step-00000004" / "model.safetensors")
        done = start.run(ask)
        assert done.status == 0, done.said
        assert "step-00000004/model.safetensors is damaged; training goes on from step-00000002" in done.said
        assert digests(out, command) == whole(command)
        return
    if command == "sample":
        cut_short(root / "model" / "checkpoints" / "step-00000006" / "ema.safetensors")
    else:
        weights = root / "latents" / "tokenizer" / "weights.safetensors"
        content = bytearray(weights.read_bytes())
        content[-5] ^= 1
        weights.write_bytes(content)
        if command == "tokenize":
            ask += ["--tokenizer", str(root / "latents" / "tokenizer")]
    done = start.run(ask)
    refused(done, "ema.safetensors" if command == "sample" else "do not match its digest")
    assert len(done.errors) == 1
    assert not list(out.rglob("sub-*")), "something was made with it"


@each("out of memory", {
    "prepare": "The participant fails with one sentence that says so, exit status 1; the same command continues.",
    "else": "One sentence that says so, exit status 1; the same command continues (also where the system itself ends the process).",
})  # fmt: skip
def test_out_of_memory(command, world, whole, start, tmp_path):
    ask, out = world.arguments(command, tmp_path / "out"), tmp_path / "out"
    hits = 0
    for memory_bytes in (1_000_000, 8_000_000):
        done = start.run(ask, Fault(memory_bytes=memory_bytes))
        assert "Traceback" not in done.said, done.said
        if done.status:
            refused(done, "not enough memory")
            hits += 1
    assert hits
    assert start.run(ask).status == 0
    assert digests(out, command) == whole(command)

"""Finished work is what its inputs and settings say now, and all of it is there; nobody else's folder is touched."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.glm.test_glm_runs import make_bids
from tests.reliability.conftest import digests, strays
from tests.reliability.faults import each
from tests.reliability.test_disk import copy_of


def shift_onset(path: Path) -> None:
    """The first block of an EV file begins half a second later."""
    first, *rest = path.read_text().splitlines()
    onset, *others = first.split()
    path.write_text("\n".join(["\t".join([str(float(onset) + 0.5), *others]), *rest]) + "\n")


def change_voxel(path: Path) -> None:
    """One voxel of a stored image, with nothing else changed."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    begin = int(np.frombuffer(content, "<f4", count=1, offset=108)[0])  # vox_offset
    values = np.frombuffer(content, "<i2", offset=begin).copy()
    values[np.argmax(values)] -= 2000
    content[begin:] = values.tobytes()
    path.write_bytes(gzip.compress(bytes(content), mtime=0))


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


CHANGES = {
    "prepare": ("hcp/100307/**/EVs/loss.txt", shift_onset, "sub-100307 was made again"),
    "tokenize": ("blocks/sub-02/func/*rh_bold.nii.gz", change_voxel, "tokenizer was made again"),
    "glm": ("blocks/sub-02/func/*rh_bold.nii.gz", change_voxel, "sub-02 was made again"),
    "evaluate": ("synthetic/sub-synth0001/func/*_bold.nii.gz", change_voxel, "evaluation was made again"),
}


@each("changed input", {
    "sample": "Another model: refused with the name of what differs, exit status 2; nothing is touched.",
    "train": "Refused: the run was started on other latents, exit status 2; nothing is touched.",
    "else": "What hangs on it is made again, and the summary says what and why; the output is the one of a fresh call.",
}, ["prepare", "tokenize", "train", "sample", "glm", "evaluate"])  # fmt: skip
def test_changed_input(command, world, start, tmp_path):
    root, out = copy_of(world, tmp_path), tmp_path / "out"
    ask = world.arguments(command, out, root)
    assert start.run(ask).status == 0
    before = digests(out, command)
    if command in ("train", "sample"):
        if command == "train":
            flip_bit(root / "latents" / "sub-02_latents.safetensors")
        else:
            shutil.rmtree(root / "model" / "checkpoints" / "step-00000006")
        done = start.run([*ask, "--set", "steps=8"] if command == "train" else ask)
        assert done.status == 2, done.said
        assert ("started on other latents" if command == "train" else "CheckpointSHA256 was") in done.said
        assert digests(out, command) == before
        return
    pattern, change, words = CHANGES[command]
    change(next(iter(sorted(root.glob(pattern)))))
    done = start.run(ask)
    assert done.status == 0, done.said
    assert words in done.said
    fresh = tmp_path / "fresh"
    assert start.run(world.arguments(command, fresh, root)).status == 0
    assert digests(out, command) == digests(fresh, command) != before


def test_an_unused_byte_of_another_subject_makes_nothing_again(world, start, tmp_path):
    """A changed test subject is encoded again; the tokenizer, fitted to others, and their latents stay."""
    root, out = copy_of(world, tmp_path), tmp_path / "out"
    ask = world.arguments("tokenize", out, root)
    assert start.run(ask).status == 0
    before = digests(out)
    change_voxel(next(iter(sorted(root.glob("blocks/sub-05/func/*rh_bold.nii.gz")))))
    done = start.run(ask)
    assert "sub-05 was made again: changed since: sub-05_" in done.said
    after = digests(out)
    assert [name for name in before if before[name] != after[name]] == ["sub-05_latents.safetensors"]


SETTINGS = {
    "simulate": (["--seed", "1"], "seed was 0, is 1"),
    "prepare": (["--set", "window.delay_s=1"], "window.delay_s was 0.0, is 1.0"),
    "tokenize": (["--normalisation", "global"], "normalisation was dynamics, is global"),
    "train": (["--set", "optimiser.learning_rate=0.01"], "optimiser.learning_rate: was"),
    "sample": (["--steps", "3"], "SamplerSteps was 2, is 3"),
    "glm": (["--set", "drift=linear"], "drift was None, is linear"),
    "evaluate": (["--set", "split_half_repeats=9"], "changed since: split_half_repeats"),
}


@each("changed setting", {
    "train": "Refused with the names of the settings, exit status 2; nothing is touched.",
    "evaluate": "What depends on them is made again, and the summary names them; the output is the one of a fresh call.",
    "else": "Refused with the names of the settings, exit status 2; nothing is touched. `--force` makes everything anew.",
})  # fmt: skip
def test_changed_setting(command, world, start, tmp_path):
    out = tmp_path / "out"
    ask = world.arguments(command, out)
    assert start.run(ask).status == 0
    before = digests(out, command)
    more, words = SETTINGS[command]
    done = start.run([*ask, *more])
    assert done.status == {"evaluate": 0}.get(command, 2), done.said
    assert words in done.said
    if command != "evaluate":
        assert digests(out, command) == before
        if command == "train":
            return
        done = start.run([*ask, *more, "--force"])
        assert done.status == 0, done.said
    fresh = tmp_path / "fresh"
    assert start.run([*world.arguments(command, fresh), *more]).status == 0
    assert digests(out, command) == digests(fresh, command) != before


def one_of_each_kind(out: Path, command: str) -> list[Path]:
    """The first file of every ending, and everything that is only there once."""
    chosen: dict[str, Path] = {}
    for name in digests(out, command):
        chosen.setdefault(name.rpartition("_")[2] if "sub-" in name or "group" in name else name, out / name)
    return list(chosen.values())


AGAIN = {
    "train": "The copy of the tokenizer and `best/` are made again; so is the newest checkpoint, by training on from the newest whole "
    "one; it is said which and why. Where `best/` or all checkpoints are beyond repair: one sentence with what to do, exit status "
    "1. Lines lost from `log.jsonl` stay lost.",
    "else": "It is made again, and the summary says which and why; finished units beside it are kept.",
}


@each("deleted output", AGAIN)
def test_deleted_output(command, world, whole, start, tmp_path):
    out = tmp_path / "out"
    ask = world.arguments(command, out)
    assert start.run(ask).status == 0
    victims = one_of_each_kind(out, command)
    assert len(victims) >= 3
    for victim in victims:
        victim.unlink()
    done = start.run(ask)
    assert done.status == 0, done.said
    assert "is gone" in done.said
    assert command != "train" or "training goes on from step-00000004" in done.said
    assert digests(out, command) == whole(command)
    assert strays(out) == []


@each("truncated output", AGAIN)
@pytest.mark.parametrize("size", ["empty", "half"])
def test_truncated_output(command, size, world, whole, start, tmp_path):
    """Also what the death of a machine leaves: files without content, under their names."""
    out = tmp_path / "out"
    ask = world.arguments(command, out)
    assert start.run(ask).status == 0
    for victim in one_of_each_kind(out, command):
        content = victim.read_bytes()
        victim.write_bytes(content[: len(content) // 2] if size == "half" else b"")
    done = start.run(ask)
    assert done.status == 0, done.said
    assert "is damaged" in done.said or command == "train"
    assert command != "train" or "training goes on from step-00000004" in done.said
    assert digests(out, command) == whole(command)


@pytest.mark.parametrize(
    "victim", ["model.safetensors", "optimizer.safetensors", "ema.safetensors", "checkpoint.json", "state.json"]
)
def test_a_flipped_bit_in_a_checkpoint_is_seen(victim, world, start, tmp_path):
    """safetensors has no checksum: the cards know what the weights were."""
    out = shutil.copytree(world.root / "model", tmp_path / "out")
    for step in (4, 6):
        path = out / "checkpoints" / f"step-{step:08d}" / victim
        if path.suffix == ".json":
            path.write_bytes(path.read_bytes()[:-40])
        else:
            flip_bit(path)
    drawn = start.run(["sample", str(tmp_path / "drawn"), "--condition", "motor_rh", "--checkpoint", str(out)])
    if victim in ("ema.safetensors", "checkpoint.json"):
        assert (drawn.status, len(drawn.errors)) == (1, 1), drawn.said
        assert victim in drawn.said
    done = start.run(world.arguments("train", out))
    assert done.status == 0, done.said
    assert f"step-00000006/{victim}" in done.said
    assert "training goes on from step-00000002" in done.said
    expected, found = (digests(root, "train") for root in (world.root / "model", out))
    assert found == expected


def test_a_training_run_that_is_beyond_repair(world, start, tmp_path):
    """The remedies that the messages name work."""
    out = shutil.copytree(world.root / "model", tmp_path / "out")
    ask = world.arguments("train", out)
    shutil.rmtree(out / "best")
    shutil.rmtree(out / "checkpoints" / "step-00000006")
    state = out / "checkpoints" / "step-00000004" / "state.json"
    content = json.loads(state.read_text())
    content["progress"] |= {"best_step": 3, "best_score": 1.0}  # never beaten
    state.write_text(json.dumps(content))
    done = start.run(ask)
    assert (done.status, len(done.errors)) == (1, 1), done.said
    assert "FAILED best: " in done.said
    assert "remove the checkpoints after step-00000002 and call again" in done.said
    for path in out.glob("checkpoints/step-*"):
        if path.name != "step-00000002":
            shutil.rmtree(path)
    assert start.run(ask).status == 0
    assert digests(out, "train") == digests(world.root / "model", "train")
    for path in out.glob("checkpoints/*/optimizer.safetensors"):
        path.unlink()
    done = start.run(ask)
    assert (done.status, len(done.errors)) == (1, 1), done.said
    assert f"remove {out / 'checkpoints'} to train anew" in done.said
    shutil.rmtree(out / "checkpoints")
    assert start.run(ask).status == 0
    assert digests(out, "train") == digests(world.root / "model", "train")


def test_every_file_emptied(world, whole, start, tmp_path):
    """Records and claims too: nothing is believed, everything is made again or refused in one sentence."""
    out = tmp_path / "out"
    ask = world.arguments("glm", out)
    assert start.run(ask).status == 0
    for path in (out / "logs" / "units").iterdir():
        path.write_bytes(b"")
    assert start.run(ask).status == 0
    assert digests(out) == whole("glm")
    (out / "logs" / "begun.json").write_bytes(b"")
    done = start.run(ask)
    assert (done.status, len(done.errors)) == (1, 1)
    assert "begun.json: expected what began this folder" in done.said


THEIRS = {
    "README": "A study of ours", "dataset_description.json": '{"Name": "ours", "BIDSVersion": "1.8.0"}',
    ".bidsignore": "extra/", "participants.tsv": "participant_id\tsplit\nsub-01\ttest\n",
    "sub-01/func/sub-01_task-x_events.tsv": "onset\tduration\n",
}  # fmt: skip


@each("somebody's folder", "Refused in one sentence, exit status 2; not a byte of it changes.")
def test_somebodys_folder(command, world, start, tmp_path):
    out = tmp_path / "out"
    for name, content in THEIRS.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(content)
    before, state = digests(out), out.stat().st_mtime_ns
    done = start.run(world.arguments(command, out))
    assert (done.status, len(done.errors)) == (2, 1), done.said
    assert "expected an empty folder or one that" in done.said
    assert digests(out) == before
    assert out.stat().st_mtime_ns == state


@pytest.mark.parametrize("command", ["sample", "glm", "evaluate", "simulate", "tokenize", "train"])
def test_a_folder_of_another_command(command, world, start, tmp_path):
    """Nobody's participants become synthetic, and nobody's split is lost."""
    out = shutil.copytree(world.root / "blocks", tmp_path / "out")
    (out / "logs").mkdir()
    (out / "logs" / "begun.json").write_text('{"Command": "prepare", "Sources": [], "Settings": {}}')
    before = digests(out)
    done = start.run(world.arguments(command, out))
    assert done.status == 2
    assert "found one that `fmrisynth prepare` began" in done.said
    assert digests(out) == before


def test_another_source_is_refused_and_a_moved_one_is_known(world, start, tmp_path):
    root, out = copy_of(world, tmp_path), tmp_path / "out"
    ask = world.arguments("prepare", out, root)
    assert start.run(ask).status == 0
    moved = root.rename(tmp_path / "elsewhere")
    done = start.run(world.arguments("prepare", out, moved))
    assert done.status == 0, done.said
    assert "0 participants prepared, 2 had been there" in done.said
    before = digests(out)
    further = moved.rename(tmp_path / "further")
    shift_onset(next(further.glob("hcp/100307/**/EVs/loss.txt")))
    done = start.run(world.arguments("prepare", out, further))
    assert done.status == 2
    assert f"was begun from {moved / 'hcp'}, and the input now has another sub-100307" in done.said
    for person in (further / "hcp").iterdir():
        person.rename(person.with_name("9" + person.name[1:]))
    done = start.run(world.arguments("prepare", out, further))
    assert done.status == 2
    assert "holds none of the finished ones" in done.said
    assert digests(out) == before


@pytest.mark.parametrize("kind", ["given", "fitted"])
def test_a_refused_tokenize_leaves_no_folder(kind, world, start, tmp_path):
    """Nor a line about no blocks."""
    root, out = copy_of(world, tmp_path), tmp_path / "out"
    for image in (root / "blocks").rglob("*_bold.nii.gz"):
        image.write_bytes(image.read_bytes()[:200])
    given = ["--tokenizer", str(root / "latents" / "tokenizer")] if kind == "given" else []
    done = start.run([*world.arguments("tokenize", out, root), *given])
    assert done.status == 1
    assert "Encoded" not in done.said
    assert "Traceback" not in done.said
    assert not out.exists()


def test_group_maps_are_of_all_finished_subjects(world, whole, start, tmp_path):
    """A call for one participant does not replace the group's map by that participant's."""
    out = tmp_path / "out"
    ask = world.arguments("glm", out)
    assert start.run(ask).status == 0
    assert start.run([*ask, "--participant-label", "sub-01"]).status == 0
    assert digests(out) == whole("glm")


def test_a_table_without_content_stops_one_participant(world, start, tmp_path):
    root = copy_of(world, tmp_path)
    (root / "blocks" / "sub-02" / "sub-02_scans.tsv").write_text("")
    for command in ("tokenize", "glm"):
        done = start.run(world.arguments(command, tmp_path / command, root))
        assert done.status == 1
        assert [error.partition(":")[0] for error in done.errors] == ["FAILED 02"], done.said
    out = tmp_path / "prepared"
    assert start.run(world.arguments("prepare", out)).status == 0
    before = digests(out)
    (out / "sub-100307" / "sub-100307_scans.tsv").write_text("")
    done = start.run([*world.arguments("prepare", out), "--participant-label", "100408"])
    assert (done.status, len(done.errors)) == (1, 1)
    assert "makes it again" in done.said
    assert start.run(world.arguments("prepare", out)).status == 0
    assert digests(out) == before


def test_a_condition_that_is_gone_takes_its_maps_with_it(world, start, tmp_path):
    """After a correction of the blocks no map of the old condition is left, nor of the group's."""
    root, out = copy_of(world, tmp_path), tmp_path / "out"
    ask = world.arguments("glm", out, root)
    assert start.run(ask).status == 0
    assert list(out.glob("group/*gamblingLoss*"))
    for table in root.glob("blocks/sub-*/sub-*_scans.tsv"):
        lines = table.read_text().splitlines()
        table.write_text("\n".join(line for line in lines if "gambling_loss" not in line) + "\n")
    assert start.run(ask).status == 0
    assert not list(out.rglob("*gamblingLoss*"))
    assert list(out.glob("group/*motorRh*"))


@pytest.mark.parametrize("what", ["events", "confounds", "mask", "sidecar"])
def test_whole_runs_are_fitted_again_after_a_correction(what, start, tmp_path):
    """Every file that a run is read with counts, and the other subject's maps stay as they are."""
    root, out = make_bids(tmp_path / "bids", derivatives=True, n_runs=1), tmp_path / "out"
    ask = ["glm", str(root), str(out), "--unit", "run", "--set", "reports=false"]
    assert start.run(ask).status == 0
    before = digests(out)
    (victim,) = (
        path for path in root.rglob("*") if "sub-01" in path.name and path.name.endswith(
            {"events": "_events.tsv", "confounds": "_timeseries.tsv", "mask": "_mask.nii.gz", "sidecar": "_bold.json"}[what]
        )
    )  # fmt: skip
    if what == "events":
        swap = {"right hand": "left-hand", "left-hand": "right hand"}
        lines = [line.split("\t") for line in victim.read_text().splitlines()]
        victim.write_text("\n".join("\t".join(swap.get(cell, cell) for cell in line) for line in lines) + "\n")
    elif what == "confounds":
        lines = victim.read_text().splitlines()
        victim.write_text("\n".join([*lines[:-1], lines[-1].replace(lines[-1].split("\t")[0], "9.5", 1)]) + "\n")
    elif what == "mask":
        image = nib.load(victim)
        mask = np.asarray(image.dataobj).copy()
        mask[tuple(np.argwhere(mask > 0)[0])] = 0
        nib.save(nib.Nifti1Image(mask, image.affine), victim)
    else:
        victim.write_text(victim.read_text().replace('"StartTime": 0.97', '"StartTime": 0.5'))
    done = start.run(ask)
    assert done.status == 0, done.said
    assert "sub-01 was made again: changed since: " in done.said
    assert "sub-02 was" not in done.said
    fresh = tmp_path / "fresh"
    assert start.run([*ask[:2], str(fresh), *ask[3:]]).status == 0
    assert digests(out) == digests(fresh) != before

"""The latents directory: round trip, laziness, refusals."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fmrisynth.data.blocks import Block
from fmrisynth.data.latents import LatentDataset, write_subject
from fmrisynth.errors import FmrisynthError


def make_blocks(subject: str, n: int, split="train") -> list[Block]:
    return [
        Block(
            root=Path(), subject=subject, condition=("motor_rh", "gambling_loss")[i % 2],
            bold=Path(f"sub-{subject}/func/sub-{subject}_task-x_run-{i + 1:02d}_bold.nii.gz"), onset_s=0.0,
            duration_s=12.5, tr_s=1.44, n_frames=4, split=split, attributes={"phase_encoding": "RL"},
        )
        for i in range(n)
    ]  # fmt: skip


def make_latents(root: Path, *, subjects=3, n=4, shape=(3, 4, 2, 2, 2)) -> list[torch.Tensor]:
    folder = root / "tokenizer"
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(json.dumps({"latent_mean": [0.5, 0.0, 1.0], "latent_std": [2.0, 1.0, 4.0]}))
    generator = torch.Generator().manual_seed(0)
    tensors = []
    for number in range(subjects):
        subject = f"{number + 1:02d}"
        tensors.append(torch.randn(n, *shape, generator=generator))
        write_subject(root, subject, tensors[-1], make_blocks(subject, n, "test" if number == 2 else "train"))
    return tensors


def test_round_trip_and_subsets(tmp_path):
    tensors = make_latents(tmp_path)
    dataset = LatentDataset.open(tmp_path)
    assert len(dataset) == 12
    assert dataset.shape == (3, 4, 2, 2, 2)
    assert torch.equal(dataset.load(5), tensors[1][1])
    assert torch.equal(dataset.load_many([0, 11]), torch.stack([tensors[0][0], tensors[2][3]]))
    test = dataset.subset(split="test", conditions=["motor_rh"])
    assert [(r.subject, r.row) for r in test.rows] == [("03", 0), ("03", 2)]
    assert torch.equal(test.load(1), tensors[2][2])
    mean, std = torch.tensor([0.5, 0.0, 1.0]), torch.tensor([2.0, 1.0, 4.0])
    expected = (tensors[0][0] - mean.view(3, 1, 1, 1, 1)) / std.view(3, 1, 1, 1, 1)
    torch.testing.assert_close(dataset[0], expected)
    assert dataset.rows[0].attributes == {"phase_encoding": "RL"}


def test_some_subjects_only(tmp_path):
    make_latents(tmp_path)
    assert LatentDataset.open(tmp_path, subjects=["02"]).subjects == ["02"]
    with pytest.raises(FmrisynthError, match="no latents of sub-09"):
        LatentDataset.open(tmp_path, subjects=["09"])


def test_opening_reads_no_latents(tmp_path):
    """Sixteen megabytes of latents, two of memory at most."""
    make_latents(tmp_path, subjects=2, n=8, shape=(3, 4, 24, 32, 28))
    tracemalloc.start()
    dataset = LatentDataset.open(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * 2**20
    assert dataset.load(3).shape == (3, 4, 24, 32, 28)


def test_index_is_the_mark_of_completeness(tmp_path):
    make_latents(tmp_path)
    (tmp_path / "sub-01_latents.tsv").unlink()
    assert LatentDataset.open(tmp_path).subjects == ["02", "03"]


def test_values_that_are_not_finite_are_not_written(tmp_path):
    latents = torch.zeros(1, 3, 4, 2, 2, 2)
    latents[0, 0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(FmrisynthError, match="not finite"):
        write_subject(tmp_path, "01", latents, make_blocks("01", 1))
    assert not list(tmp_path.iterdir())


def damage(root: Path, how: str) -> None:
    if how == "no tokenizer":
        (root / "tokenizer" / "tokenizer.json").unlink()
    elif how == "no statistics":
        (root / "tokenizer" / "tokenizer.json").write_text("{}")
    elif how == "zero std":
        (root / "tokenizer" / "tokenizer.json").write_text('{"latent_mean": [0, 0, 0], "latent_std": [1, 0, 1]}')
    elif how == "wrong channels":
        (root / "tokenizer" / "tokenizer.json").write_text('{"latent_mean": [0], "latent_std": [1]}')
    elif how == "missing shard":
        (root / "sub-02_latents.safetensors").unlink()
    elif how == "truncated shard":
        shard = root / "sub-02_latents.safetensors"
        shard.write_bytes(shard.read_bytes()[:300])
    elif how == "other shape":
        save_file({"latents": torch.zeros(4, 3, 4, 2, 2, 4)}, root / "sub-02_latents.safetensors")
    elif how == "other length":
        save_file({"latents": torch.zeros(3, 3, 4, 2, 2, 2)}, root / "sub-02_latents.safetensors")
    elif how == "other tensor":
        save_file({"weights": torch.zeros(4)}, root / "sub-02_latents.safetensors")
    elif how == "bad number":
        index = root / "sub-02_latents.tsv"
        index.write_text(index.read_text().replace("12.5", "long"))
    elif how == "nothing":
        for path in root.glob("sub-*"):
            path.unlink()


@pytest.mark.parametrize(
    "how",
    ["no tokenizer", "no statistics", "zero std", "wrong channels", "missing shard", "truncated shard", "other shape",
     "other length", "other tensor", "bad number", "nothing"],
)  # fmt: skip
def test_damage_is_told_in_one_sentence(how, tmp_path):
    make_latents(tmp_path)
    damage(tmp_path, how)
    with pytest.raises(FmrisynthError) as error:
        LatentDataset.open(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_folder(tmp_path):
    with pytest.raises(FmrisynthError, match="no such folder"):
        LatentDataset.open(tmp_path / "nowhere")

"""A masked autoencoder from phantom people to drawn ones, through the command line, on a grid of 8 voxels a cell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fmrisynth.cli.main import run
from fmrisynth.data.blocks import read_blocks
from fmrisynth.data.latents import LatentDataset
from fmrisynth.models.checkpoint import stored_shapes
from fmrisynth.models.tokenizers import load_tokenizer
from fmrisynth.models.whitening import SCALE

N_PEOPLE = 20  # fewer are not evaluated
TINY = [
    "model.width=24", "model.depth=1", "model.masked_depth=1", "model.heads=2", "model.channels=[4,4,4,4]", "model.norm_groups=4",
    "model.latent_channels=4", "fit.masked_steps=2", "fit.steps=4", "fit.batch_size=1", "statistics_blocks=4",
]  # fmt: skip
TINY_DIT = ["model.kind=dit", "model.width=24", "model.depth=1", "model.heads=2", "batch_size=2", "val_every=2"]


def settings(values: list[str]) -> list[str]:
    return [word for value in values for word in ("--set", value)]


@pytest.fixture(scope="module")
def latents(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("masked")
    people = ["--layout", "anatomy", "--n-subjects", str(N_PEOPLE), "--set", "split.all=train", "--seed", "3"]
    assert run(["simulate", str(root / "people"), *people]) == 0
    assert run(["tokenize", str(root / "people"), str(root / "latents"), "--preset", "mae-small", *settings(TINY)]) == 0
    return root / "latents"


def test_latents_are_8_times_smaller(latents):
    dataset, tokenizer = LatentDataset.open(latents), load_tokenizer(latents / "tokenizer")
    assert (len(dataset), dataset.shape) == (N_PEOPLE, (4, 1, 6, 8, 8))
    outside = ~tokenizer.info.latent_mask_xyz
    assert outside.any()
    assert not dataset.load(3)[:, 0, outside].any()
    assert torch.isfinite(dataset.load(3)).all()
    page = (latents / "index.html").read_text()
    assert "8 times smaller along each side, by the frozen encoder of a masked autoencoder" in page
    assert "vanpuyvelde2026" in (latents / "references.bib").read_text()


def test_people_are_drawn_and_judged(latents, tmp_path):
    train = ["train", str(latents), str(tmp_path / "model"), "--preset", "anatomy", "--steps", "2", *settings(TINY_DIT)]
    assert run(train) == 0
    stored = stored_shapes(next((tmp_path / "model" / "checkpoints").glob("step-*/ema.safetensors")))
    assert stored[SCALE] == (4, 6, 8, 8)  # the preset whitens
    table = tmp_path / "asked.tsv"
    rows = [f"sub-{i}\t{'FM'[i % 2]}\t{20 + 3 * i}" for i in range(N_PEOPLE)]
    table.write_text("\n".join(["participant_id\tsex\tage", *rows]) + "\n")
    ask = ["sample", str(tmp_path / "drawn"), "--checkpoint", str(tmp_path / "model"), "--all-conditions"]
    assert run([*ask, "--n", str(N_PEOPLE), "--steps", "2", "--participants", str(table)]) == 0
    volumes = [block.load() for block in read_blocks(tmp_path / "drawn")[:2]]
    assert all(volume.mask_XYZ.sum() > 20_000 for volume in volumes)
    assert (volumes[0].reference_XYZ != volumes[1].reference_XYZ).any()
    people = latents.with_name("people")
    judge = ["evaluate", str(tmp_path / "report"), "--unit", "anatomy", "--real", str(people)]
    assert run([*judge, "--synthetic", str(tmp_path / "drawn")]) == 0
    found = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert {one["name"]: one["n_asked"] for one in found["attributes"]}["age"] == N_PEOPLE


def test_a_network_of_levels_is_refused_with_what_to_do(latents, tmp_path, capsys):
    assert run(["train", str(latents), str(tmp_path / "model"), "--preset", "anatomy", "--steps", "2"]) != 0
    assert "Latent grid 6x8x8" in (said := capsys.readouterr().err)
    assert "--set model.kind=dit" in said

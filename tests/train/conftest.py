"""A latents directory with a known structure: subject pattern + small condition effect + noise."""

import json

import pytest
import torch
from safetensors.torch import save_file

from fmrisynth.config.load import load_config
from fmrisynth.config.train import TrainConfig

CONDITIONS = ["emotion_fear", "gambling_loss", "motor_rh"]
SHAPE = (2, 3, 4, 4, 4)  # C, T, X, Y, Z


def write_latents(root, n_subjects=6, blocks_per_condition=2, shape=SHAPE, effect=0.5, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def randn(*size):
        return torch.randn(*size, generator=generator)

    root.mkdir(parents=True, exist_ok=True)
    (root / "tokenizer").mkdir(exist_ok=True)
    description = {"kind": "test", "latent_mean": [0.0] * shape[0], "latent_std": [1.0] * shape[0]}
    (root / "tokenizer" / "tokenizer.json").write_text(json.dumps(description))
    mask = torch.ones(tuple(4 * side for side in shape[2:]), dtype=torch.uint8)
    mask[-4:] = 0  # the last slice of cells holds no brain
    save_file({"mask": mask}, root / "tokenizer" / "reference.safetensors")
    effects = {condition: effect * randn(*shape) for condition in CONDITIONS}
    for i in range(n_subjects):
        subject = f"sub-{i + 1:02d}"
        anatomy = 0.5 * randn(*shape)
        split = "train" if i < n_subjects - 2 else ("val" if i == n_subjects - 2 else "test")
        blocks, lines = [], []
        for condition in CONDITIONS:
            for j in range(blocks_per_condition):
                blocks.append(anatomy + effects[condition] + 0.5 * randn(*shape))
                phase = "LR" if j % 2 else "RL"
                lines.append([len(lines), condition, split, phase, 0.0, 18.0, 1.44, "block.nii.gz"])
        save_file({"latents": torch.stack(blocks)}, root / f"{subject}_latents.safetensors")
        header = ["row", "condition", "split", "phase_encoding", "onset_s", "duration_s", "tr_s", "filename"]
        table = "".join("\t".join(map(str, line)) + "\n" for line in [header, *lines])
        (root / f"{subject}_latents.tsv").write_text(table)
    return root


@pytest.fixture
def make_latents():
    return write_latents


@pytest.fixture
def latents(tmp_path):
    return write_latents(tmp_path / "latents")


@pytest.fixture
def make_config():
    def make(*overrides, **flags):
        common = {"log_every": 1, "steps": 6, "checkpoint_every": 2, "val_every": 3, "batch_size": 4}
        common["precision"] = "fp32"  # runs are compared: a busy machine may choose another one for one of them
        return load_config(TrainConfig, "train", preset="smoke", overrides=overrides, flags=common | flags)

    return make

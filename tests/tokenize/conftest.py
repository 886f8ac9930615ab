"""A tiny block dataset for the tokenize stage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from fmrisynth.bids.naming import Entities
from fmrisynth.data.blocks import BlockData, finish_subject, write_block
from fmrisynth.data.grid import make_grid

SHAPE = (16, 16, 16)
N_FRAMES = 6
GRID = make_grid(SHAPE, np.diag([3.0, 3.0, 3.0, 1.0]), "scanner")
SPLITS = ("train", "train", "train", "val", "test", "test")


def ball(shape=SHAPE):
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    return sum(axis**2 for axis in axes) < 0.9


def make_dataset(root: Path, *, splits=SPLITS, n_repeats=2, seed=0, grid=GRID, n_frames=N_FRAMES) -> Path:
    """Subjects with two conditions, each a smooth activation of its own under white noise."""
    rng = np.random.default_rng(seed)
    mask = ball(grid.shape)
    patterns = {c: ndimage.gaussian_filter(rng.standard_normal(grid.shape), 2.0) for c in ("motor_rh", "gambling_loss")}
    patterns = {c: p / p.std() for c, p in patterns.items()}
    response = np.minimum(np.arange(n_frames) / 2.0, 1.0)
    for number, split in enumerate(splits, start=1):
        subject = f"{number:02d}"
        anatomy = 10_000 + 1_000 * ndimage.gaussian_filter(rng.standard_normal(grid.shape), 1.5)
        blocks = []
        for condition, pattern in patterns.items():
            own = pattern + 0.3 * ndimage.gaussian_filter(rng.standard_normal(grid.shape), 2.0)
            for repeat in range(n_repeats):
                change = own[..., None] * response + rng.standard_normal((*grid.shape, n_frames))
                bold = anatomy[..., None] * (1 + change / 100)
                blocks.append(
                    write_block(
                        root, Entities(sub=subject, task=condition.split("_")[0], dir="LR", run=repeat + 1, space=grid.space),
                        condition.split("_")[1],
                        BlockData(bold.astype(np.float32), anatomy.astype(np.float32), mask), grid,
                        condition=condition, onset_s=0.0, duration_s=12.0, tr_s=1.44, split=split,
                        attributes={"phase_encoding": "LR"}, source="run",
                    )
                )  # fmt: skip
        finish_subject(root, subject, blocks)
    return root


@pytest.fixture(scope="session")
def dataset_maker():
    """The function that makes such datasets."""
    return make_dataset


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A prepared dataset: three training, one validation, two test subjects of four blocks."""
    return make_dataset(tmp_path_factory.mktemp("prepared"))

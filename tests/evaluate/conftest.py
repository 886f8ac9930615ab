"""Small cohorts with known group maps, subject differences and coloured noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from fmrisynth.bids.naming import Entities
from fmrisynth.config.evaluate import EvaluateConfig
from fmrisynth.data.blocks import Block, BlockData, finish_subject, write_block
from fmrisynth.data.grid import Grid, make_grid
from fmrisynth.glm.design import window_design

TR_S, N_FRAMES, DURATION_S = 1.44, 12, 18.0
GRID = make_grid(
    (16, 16, 16), np.array([[3.0, 0, 0, -24], [0, 3, 0, -24], [0, 0, 3, -24], [0, 0, 0, 1]]), "MNI152NLin6Asym"
)
CONDITIONS = ("gambling_loss", "motor_rh", "language_story", "social_mental")


def brain_mask(grid: Grid = GRID) -> np.ndarray:
    centre = (np.array(grid.shape) - 1) / 2
    radius = np.array(grid.shape) / 2 - 2
    where = np.indices(grid.shape).transpose(1, 2, 3, 0)
    return (((where - centre) / radius) ** 2).sum(axis=-1) <= 1


def smooth_map(rng: np.random.Generator, grid: Grid = GRID, sigma: float = 1.5) -> np.ndarray:
    values = gaussian_filter(rng.standard_normal(grid.shape), sigma, mode="wrap")  # the same variance everywhere
    return (values / values.std()).astype(np.float32)


@dataclass
class Maker:
    """Writes block datasets that share group maps."""

    truth: Mapping[str, np.ndarray]
    grid: Grid = GRID
    amplitude: float = 1.0
    subject_sd: float = 0.5
    subject_sigma: float = 1.5
    noise_sd: float = 1.0
    n_frames: int = N_FRAMES
    tr_s: float = TR_S

    def window(self, rng, effect: np.ndarray) -> np.ndarray:
        """Percent signal change: response plus spatially smooth AR(1) noise."""
        regressor = window_design(0.0, DURATION_S, self.n_frames, self.tr_s).matrix_TP[:, 0]
        noise = np.stack([smooth_map(rng, self.grid, 0.8) for _ in range(self.n_frames)], axis=-1)
        for t in range(1, self.n_frames):
            noise[..., t] = 0.4 * noise[..., t - 1] + np.sqrt(1 - 0.16) * noise[..., t]
        return effect[..., None] * regressor + self.noise_sd * noise

    def write(self, root: Path, subject: str, conditions: Sequence[str], rng, *, split=None, n_blocks=2,
              windows: Mapping[str, Sequence[np.ndarray]] | None = None, reference=None) -> list[Block]:  # fmt: skip
        mask = brain_mask(self.grid)
        if reference is None:
            reference = np.where(mask, 10_000 * (1 + 0.15 * smooth_map(rng, self.grid)).clip(0.4), 0).astype(np.float32)
        blocks = []
        for condition in conditions:
            task, stem = condition.split("_", 1)
            own = self.amplitude * self.truth[condition] + self.subject_sd * smooth_map(
                rng, self.grid, self.subject_sigma
            )
            for run in range(len(windows[condition]) if windows else n_blocks):
                percent = windows[condition][run] if windows else self.window(rng, own)
                bold = (reference[..., None] * (1 + percent / 100)).astype(np.float32)
                blocks.append(
                    write_block(
                        root, Entities(sub=subject, task=task, run=run + 1, dir="LR" if run % 2 == 0 else "RL",
                                       space=self.grid.space, res=self.grid.resolution),
                        stem, BlockData(bold, reference, mask), self.grid, condition=condition, onset_s=0.0,
                        duration_s=DURATION_S, tr_s=self.tr_s, split=split,
                        attributes={"phase_encoding": "LR" if run % 2 == 0 else "RL"}, source=f"sub-{subject}_{condition}_{run}",
                    )
                )  # fmt: skip
        finish_subject(root, subject, blocks)
        return blocks

    def cohort(self, root: Path, seed: int, *, train=0, test=0, conditions=CONDITIONS, n_blocks=2) -> Path:
        """A real cohort with training and test subjects."""
        rng = np.random.default_rng(seed)
        for index in range(train + test):
            split = "train" if index < train else "test"
            self.write(root, f"{index + 1:03d}", conditions, rng, split=split, n_blocks=n_blocks)
        return root

    def samples(self, root: Path, seed: int, n: int, *, conditions=CONDITIONS, labels=None) -> Path:
        """A synthetic cohort: one subject per sample; `labels` renames conditions (shuffled labels)."""
        rng = np.random.default_rng(seed)
        labels = labels or {c: c for c in conditions}
        number = 0
        for condition in conditions:
            for _ in range(n):
                number += 1
                effect = self.amplitude * self.truth[labels[condition]] + self.subject_sd * smooth_map(
                    rng, self.grid, self.subject_sigma
                )
                windows = {condition: [self.window(rng, effect)]}
                self.write(root, f"synth{number:04d}", [condition], rng, windows=windows)
        return root


@pytest.fixture(scope="session")
def truth() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(77)
    shared = smooth_map(rng)
    return {condition: 0.5 * shared + smooth_map(rng) for condition in CONDITIONS}


@pytest.fixture(scope="session")
def maker(truth) -> Maker:
    return Maker(truth)


@pytest.fixture(scope="session")
def real_cohort(maker, tmp_path_factory) -> Path:
    return maker.cohort(tmp_path_factory.mktemp("real"), 1, train=12, test=8)


@pytest.fixture(scope="session")
def good_samples(maker, tmp_path_factory) -> Path:
    return maker.samples(tmp_path_factory.mktemp("good"), 2, 12)


@pytest.fixture(scope="session")
def quick() -> EvaluateConfig:
    return EvaluateConfig(
        split_half_repeats=8, utility_grid=False, baseline_samples=6, baseline_training_blocks=12, glass_brain=False
    )

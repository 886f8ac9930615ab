"""Configuration of ``fmrisynth evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from fmrisynth.config.base import StageConfig
from fmrisynth.config.glm import GlmConfig


class EvaluateConfig(StageConfig):
    """Settings of the comparison of a synthetic with a real dataset."""

    unit: Literal["block", "run", "anatomy"] = Field(
        "block",
        description="block: windows of blocks; run: whole runs of one experiment (of the other settings only test_split, truth and "
        "tokenizer apply); anatomy: how people look, or will look if they are forecasts (tokenizer and inception apply to the former).",
    )
    glm: GlmConfig = Field(GlmConfig(reports=False), description="The window GLM, the same for both datasets.")
    conditions: tuple[str, ...] = Field((), description="Conditions to compare; empty: all that were synthesised.")
    test_split: Literal["train", "val", "test", "all"] = Field(
        "test", description="Real subjects to compare with; where a dataset has none of this split, all are used."
    )
    training: Path | None = Field(
        None, description="Block dataset whose train split is the training cohort; empty: the real dataset itself."
    )
    resample: bool = Field(False, description="Resample synthetic images onto the real grid where they differ.")
    split_half_repeats: int = Field(200, ge=0, le=100_000, description="Random halves of the real subjects.")
    resampling_voxels: int = Field(
        10_000, ge=100, description="Intervals and split halves use this many random voxels of the mask."
    )
    baselines: bool = Field(True, description="Fit and score the trivial baselines on the training split.")
    baseline_samples: int = Field(30, ge=2, le=1000, description="Samples per condition and baseline.")
    baseline_training_blocks: int = Field(
        40, ge=2, le=1000, description="Training blocks per condition kept for the baselines (on disk, temporary)."
    )
    utility_grid: bool = Field(
        True, description="Train classifiers on real people with so many times as many synthetic blocks added."
    )
    rois: Path | None = Field(
        None, description="Own spherical ROIs: TSV with columns label, task, x, y, z (mm), radius_mm."
    )
    roi_atlas: Path | None = Field(None, description="Own ROIs: a label image on any grid; needs roi_labels.")
    roi_labels: Path | None = Field(None, description="TSV with columns index, label, task for roi_atlas.")
    tokenizer: Path | None = Field(
        None,
        description="Tokenizer folder, or bundled: the compared real blocks or runs are encoded and decoded with it, for its ceiling.",
    )
    inception: Path | None = Field(
        None,
        description="Weights of torchvision's Inception-V3 (PyTorch file or safetensors): slices of anatomies are compared in its features "
        "in place of those of EfficientNet-Lite0.",
    )
    truth: Path | None = Field(
        None,
        description="Phantom cohort (or its ground_truth folder): group effects are compared with the planted maps.",
    )
    encoder: Path | None = Field(
        None, description="Encoder of `fmrisynth embed`: distances between real and synthetic blocks in its features."
    )
    glass_brain: bool = Field(True, description="Draw glass brains (MNI space only).")

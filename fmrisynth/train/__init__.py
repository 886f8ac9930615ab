"""The `train` stage: fit a denoiser to latents."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fmrisynth.config.train import TrainConfig
    from fmrisynth.progress import StageSummary

__all__ = ["train_denoiser"]


def train_denoiser(latents: Path, out: Path, config: TrainConfig) -> StageSummary:
    """Train a denoiser on a latents directory; continue where an earlier call stopped.

    Parameters
    ----------
    latents : Path
        Output of `tokenize`.
    out : Path
        Folder of the run: settings, log, checkpoints, best model and a copy of the tokenizer.
    config : TrainConfig
        Settings. A run that is continued must have the same ones, but for those that do not change its
        numbers (``config.run.OPERATIONAL``).

    Returns
    -------
    StageSummary
    """
    from fmrisynth.train.denoiser import run_training

    return run_training(latents, out, config)

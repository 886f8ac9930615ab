"""Registers encoders of `fmrisynth embed` with Brainmarks: ``model_kwargs: {ckpt_path: embedded/}``."""

from __future__ import annotations

from pathlib import Path

from brainmarks.models.registry import register_model
from torch import nn

from fmrisynth.embed.brainmarks import FlatMaps, model_pair


@register_model
def fmrisynth(ckpt_path: str) -> tuple[FlatMaps, nn.Module]:
    """An output of `fmrisynth embed`."""
    return model_pair(Path(ckpt_path))

"""The `tokenize` stage: fit a tokenizer, encode a block dataset to latents, decode it back, and measure the loss."""

from __future__ import annotations

from typing import Any

__all__ = ["decode_latents", "fit_tokenizer", "tokenize_dataset"]


def __getattr__(name: str) -> Any:
    # torch and MONAI are loaded when the stage is used, not when it is imported.
    if name in ("tokenize_dataset", "decode_latents"):
        from fmrisynth.tokenize import stage

        return getattr(stage, name)
    if name == "fit_tokenizer":
        from fmrisynth.tokenize.fit import fit_tokenizer

        return fit_tokenizer
    raise AttributeError(name)

"""Make a tokenizer from its configuration, or from its folder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from fmrisynth.config.tokenize import TokenizerConfig
from fmrisynth.data.grid import SIDE_DIVISOR, Grid
from fmrisynth.data.normalisation import NORMALISATIONS
from fmrisynth.errors import FmrisynthError
from fmrisynth.models.tokenizers.base import Tokenizer, TokenizerInfo, downsampling_of, read_folder
from fmrisynth.models.tokenizers.noise import ObservationNoise
from fmrisynth.models.tokenizers.patch import PatchTokenizer
from fmrisynth.models.tokenizers.pooling import PoolingTokenizer

_CONFIG: TypeAdapter[Any] = TypeAdapter(TokenizerConfig)


def _class_of(kind: str) -> type[Tokenizer]:
    """The class of a kind; MONAI takes seconds to import, so only the networks pay for it."""
    if kind == "vqgan":
        from fmrisynth.models.tokenizers.vqgan import VqganTokenizer

        return VqganTokenizer
    if kind == "mae":
        from fmrisynth.models.tokenizers.mae import MaeTokenizer

        return MaeTokenizer
    if kind == "kl":
        from fmrisynth.models.tokenizers.kl import KlTokenizer

        return KlTokenizer
    return PatchTokenizer if kind == PatchTokenizer.kind else PoolingTokenizer


def build_tokenizer(config: Any, info: TokenizerInfo) -> Tokenizer:
    """A tokenizer with fresh weights, of the kind that `config` names.

    Raises
    ------
    FmrisynthError
        The sides of the grid do not divide, or the mask holds no brain.
    """
    divisor, sides = math.lcm(SIDE_DIVISOR, info.downsampling), " x ".join(map(str, info.grid.shape))
    if any(side % divisor for side in info.grid.shape):
        remedy = "make the dataset with `fmrisynth prepare`, which pads it"
        if divisor > SIDE_DIVISOR:
            remedy = f"choose a tokenizer of at most {SIDE_DIVISOR} voxels per cell and side"
        raise FmrisynthError(
            f"a grid of {sides} voxels cannot be tokenized: every side must divide by {divisor}; {remedy}."
        )
    if not info.mask_XYZ.any():
        raise FmrisynthError(
            f"a grid of {sides} voxels cannot be tokenized: its mask holds no brain; prepare the dataset again."
        )
    return _class_of(config.kind)(config, info)


def _noise(reference: dict[str, torch.Tensor]) -> ObservationNoise | None:
    if "noise_std" not in reference:
        return None
    std_FXYZ, correlation_FF, neighbour_r_F3 = (
        reference[f"noise_{part}"].numpy() for part in ("std", "correlation", "neighbour_r")
    )
    return ObservationNoise(std_FXYZ.astype(np.float32), correlation_FF, neighbour_r_F3)


def load_tokenizer(folder: Path, *, device: str | torch.device = "cpu") -> Tokenizer:
    """Load a tokenizer from its folder, in evaluation mode.

    Raises
    ------
    FmrisynthError
        The folder is not a tokenizer, or its keys, shapes or statistics are not what they should be.
    """
    folder = Path(folder)
    content, weights, reference = read_folder(folder)
    try:
        config = _CONFIG.validate_python(content["config"])
        grid = Grid.from_json(content["grid"])
        mask_XYZ, reference_XYZ = reference["mask"].numpy() > 0, reference["reference"].numpy()
        noise = _noise(reference)
        mean, std = (torch.tensor(content[key], dtype=torch.float32) for key in ("latent_mean", "latent_std"))
        info = TokenizerInfo(
            kind=str(content["kind"]), normalisation=content["normalisation"], grid=grid, tr_s=float(content["tr_s"]),
            n_frames=int(content["n_frames"]), latent_channels=int(content["latent_channels"]), mask_XYZ=mask_XYZ,
            reference_XYZ=reference_XYZ, downsampling=downsampling_of(content), latent_mean=mean, latent_std=std,
            noise=noise, sha256=content["sha256"], provenance=content.get("provenance", {}),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise FmrisynthError(f"{folder}: the tokenizer's description is malformed ({error}); get it again.") from None
    n_channels = info.latent_channels
    sound = (
        config.kind == info.kind
        and config.downsampling == info.downsampling
        and config.latent_channels == info.latent_channels
        and info.normalisation in NORMALISATIONS
        and mask_XYZ.shape == reference_XYZ.shape == grid.shape
        and bool(mask_XYZ.any())
        and bool(np.isfinite(reference_XYZ).all())
        and mean.shape == std.shape == (n_channels,)
        and bool(torch.isfinite(mean).all())
        and bool((std > 0).all())
        and (noise is None or (noise.is_sound() and noise.std_FXYZ.shape[1:] == grid.shape))
    )
    if not sound:
        raise FmrisynthError(f"{folder}: the tokenizer's parts contradict each other; get it again.")
    tokenizer = build_tokenizer(config, info)
    expected = {name: tuple(tensor.shape) for name, tensor in tokenizer.state_dict().items()}
    if set(expected) != set(weights):
        odd = sorted(set(expected) ^ set(weights))[0]
        raise FmrisynthError(f"{folder}: the weights do not fit the tokenizer's kind ({odd} differs); get it again.")
    for name, shape in expected.items():
        if tuple(weights[name].shape) != shape:
            raise FmrisynthError(
                f"{folder}: weight {name} should have shape {shape}, found {tuple(weights[name].shape)}; get it again."
            )
    tokenizer.load_state_dict(weights)
    return tokenizer.to(device).eval()

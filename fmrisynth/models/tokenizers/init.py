"""Start a VQ-GAN from weights that exist: our own tokenizer folder, or a state dict in the ALDM layout.

The public ALDM checkpoints are PyTorch files; see `fmrisynth.models.weights`.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from fmrisynth.errors import FmrisynthError
from fmrisynth.models.tokenizers.base import TOKENIZER_JSON, read_folder
from fmrisynth.models.tokenizers.vqgan import VqganTokenizer
from fmrisynth.models.weights import read_state_dict

_MONAI_INFIX = re.compile(r"\.conv\.(weight|bias)$")


def aldm_name(name: str) -> str:
    """ALDM's name of one of our weights.

    Examples
    --------
    >>> aldm_name("encoder.down.0.downsample.conv.conv.weight")
    'encoder.down.0.downsample.conv.weight'
    """
    return _MONAI_INFIX.sub(r".\1", name).replace("quantizer.", "quantize.", 1)


def initialise(tokenizer: VqganTokenizer, path: Path) -> str:
    """Copy weights into a tokenizer.

    Parameters
    ----------
    tokenizer : VqganTokenizer
        Freshly built; changed in place.
    path : Path
        A tokenizer folder, a safetensors file, or a PyTorch file with a state dict.

    Returns
    -------
    str
        What was read, for the provenance.

    Raises
    ------
    FmrisynthError
        Not readable as plain tensors, or the weights are of another network.
    """
    if path.is_dir():
        if not (path / TOKENIZER_JSON).is_file():
            raise FmrisynthError(f"{path}: expected a tokenizer folder, found no {TOKENIZER_JSON} in it.")
        found, kind = read_folder(path)[1], "tokenizer"
    else:
        found = read_state_dict(path)
        # tokenizers of ours keep MONAI's names also in a single file
        kind = "tokenizer" if "quantizer.embedding.weight" in found else "ALDM state dict"
    own = tokenizer.state_dict()
    copied: dict[str, Tensor] = {}
    for name, target in own.items():
        if kind != "tokenizer" and name.startswith("quantizer.ema_"):
            continue
        wanted = name if kind == "tokenizer" else aldm_name(name)
        if wanted not in found:
            raise FmrisynthError(
                f"{path}: expected a weight named {wanted}, found none; choose the model settings that the weights "
                "were made with (vqgan-paper for the first public ALDM configuration)."
            )
        if found[wanted].shape != target.shape:
            raise FmrisynthError(
                f"{path}: weight {wanted} has shape {tuple(found[wanted].shape)}, the model needs {tuple(target.shape)}; "
                "choose the model settings that the weights were made with."
            )
        copied[name] = found[wanted].to(target.dtype)
    if kind != "tokenizer":  # running sums that give back the codebook
        copied["quantizer.ema_w"] = copied["quantizer.embedding.weight"].clone()
        copied["quantizer.ema_cluster_size"] = torch.ones_like(own["quantizer.ema_cluster_size"])
    tokenizer.load_state_dict(copied)
    return kind

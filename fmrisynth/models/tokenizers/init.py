"""Start a VQ-GAN from weights that exist: our own tokenizer folder, or a state dict in the ALDM layout.

The public ALDM checkpoints are PyTorch files. They are read with ``weights_only=True``, so a file with code
in it is refused and nothing of it runs.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fmrisynth.errors import FmrisynthError
from fmrisynth.models.tokenizers.base import TOKENIZER_JSON, read_folder
from fmrisynth.models.tokenizers.vqgan import VqganTokenizer

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
        found = _read_state_dict(path)
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


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FmrisynthError(f"{path}: there is no such file or folder to start the tokenizer from.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise FmrisynthError(
            f"{path}: the file holds more than plain tensors and was not loaded, because it could run code; "
            "save its state_dict as safetensors."
        ) from None
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise FmrisynthError(
            f"{path}: the weights cannot be read ({type(error).__name__}); get the file again."
        ) from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise FmrisynthError(f"{path}: expected a state dict, found {type(content).__name__}.")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}

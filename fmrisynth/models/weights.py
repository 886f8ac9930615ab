"""Weights that others have trained, from their files.

Nothing but tensors is ever read of a file: one with code in it is refused.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fmrisynth.errors import FmrisynthError


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name, of a safetensors file, or of a PyTorch file that is read with ``weights_only=True``.

    Raises
    ------
    FmrisynthError
        There is no such file, it cannot be read, or it holds more than tensors.
    """
    if not path.is_file():
        raise FmrisynthError(f"{path}: there is no such file to read weights from.")
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

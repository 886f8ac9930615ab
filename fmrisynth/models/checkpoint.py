"""The model directory: what a trained denoiser needs to draw samples.

checkpoint.json        architecture, objective, labels, latent shape and statistics, step
ema.safetensors        averaged weights
prior.safetensors      condition prior, if one was trained with
tokenizer/             here, or two folders up in a training output
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fmrisynth.config.train import ModelConfig
from fmrisynth.errors import FmrisynthError
from fmrisynth.models.build import build_denoiser

FORMAT_VERSION = 1
CARD_NAME = "checkpoint.json"
EMA_NAME = "ema.safetensors"
PRIOR_NAME = "prior.safetensors"


@dataclass(frozen=True)
class ModelCard:
    """Content of ``checkpoint.json``.

    Attributes
    ----------
    step : int
        Optimiser steps done.
    model : dict
        Architecture (``HybridConfig`` or ``UNetConfig`` as a mapping).
    objective : dict
        Arguments of ``diffusion.objectives.Objective``.
    labels : dict of str to list of str
        Attribute -> labels in the order of the tables' rows; ``condition`` first. The null row is the last.
    latent_shape : list of int
        C, T, X, Y, Z.
    latent_mean, latent_std : list of float
        Per channel, in the tokenizer's units.
    prior : str
        Kind of the condition prior.
    config_digest, tokenizer_digest : str
        SHA-256 of the training settings and of the tokenizer's description.
    """

    step: int
    model: dict[str, Any]
    objective: dict[str, Any]
    labels: dict[str, list[str]]
    latent_shape: list[int]
    latent_mean: list[float]
    latent_std: list[float]
    prior: str
    config_digest: str = ""
    tokenizer_digest: str = ""
    trained_on: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def build(self) -> nn.Module:
        """The network, freshly initialised."""
        config = TypeAdapter(ModelConfig).validate_python(self.model)
        channels = self.latent_shape[0] * self.latent_shape[1]
        return build_denoiser(config, channels, [len(labels) for labels in self.labels.values()])


@dataclass(frozen=True)
class LoadedDenoiser:
    """A trained denoiser ready for ``diffusion.generate.generate_latents``.

    Attributes
    ----------
    network : nn.Module
        Averaged weights, evaluation mode, gradients off.
    objective, labels, latent_shape, step : see `ModelCard`
    latent_mean_C, latent_std_C : Tensor of shape (C,), float32
    prior_kind : str
    prior_tensors : dict of str to Tensor
        ``mean`` and ``std`` of the condition prior, as far as its kind has them.
    sha256 : str
        Of ``checkpoint.json`` and ``ema.safetensors`` (and the prior), for provenance.
    path : Path
        The model directory.
    tokenizer : Path or None
        The tokenizer directory that belongs to the model.
    """

    network: nn.Module
    objective: dict[str, Any]
    labels: dict[str, tuple[str, ...]]
    latent_shape: tuple[int, int, int, int, int]
    latent_mean_C: Tensor
    latent_std_C: Tensor
    prior_kind: str
    prior_tensors: dict[str, Tensor]
    step: int
    sha256: str
    path: Path
    tokenizer: Path | None
    card: ModelCard

    @property
    def conditions(self) -> tuple[str, ...]:
        """Task conditions the model knows."""
        return self.labels["condition"]


def find_model_dir(path: Path) -> Path:
    """A model directory itself, or the newest checkpoint of a training output."""
    if (path / CARD_NAME).is_file():
        return path
    found = list_checkpoints(path)
    if not found:
        raise FmrisynthError(
            f"{path}: expected a model directory ({CARD_NAME} + {EMA_NAME}) or the output of fmrisynth train, "
            "found neither; pass --checkpoint DIR with one of them."
        )
    return found[-1]


def list_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a training output, oldest first."""
    return sorted(p.parent for p in (run / "checkpoints").glob(f"step-*/{CARD_NAME}"))


def read_card(model_dir: Path) -> ModelCard:
    """Read and check ``checkpoint.json``."""
    path = model_dir / CARD_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("format_version") != FORMAT_VERSION:
            raise FmrisynthError(
                f"{path}: expected format version {FORMAT_VERSION}, found {content.get('format_version')!r}; "
                "use the fmrisynth version that wrote it."
            )
        return ModelCard(**content)
    except OSError as error:
        raise FmrisynthError(f"{path}: cannot be read ({error.strerror}); check the path and permissions.") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise FmrisynthError(
            f"{path}: expected a checkpoint description, found something else ({error}); copy the checkpoint again."
        ) from None


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; half precision is a way to store weights, not to compute, and becomes float32."""
    try:
        half = (torch.float16, torch.bfloat16)
        path.open("rb").close()  # says why a file cannot be read, which safetensors does not
        return {name: t.float() if t.dtype in half else t for name, t in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise FmrisynthError(
            f"{path}: expected a complete safetensors file, found none or a damaged one ({why}); "
            "copy it again or use another checkpoint."
        ) from None


def load_denoiser(path: Path) -> LoadedDenoiser:
    """Load a trained denoiser from a model directory or a training output (its newest checkpoint).

    Raises
    ------
    FmrisynthError
        Missing, damaged or incompatible files.
    """
    folder = find_model_dir(path)
    card = read_card(folder)
    try:
        network = card.build()
    except ValidationError as error:
        raise FmrisynthError(
            f"{folder / CARD_NAME}: the architecture is not one this version knows ({error.errors()[0]['msg']}); "
            "use the fmrisynth version that wrote it."
        ) from None
    weights = load_tensors(folder / EMA_NAME)
    try:
        network.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise FmrisynthError(
            f"{folder / EMA_NAME}: the weights do not fit {CARD_NAME} ({str(error).splitlines()[-1].strip()}); "
            "the two files must come from one checkpoint."
        ) from None
    network.eval().requires_grad_(False)

    prior_tensors, files = {}, [folder / CARD_NAME, folder / EMA_NAME]
    if card.prior != "none":
        prior_tensors = load_tensors(folder / PRIOR_NAME)
        files.append(folder / PRIOR_NAME)
    places: Sequence[Path] = (
        folder / "tokenizer",
        folder.parent / "tokenizer",
        folder.parent.parent / "tokenizer",
    )
    return LoadedDenoiser(
        network=network,
        objective=card.objective,
        labels={name: tuple(labels) for name, labels in card.labels.items()},
        latent_shape=tuple(card.latent_shape),  # type: ignore[arg-type]
        latent_mean_C=torch.tensor(card.latent_mean, dtype=torch.float32),
        latent_std_C=torch.tensor(card.latent_std, dtype=torch.float32),
        prior_kind=card.prior,
        prior_tensors=prior_tensors,
        step=card.step,
        sha256=_digest(files),
        path=folder,
        tokenizer=next((p for p in places if (p / "tokenizer.json").is_file()), None),
        card=card,
    )


def _digest(files: Sequence[Path]) -> str:
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()

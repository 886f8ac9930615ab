"""The model directory: what a trained denoiser needs to draw samples.

checkpoint.json        architecture, objective, labels, latent shape and statistics, step
ema.safetensors        averaged weights, the latent cells that hold brain, and the whitening of latents if there is one
tokenizer/             here, or two folders up in a training output
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from fmrisynth.bids.origin import Origin, parse_origin
from fmrisynth.bids.provenance import sha256_of
from fmrisynth.config.train import EventTelling, ModelConfig, ObjectiveConfig
from fmrisynth.data.attributes import Values, n_labels
from fmrisynth.errors import FmrisynthError, must_exist
from fmrisynth.models.build import build_denoiser
from fmrisynth.models.whitening import Whitening
from fmrisynth.parse import read_json

FORMAT_VERSION = 2
CARD_NAME = "checkpoint.json"
EMA_NAME = "ema.safetensors"
BRAIN = "brain_XYZ"
"""Name among the weights of the latent cells that hold brain, bool (X, Y, Z)."""


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
    labels : Vocabulary
        Attribute -> labels in the order of the tables' rows, or the distribution of a number; ``condition`` first.
    latent_shape : list of int
        C, T, X, Y, Z.
    latent_mean, latent_std : list of float
        Per channel, in the tokenizer's units.
    config_digest, tokenizer_digest : str
        SHA-256 of the training settings and of the tokenizer's description.
    weights_sha256 : str
        Of ``ema.safetensors``; empty in cards of earlier versions, whose weights are then not checked.
    trained_on : dict
        ``origin`` (`fmrisynth.bids.origin.Origin` as JSON), how many subjects and blocks, digest of their index, and the
        timing of each condition's blocks.
    events : dict or None
        `EventTelling` of a model of runs.
    always : list of str
        Attributes that training never withheld.
    """

    step: int
    model: dict[str, Any]
    objective: dict[str, Any]
    labels: dict[str, Values]
    latent_shape: list[int]
    latent_mean: list[float]
    latent_std: list[float]
    config_digest: str = ""
    tokenizer_digest: str = ""
    weights_sha256: str = ""
    trained_on: dict[str, Any] = field(default_factory=dict)
    events: dict[str, Any] | None = None
    always: list[str] = field(default_factory=list)
    format_version: int = FORMAT_VERSION

    @property
    def conditions(self) -> list[str]:
        """Task conditions the model knows."""
        return list(self.labels["condition"])  # type: ignore[arg-type]

    @property
    def origin(self) -> Origin:
        """What samples of the model are: synthetic, and what it was trained on."""
        said = self.trained_on.get("origin")
        if not isinstance(said, dict):
            return Origin("synthetic")
        instances = "Blocks" if self.events is None else "Runs"
        amount = {"Subjects": self.trained_on.get("n_subjects"), instances: self.trained_on.get("n_instances")}
        return parse_origin(said | amount).sampled()

    def build(self, brain_XYZ: Tensor | None = None, whitening: Whitening | None = None) -> nn.Module:
        """The network, freshly initialised."""
        config = TypeAdapter(ModelConfig).validate_python(self.model)
        channels = self.latent_shape[0] * self.latent_shape[1]
        return build_denoiser(config, channels, n_labels(self.labels), brain_XYZ, self.event_telling, whitening)

    @property
    def event_telling(self) -> EventTelling | None:
        """What a model of runs is told of a window; None for models of blocks."""
        return None if self.events is None else EventTelling.model_validate(self.events)


@dataclass(frozen=True)
class LoadedDenoiser:
    """A trained denoiser ready for ``diffusion.generate.generate_latents``.

    Attributes
    ----------
    network : nn.Module
        Averaged weights, evaluation mode, gradients off.
    objective, labels, latent_shape, step : see `ModelCard`
    latent_mean_C, latent_std_C : Tensor of shape (C,), float32
    whitening : Whitening or None
        Of the standardised latents that the network was trained on.
    sha256 : str
        Of ``checkpoint.json`` and ``ema.safetensors``, for provenance.
    path : Path
        The model directory.
    tokenizer : Path or None
        The tokenizer directory that belongs to the model.
    anatomy : Path or None
        Directory of the model that draws how its people look.
    """

    network: nn.Module
    objective: dict[str, Any]
    labels: dict[str, Values]
    latent_shape: tuple[int, int, int, int, int]
    latent_mean_C: Tensor
    latent_std_C: Tensor
    whitening: Whitening | None
    step: int
    sha256: str
    path: Path
    tokenizer: Path | None
    anatomy: Path | None
    card: ModelCard

    @property
    def conditions(self) -> tuple[str, ...]:
        """Task conditions the model knows."""
        return tuple(self.labels["condition"])  # type: ignore[arg-type]

    @property
    def always(self) -> tuple[str, ...]:
        """Attributes that training never withheld."""
        return tuple(self.card.always)

    @property
    def event_telling(self) -> EventTelling | None:
        """What a model of runs is told of a window; None for models of blocks."""
        return self.card.event_telling

    @property
    def forecasts(self) -> bool:
        """Whether it goes from a person's earlier anatomy to a later one."""
        return bool(self.objective.get("prediction") == "bridge")


def find_model_dir(path: Path) -> Path:
    """A model directory itself, or the newest checkpoint of a training output."""
    if (path / CARD_NAME).is_file():
        return path
    found = list_checkpoints(must_exist(path, "a model"))
    if not found:
        raise FmrisynthError(
            f"{path}: expected a model directory ({CARD_NAME} + {EMA_NAME}) or the output of fmrisynth train, "
            "found neither; name one of them."
        )
    return found[-1]


def list_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a training output, oldest first."""
    return sorted(p.parent for p in (run / "checkpoints").glob(f"step-*/{CARD_NAME}"))


def read_card(model_dir: Path) -> ModelCard:
    """Read and check ``checkpoint.json``."""
    path = model_dir / CARD_NAME
    try:
        content = read_json(path)
        if not isinstance(content, dict):
            raise TypeError(f"it holds a {type(content).__name__}")
        if content.get("format_version") != FORMAT_VERSION:
            raise FmrisynthError(
                f"{path}: expected format version {FORMAT_VERSION}, found {content.get('format_version')!r}; "
                "use the fmrisynth version that wrote it."
            )
        card = TypeAdapter(ModelCard).validate_python(content)
        _check_card(card)
        return card
    except OSError as error:
        raise FmrisynthError(f"{path}: cannot be read ({error.strerror}); check the path and permissions.") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise FmrisynthError(
            f"{path}: expected a checkpoint description of this version, found something else ({error}); "
            "copy the checkpoint again, or train again where it is of an earlier version."
        ) from None


def _check_card(card: ModelCard) -> None:
    """Refuse what no training writes, before memory is taken for it."""
    TypeAdapter(ModelConfig).validate_python(card.model)
    ObjectiveConfig.model_validate(card.objective)
    telling = card.event_telling
    channels = card.latent_shape[0] if card.latent_shape else 0
    if len(card.latent_shape) != 5 or not all(1 <= n <= 1024 for n in card.latent_shape):
        raise ValueError(f"latent_shape {card.latent_shape} is not C, T, X, Y, Z")
    if not len(card.latent_mean) == len(card.latent_std) == channels:
        raise ValueError(f"latent_mean and latent_std are not of {channels} channels")
    if not all(map(math.isfinite, [*card.latent_mean, *card.latent_std])) or min(card.latent_std) <= 0:
        raise ValueError("latent_mean and latent_std are not usable")
    if next(iter(card.labels), None) != "condition" or not n_labels(card.labels)[0]:
        raise ValueError("it names no condition")
    if not all(values for values in card.labels.values()) or not set(card.always) <= card.labels.keys():
        raise ValueError("it names attributes without values")
    if telling is not None and (
        telling.window_frames != card.latent_shape[1]
        or list(telling.grid) != list(card.latent_shape[2:])
        or telling.past_channels != (telling.past_frames * channels + 1 if telling.past_frames else 0)
        or (telling.descriptors is not None and len(telling.descriptors) != n_labels(card.labels)[0])
    ):
        raise ValueError("its events do not fit its latents")
    card.origin  # noqa: B018  # refuses what is none


def _check_weights(path: Path, card: ModelCard) -> None:
    """Compare the shapes in the weights' header with those of the card, before memory is taken for either.

    Raises
    ------
    FmrisynthError
        The weights cannot be read, or are of another network.
    """
    try:
        with torch.device("meta"):
            wanted = {name: tuple(tensor.shape) for name, tensor in card.build().state_dict().items()}
    except (ValueError, TypeError, RuntimeError, ArithmeticError, AssertionError) as error:
        raise FmrisynthError(
            f"{path.with_name(CARD_NAME)}: there is no network with this architecture ({error}); use the fmrisynth version "
            "that wrote it."
        ) from None
    found, whitening = stored_shapes(path), Whitening.shapes(tuple(card.latent_shape))
    if not found.keys().isdisjoint(whitening):
        wanted |= whitening
    compare_shapes(path, wanted | {BRAIN: tuple(card.latent_shape[2:])}, found)


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes from the header of a safetensors file."""
    try:
        path.open("rb").close()  # says why a file cannot be read, which safetensors does not
        with safe_open(path, framework="pt") as weights:
            return {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise FmrisynthError(
            f"{path}: expected a complete safetensors file, found none or a damaged one ({why}); copy it again or use "
            "another checkpoint."
        ) from None


def compare_shapes(path: Path, wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse weights of another network.

    Raises
    ------
    FmrisynthError
    """
    odd = next((name for name in sorted({*wanted, *found}) if wanted.get(name) != found.get(name)), None)
    if odd is not None:
        raise FmrisynthError(
            f"{path}: the weights do not fit {CARD_NAME} ({odd}: expected {wanted.get(odd)}, found {found.get(odd)}); take "
            "both files from one checkpoint, or train again where they are of an earlier version."
        )


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
    _check_weights(folder / EMA_NAME, card)
    digests = [sha256_of(folder / name) for name in (CARD_NAME, EMA_NAME)]
    if card.weights_sha256 and digests[1] != card.weights_sha256:
        raise FmrisynthError(
            f"{folder / EMA_NAME}: the weights do not match their digest in {CARD_NAME}; they were altered, copy them again or "
            "use another checkpoint."
        )
    weights = load_tensors(folder / EMA_NAME)
    if not bool(weights[BRAIN].any()):
        raise FmrisynthError(f"{folder / EMA_NAME}: no latent cell holds brain; the file is damaged, copy it again.")
    whitening = Whitening.taken_from(weights)
    network = card.build(weights[BRAIN].bool(), whitening)
    parts = Whitening.shapes(tuple(card.latent_shape))
    network.load_state_dict({name: tensor for name, tensor in weights.items() if name not in parts}, assign=True)
    network.eval().requires_grad_(False)

    places: Sequence[Path] = (
        folder / "tokenizer",
        folder.parent / "tokenizer",
        folder.parent.parent / "tokenizer",
    )
    return LoadedDenoiser(
        network=network,
        objective=card.objective,
        labels=dict(card.labels),
        latent_shape=tuple(card.latent_shape),  # type: ignore[arg-type]
        latent_mean_C=torch.tensor(card.latent_mean, dtype=torch.float32),
        latent_std_C=torch.tensor(card.latent_std, dtype=torch.float32),
        whitening=whitening,
        step=card.step,
        sha256=hashlib.sha256(bytes.fromhex("".join(digests))).hexdigest(),
        path=folder,
        tokenizer=next((p for p in places if (p / "tokenizer.json").is_file()), None),
        anatomy=own if ((own := folder / "anatomy") / CARD_NAME).is_file() else None,
        card=card,
    )

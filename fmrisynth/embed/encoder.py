"""The encoder's directory: ``checkpoint.json`` and ``ema.safetensors``, as a denoiser's (`fmrisynth.models.checkpoint`).

Axis legend: B series, T frames, H W rows and columns of the padded flat map, P valid pixels, M used patches, D width.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from fmrisynth.bids.provenance import sha256_of
from fmrisynth.config.embed import MaeConfig, MapConfig
from fmrisynth.embed.flatmap import flat_map, sheet
from fmrisynth.errors import FmrisynthError, must_exist
from fmrisynth.models.checkpoint import (
    CARD_NAME,
    EMA_NAME,
    compare_shapes,
    list_checkpoints,
    load_tensors,
    stored_shapes,
)
from fmrisynth.models.masked_autoencoder import MaskedAutoencoder
from fmrisynth.parse import read_json

FORMAT_VERSION = 1
KIND = "masked autoencoder of flat maps"


@dataclass(frozen=True)
class EncoderCard:
    """Content of ``checkpoint.json``.

    Attributes
    ----------
    step : int
        Optimiser steps done.
    model, maps : dict
        `MaeConfig` and `MapConfig` as mappings.
    config_digest : str
        SHA-256 of the training settings.
    weights_sha256 : str
        Of ``ema.safetensors``.
    trained_on : dict
        ``origin``, how many subjects and series, and the digest of the flat maps.
    """

    step: int
    model: dict[str, Any]
    maps: dict[str, Any]
    config_digest: str = ""
    weights_sha256: str = ""
    trained_on: dict[str, Any] = field(default_factory=dict)
    kind: str = KIND
    format_version: int = FORMAT_VERSION

    @property
    def settings(self) -> tuple[MaeConfig, MapConfig]:
        """Of the network and of the maps, checked."""
        return MaeConfig.model_validate(self.model), MapConfig.model_validate(self.maps)

    def build(self) -> MaskedAutoencoder:
        """The network, freshly initialised."""
        return build_autoencoder(*self.settings)


def build_autoencoder(model: MaeConfig, maps: MapConfig) -> MaskedAutoencoder:
    """A masked autoencoder for clips of the flat map, padded to whole patches."""
    valid_HW = sheet(flat_map(maps.pixel_mm, maps.surfaces).valid_HW, model.patch[1:])
    # `tensor`, not `from_numpy`: on the meta device nothing is to be looked at.
    return MaskedAutoencoder(model, (maps.n_frames, *valid_HW.shape), torch.tensor(valid_HW))


def read_card(folder: Path) -> EncoderCard:
    """Read and check ``checkpoint.json``."""
    path = folder / CARD_NAME
    try:
        content = read_json(path)
        if not isinstance(content, dict) or content.get("kind") != KIND:
            raise ValueError("it is not of a masked autoencoder of flat maps")
        if content.get("format_version") != FORMAT_VERSION:
            raise ValueError(f"it has format version {content.get('format_version')!r}")
        card = TypeAdapter(EncoderCard).validate_python(content)
        card.settings  # noqa: B018  # refuses what no training writes, before memory is taken for it
        return card
    except OSError as error:
        raise FmrisynthError(f"{path}: cannot be read ({error.strerror}); check the path and permissions.") from None
    except (ValueError, TypeError) as error:
        raise FmrisynthError(
            f"{path}: expected the description of an encoder of flat maps (version {FORMAT_VERSION}), found something else ({error}); "
            "name a folder that `fmrisynth embed` made."
        ) from None


@dataclass(frozen=True)
class Encoder:
    """A trained encoder.

    Attributes
    ----------
    network : MaskedAutoencoder
        Averaged weights, evaluation mode, gradients off.
    maps : MapConfig
        What it wants to see.
    sha256 : str
        Of card and weights.
    """

    network: MaskedAutoencoder
    maps: MapConfig
    card: EncoderCard
    sha256: str

    def tokens(self, clips: Iterator[np.ndarray] | Sequence[np.ndarray], batch_size: int = 16) -> Iterator[Tensor]:
        """Tokens of clips (T, P) one after the other, (1 + M, D) float32: the class token, then the used patches, time slowest."""
        waiting: list[np.ndarray] = []
        for clip in clips:
            waiting.append(clip)
            if len(waiting) == batch_size:
                yield from self._encode(waiting)
                waiting = []
        if waiting:
            yield from self._encode(waiting)

    def places(self, series: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Tokens of whole series (T, P) one after the other, (M', D) float32 for the M' places of the sheet.

        Averaged over time and over the clips that follow each other in a series; what is left at its end makes no clip.
        """
        n_clips: deque[int] = deque()

        def clips() -> Iterator[np.ndarray]:
            for frames_TP in series:
                n_clips.append(len(frames_TP) // self.maps.n_frames)
                whole = frames_TP[: n_clips[-1] * self.maps.n_frames]
                yield from whole.reshape(n_clips[-1], self.maps.n_frames, -1)

        gathered: list[Tensor] = []
        for token_MD in self.tokens(clips()):
            gathered.append(token_MD[1:].unflatten(0, (self.network.patches.grid[0], -1)).mean(0))
            if len(gathered) == n_clips[0]:
                yield torch.stack(gathered).mean(0).numpy()
                n_clips.popleft()
                gathered = []

    @torch.inference_mode()
    def _encode(self, clips: list[np.ndarray]) -> Tensor:
        clips_BTP = torch.from_numpy(np.stack(clips).astype(np.float32)).to(self.network.valid.device)
        return self.network.tokens(to_sheet(clips_BTP, self.network.valid)).float().cpu()


def to_sheet(clips_BTP: Tensor, valid_HW: Tensor) -> Tensor:
    """Clips in the network's form, (B, T, H, W), 0 where there is no cortex."""
    x_BTHW = clips_BTP.new_zeros(*clips_BTP.shape[:2], *valid_HW.shape)
    x_BTHW[:, :, valid_HW] = clips_BTP
    return x_BTHW


def find_encoder(path: Path) -> Path:
    """An encoder's directory: itself, ``best`` or the newest checkpoint of a run, or of the run inside an output of `embed`."""
    must_exist(path, "an encoder")
    for run in (path, path / "encoder"):
        if (run / CARD_NAME).is_file():
            return run
        if (run / "best" / CARD_NAME).is_file():
            return run / "best"
        found = list_checkpoints(run)
        if found:
            return found[-1]
    raise FmrisynthError(
        f"{path}: expected an encoder ({CARD_NAME} + {EMA_NAME}) or the output of `fmrisynth embed`, found neither."
    )


def load_encoder(path: Path, device: torch.device | None = None) -> Encoder:
    """Load an encoder.

    Raises
    ------
    FmrisynthError
        Missing, damaged or incompatible files.
    """
    folder = find_encoder(path)
    card = read_card(folder)
    # Before memory is taken for what a card asks for.
    found = stored_shapes(folder / EMA_NAME)
    try:
        with torch.device("meta"):
            wanted = {name: tuple(tensor.shape) for name, tensor in card.build().state_dict().items()}
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        raise FmrisynthError(
            f"{folder / CARD_NAME}: there is no encoder with these settings ({error}); get it again."
        ) from None
    compare_shapes(folder / EMA_NAME, wanted, found)
    network = card.build()
    digests = [sha256_of(folder / name) for name in (CARD_NAME, EMA_NAME)]
    if digests[1] != card.weights_sha256:
        raise FmrisynthError(
            f"{folder / EMA_NAME}: the weights do not match their digest in {CARD_NAME}; they were altered, copy them again."
        )
    weights = load_tensors(folder / EMA_NAME)
    if not torch.equal(weights["valid"], network.valid):
        raise FmrisynthError(
            f"{folder / CARD_NAME}: the surfaces in {card.settings[1].surfaces} are not those that the encoder was fitted with; "
            "put them back."
        )
    network.load_state_dict(weights)
    network.eval().requires_grad_(False).to(device or torch.device("cpu"))
    return Encoder(network, card.settings[1], card, hashlib.sha256(bytes.fromhex("".join(digests))).hexdigest())


def untrained(like: Encoder, seed: int) -> Encoder:
    """The same network with random weights: what the architecture alone gives."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = like.card.build()
    network.eval().requires_grad_(False).to(like.network.valid.device)
    return Encoder(network, like.maps, like.card, "")

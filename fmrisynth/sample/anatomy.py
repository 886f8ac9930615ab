"""Anatomies for synthetic people: reference volumes and brain masks of a dataset.

A model of percent signal change says how a brain moves and nothing of how it looks. Without a dataset of anatomies all
synthetic people share the mean reference and the mask of the tokenizer; with one, the k-th person has those of its k-th.

Axis legend: X, Y, Z voxel axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmrisynth.data.blocks import Block, read_subject, subjects_of
from fmrisynth.data.nifti import read_image
from fmrisynth.data.percent import usable_voxels
from fmrisynth.errors import FmrisynthError, UsageError
from fmrisynth.models.tokenizers.base import TokenizerInfo
from fmrisynth.progress import log

LEAST_SHARED = 0.5
"""A brain that covers less of the tokenizer's lies elsewhere."""


@dataclass(frozen=True)
class Anatomy:
    """How one synthetic person looks.

    Attributes
    ----------
    reference_XYZ : float32 array
        BOLD-like intensities.
    mask_XYZ : bool array
        Brain, where the tokenizer has brain too.
    source : str, optional
        Dataset and subject; None for the tokenizer's mean.
    """

    reference_XYZ: np.ndarray
    mask_XYZ: np.ndarray
    source: str | None = None

    @property
    def reference_is(self) -> str:
        """What the reference volume is, in words."""
        if self.source is None:
            return "Mean anatomy of the people that the model's tokenizer was fitted on, the same for all samples"
        return f"Temporal mean of a run of {self.source}: the anatomy that this synthetic person was given"

    def sidecar(self) -> dict[str, str]:
        """Where it comes from, for the sidecar of an image."""
        return {} if self.source is None else {"Anatomy": self.source}


class Anatomies:
    """The people of a block or run dataset, in order; the tokenizer's mean anatomy if there is no dataset.

    Parameters
    ----------
    dataset : Path or None
        Block or run dataset on the tokenizer's grid.
    info : TokenizerInfo
        Of the tokenizer that decodes.

    Raises
    ------
    UsageError
        The tokenizer's values hold anatomy themselves.
    FmrisynthError
        The dataset cannot be read, or lies on another grid.
    """

    def __init__(self, dataset: Path | None, info: TokenizerInfo) -> None:
        self.dataset, self.info = dataset, info
        self.subjects = [] if dataset is None else subjects_of(dataset)
        if dataset is None:
            return
        if info.normalisation != "dynamics":
            raise UsageError(
                f"--anatomy {dataset}: the model's tokenizer holds anatomies itself ({info.normalisation} normalisation); leave "
                "--anatomy out, or use a model of percent signal change (dynamics)."
            )
        if not self.subjects:
            raise FmrisynthError(f"{dataset}: expected a dataset with finished participants, found none.")
        grid = self._block(0).load_grid()
        if not grid.same_as(info.grid):
            raise FmrisynthError(
                f"{dataset}: expected anatomies on the model's grid {info.grid.shape} with affine {info.grid.affine_rows}, found "
                f"{grid.shape} with affine {grid.affine_rows}; make the dataset with `fmrisynth prepare` on that grid."
            )

    @property
    def statement(self) -> str:
        """Who looks like whom, for a reader of the dataset."""
        if self.dataset is not None:
            return f"The k-th synthetic person has the reference volume and brain mask of the k-th of {self.dataset.name} (--anatomy)."
        shared = "the mean of the people that the model's tokenizer was fitted on"
        if self.info.normalisation != "dynamics":
            return f"Reference volume and brain mask are {shared}, the same for all; the images hold anatomies of their own."
        return (
            f"All synthetic people share one anatomy, {shared}: they do not differ in brain shape or mean intensity. "
            "`fmrisynth sample --anatomy DATASET` gives each of them the anatomy of a person of a dataset."
        )

    def warn(self, n_people: int) -> None:
        """Say it if people have to share."""
        if self.subjects and n_people > len(self.subjects):
            log.warning(
                "%s: %d anatomies for %d people; some people share one.", self.dataset, len(self.subjects), n_people
            )

    def files(self, index: int) -> list[Path]:
        """What the anatomy of the person with this number is read from."""
        return [] if self.dataset is None else [self._block(index).reference_path, self._block(index).mask_path]

    def load(self, index: int) -> Anatomy:
        """The anatomy of the person with this number, from 0.

        Raises
        ------
        FmrisynthError
            The files cannot be used, or the brain lies elsewhere.
        """
        if self.dataset is None:
            return Anatomy(self.info.reference_XYZ, self.info.mask_XYZ)
        block = self._block(index)
        reference = read_image(block.reference_path, ndim=3).scaled()
        own = read_image(block.mask_path, ndim=3).scaled() > 0.5
        if not reference.shape == own.shape == self.info.mask_XYZ.shape:
            raise FmrisynthError(
                f"{block.reference_path}: expected {self.info.mask_XYZ.shape} voxels, found {reference.shape}; make the dataset again."
            )
        mask_XYZ = usable_voxels(reference, own) & self.info.mask_XYZ
        share = float(mask_XYZ.sum() / self.info.mask_XYZ.sum())
        if share < LEAST_SHARED:
            raise FmrisynthError(
                f"{block.mask_path}: expected a brain where the model has one, found {share:.0%} of the model's voxels in it; is the "
                "dataset registered to the model's space?"
            )
        return Anatomy(
            np.where(mask_XYZ, reference, 0.0).astype(np.float32), mask_XYZ, f"{self.dataset.name}: sub-{block.subject}"
        )

    def _block(self, index: int) -> Block:
        assert self.dataset is not None
        return read_subject(self.dataset, self.subjects[index % len(self.subjects)])[0]

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
from fmrisynth.data.normalisation import brain_of
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

    def sidecar(self) -> dict[str, str]:
        """Where it comes from, for the sidecar of an image."""
        return {} if self.source is None else {"Anatomy": self.source}


def drawn_anatomy(volumes_XYZT: np.ndarray, info: TokenizerInfo) -> Anatomy:
    """The anatomy that a model of anatomies drew: its mean volume where that is bright."""
    reference_XYZ = volumes_XYZT.mean(axis=-1)
    mask_XYZ = brain_of(reference_XYZ / info.reference_XYZ[info.mask_XYZ].mean())
    return Anatomy(np.where(mask_XYZ, reference_XYZ, 0.0), mask_XYZ)


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

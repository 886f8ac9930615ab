"""Normalised frames of a block dataset, block by block.

Axis legend: T frames; X, Y, Z voxel axes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fmrisynth.data.blocks import Block, BlockData
from fmrisynth.data.grid import Grid
from fmrisynth.data.normalisation import Normalisation, normalise
from fmrisynth.errors import FmrisynthError
from fmrisynth.progress import log


class FrameSource(Protocol):
    """Where a tokenizer's fit takes its volumes from."""

    @property
    def grid(self) -> Grid:
        """Grid of all volumes."""

    @property
    def tr_s(self) -> float:
        """Time between frames, seconds."""

    @property
    def n_frames(self) -> int:
        """Frames per block."""

    def __len__(self) -> int: ...

    def data(self, index: int) -> BlockData:
        """Arrays of one block."""

    def anatomy(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(mask_XYZ, reference_XYZ) of each source of blocks (one per subject)."""


RUN_WINDOW = 12
"""Frames of the windows, one behind the other, in which a fit reads whole runs: as many as the reference paper's blocks."""


class BlockSource:
    """The blocks of a dataset, or the windows of its runs, as a `FrameSource`.

    Parameters
    ----------
    blocks : sequence of Block
        At least one; all with the first one's shape, frames (but for runs) and repetition time.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        if not blocks:
            raise FmrisynthError("there are no blocks to fit a tokenizer to; check the splits and conditions.")
        first = blocks[0]
        for block in blocks:
            same_length = (block.is_run and first.is_run) or block.n_frames == first.n_frames
            if not same_length or abs(block.tr_s - first.tr_s) > 1e-6:
                raise FmrisynthError(
                    f"{block.path}: has {block.n_frames} frames of {block.tr_s} s, the dataset's first block has "
                    f"{first.n_frames} of {first.tr_s} s; a tokenizer is fitted to blocks of one kind, prepare them again."
                )
        self.blocks = list(blocks)
        self.grid = first.load_grid()
        self.tr_s = first.tr_s
        self.n_frames = RUN_WINDOW if first.is_run else first.n_frames
        # A block is one piece, a run as many as it has whole windows: (number of the block, first frame).
        self._pieces = [
            (number, start)
            for number, block in enumerate(self.blocks)
            for start in range(0, block.n_frames - self.n_frames + 1, self.n_frames)
        ]
        self._open: tuple[int, BlockData] | None = None  # pieces of one run follow each other
        self.failed: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._pieces)

    def data(self, index: int) -> BlockData:
        """Arrays of one block or window, checked against the dataset's grid and frame count."""
        number, start = self._pieces[index]
        if self._open is None or self._open[0] != number:
            block = self.blocks[number]
            self._open = (number, load_on_grid(block, self.grid, block.n_frames))
        whole = self._open[1]
        bold_XYZT = whole.bold_XYZT[..., start : start + self.n_frames]
        return BlockData(bold_XYZT, whole.reference_XYZ, whole.mask_XYZ)

    def anatomy(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Mask and reference of the first block of each subject; unreadable ones are left out and noted."""
        seen = set()
        for index, (number, _) in enumerate(self._pieces):
            if self.blocks[number].subject in seen:
                continue
            seen.add(self.blocks[number].subject)
            try:
                data = self.data(index)
            except FmrisynthError as error:
                self.note_failure(index, error)
                continue
            yield data.mask_XYZ, data.reference_XYZ

    def note_failure(self, index: int, error: FmrisynthError) -> None:
        """Remember and log that a block could not be used for the fit."""
        subject = self.blocks[self._pieces[index][0]].subject
        if subject not in self.failed:
            log.warning("left out of the tokenizer's fit: %s", error)
        self.failed[subject] = str(error)


def load_on_grid(block: Block, grid: Grid, n_frames: int) -> BlockData:
    """Load a block and insist on a grid shape and a number of frames."""
    data = block.load()
    if data.bold_XYZT.shape != (*grid.shape, n_frames):
        raise FmrisynthError(
            f"{block.path}: expected {n_frames} frames on a {' x '.join(map(str, grid.shape))} grid, found shape "
            f"{data.bold_XYZT.shape}; prepare all subjects with one grid and window."
        )
    if not np.isfinite(data.bold_XYZT).all():
        raise FmrisynthError(f"{block.path}: holds voxels that are not finite; prepare the subject again.")
    return data


def to_frames(data: BlockData, kind: Normalisation) -> Tensor:
    """Normalised volumes of a block, (T, 1, X, Y, Z) float32."""
    values_XYZT = normalise(data.bold_XYZT, data.reference_XYZ, data.mask_XYZ, kind)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(values_XYZT, 3, 0)))[:, None]


def iterate_frames(source: FrameSource, kind: Normalisation, indices: Sequence[int] | None = None) -> Iterator[Tensor]:
    """Normalised volumes of the blocks of a source, in order; unreadable blocks are left out."""
    for index in range(len(source)) if indices is None else indices:
        try:
            data = source.data(index)
        except FmrisynthError as error:
            if not isinstance(source, BlockSource):
                raise
            source.note_failure(index, error)
            continue
        yield to_frames(data, kind)

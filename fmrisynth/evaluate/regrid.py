"""Synthetic blocks brought onto the real grid, when the user asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fmrisynth.bids import naming
from fmrisynth.data.blocks import Block, BlockData, common_grid, write_block
from fmrisynth.data.grid import Grid
from fmrisynth.data.resample import SpatialResampler
from fmrisynth.errors import FmrisynthError


def resample_blocks(blocks: Sequence[Block], grid: Grid, folder: Path) -> list[Block]:
    """Write the blocks on another grid of the same space (trilinear; masks from 0.5) and return the new records.

    Raises
    ------
    FmrisynthError
        The spaces differ, or the grids' axes are not parallel.
    """
    source = common_grid(blocks)
    if source.space != grid.space:
        raise FmrisynthError(
            f"{blocks[0].root}: is in space {source.space}, the real data in {grid.space}; resampling cannot turn one space into "
            "another, sample with a tokenizer of the real space."
        )
    resampler = SpatialResampler(source.shape, source.affine, grid)
    written = []
    for block in blocks:
        data = block.load()
        bold_XYZT = np.stack([resampler(frame) for frame in np.moveaxis(data.bold_XYZT, 3, 0)], axis=-1)
        weight_XYZ = resampler(data.mask_XYZ.astype(np.float32))
        mask_XYZ = weight_XYZ > 0.5
        # Voxels at the rim mix with the zeros outside the mask: divide by how much brain went in.
        inside = np.where(mask_XYZ, weight_XYZ, 1.0)
        reference_XYZ = resampler(data.reference_XYZ) / inside
        found = block.entities
        entities = naming.Entities(
            sub=block.subject, ses=found.get("ses"), task=found.get("task"), acq=found.get("acq"), dir=found.get("dir"),
            run=int(found["run"]) if "run" in found else None, space=grid.space, res=grid.resolution,
        )  # fmt: skip
        copy = write_block(
            folder, entities, found["desc"], BlockData(bold_XYZT / inside[..., None], reference_XYZ, mask_XYZ), grid,
            condition=block.condition, onset_s=block.onset_s, duration_s=block.duration_s, tr_s=block.tr_s,
        )  # fmt: skip
        written.append(replace(copy, split=block.split, attributes=block.attributes, source=block.source))
    return written

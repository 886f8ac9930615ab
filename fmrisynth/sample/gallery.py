"""A picture of synthetic anatomies: three slices of each of the first few.

Axis legend: X, Y, Z voxel axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fmrisynth.bids.atomic import atomic_path
from fmrisynth.data.blocks import Block
from fmrisynth.report.brain import upright
from fmrisynth.report.style import INK, new_figure, styled

GALLERY = Path("figures", "anatomies.png")
SHOWN, DPI = 8, 110


@styled
def write_gallery(blocks: Sequence[Block]) -> None:
    """Write ``figures/anatomies.png`` of the dataset of at most `SHOWN` blocks.

    Drawn are the sagittal, coronal and axial slice through the middle of each brain.
    """
    figure = new_figure(1.5 * len(blocks) + 0.4, 4.9)
    axes = figure.subplots(3, len(blocks), squeeze=False)
    for column, block in enumerate(blocks):
        data, grid = block.load(), block.load_grid()
        volume_XYZ, mask_XYZ = upright(data.reference_XYZ, grid), upright(data.mask_XYZ, grid)
        top = float(np.percentile(volume_XYZ[mask_XYZ], 99.5))
        for normal, axis in enumerate(axes[:, column]):
            middle = int(np.median(np.argwhere(mask_XYZ)[:, normal]))
            axis.imshow(np.take(volume_XYZ, middle, axis=normal).T, origin="lower", cmap="gray", vmin=0, vmax=top)
            axis.set_axis_off()
        known = ", ".join(block.attributes[name] for name in ("sex", "age") if name in block.attributes)
        axes[0, column].set_title(known or block.subject[-4:], fontsize=9, fontweight="normal", loc="center")
    figure.suptitle("Synthetic anatomies", x=0.01, ha="left", fontsize=10.5, fontweight="bold", color=INK)
    with atomic_path(blocks[0].root / GALLERY) as temporary:
        figure.savefig(temporary, dpi=DPI, metadata={"Software": None})

"""A picture of synthetic anatomies: three slices of each of the first few, and how they differ from the first.

Axis legend: X, Y, Z voxel axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fmrisynth.bids.atomic import atomic_path
from fmrisynth.data.blocks import Block, further_attributes
from fmrisynth.data.normalisation import normalise
from fmrisynth.report.brain import upright
from fmrisynth.report.style import INK, new_figure, styled

GALLERY = Path("figures", "anatomies.png")
SHOWN, DPI = 8, 110


@styled
def write_gallery(blocks: Sequence[Block], *, differences: bool = False) -> None:
    """Write ``figures/anatomies.png`` of the dataset of at most `SHOWN` blocks.

    Drawn are the sagittal, coronal and axial slice through the middle of each brain. With `differences` it is the middle of the first, and
    below stand the differences to the first, in units of the brain's mean.
    """
    n_rows = 6 if differences else 3
    figure = new_figure(1.5 * len(blocks) + 0.4, 0.4 + 1.5 * n_rows)
    axes = figure.subplots(n_rows, len(blocks), squeeze=False)
    names = ("sex", "age", *further_attributes(blocks))
    volumes = []
    for block in blocks:
        data, grid = block.load(), block.load_grid()
        values_XYZ = normalise(data.reference_XYZ[..., None], data.reference_XYZ, data.mask_XYZ, "relative")[..., 0]
        volumes.append((upright(values_XYZ, grid), upright(data.mask_XYZ, grid)))
    first_XYZ, first_mask_XYZ = volumes[0]
    changes = [volume_XYZ - first_XYZ for volume_XYZ, _ in volumes]
    limit = (
        max(0.05, float(np.percentile(np.abs(np.stack(changes[1:]))[:, first_mask_XYZ], 99))) if changes[1:] else 1.0
    )
    for column, (block, (volume_XYZ, mask_XYZ)) in enumerate(zip(blocks, volumes, strict=True)):
        top = float(np.percentile(volume_XYZ[mask_XYZ], 99.5))
        for normal in range(3):
            middle = int(np.median(np.argwhere(first_mask_XYZ if differences else mask_XYZ)[:, normal]))
            pictures = [(volume_XYZ, "gray", 0.0, top)] + [(changes[column], "RdBu_r", -limit, limit)] * differences
            for row, (picture_XYZ, colours, low, high) in zip((normal, normal + 3), pictures, strict=False):
                slice_XY = np.take(picture_XYZ, middle, axis=normal)
                axes[row, column].imshow(slice_XY.T, origin="lower", cmap=colours, vmin=low, vmax=high)
        known = ", ".join(block.attributes[name] for name in names if name in block.attributes)
        title = known or ("not asked" if differences else block.subject[-4:])
        axes[0, column].set_title(title, fontsize=9, fontweight="normal", loc="center")
    for axis in axes.flat:
        axis.set_axis_off()
    said = "Synthetic anatomies"
    if differences:
        said += " from the same noise"
        axes[3, 0].set_title(" ", fontsize=9, loc="center")  # keeps the room
        below = f"Differences to the first: red brighter, colours to ±{limit:.2f} of the brain's mean"
        axes[3, 0].text(0, 1.03, below, fontsize=9, transform=axes[3, 0].transAxes, in_layout=False)
    figure.suptitle(said, x=0.01, ha="left", fontsize=10.5, fontweight="bold", color=INK)
    with atomic_path(blocks[0].root / GALLERY) as temporary:
        figure.savefig(temporary, dpi=DPI, metadata={"Software": None})

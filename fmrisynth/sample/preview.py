"""A picture of one sample: three slices over time, in percent signal change."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fmrisynth.bids.atomic import atomic_path
from fmrisynth.data.blocks import BlockData, read_subject
from fmrisynth.data.normalisation import normalise

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_preview(root: Path, subject: str) -> Path:
    """Write ``figures/sub-<label>_preview.png``, the `preview_figure` of a subject's first block."""
    block = read_subject(root, subject)[0]
    figure = preview_figure(block.load(), f"sub-{subject}: {block.condition}", block.tr_s, block.onset_s)
    path = root / "figures" / f"sub-{subject}_preview.png"
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, metadata={"Software": None})
    return path


def preview_figure(data: BlockData, title: str, tr_s: float, onset_s: float) -> Figure:
    """The reference volume, then every other frame.

    Rows are a sagittal, a coronal and an axial slice through the middle of the brain; colours are percent
    signal change against the reference volume.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    change_XYZT = normalise(data.bold_XYZT, data.reference_XYZ, data.mask_XYZ, "dynamics")
    middle = np.argwhere(data.mask_XYZ).mean(axis=0).round().astype(int)
    frames = list(range(0, data.bold_XYZT.shape[3], 2))
    limit = float(np.percentile(np.abs(change_XYZT[data.mask_XYZ]), 99)) or 1.0

    figure = Figure(figsize=(1.5 * (len(frames) + 1) + 0.6, 4.6), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, len(frames) + 1)
    for row, axis in enumerate((0, 1, 2)):
        mask = np.take(data.mask_XYZ, middle[axis], axis=axis)
        anatomy = np.take(data.reference_XYZ, middle[axis], axis=axis)
        axes[row, 0].imshow(anatomy.T, origin="lower", cmap="gray")
        for column, frame in enumerate(frames, start=1):
            values = np.take(change_XYZT[..., frame], middle[axis], axis=axis)
            axes[row, column].imshow(
                np.ma.masked_where(~mask, values).T, origin="lower", cmap="RdBu_r", vmin=-limit, vmax=limit
            )
    for axis in axes.ravel():
        axis.set_axis_off()
    axes[0, 0].set_title("reference", color="white", fontsize=9)
    for column, frame in enumerate(frames, start=1):
        axes[0, column].set_title(f"{frame * tr_s - onset_s:.1f} s", color="white", fontsize=9)
    bar = figure.colorbar(axes[2, -1].images[0], ax=axes, shrink=0.7, pad=0.01)
    bar.set_label("% signal change", color="white")
    bar.ax.tick_params(colors="white")
    figure.suptitle(title, color="white", fontsize=10)
    return figure

"""A picture of one sample: three slices over time, in percent signal change."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fmrisynth.bids.atomic import atomic_path
from fmrisynth.data.blocks import read_subject
from fmrisynth.data.normalisation import normalise


def write_preview(root: Path, subject: str) -> Path:
    """Write ``figures/sub-<label>_preview.png``: reference volume, then every other frame.

    Rows are a sagittal, a coronal and an axial slice through the middle of the brain; colours are percent
    signal change against the reference volume.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    block = read_subject(root, subject)[0]
    data = block.load()
    change_XYZT = normalise(data.bold_XYZT, data.reference_XYZ, data.mask_XYZ, "dynamics")
    middle = np.argwhere(data.mask_XYZ).mean(axis=0).round().astype(int)
    frames = list(range(0, block.n_frames, 2))
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
        axes[0, column].set_title(f"{frame * block.tr_s - block.onset_s:.1f} s", color="white", fontsize=9)
    bar = figure.colorbar(axes[2, -1].images[0], ax=axes, shrink=0.7, pad=0.01)
    bar.set_label("% signal change", color="white")
    bar.ax.tick_params(colors="white")
    figure.suptitle(f"sub-{subject}: {block.condition}", color="white", fontsize=10)
    path = root / "figures" / f"sub-{subject}_preview.png"
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, metadata={"Software": None})
    return path

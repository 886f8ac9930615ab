"""Brain maps: axial mosaics for any grid, glass brains for MNI space.

Axis legend: X, Y, Z voxel axes (x left to right, y back to front, z up, on RAS grids).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fmrisynth.data.grid import Grid
from fmrisynth.report.style import INK, SOFT, new_figure, styled


def slice_indices(mask_XYZ: np.ndarray, n: int) -> list[int]:
    """`n` axial slices that spread over the brain, leaving out its caps."""
    inside = np.flatnonzero(mask_XYZ.any(axis=(0, 1)))
    if inside.size == 0:
        return [0]
    low, high = np.percentile(inside, [12, 88])
    return sorted({round(v) for v in np.linspace(low, high, n)})


def upright(volume_XYZ: np.ndarray, grid: Grid) -> np.ndarray:
    """Flip axes so that x runs left to right, y back to front, z up, whatever the affine's signs."""
    for axis in range(3):
        if grid.affine[axis, axis] < 0:
            volume_XYZ = np.flip(volume_XYZ, axis)
    return volume_XYZ


def display_range(maps: Sequence[np.ndarray], percentile: float = 99.5) -> float:
    """A symmetric colour limit that suits all maps."""
    values = np.concatenate([np.abs(m[np.isfinite(m)]).ravel() for m in maps])
    values = values[values > 0]
    return float(np.percentile(values, percentile)) if values.size else 1.0


@styled
def mosaic(
    rows: Sequence[tuple[str, np.ndarray]],
    background_XYZ: np.ndarray,
    mask_XYZ: np.ndarray,
    grid: Grid,
    *,
    n_slices: int = 8,
    threshold: float = 0.0,
    limits: Sequence[float] | None = None,
    unit: str = "z",
    relative_threshold: bool = False,
):
    """Axial slices of several maps, one row each, over a grey background.

    Parameters
    ----------
    rows : sequence of (title, map_XYZ)
        Signed maps on the grid.
    background_XYZ : array
        Anatomy or mean image, shown in grey.
    mask_XYZ : bool array
        Voxels that are drawn.
    threshold : float
        Values below it in magnitude are transparent.
    relative_threshold : bool
        Whether `threshold` is a share of each row's limit.
    limits : sequence of float, optional
        Colour limit of each row; default one for all.

    Returns
    -------
    matplotlib Figure
    """
    background = upright(np.where(mask_XYZ, background_XYZ, 0.0), grid)
    mask = upright(mask_XYZ, grid)
    where_x = np.flatnonzero(mask.any(axis=(1, 2)))
    where_y = np.flatnonzero(mask.any(axis=(0, 2)))
    box = (
        (slice(where_x[0], where_x[-1] + 1), slice(where_y[0], where_y[-1] + 1)) if where_x.size else (slice(None),) * 2
    )
    slices = slice_indices(mask, n_slices)
    common = display_range([m for _, m in rows])
    limits = list(limits) if limits is not None else [common] * len(rows)
    width = 11.0
    cell = (width - 0.9) / len(slices)
    aspect = (where_y.size * grid.voxel_mm[1]) / max(where_x.size * grid.voxel_mm[0], 1e-6)
    figure = new_figure(width, len(rows) * (cell * aspect + 0.08) + 0.25)
    axes = figure.subplots(len(rows), len(slices), squeeze=False, gridspec_kw={"wspace": 0, "hspace": 0})
    grey = np.percentile(background[mask], 99) if mask.any() else 1.0
    z_of = np.linspace(0, grid.shape[2] - 1, grid.shape[2])
    corner_z = (grid.affine @ np.array([0, 0, 0, 1.0]))[2]
    step_z = grid.affine[2, 2]
    if step_z < 0:
        corner_z, step_z = corner_z + step_z * (grid.shape[2] - 1), -step_z
    for (title, values), limit, line in zip(rows, limits, axes, strict=True):
        image = None
        cut = threshold * limit if relative_threshold else threshold
        shown = upright(np.where(mask_XYZ, values, 0.0), grid)
        for index, axis in zip(slices, line, strict=True):
            inside = mask[(*box, index)]
            grey_slice = np.ma.masked_where(~inside, background[(*box, index)])
            axis.imshow(grey_slice.T, origin="lower", cmap="gray", vmin=0, vmax=grey * 1.15,
                        aspect=grid.voxel_mm[1] / grid.voxel_mm[0])  # fmt: skip
            overlay = np.ma.masked_where(
                (np.abs(shown[(*box, index)]) <= cut) | ~mask[(*box, index)], shown[(*box, index)]
            )
            image = axis.imshow(overlay.T, origin="lower", cmap="RdBu_r", vmin=-limit, vmax=limit, alpha=0.9,
                                aspect=grid.voxel_mm[1] / grid.voxel_mm[0], interpolation="nearest")  # fmt: skip
            axis.set_axis_off()
        line[0].text(
            0.0,
            1.01,
            title,
            transform=line[0].transAxes,
            color=INK,
            fontsize=10,
            fontweight="bold",
            va="bottom",
            in_layout=False,
        )
        bar = figure.colorbar(image, ax=list(line), fraction=0.014, pad=0.006, aspect=14)
        bar.ax.tick_params(labelsize=7.5)
        bar.set_label(unit, fontsize=8)
        bar.outline.set_visible(False)
    for index, axis in zip(slices, axes[-1], strict=True):
        axis.text(0.5, -0.04, f"z = {corner_z + step_z * z_of[index]:.0f} mm", transform=axis.transAxes, ha="center",
                  va="top", fontsize=7.5, color=SOFT)  # fmt: skip
    return figure


def glass_brains(rows: Sequence[tuple[str, np.ndarray]], grid: Grid, *, threshold: float, limit: float | None = None):
    """Maximum-intensity projections in MNI space, one row per map (nilearn's glass brain)."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    import nibabel as nib
    from matplotlib.figure import Figure
    from nilearn.plotting import plot_glass_brain

    common = limit or display_range([m for _, m in rows], 99.9)
    figure = Figure(figsize=(10.5, 2.5 * len(rows)))
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    for row, (title, values) in enumerate(rows):
        height = 1.0 / len(rows)
        axis = figure.add_axes((0, 1 - (row + 1) * height, 1, height * 0.94))
        plot_glass_brain(
            nib.Nifti1Image(values.astype(np.float32), grid.affine), axes=axis, figure=figure, display_mode="lyrz",
            threshold=threshold, vmax=common, plot_abs=False, colorbar=True, cmap="RdBu_r", symmetric_cbar=True,
        )  # fmt: skip
        figure.text(0.005, 1 - row * height - 0.005, title, fontsize=10.5, fontweight="bold", va="top", color=INK)
    return figure

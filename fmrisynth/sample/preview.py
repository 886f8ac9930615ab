"""Pictures of one sample: slices over time beside the course of its strongest region, at rest and moving.

A single voxel of a single block fluctuates about as much as it responds. So the pictures are smoothed, show the change
since the block began, and cut the brain where the window GLM finds the largest effect.

Axis legend: X, Y, Z voxel axes; T frames; V voxels in the mask; P regressors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fmrisynth.bids import naming
from fmrisynth.bids.atomic import atomic_path
from fmrisynth.bids.origin import Origin, read_origin
from fmrisynth.config.glm import GlmConfig
from fmrisynth.data.blocks import Block, BlockData
from fmrisynth.data.grid import Grid
from fmrisynth.data.percent import usable_voxels
from fmrisynth.glm.design import window_design
from fmrisynth.glm.windows import percent_signal, smooth_inside
from fmrisynth.report.brain import display_range, upright
from fmrisynth.report.style import INK, LINE, SOFT, SYNTHETIC, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

SMOOTHING_MM = 8.0
"""Full width at half maximum of the smoothing."""

BASELINE_S = 3.0
"""Frames this soon after the onset are the baseline: no haemodynamic response has risen yet."""

REGION_MM = 9.0
"""Radius of the ball around the peak whose mean course is drawn."""

SHOWN_SHARE = 0.33
"""Changes below this share of the colour limit are transparent."""

FRAMES_PER_S, PICTURE_DPI, MOVING_DPI = 4, 110, 90


@dataclass(frozen=True)
class Scene:
    """What is drawn of a block.

    Attributes
    ----------
    change_XYZT : array
        Smoothed percent signal change against the mean of the baseline frames; 0 where nothing is drawn.
    reference_XYZ : array
        Anatomy.
    mask_XYZ : bool array
        Voxels that are drawn.
    peak : tuple of int
        Voxel of the largest effect of the window GLM on the smoothed block.
    course_T : array of shape (T,)
        Mean change in the ball around `peak`, percent.
    time_T : array of shape (T,)
        Seconds after the onset.
    duration_s : float
        Of the block.
    limit : float
        Colour limit, percent.
    peak_mm : tuple of float
        The peak in the grid's space, mm.
    has_sides : bool
        Whether the first array axis runs from left to right, so that the sides can be marked.
    """

    change_XYZT: np.ndarray
    reference_XYZ: np.ndarray
    mask_XYZ: np.ndarray
    peak: tuple[int, int, int]
    course_T: np.ndarray
    time_T: np.ndarray
    duration_s: float
    limit: float
    peak_mm: tuple[float, float, float]
    has_sides: bool

    def slice_of(self, volume_XYZ: np.ndarray, axis: int) -> np.ndarray:
        """The slice through the peak, as `imshow` takes it."""
        return np.take(volume_XYZ, self.peak[axis], axis=axis).T


def make_scene(data: BlockData, grid: Grid, tr_s: float, onset_s: float, duration_s: float) -> Scene:
    """Find what to draw of a block.

    Parameters
    ----------
    data : BlockData
        The block's arrays.
    grid : Grid
        Where they lie.
    tr_s, onset_s, duration_s : float
        Time between frames, and the block's onset after the first frame and duration, in seconds.
    """
    mask_XYZ = usable_voxels(data.reference_XYZ, data.mask_XYZ)
    smooth_TV = smooth_inside(percent_signal(data, mask_XYZ), mask_XYZ, grid, SMOOTHING_MM)
    n_frames = len(smooth_TV)
    time_T = np.arange(n_frames) * tr_s - onset_s
    before_T = time_T < BASELINE_S
    if not before_T.any():
        before_T[0] = True
    change_TV = smooth_TV - smooth_TV[before_T].mean(axis=0)
    config = GlmConfig()
    design = window_design(onset_s, duration_s, n_frames, tr_s, config.hrf, "none")
    effect_V = design.pinv_PT[0] @ smooth_TV
    voxels_V3 = np.argwhere(mask_XYZ)
    peak = voxels_V3[int(np.argmax(effect_V))]
    near_V = np.linalg.norm((voxels_V3 - peak) * np.array(grid.voxel_mm), axis=1) <= REGION_MM
    change_XYZT = np.zeros((*mask_XYZ.shape, n_frames), np.float32)
    change_XYZT[mask_XYZ] = change_TV.T
    x, y, z = (grid.affine @ [*peak, 1.0])[:3]
    box = tuple(slice(low, high + 1) for low, high in zip(voxels_V3.min(axis=0), voxels_V3.max(axis=0), strict=True))
    at_peak_XYZ = np.zeros(mask_XYZ.shape, bool)
    at_peak_XYZ[tuple(peak)] = True
    change_XYZT, reference_XYZ, mask_XYZ, at_peak_XYZ = (
        upright(volume[box], grid) for volume in (change_XYZT, data.reference_XYZ, mask_XYZ, at_peak_XYZ)
    )
    px, py, pz = (int(index) for index in np.argwhere(at_peak_XYZ)[0])
    return Scene(
        change_XYZT, reference_XYZ, mask_XYZ, (px, py, pz), change_TV[:, near_V].mean(axis=1), time_T, duration_s,
        display_range([change_TV[time_T >= BASELINE_S]], 99.8) if (time_T >= BASELINE_S).any() else 1.0,
        (float(x), float(y), float(z)), abs(grid.affine[0, 0]) > 0.7 * grid.voxel_mm[0],
    )  # fmt: skip


def write_preview(block: Block, desc: str | None = None) -> None:
    """Write the preview and the time-lapse of a block under ``figures/`` of its dataset."""
    title, scene = title_of(f"sub-{block.subject}: {block.condition}", read_origin(block.root)), scene_of(block)
    still, moving = (block.root / path for path in naming.subject_pictures(block.subject, desc))
    with atomic_path(still) as temporary:
        preview_figure(scene, title).savefig(temporary, dpi=PICTURE_DPI, metadata={"Software": None})
    with atomic_path(moving) as temporary:
        write_timelapse(temporary, scene, title)


def title_of(what: str, origin: Origin) -> str:
    """A title that says what the data are, for a picture that leaves its page."""
    kind = (
        "phantom"
        if origin.kind == "phantom"
        else "synthetic, by a model trained on phantom data"
        if origin.is_phantom
        else origin.kind
    )
    return what if kind == "measured" else f"{what} ({kind})"


def scene_of(block: Block) -> Scene:
    """The scene of a block on disk."""
    return make_scene(block.load(), block.load_grid(), block.tr_s, block.onset_s, block.duration_s)


@styled
def preview_figure(scene: Scene, title: str) -> Figure:
    """Six moments of a block in three slices through the peak, and the course of the region around it."""
    frames = np.unique(np.linspace(0, len(scene.time_T) - 1, 6).round().astype(int))
    figure = new_figure(11.0, 6.6)
    grid = figure.add_gridspec(
        4, len(frames) + 1, height_ratios=(1, 1, 1, 0.9), width_ratios=(*[1] * len(frames), 0.09)
    )
    axes = np.array([[figure.add_subplot(grid[row, column]) for column in range(len(frames))] for row in range(3)])
    for column, frame in enumerate(frames):
        images = [_draw_slice(axes[row, column], scene, row, frame) for row in range(3)]
        if column == 0:
            for row in range(3):
                _label_slice(axes[row, 0], scene, row)
        axes[0, column].set_title(f"{scene.time_T[frame]:.1f} s", fontsize=9, fontweight="normal", loc="center", y=1.08)
    _draw_bar(figure, images[-1], figure.add_subplot(grid[:3, -1]))
    _draw_course(figure.add_subplot(grid[3, :-1]), scene)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, fontweight="bold", color=INK)
    return figure


@styled
def write_timelapse(path: Path, scene: Scene, title: str) -> None:
    """Write a block as an animated GIF: three slices through the peak, and the course with a mark at the frame."""
    from matplotlib.animation import PillowWriter

    figure = new_figure(9.0, 2.6)
    axes = figure.subplots(1, 5, width_ratios=(1.1, 0.9, 0.9, 0.06, 1.9))
    images = [_draw_slice(axes[row], scene, row, 0) for row in range(3)]
    for row in range(3):
        _label_slice(axes[row], scene, row)
    _draw_bar(figure, images[-1], axes[3])
    _draw_course(axes[4], scene)
    (mark,) = axes[4].plot([], [], "o", color=SYNTHETIC, ms=7)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold", color=INK)
    clock = axes[0].text(0, -0.06, "", transform=axes[0].transAxes, fontsize=9, color=INK, va="top", in_layout=False)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the frames keep the first one's
    writer = PillowWriter(fps=FRAMES_PER_S)
    with writer.saving(figure, str(path), MOVING_DPI):
        for frame, (time_s, change) in enumerate(zip(scene.time_T, scene.course_T, strict=True)):
            for row, image in enumerate(images):
                image.set_data(_overlay(scene, row, frame))
            mark.set_data([time_s], [change])
            clock.set_text(f"{time_s:.1f} s after the onset")
            writer.grab_frame()


def _draw_slice(axis: Axes, scene: Scene, normal: int, frame: int) -> AxesImage:
    """Draw the slice through the peak that is orthogonal to an array axis; returns the coloured image."""
    grey = np.ma.masked_where(~scene.slice_of(scene.mask_XYZ, normal), scene.slice_of(scene.reference_XYZ, normal))
    top = float(np.percentile(scene.reference_XYZ[scene.mask_XYZ], 99))
    axis.imshow(grey, origin="lower", cmap="gray", vmin=0, vmax=1.15 * top)
    image = axis.imshow(
        _overlay(scene, normal, frame), origin="lower", cmap="RdBu_r", vmin=-scene.limit, vmax=scene.limit, alpha=0.9
    )
    axis.set_axis_off()
    return image


def _label_slice(axis: Axes, scene: Scene, normal: int) -> None:
    """Write where the slice is, and which side is which."""
    axis.text(
        0,
        1,
        f"{'xyz'[normal]} = {scene.peak_mm[normal]:.0f} mm",
        transform=axis.transAxes,
        fontsize=7.5,
        color=SOFT,
        va="bottom",
    )
    for x, side in ((0, "L"), (1, "R")) if normal and scene.has_sides else ():
        axis.text(
            x, 0.02, side, transform=axis.transAxes, fontsize=8, color=INK, ha="right" if x else "left", va="bottom"
        )


def _draw_bar(figure: Figure, image: AxesImage, axis: Axes) -> None:
    bar = figure.colorbar(image, cax=axis)
    bar.set_label("% signal change", fontsize=8)
    bar.ax.tick_params(labelsize=7.5)
    bar.outline.set_visible(False)


def _overlay(scene: Scene, normal: int, frame: int) -> np.ma.MaskedArray:
    values = scene.slice_of(scene.change_XYZT[..., frame], normal)
    return np.ma.masked_where(np.abs(values) <= SHOWN_SHARE * scene.limit, values)


def _draw_course(axis: Axes, scene: Scene) -> None:
    axis.axvspan(0, min(scene.duration_s, scene.time_T[-1]), color=LINE, alpha=0.6, lw=0, zorder=0)
    axis.axhline(0, color=SOFT, lw=0.6)
    axis.plot(scene.time_T, scene.course_T, color=SYNTHETIC, marker="o", ms=3)
    x, y, z = scene.peak_mm
    axis.set_title(f"within {REGION_MM:g} mm of ({x:.0f}, {y:.0f}, {z:.0f}) mm", fontsize=9, fontweight="normal")
    axis.set_xlabel("seconds after the onset (grey: block)", fontsize=8.5)
    axis.set_ylabel("% signal change", fontsize=8.5)
    axis.tick_params(labelsize=8)
    axis.margins(x=0.02)

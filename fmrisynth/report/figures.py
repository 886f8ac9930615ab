"""Figures from plain arrays. Every function returns a matplotlib figure and reads no file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fmrisynth.report.style import BASELINES, INK, REAL, SOFT, SYNTHETIC, new_figure, styled

if TYPE_CHECKING:
    import pandas as pd


@styled
def design_figure(designs: Sequence[tuple[str, pd.DataFrame]]):
    """Design matrices side by side as nilearn draws them, of (title, frames x regressors).

    Columns that vary are centred, as a confound with a large mean would look constant, and all have unit norm.
    """
    from nilearn.plotting import plot_design_matrix

    widths = [max(2.2, 0.8 + 0.2 * frame.shape[1]) for _, frame in designs]
    figure = new_figure(min(max(sum(widths) + 0.6, 4), 13), 4.2)
    axes = figure.subplots(1, len(designs), squeeze=False, width_ratios=widths)[0]
    for axis, (title, frame) in zip(axes, designs, strict=True):
        axis.grid(False)
        centred = frame - frame.mean() * (np.ptp(frame.to_numpy(), axis=0) > 0)
        plot_design_matrix(centred, True, axis)  # by position: nilearn has renamed `ax` to `axes`
        axis.tick_params(axis="x", labelsize=7)
        axis.set_title(title, fontsize=9)
    for axis in axes[1:]:
        axis.set_ylabel("")
    return figure


@styled
def score_figure(rows: Sequence[Mapping[str, object]], title: str, chance: float | None = None):
    """Horizontal dots with intervals: synthetic, ceiling and baselines of one score.

    Each row has ``name``, ``value``, optional ``low`` and ``high``, and ``role`` (synthetic, ceiling, baseline).
    """
    figure = new_figure(5.6, 0.42 * len(rows) + 0.9)
    axis = figure.subplots()
    colours = {"synthetic": SYNTHETIC, "ceiling": REAL, "baseline": BASELINES[0]}
    for y, row in enumerate(reversed(rows)):
        value = row.get("value")
        colour = colours[str(row["role"])]
        if value is None:
            axis.text(0.02, y, "not computed", va="center", fontsize=8, color=SOFT)
            continue
        low, high = row.get("low"), row.get("high")
        if low is not None and high is not None:
            axis.plot([low, high], [y, y], color=colour, lw=3.2, alpha=0.35, solid_capstyle="round")
        axis.plot([value], [y], "o", color=colour, ms=7)
        axis.annotate(
            f"{value:.2f}", (float(str(value)), y), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=8
        )
    if chance is not None:
        axis.axvline(chance, color=SOFT, lw=1, ls=":")
    axis.set_yticks(range(len(rows)), [str(row["name"]) for row in reversed(rows)])
    axis.set_ylim(-0.6, len(rows) - 0.3)
    values = [float(str(row[k])) for row in rows for k in ("value", "low") if row.get(k) is not None]
    axis.set_xlim(min([0.0, *values]) - 0.05, 1.06)
    axis.set_title(title)
    axis.grid(axis="y", visible=False)
    return figure


@styled
def matrix_figure(
    matrices: Sequence[tuple[str, np.ndarray]], row_names: Sequence[str], column_names: Sequence[str], *,
    label: str = "Pearson r", row_label: str = "", column_label: str = "",
):  # fmt: skip
    """Square or rectangular matrices side by side with the numbers written in them."""
    n_rows, n_columns = matrices[0][1].shape
    cell = 0.56 if n_columns <= 8 else 0.4
    figure = new_figure(len(matrices) * (cell * n_columns + 1.1) + 1.3, cell * n_rows + 1.7)
    axes = figure.subplots(1, len(matrices), squeeze=False)[0]
    image = None
    for position, (axis, (title, matrix)) in enumerate(zip(axes, matrices, strict=True)):
        image = axis.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
        for i in range(n_rows):
            for j in range(n_columns):
                value = matrix[i, j]
                text = f"{value + 0.0:.2f}".replace("0.", ".").replace("-.00", ".00") if np.isfinite(value) else "–"
                axis.text(j, i, text, ha="center", va="center", fontsize=7.5,
                          color="white" if np.isfinite(value) and abs(value) > 0.6 else INK)  # fmt: skip
        axis.set_xticks(range(n_columns), column_names, rotation=50, ha="right", fontsize=8)
        axis.set_yticks(range(n_rows), row_names if position == 0 else [""] * n_rows, fontsize=8)
        axis.set_title(title)
        axis.set_xlabel(column_label)
        axis.grid(False)
        axis.spines[:].set_visible(False)
    axes[0].set_ylabel(row_label)
    bar = figure.colorbar(image, ax=list(axes), fraction=0.03, pad=0.02)
    bar.set_label(label)
    bar.outline.set_visible(False)
    return figure


@styled
def scatter_figure(real_KV: np.ndarray, synthetic_KV: np.ndarray, names: Sequence[str], *, unit: str = "z"):
    """Voxelwise density of synthetic against real, one panel per condition."""
    n = len(names)
    columns = min(n, 4)
    rows = -(-n // columns)
    figure = new_figure(2.75 * columns, 2.7 * rows + 0.2)
    axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axis, x, y, name in zip(axes, real_KV, synthetic_KV, names, strict=False):
        limit = max(float(np.nanpercentile(np.abs(np.concatenate([x, y])), 99.9)), 1e-6)
        axis.hexbin(
            x, y, gridsize=48, bins="log", cmap="Blues", extent=(-limit, limit, -limit, limit), mincnt=1, linewidths=0
        )
        axis.plot([-limit, limit], [-limit, limit], color=SOFT, lw=0.8, ls=":")
        r = np.corrcoef(x, y)[0, 1] if np.std(x) > 0 and np.std(y) > 0 else np.nan
        axis.set_title(f"{name}\nr = {r:.2f}", fontsize=9)
        axis.set_aspect("equal")
        axis.set_xlim(-limit, limit)
        axis.set_ylim(-limit, limit)
        axis.tick_params(labelsize=7)
    for axis in axes[n:]:
        axis.set_axis_off()
    figure.supxlabel(f"real ({unit})", fontsize=9)
    figure.supylabel(f"synthetic ({unit})", fontsize=9)
    return figure


@styled
def courses_figure(
    panels: Sequence[Mapping[str, object]], tr_s: float, *, xlabel: str = "time from the window's first frame (s)"
):
    """Mean and SEM over instances of ROI time courses, one panel per ROI.

    Each panel has ``title`` and ``lines``: name -> (mean_T, sem_T, colour role ``real`` or ``synthetic``).
    """
    n = len(panels)
    columns = min(n, 3)
    rows = -(-n // columns)
    figure = new_figure(3.5 * columns, 2.25 * rows + 0.3)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    for axis, panel in zip(axes, panels, strict=False):
        for name, (mean, sem, role) in panel["lines"].items():  # type: ignore[attr-defined]
            colour = REAL if role == "real" else SYNTHETIC
            time = np.arange(len(mean)) * tr_s
            axis.plot(time, mean, color=colour, label=name)
            axis.fill_between(time, mean - sem, mean + sem, color=colour, alpha=0.2, lw=0)
        axis.set_title(str(panel["title"]), fontsize=9)
        axis.axhline(0, color=SOFT, lw=0.6)
    for axis in axes[n:]:
        axis.set_axis_off()
    axes[0].legend(fontsize=8)
    figure.supxlabel(xlabel, fontsize=9)
    figure.supylabel("% signal change", fontsize=9)
    return figure


@styled
def lines_figure(
    x: np.ndarray, lines: Mapping[str, np.ndarray], *, xlabel: str, ylabel: str, title: str, logy: bool = False
):
    """Curves of real, synthetic and baselines; the first two take their own colours."""
    figure = new_figure(5.4, 3.2)
    axis = figure.subplots()
    colours = [REAL, SYNTHETIC, *BASELINES]
    for index, (name, values) in enumerate(lines.items()):
        axis.plot(x, values, color=colours[index % len(colours)], label=name, lw=2.2 if index < 2 else 1.2,
                  ls="-" if index < 2 else "--", marker="o" if index < 2 else None, ms=3.5)  # fmt: skip
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    axis.set_title(title)
    if logy:
        axis.set_yscale("log")
    axis.legend(fontsize=8)
    return figure


@styled
def histogram_figure(
    groups: Mapping[str, np.ndarray], *, xlabel: str, title: str, mark: tuple[str, float] | None = None
):
    """Overlaid density histograms, with an optional marked threshold."""
    figure = new_figure(5.4, 3.2)
    axis = figure.subplots()
    everything = np.concatenate([v for v in groups.values() if len(v)])
    bins = np.linspace(min(0.0, everything.min()), everything.max() * 1.02 + 1e-9, 42)
    for (name, values), colour in zip(groups.items(), [REAL, SYNTHETIC, *BASELINES], strict=False):
        if not len(values):
            continue
        axis.hist(values, bins=bins, density=True, alpha=0.5, color=colour, label=f"{name} (n = {len(values)})")
    if mark is not None:
        axis.axvline(mark[1], color=INK, lw=1.2, ls="--", label=mark[0])
    axis.set_xlabel(xlabel)
    axis.set_ylabel("density")
    axis.set_title(title)
    axis.legend(fontsize=8)
    return figure


@styled
def components_figure(
    panels: Sequence[tuple[str, np.ndarray, Sequence[str]]], variance: Sequence[float], *, max_labels: int = 8
):
    """First two principal components, coloured three ways: (title, scores_N2, label of each point)."""
    import matplotlib as mpl

    figure = new_figure(3.7 * len(panels), 4.3)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, scores, labels) in zip(axes, panels, strict=True):
        names = list(dict.fromkeys(labels))
        palette = mpl.colormaps["tab10" if len(names) <= 10 else "turbo"].resampled(max(len(names), 2))
        for index, name in enumerate(names):
            chosen = np.array([label == name for label in labels])
            axis.scatter(scores[chosen, 0], scores[chosen, 1], s=13, alpha=0.8, lw=0, color=palette(index),
                         label=name if len(names) <= max_labels else None)  # fmt: skip
        axis.set_title(title)
        axis.set_xlabel(f"component 1 ({100 * variance[0]:.0f} % of variance)")
        axis.set_ylabel(f"component 2 ({100 * variance[1]:.0f} %)")
        if len(names) <= max_labels:
            axis.legend(
                fontsize=7, markerscale=1.3, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16)
            )  # off the points
    return figure


@styled
def connectivity_figure(matrices: Sequence[tuple[str, np.ndarray]]):
    """Correlation matrices of many parcels side by side."""
    figure = new_figure(4.2 * len(matrices) + 0.8, 4.0)
    axes = figure.subplots(1, len(matrices), squeeze=False)[0]
    limit = max(float(np.percentile(np.abs(m), 98)) for _, m in matrices) or 1.0
    image = None
    for axis, (title, matrix) in zip(axes, matrices, strict=True):
        image = axis.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axis.set_title(title)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.grid(False)
    bar = figure.colorbar(image, ax=list(axes), fraction=0.03, pad=0.02)
    bar.set_label("correlation")
    bar.outline.set_visible(False)
    return figure

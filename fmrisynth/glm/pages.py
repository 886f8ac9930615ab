"""The HTML pages of a GLM: one per participant, and the group's."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fmrisynth.bids import naming
from fmrisynth.bids.origin import Origin
from fmrisynth.bids.sidecars import write_tsv
from fmrisynth.config.glm import FDR, SMALLEST_CLUSTER, GlmConfig
from fmrisynth.data.blocks import Block
from fmrisynth.data.grid import Grid, make_grid
from fmrisynth.data.nifti import as_nibabel, read_image
from fmrisynth.glm.maps import find_peak, subject_map_path
from fmrisynth.glm.run_model import FittedTask
from fmrisynth.glm.windows import SINGLE_SUBJECT_Z, design_frame
from fmrisynth.progress import count
from fmrisynth.report import Page, Section, Table, Text, write_page
from fmrisynth.report.brain import glass_brains, mosaic
from fmrisynth.report.figures import design_figure
from fmrisynth.report.html import Figure, Links, banner_of
from fmrisynth.report.viewer import write_viewer

if TYPE_CHECKING:
    import pandas as pd

DISPLAY_THRESHOLD = 2.3
GROUP_PAGE, SHOWN_ROWS = "group.html", 12


def _contrast_elements(
    out: Path, base: naming.Entities, rows: Sequence[dict[str, Any]], background, mask_XYZ, grid: Grid
):
    elements: list[Any] = []
    for row in rows:
        z_XYZ = read_image(out / subject_map_path(base, row, "z"), ndim=3).scaled()
        figure = mosaic(
            [(str(row["formula"]), z_XYZ)], background, mask_XYZ, grid, threshold=DISPLAY_THRESHOLD, unit="z"
        )
        elements.append(
            Figure.of(
                figure,
                f"{row['formula']}: z, shown where |z| > {DISPLAY_THRESHOLD} (uncorrected); peak z {row['peak_z']:.1f} at "
                f"({row['peak_x']:.0f}, {row['peak_y']:.0f}, {row['peak_z_mm']:.0f}) mm.",
            )
        )
    return elements


def _table(rows: Sequence[dict[str, Any]], unit: str) -> Table:
    return Table(
        ("contrast", unit, "degrees of freedom", "peak z", "x (mm)", "y (mm)", "z (mm)"),
        [
            (row["formula"], int(row["n_blocks"]), _whole(float(row["dof"])), float(row["peak_z"]), round(float(row["peak_x"])),
             round(float(row["peak_y"])), round(float(row["peak_z_mm"])))
            for row in rows
        ],
    )  # fmt: skip


def _whole(number: float) -> int | float:
    """An integer where it is one, so that tables show it without decimals."""
    return int(number) if number.is_integer() else number


def write_block_page(
    out: Path, base: naming.Entities, blocks: Sequence[Block], rows: Sequence[dict[str, Any]],
    mask_XYZ: np.ndarray, grid: Grid, config: GlmConfig, origin: Origin,
) -> None:  # fmt: skip
    """Write ``sub-<label>.html`` of a block dataset's subject."""
    background = read_image(blocks[0].reference_path, ndim=3).scaled()
    first_of: dict[str, Block] = {}
    for block in blocks:
        first_of.setdefault(block.condition, block)
    figure = design_figure([(name, design_frame(block, config)) for name, block in first_of.items()])
    page = Page(
        title=f"sub-{base.sub}: activation maps of block windows",
        subtitle=f"{count(len(blocks), 'block')}, {count(len(rows), 'contrast')}. Effects are percent signal change "
                 "at the plateau of a long block.",
        facts=(("space", base.space or "scanner"), ("voxels", f"{int(mask_XYZ.sum()):,}"), ("HRF", config.hrf),
               ("drift", config.resolved_drift), ("noise", config.resolved_noise_model)),
        banner=banner_of(origin),
        sections=(
            Section("Contrasts", [_table(rows, "blocks")]),
            Section("Maps", [Text(f"{SINGLE_SUBJECT_Z}."), *_contrast_elements(out, base, rows, background, mask_XYZ, grid)]),
            Section("Design", [
                Text("Boxcar of the block convolved with the haemodynamic response, and a constant; one example per condition."),
                Figure.of(figure, "Design matrices, one example per condition."),
            ]),
        ),
    )  # fmt: skip
    write_page(out / naming.subject_report(base.sub), page)


def write_run_page(
    out: Path, base: naming.Entities, task: str, fitted: FittedTask, rows: Sequence[dict[str, Any]], config: GlmConfig,
    origin: Origin,
) -> None:  # fmt: skip
    """Write ``sub-<label>.html`` of whole runs (of the last task, where a subject has several)."""
    mask_XYZ = fitted.mask_XYZ
    grid = make_grid(mask_XYZ.shape, fitted.affine, base.space or "scanner")
    designs = [(f"run {i + 1}", run.design) for i, run in enumerate(fitted.runs)]
    doubts = [Section("Doubts", [Text(text) for text in fitted.doubts])] if fitted.doubts else []
    page = Page(
        title=f"sub-{base.sub}: task {task}",
        subtitle=f"Whole-run GLM of {count(len(designs), 'run')}, {count(len(rows), 'contrast')}.",
        facts=(("space", base.space or "scanner"), ("voxels", f"{int(mask_XYZ.sum()):,}"), ("HRF", config.hrf),
               ("drift", config.resolved_drift), ("noise", config.resolved_noise_model),
               ("smoothing", f"{config.resolved_smoothing_fwhm_mm:g} mm FWHM")),
        banner=banner_of(origin),
        sections=(
            Section("Contrasts", [_table(rows, "runs")]),
            Section("Maps", _contrast_elements(out, base, rows, fitted.mean_XYZ, mask_XYZ, grid)),
            *doubts,
            Section("Design", [Figure.of(design_figure(designs[:4]), "Design matrices of the runs.")]),
        ),
    )  # fmt: skip
    write_page(out / naming.subject_report(base.sub), page)


FEW = 10
"""With fewer subjects a group map is unstable, and its page says so."""


def write_group_page(
    out: Path, maps: Mapping[str, Path], models: Mapping[str, str], origin: Origin, space: str,
    example: tuple[str, pd.DataFrame],
) -> None:  # fmt: skip
    """Write ``group.html``: thresholded group maps with their clusters, and an interactive viewer beside each map.

    Parameters
    ----------
    out : Path
        The GLM's folder.
    maps : mapping of str to Path
        Contrast -> the group's z map, relative to `out`.
    models : mapping of str to str
        Contrast -> model and number of subjects, in words.
    origin : Origin
        What the data are.
    space : str
        Space label of the maps.
    example : tuple of str and pandas.DataFrame
        What the example of a first-level design matrix is of, and the matrix, frames x regressors.
    """
    elements: list[Any] = [
        Text(
            f"Voxels with a false discovery rate below {FDR:g} (Benjamini and Hochberg 1995, two-sided, over the "
            "mask of each map), in clusters of at "
            f"least {SMALLEST_CLUSTER} voxels. Cluster size is for tidiness, not a test. A map where none survives is shown at "
            f"|z| > {DISPLAY_THRESHOLD:g} instead, uncorrected, to look at and not to report. Coordinates are mm in {space}. "
            "Each viewer is a file of its own, where one moves through the whole map."
        )
    ]
    for name, path in maps.items():
        elements += _thresholded(name, models[name], out / path, space, origin)
    subjects = sorted(path.name for path in out.glob("sub-*.html"))
    page = Page(
        title="Group maps", subtitle=f"{count(len(maps), 'contrast')}, z of the group.", banner=banner_of(origin),
        facts=(("space", space), ("false discovery rate", f"{FDR:g}"), ("smallest cluster", f"{SMALLEST_CLUSTER} voxels")),
        sections=(
            Section("Maps", elements),
            Section("Design", [
                Figure.of(design_figure([("", example[1])]), f"First-level design matrix, one example: {example[0]}. "
                          "Each column but the constant is centred, and all are scaled to unit length.", name="design"),
            ]),
            Section("Other pages", [Links([
                ("index.html", "Overview", "everything in this folder, and the methods in words"),
                *((name, name.removesuffix(".html"), "maps of this subject") for name in subjects),
            ])]),
        ),
    )  # fmt: skip
    write_page(out / GROUP_PAGE, page)


def _thresholded(name: str, model: str, path: Path, space: str, origin: Origin) -> list[Any]:
    from nilearn.glm import threshold_stats_img

    image = read_image(path, ndim=3)
    z_XYZ, grid = image.scaled(), make_grid(image.shape, image.affine, space)
    inside = as_nibabel(z_XYZ != 0, image.affine)
    if not (z_XYZ != 0).any():
        return [Text(f"{name} ({model}): z is not defined.", note=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that nothing survives is said below
        kept, threshold = threshold_stats_img(
            as_nibabel(z_XYZ, image.affine),
            mask_img=inside,
            alpha=FDR,
            height_control="fdr",
            cluster_threshold=SMALLEST_CLUSTER,
        )
    shown_XYZ = np.asarray(kept.get_fdata(), np.float32)
    survives = bool(shown_XYZ.any())
    if not survives:
        shown_XYZ, threshold = z_XYZ, DISPLAY_THRESHOLD
    title = f"{name}: |z| > {threshold:.3g}" + ("" if survives else ", uncorrected")
    if grid.is_native:
        figure = mosaic(
            [(title, shown_XYZ)], np.zeros_like(z_XYZ), z_XYZ != 0, grid, threshold=float(threshold), unit="z"
        )
    else:
        figure = glass_brains([(title, shown_XYZ)], grid, threshold=float(threshold))
    peak, viewer = find_peak(z_XYZ, image.affine), naming.map_viewer(path)
    write_viewer(
        viewer, title, z_XYZ, grid, threshold=float(threshold), peak_mm=(peak.x_mm, peak.y_mm, peak.z_mm), origin=origin,
        back=f"../{GROUP_PAGE}",
    )  # fmt: skip
    link = Links([(f"{viewer.parent.name}/{viewer.name}", "interactive viewer", title)])
    if not survives:
        caption = (
            f"{name} ({model}): no cluster survives the false discovery rate. Shown is |z| > {threshold:g}, uncorrected: not a "
            f"result. Peak {peak}."
        )
        return [Figure.of(figure, caption, name=name), link]
    return [
        Figure.of(figure, f"{name}: {model}. Peak {peak}.", name=name),
        link,
        _clusters(name, kept, threshold, path),
    ]


def _clusters(name: str, kept: Any, threshold: float, path: Path) -> Table:
    """The largest clusters with their sub-peaks; writes the table of all of them beside the map."""
    from nilearn.reporting import get_clusters_table

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that one sign has no cluster is no news
        table = get_clusters_table(kept, float(threshold), SMALLEST_CLUSTER, two_sided=True)
    groups: list[list[Any]] = []  # a cluster, then its sub-peaks, which have letters and no size
    for row in table.itertuples(index=False):
        groups += [[]] if str(row[0]).removesuffix(".0").isdigit() else []
        groups[-1].append(row)
    groups.sort(key=lambda rows: -float(rows[0][5]))
    rows = [
        (f"{number}{chr(96 + part) if part else ''}", *(round(float(mm)) for mm in row[1:4]), float(row[4]),
         "" if part else round(float(row[5])))
        for number, peaks in enumerate(groups, start=1) for part, row in enumerate(peaks)
    ]  # fmt: skip
    whole = naming.map_clusters(path)
    columns = ("cluster", "x_mm", "y_mm", "z_mm", "peak_z", "size_mm3")
    write_tsv(whole, columns, [dict(zip(columns, row, strict=True)) for row in rows])
    more = f"The first {SHOWN_ROWS} of {len(rows)} rows; all" if len(rows) > SHOWN_ROWS else "The same table"
    return Table(
        ("cluster", "x (mm)", "y (mm)", "z (mm)", "peak z", "size (mm³)"),
        rows[:SHOWN_ROWS],
        f"{name}: clusters and their sub-peaks, largest first. {more} in {whole.parent.name}/{whole.name}.",
    )

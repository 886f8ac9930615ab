"""The HTML page of a synthetic dataset: what was asked, what came out, and where it comes from.

The maps are those of the window GLM that `fmrisynth glm` runs, so the page shows what an analysis will find. Samples are
read one at a time; what is held does not grow with their number.

Axis legend: T frames; V voxels in the mask; S samples that are drawn as lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmrisynth.bids import naming
from fmrisynth.config.glm import GlmConfig
from fmrisynth.config.sample import SampleConfig, guidance_in_words
from fmrisynth.data.blocks import Block, common_grid, is_finished
from fmrisynth.data.grid import Grid
from fmrisynth.data.nifti import read_image
from fmrisynth.glm.design import Design
from fmrisynth.glm.maps import find_peak, to_volume
from fmrisynth.glm.windows import block_design, common_mask, read_window
from fmrisynth.progress import count
from fmrisynth.report import Cards, Element, Figure, Page, Section, Table, Text, write_page
from fmrisynth.report.brain import display_range, glass_brains, mosaic
from fmrisynth.report.figures import matrix_figure
from fmrisynth.report.html import Card, banner_of
from fmrisynth.report.style import LINE, SOFT, SYNTHETIC, new_figure, styled
from fmrisynth.sample.drawer import Drawer
from fmrisynth.sample.plan import SampleRequest, block_of
from fmrisynth.sample.preview import SMOOTHING_MM

REPORT_NAME = "report.html"
LINES = 24
"""Samples whose own time courses are drawn, per condition; means are over all."""

STRONGEST = 200
"""Voxels of the mean effect map whose time course is shown."""

SLICES_SHARE, GLASS_SHARE = 0.33, 0.5
"""Slices and glass brains are transparent below this share of the colour limit."""


@dataclass
class ConditionSummary:
    """What the samples of one condition look like, accumulated one sample at a time.

    Attributes
    ----------
    label : str
    blocks : list of Block
        The samples on disk.
    n_asked : int
    design : Design
        The window GLM's design, the same for all samples of a condition.
    course_TV : array of shape (T, V), float64
        Mean percent signal change.
    fluctuation : float
        Mean over samples of the median temporal standard deviation, percent.
    strongest_V : array of int
        Voxels with the largest mean effect.
    lines_ST : array of shape (S, T)
        Their mean time course in single samples.
    """

    label: str
    blocks: list[Block]
    n_asked: int
    design: Design
    course_TV: np.ndarray
    fluctuation: float
    strongest_V: np.ndarray
    lines_ST: np.ndarray

    @property
    def effect_V(self) -> np.ndarray:
        """Mean effect over samples, percent signal change: the fit is linear, so it is the effect of the mean."""
        return self.design.pinv_PT[0] @ self.course_TV


def write_report(out: Path, asked: Sequence[SampleRequest], config: SampleConfig, drawer: Drawer) -> Path:
    """Write ``report.html`` about the samples of a call that are on disk.

    Parameters
    ----------
    out : Path
        The dataset.
    asked : sequence of SampleRequest
        All samples of the call, whoever makes them; those not there yet are counted as missing.
    config : SampleConfig
        The call.
    drawer : Drawer
        Where the samples come from.
    """
    glm, settings, card = GlmConfig(), drawer.settings, drawer.model.card
    there = [request for request in asked if is_finished(out, request.subject)]
    blocks = {request: block_of(out, request) for request in there}
    first = next(iter(blocks.values()))
    grid = common_grid([first])
    people = {block.subject: block for block in blocks.values()}
    looks = [first] if drawer.anatomies.shared else list(people.values())
    mask_XYZ = common_mask(looks, grid, glm.min_reference_fraction)
    summaries = []
    for label in dict.fromkeys(request.condition.label for request in there):
        own = [blocks[request] for request in there if request.condition.label == label]
        n_asked = sum(request.condition.label == label for request in asked)
        summaries.append(_summarise(label, own, n_asked, mask_XYZ, grid, glm))
    background = read_image(first.reference_path, ndim=3).scaled()

    n, total = len(there), len(asked)
    page = Page(
        title="Synthetic task fMRI",
        subtitle=f"{count(n, 'sample')} of {count(len(summaries), 'condition')}, made by a generative model and measured on no one."
        + (f" {total - n} of the {total} samples asked for are not there yet." if n < total else ""),
        facts=(
            ("sampler", f"{settings['Sampler']}, {settings['SamplerSteps']} steps"),
            ("guidance", guidance_in_words(config.guidance)),
            ("seed", str(config.seed)),
            ("space", grid.space),
            ("image", f"{' x '.join(map(str, grid.shape))} voxels of {grid.voxel_mm[0]:g} mm"),
            ("window", f"{first.n_frames} frames of {first.tr_s:g} s"),
        ),
        sections=(
            Section("Overview", _overview(summaries, mask_XYZ, grid, config)),
            Section("Activation maps", _maps(summaries, background, mask_XYZ, grid)),
            Section("Time courses", _courses(summaries)),
            Section("Samples", _samples(out, summaries, config)),
            Section("Settings", _settings_table(config, settings)),
            Section("Provenance", _provenance(drawer)),
        ),
        banner=banner_of(card.origin),
    )
    path = out / REPORT_NAME
    write_page(path, page, timestamp=False)
    return path


def _summarise(
    label: str, blocks: list[Block], n_asked: int, mask_XYZ: np.ndarray, grid: Grid, glm: GlmConfig
) -> ConditionSummary:
    design = block_design(blocks[0], glm)
    course_TV = np.zeros((blocks[0].n_frames, int(mask_XYZ.sum())))
    fluctuation = 0.0
    for block in blocks:
        percent_TV = read_window(block, mask_XYZ, grid, glm).percent_TV
        course_TV += percent_TV / len(blocks)
        fluctuation += float(np.median(percent_TV.std(axis=0, ddof=1))) / len(blocks)
    strongest_V = np.argsort(design.pinv_PT[0] @ course_TV)[-STRONGEST:]
    lines_ST = np.stack(
        [read_window(b, mask_XYZ, grid, glm).percent_TV[:, strongest_V].mean(axis=1) for b in blocks[:LINES]]
    )
    return ConditionSummary(label, blocks, n_asked, design, course_TV, fluctuation, strongest_V, lines_ST)


def _overview(
    summaries: Sequence[ConditionSummary], mask_XYZ: np.ndarray, grid: Grid, config: SampleConfig
) -> list[Element]:
    rows = []
    for s in summaries:
        effect_XYZ = to_volume(s.effect_V, mask_XYZ)
        peak = find_peak(effect_XYZ, grid.affine)
        block = s.blocks[0]
        rows.append(
            (s.label, f"{len(s.blocks)} of {s.n_asked}", f"{block.duration_s:.1f}", f"{peak.z:.2f}",
             round(peak.x_mm), round(peak.y_mm), round(peak.z_mm), f"{s.fluctuation:.2f}")
        )  # fmt: skip
    n = sum(len(s.blocks) for s in summaries)
    per_condition = sorted({len(s.blocks) for s in summaries})
    people = "one subject each" if config.subjects is None else f"by {config.subjects} people"
    each = f"{per_condition[0]}" if len(per_condition) == 1 else f"{per_condition[0]} to {per_condition[-1]}"
    peak_effect = max(float(s.effect_V.max()) for s in summaries)
    elements: list[Element] = [
        Cards(
            [
                Card("samples", str(n), f"{each} per condition, {people}"),
                Card("voxels", f"{int(mask_XYZ.sum()):,}", "in the brain mask"),
                Card("peak effect", f"{peak_effect:.2f} %", "signal change"),
                Card("fluctuation", f"{np.mean([s.fluctuation for s in summaries]):.2f} %", "median temporal SD"),
            ]
        ),
        Table(
            ("Condition", "samples", "block (s)", "peak effect (%)", "x (mm)", "y (mm)", "z (mm)", "temporal SD (%)"),
            rows,
            caption="Effects are those of the window GLM: percent signal change at the plateau of a long block, mean over samples.",
        ),
    ]
    if config.attributes:
        named = ", ".join(f"{name} {value}" for name, value in config.attributes.items())
        elements.append(Text(f"All samples were asked for with {named}.", note=True))
    return elements


def _maps(
    summaries: Sequence[ConditionSummary], background: np.ndarray, mask_XYZ: np.ndarray, grid: Grid
) -> list[Element]:
    volumes = [(s.label, to_volume(s.effect_V, mask_XYZ)) for s in summaries]
    elements: list[Element] = [
        Text(
            "Mean effect of each condition over its samples, from the window GLM that fmrisynth glm fits to real data too. Each "
            "condition has its own colour scale; weak effects are transparent."
        )
    ]
    if not grid.is_native:
        for label, volume in volumes:
            limit = display_range([volume], 99.9)
            figure = glass_brains([(label, volume)], grid, threshold=GLASS_SHARE * limit, limit=limit)
            caption = f"{label}: percent signal change on the glass brain, above half of the colour limit."
            elements.append(Figure.of(figure, caption, name=f"glass-{label}"))
    limits = [display_range([volume]) for _, volume in volumes]
    slices = mosaic(volumes, background, mask_XYZ, grid, threshold=SLICES_SHARE, limits=limits, unit="%",
                    relative_threshold=True)  # fmt: skip
    elements.append(
        Figure.of(
            slices,
            "The same effects on axial slices of the reference volume, above a third of each row's limit.",
            name="slices",
        )
    )
    if len(volumes) > 1:
        names = [s.label for s in summaries]
        figure = matrix_figure([("effect maps", np.corrcoef([s.effect_V for s in summaries]))], names, names)
        elements.append(Figure.of(figure, "Correlation between the conditions' mean effect maps.", vector=True,
                                  name="correlations"))  # fmt: skip
    return elements


@styled
def courses_figure(summaries: Sequence[ConditionSummary]):
    """Time courses of the strongest voxels, one panel per condition: samples, mean, fitted response."""
    n = len(summaries)
    columns = min(n, 3)
    rows = -(-n // columns)
    figure = new_figure(3.6 * max(columns, 2), 2.5 * rows + 0.3)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axis, s in zip(axes, summaries, strict=False):
        block = s.blocks[0]
        time = np.arange(block.n_frames) * block.tr_s
        end = min(block.onset_s + block.duration_s, time[-1])
        axis.axvspan(block.onset_s, end, color=LINE, alpha=0.6, lw=0, zorder=0, label="block")
        axis.axhline(0, color=SOFT, lw=0.6)
        axis.plot(time, s.lines_ST.T, color=SYNTHETIC, lw=0.7, alpha=0.3)
        mean_T = s.course_TV[:, s.strongest_V].mean(axis=1)
        fit_T = s.design.matrix_TP @ (s.design.pinv_PT @ mean_T)
        axis.plot(time, mean_T, color=SYNTHETIC, lw=2.4, label="mean")
        axis.plot(time, fit_T, color="#17202b", lw=1.2, ls="--", label="fitted response")
        axis.set_title(f"{s.label} (n = {len(s.blocks)})", fontsize=9.5)
        axis.margins(x=0.01)
    for axis in axes[n:]:
        axis.set_axis_off()
    axes[0].legend(fontsize=8, loc="best")
    figure.supxlabel("time from the window's first frame (s)", fontsize=9)
    figure.supylabel("% signal change", fontsize=9)
    return figure


def _courses(summaries: Sequence[ConditionSummary]) -> list[Element]:
    drawn = max(len(s.lines_ST) for s in summaries)
    return [
        Text(
            f"Mean over the {STRONGEST} voxels with the largest mean effect of each condition. They were chosen from these "
            "very samples, so the height of the mean is flattered; look at the shape, and at how much the samples differ."
        ),
        Figure.of(
            courses_figure(summaries),
            f"Thin lines are single samples (up to {drawn} per condition), the thick line is the mean over all samples; "
            "grey is the block, dashed the canonical response that the GLM fits to the mean.",
            vector=True,
            name="courses",
        ),
    ]


def _samples(out: Path, summaries: Sequence[ConditionSummary], config: SampleConfig) -> list[Element]:
    elements: list[Element] = []
    for s in summaries:
        subject, desc = s.blocks[0].subject, s.blocks[0].entities["desc"]
        preview, timelapse = (
            out / path for path in naming.subject_pictures(subject, desc if config.subjects else None)
        )
        if preview.is_file() and timelapse.is_file():
            elements.append(Figure.of_file(preview, f"{s.label}: sub-{subject}.", max_px=1000))
            elements.append(Figure.of_file(timelapse, f"{s.label}: the same sample, frame by frame.", max_px=810))
    if elements:
        elements.insert(0, Text(
            f"One sample of each condition: change since the block began, smoothed by {SMOOTHING_MM:g} mm, cut where this sample's "
            "own effect is largest, with the course of that region. The place was chosen from the sample, which flatters it."
        ))  # fmt: skip
    else:
        elements.append(Text("Previews were not asked for.", note=True))
    elements.append(Text("participants.tsv lists every sample with its condition and seed.", note=True))
    return elements


def _settings_table(config: SampleConfig, settings: dict[str, Any]) -> list[Element]:
    rows: list[tuple[str, Any]] = [
        ("seed", config.seed),
        ("samples per condition", config.n if config.subjects is None else config.subjects * config.blocks),
    ]
    rows += [(key, _plain(value)) for key, value in settings.items() if not key.endswith(("SHA256", "Hash"))]
    return [
        Text(
            "These settings, the seed and a sample's number determine its voxels; batch size, shards, number of processes and "
            "interruptions do not."
        ),
        Table(("Setting", ""), [(name, str(value)) for name, value in rows]),
    ]


def _provenance(drawer: Drawer) -> list[Element]:
    card, info, settings = drawer.model.card, drawer.tokenizer.info, drawer.settings
    trained_on = card.trained_on
    rows: list[tuple[str, str]] = [
        ("model", f"{drawer.network}, {drawer.model.step:,} training steps"),
        ("objective", str(card.objective.get("prediction"))),
    ]
    if "n_instances" in trained_on:
        rows.append(
            ("trained on", f"{trained_on['n_instances']:,} blocks of {trained_on.get('n_subjects', '?')} subjects")
        )
    rows += [
        ("model SHA-256", settings["CheckpointSHA256"]),
        ("tokenizer", f"{info.kind}, {info.normalisation} normalisation, {info.latent_channels} latent channels"),
        ("tokenizer SHA-256", settings["TokenizerSHA256"]),
        ("settings SHA-256", settings["ConfigHash"]),
    ]
    return [Table(("What", ""), rows, caption="Every image's sidecar carries the same digests and its own seed.")]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}: {v}" for k, v in value.items()) or "none"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return " to ".join(str(v) for v in value)
    return str(value)

"""The tokenizer report: `metrics.json`, `report.html` and tables in words, from a `HeldOut`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fmrisynth.bids.atomic import write_json
from fmrisynth.bids.origin import Origin, read_origin
from fmrisynth.config.tokenize import TokenizeConfig
from fmrisynth.data.blocks import Block, BlockData, read_subject
from fmrisynth.errors import FmrisynthError
from fmrisynth.models.tokenizers import Tokenizer
from fmrisynth.tokenize.heldout import ACTIVE_SHARE, HeldOut, measure_held_out
from fmrisynth.tokenize.source import load_on_grid

METRICS_JSON = "tokenizer_metrics.json"
REPORT_HTML = "tokenizer_report.html"


def held_out_subjects(prepared: Path, subjects: Sequence[str], split: str) -> list[str]:
    """Subjects of a split; those whose index cannot be read are left to the encoding to complain about."""
    chosen = []
    for subject in subjects:
        try:
            if any(block.split == split for block in read_subject(prepared, subject)):
                chosen.append(subject)
        except FmrisynthError:
            continue
    return chosen


def iterate_data(
    prepared: Path, subjects: Sequence[str], tokenizer: Tokenizer
) -> Iterator[tuple[str, Iterator[tuple[Block, BlockData]]]]:
    """(subject, blocks with arrays) one by one, on the tokenizer's grid."""
    info = tokenizer.info

    def blocks(subject: str) -> Iterator[tuple[Block, BlockData]]:
        for block in read_subject(prepared, subject):
            yield block, load_on_grid(block, info.grid, block.n_frames)

    for subject in subjects:
        yield subject, blocks(subject)


def make_report(
    prepared: Path, out: Path, subjects: Sequence[str], tokenizer: Tokenizer, config: TokenizeConfig
) -> list[str]:
    """Measure on the held-out ones of some subjects, write both files, and return the main lines."""
    subjects = held_out_subjects(prepared, subjects, config.report_split)
    found = measure_held_out(iterate_data(prepared, subjects, tokenizer), tokenizer, batch_size=config.batch_size)
    lines = summary_lines(found)
    if tokenizer.info.provenance.get("split", "train") == "all":
        lines.append("The tokenizer was fitted to all blocks of its dataset, so these subjects may not be unseen.")
    write_report(out / REPORT_HTML, found, tokenizer, lines, read_origin(prepared))
    identity = {"sha256": tokenizer.info.sha256, "split": config.report_split, "subjects": list(subjects)}
    write_json(out / METRICS_JSON, {"identity": identity, "lines": lines, "metrics": as_json(found)})
    return lines


def summary_lines(found: HeldOut) -> list[str]:
    """The result in a few sentences."""
    low = int(np.argmin(found.map_r_K))
    limit = ""
    if found.split_half_K is not None:
        limit = f"; the originals' own split-half r is {found.split_half_K.mean():.3f}"
    lines = [
        f"GLM ceiling on {found.n_subjects} held-out subjects: group map r {found.map_r_K.mean():.3f} (lowest "
        f"{found.map_r_K[low]:.3f}, {found.conditions[low]}){limit}."
    ]
    if found.rsa is not None and found.top1 is not None:
        lines.append(f"RSA {found.rsa:.3f}, Top-1 {found.top1:.2f}.")
    lines.append(
        f"Volumes: PSNR {found.psnr_db:.1f} dB, SSIM {found.ssim:.3f}; {100 * found.kept_variance:.0f} % of the frames' "
        "variance kept, thermal noise included."
    )
    if found.perplexity is not None and found.codes_used is not None:
        lines.append(
            f"Codebook: perplexity {found.perplexity:.0f}, {100 * found.codes_used:.1f} % of the codes in use."
        )
    for subject, reason in found.failed.items():
        lines.append(f"Left out of the report: sub-{subject} ({reason})")
    return lines


def as_json(found: HeldOut) -> dict[str, Any]:
    """All numbers, plain; what does not exist is null."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return [plain(v) for v in value.tolist()]
        if isinstance(value, float) and not np.isfinite(value):
            return None
        return value

    names = (
        "conditions", "map_r_K", "z_map_r_K", "contrast_r_K", "rsa", "top1", "split_half_K", "split_half_reconstructed_K",
        "subject_r", "psnr_db", "ssim", "course_r_K", "voxel_r", "kept_variance", "frequency_cmm", "kept_frames",
        "kept_effects", "perplexity", "codes_used", "n_subjects", "n_blocks", "failed",
    )  # fmt: skip
    return {name: plain(getattr(found, name)) for name in names}


def write_report(path: Path, found: HeldOut, tokenizer: Tokenizer, lines: Sequence[str], origin: Origin) -> None:
    """Write the HTML page, and its figures as PDF beside it."""
    from fmrisynth.report.brain import mosaic
    from fmrisynth.report.figures import courses_figure, lines_figure
    from fmrisynth.report.html import Card, Cards, Figure, Page, Section, Table, Text, banner_of, write_page

    info = tokenizer.info
    cards = [
        Card("GLM ceiling", f"{found.map_r_K.mean():.3f}", "mean r of group effect maps"),
        Card("RSA", _number(found.rsa), "reconstructions against originals"),
        Card("Top-1", _number(found.top1, 2), "conditions recognised"),
        Card(
            "Split-half", _number(None if found.split_half_K is None else found.split_half_K.mean()), "of the originals"
        ),
    ]
    rows = [
        [
            condition, _at(found.map_r_K, k), _at(found.z_map_r_K, k), _at(found.contrast_r_K, k),
            _at(found.split_half_K, k), _at(found.split_half_reconstructed_K, k), _at(found.course_r_K, k),
        ]
        for k, condition in enumerate(found.conditions)
    ]  # fmt: skip
    columns = ("condition", "map r", "z map r", "less mean map", "split-half", "split-half, rebuilt", "course r")
    maps = []
    for k, condition in enumerate(found.conditions):
        for title, values_V in (("original", found.original_KV[k]), ("rebuilt", found.reconstructed_KV[k])):
            volume = np.zeros(info.grid.shape, np.float32)
            volume[found.mask_XYZ] = values_V
            maps.append((f"{condition}, {title}", volume))
    panels = [
        {"title": condition, "lines": {"original": (truth, np.zeros_like(truth), "real"),
                                       "rebuilt": (back, np.zeros_like(back), "synthetic")}}
        for condition, (truth, back) in found.courses.items()
    ]  # fmt: skip
    volume_rows = [
        ["PSNR", f"{found.psnr_db:.1f} dB"], ["SSIM", f"{found.ssim:.3f}"],
        ["variance of frames kept", f"{100 * found.kept_variance:.1f} %"],
        ["r of voxel time courses, active voxels", f"{found.voxel_r:.3f}"],
        ["r of single-subject maps", f"{found.subject_r:.3f}"],
        ["codebook perplexity", _number(found.perplexity, 0)],
        ["codes in use", "–" if found.codes_used is None else f"{100 * found.codes_used:.1f} %"],
    ]  # fmt: skip
    sections = [
        Section("Result", [Cards(cards), Text(" ".join(lines))]),
        Section("Task signal", [
            Table(columns, rows, "Reconstructions against originals, same window GLM. Noise that the tokenizer leaves out lowers "
                  "r as much as signal would: two noisy maps of split-half r can agree with a noise-free one to about its root."),
            Figure.of(mosaic(maps, info.reference_XYZ, found.mask_XYZ, info.grid, unit="% signal", threshold=0.0),
                      "Group effects from originals and from reconstructions.", name="maps"),
            Figure.of(courses_figure(panels, info.tr_s), f"Mean time course of the {100 * ACTIVE_SHARE:.0f} % most active voxels.",
                      vector=True, name="courses"),
        ]),
        Section("Volumes", [
            Table(("measure", "value"), volume_rows),
            Figure.of(
                lines_figure(found.frequency_cmm, {"group effects": found.kept_effects, "single frames": found.kept_frames},
                             xlabel="spatial frequency (cycles / mm)", ylabel="share of power kept", title="What is kept"),
                "1 - power of the difference / power of the original; below 0 the reconstruction adds more than it keeps.",
                vector=True, name="kept-power"),
        ]),
    ]  # fmt: skip
    facts = [
        ("kind", info.kind), ("normalisation", info.normalisation), ("held-out subjects", str(found.n_subjects)),
        ("blocks", str(found.n_blocks)), ("latents", " x ".join(map(str, info.latent_shape))), ("sha256", info.sha256[:12]),
    ]  # fmt: skip
    page = Page("Tokenizer report", "What is lost between volumes and latents", sections, facts, banner_of(origin))
    write_page(path, page)


def _at(values: np.ndarray | None, index: int) -> float | None:
    return None if values is None or not np.isfinite(values[index]) else float(values[index])


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"

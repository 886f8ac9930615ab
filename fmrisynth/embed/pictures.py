"""Pictures of flat maps: mean maps with borders, a run as a video, what the autoencoder saw and told, its curve of learning.

Axis legend: H W rows and columns of the flat map; P valid pixels; T frames.
"""

from __future__ import annotations

from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmrisynth.bids.atomic import atomic_path
from fmrisynth.embed.encoder import Encoder, to_sheet
from fmrisynth.embed.flatmap import FlatMap, flat_map
from fmrisynth.embed.maps import FlatMaps
from fmrisynth.embed.surface import MESH, SIDES, load_surface
from fmrisynth.report.style import INK, REAL, SYNTHETIC, new_figure, styled
from fmrisynth.train.batches import derive_seed
from fmrisynth.train.runlog import LOG_NAME, read_log

PLACES = {
    "hand": (38, -24, 58),
    "face": (54, -6, 30),
    "calcarine": (9, -82, 4),
    "auditory": (50, -22, 8),
    "frontal pole": (24, 60, 6),
}
"""Landmarks in MNI space, mm; x is the distance from the midline."""

MAX_SERIES = 200
"""So many series of each condition are averaged for the picture."""

GIF_SCALE, GIF_FRAME_S, MAX_VIDEO_FRAMES = 4, 0.25, 60


def nearest_vertex(place_mm: tuple[float, float, float]) -> int:
    """The vertex of the cortex (midway between pial and white surface) that is nearest to a place in MNI space."""
    middle_V3 = (load_surface("pial").coordinates_V3 + load_surface("white").coordinates_V3) / 2
    flat = np.unique(load_surface("flat").faces_F3)
    return int(flat[np.square(middle_V3[flat] - place_mm).sum(axis=1).argmin()])


@lru_cache(maxsize=2)
def sulci(pixel_mm: float) -> np.ndarray:
    """Sulcal depth on the flat map, (H, W), NaN where there is no cortex; 0 is the border between gyrus and sulcus."""
    from nilearn.datasets import fetch_surf_fsaverage
    from nilearn.surface import load_surf_data

    files = fetch_surf_fsaverage(MESH)
    depth_V = np.concatenate([np.asarray(load_surf_data(files[f"sulc_{side}"]), np.float32) for side in SIDES])
    picture = flat_map(pixel_mm)
    return picture.spread((picture.matrix @ depth_V)[:, None], fill=np.nan)[0]


@styled
def map_figure(rows: list[tuple[str, np.ndarray]], picture: FlatMap, *, limit: float, label: str):
    """Maps (P,) in two columns; on fsaverage5 with the borders of gyri and sulci, and landmarks that are named in the first."""
    height, width = picture.shape
    n_columns = min(2, len(rows))
    n_lines = -(-len(rows) // n_columns)
    figure = new_figure(0.9 + 4.6 * n_columns, n_lines * (4.6 * height / width + 0.3))
    axes = figure.subplots(n_lines, n_columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    image = None
    for i, (axis, (title, map_P)) in enumerate(zip(axes, rows, strict=False)):
        shown = picture.spread(map_P[:, None].astype(np.float32), fill=np.nan)[0]
        image = axis.imshow(shown, cmap="RdBu_r", vmin=-limit, vmax=limit)
        if picture.surfaces is None:
            axis.contour(sulci(picture.pixel_mm), levels=[0], colors=[INK], linewidths=0.4, alpha=0.6)
        axis.contour(picture.valid_HW.astype(float), levels=[0.5], colors=[INK], linewidths=0.9)
        if i == 0 and picture.surfaces is None:
            for name, (x, y, z) in PLACES.items():
                for side in (-1, 1):
                    row, column = picture.place_of(nearest_vertex((side * x, y, z)))
                    axis.plot(column, row, "o", ms=3.5, color="black", mec="white", mew=0.6)
                    axis.annotate(name, (column, row), xytext=(4, 3), textcoords="offset points", fontsize=6.5)
        axis.set_title(title, fontsize=9)
    if image is not None:
        figure.colorbar(image, ax=list(axes), label=label, shrink=0.6, pad=0.01)
    return figure


def reconstruction(maps: FlatMaps, encoder: Encoder, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One frame of a clip: as it is, as the encoder sees it (NaN where hidden) and as the decoder tells it, each (H, W)."""
    network = deepcopy(encoder.network).cpu()
    x_BTHW = to_sheet(torch.from_numpy(maps.read(i))[None], network.valid)
    seen_BK = network.draw_seen(torch.Generator().manual_seed(derive_seed("picture", i)))[None]
    with torch.inference_mode():
        answer_BMQ = network(x_BTHW, seen_BK)
    patches = network.patches
    every, n_frames = network.config.predict_every, patches.patch[0]
    told_BNP = patches.cut(x_BTHW).unflatten(-1, (n_frames, -1))
    told_BNP[:, network.used_M, ::every] = answer_BMQ.unflatten(-1, (-1, told_BNP.shape[-1]))
    hidden = torch.ones(patches.cut(x_BTHW).shape[1], dtype=torch.bool)
    hidden[seen_BK[0]] = False
    told = patches.join(told_BNP.flatten(-2))
    covered = patches.join(hidden[None, :, None].expand(1, -1, told_BNP[0, 0].numel()).float())
    t = n_frames * (x_BTHW.shape[1] // n_frames // 2)  # the first frame of a patch in the middle: always predicted
    valid = network.valid.numpy()
    original, seen, guess = (np.where(valid, a[0, t].numpy(), np.nan) for a in (x_BTHW, x_BTHW, told))
    return original, np.where(covered[0, t].numpy() > 0, np.nan, seen), guess


@styled
def reconstruction_figure(maps: FlatMaps, encoder: Encoder, i: int):
    """A frame, its seen patches and its reconstruction."""
    panels = reconstruction(maps, encoder, i)
    height, width = panels[0].shape
    figure = new_figure(6.6, 3 * (5.6 * height / width + 0.3))
    row = maps.rows[i]
    original = f"sub-{row.subject}, {row.condition}, {row.split or 'no'} split"
    titles = (original, f"what the encoder sees ({1 - encoder.network.config.mask_ratio:.0%})", "reconstruction")
    for axis, title, panel in zip(figure.subplots(3, 1), titles, panels, strict=True):
        image = axis.imshow(panel, cmap="RdBu_r", vmin=-2.5, vmax=2.5)
        axis.contour(encoder.network.valid.cpu().numpy().astype(float), levels=[0.5], colors=[INK], linewidths=0.8)
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()
    figure.colorbar(image, ax=figure.axes, label="standard deviations of the frame", shrink=0.4, pad=0.01)
    return figure


@styled
def curve_figure(records: list[dict[str, Any]]):
    """Masked loss against steps, of training and of held-out people."""
    figure = new_figure(5.6, 3.0)
    axis = figure.subplots()
    for kind, key, name, colour in (
        ("train", "loss_mean", "training", SYNTHETIC),
        ("val", "loss", "held-out subjects", REAL),
    ):
        told = [(r["step"], r[key]) for r in records if r["kind"] == kind]
        if told:
            axis.plot(*zip(*told, strict=True), color=colour, label=name)
    axis.axhline(1, ls=":", color=INK, lw=1)
    axis.set_xlabel("optimiser steps")
    axis.set_ylabel("masked loss (1: frame mean)")
    axis.legend()
    return figure


def write_video(frames_TP: np.ndarray, picture: FlatMap, path: Path, limit: float = 2.5) -> None:
    """A series as a GIF, red above and blue below the frame's mean."""
    from matplotlib import colormaps
    from PIL import Image

    frames_THW = picture.spread(frames_TP.T.astype(np.float32), fill=np.nan)
    colours = colormaps["RdBu_r"]((frames_THW / limit + 1) / 2)[..., :3]
    colours[np.isnan(frames_THW)] = 1
    scale = max(1, round(GIF_SCALE * picture.pixel_mm / 4.8))
    shown = (255 * colours).round().astype(np.uint8).repeat(scale, axis=1).repeat(scale, axis=2)
    images = [Image.fromarray(frame).quantize(64) for frame in shown]
    with atomic_path(path) as temporary:
        images[0].save(
            temporary, format="GIF", save_all=True, append_images=images[1:], duration=int(1000 * GIF_FRAME_S), loop=0
        )


def mean_maps(maps: FlatMaps) -> dict[str, np.ndarray]:
    """Mean over series and the later half of the frames of each condition, (P,), less the mean over conditions."""
    found = {}
    for condition in sorted({row.condition for row in maps.rows}):
        chosen = [i for i, row in enumerate(maps.rows) if row.condition == condition][:MAX_SERIES]
        later = maps.config.n_frames // 2
        found[condition] = np.mean([maps.read(i)[later:].mean(axis=0) for i in chosen], axis=0)
    overall = np.mean(list(found.values()), axis=0) if len(found) > 1 else 0.0
    return {condition: map_P - overall for condition, map_P in found.items()}


def draw_pictures(maps: FlatMaps, encoder: Encoder, folder: Path, run: Path) -> list[str]:
    """Draw all of them into a folder; returns a line about it."""
    found = mean_maps(maps)
    limit = max(float(np.quantile(np.abs(list(found.values())), 0.995)), 1e-6)
    held_out = next((i for i, row in enumerate(maps.rows) if row.split in ("val", "test")), 0)
    records = read_log(run / LOG_NAME)
    _save(reconstruction_figure(maps, encoder, held_out), folder / "reconstruction.png")
    if records:
        _save(curve_figure(records), folder / "loss.png")
    write_video(maps.read(held_out, None)[:MAX_VIDEO_FRAMES], maps.picture, folder / "series.gif")
    figure = map_figure(
        list(found.items()),
        maps.picture,
        limit=limit,
        label="difference from the mean of conditions (standard deviations)",
    )
    _save(figure, folder / "flatmap.png")
    return [f"Pictures: {folder}"]


def _save(figure: Any, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})

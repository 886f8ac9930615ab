"""Series of volumes as frames of the flat map, and the folder they are kept in.

One safetensors shard per subject with one tensor, ``frames``, float16 of shape (T, P), the frames of all series one after the other; one
TSV index beside it, written last.

Axis legend: X, Y, Z voxel axes; V vertices; P valid pixels of the flat map; T frames; N series.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_arrays

from fmrisynth.bids import naming
from fmrisynth.bids.atomic import write_bytes
from fmrisynth.bids.sidecars import read_tsv, write_tsv
from fmrisynth.config.embed import MapConfig
from fmrisynth.data.blocks import ATTRIBUTES, Block, BlockData
from fmrisynth.data.grid import Grid
from fmrisynth.data.resample import temporal_matrix
from fmrisynth.embed.flatmap import FlatMap, flat_map
from fmrisynth.embed.surface import LEAST_COVERAGE, sampling_matrix
from fmrisynth.errors import FmrisynthError
from fmrisynth.stage import content_digest

TENSOR = "frames"
COLUMNS = ("first", "n_frames", "condition", "split", *ATTRIBUTES, "filename", "source")
LEAST_SIGNAL = 0.05
"""Vertices whose reference is below this share of its median over the cortex count as outside the brain."""


@dataclass(frozen=True)
class Series:
    """One series before it is drawn.

    Attributes
    ----------
    filename : str
        Relative to the dataset.
    condition : str
        ``run`` for a whole run.
    split : str or None
    source : str or None
        The run that it was cut from.
    attributes : mapping
        Phase encoding, sex, age where known.
    files : tuple of Path
        It is made from.
    frames : callable
        Draws it on the flat map, (T, P).
    """

    filename: str
    condition: str
    split: str | None
    source: str | None
    files: tuple[Path, ...]
    frames: Callable[[MapConfig], np.ndarray]
    attributes: Mapping[str, str] = field(default_factory=dict)


def map_block(block: Block, config: MapConfig) -> np.ndarray:
    """A block's series on the flat map; see `map_series`."""
    data, grid = block.load(), block.load_grid()
    try:
        return map_series(data, grid, block.tr_s, config)
    except FmrisynthError as error:
        raise FmrisynthError(f"{block.path}: {error}") from None


def map_series(data: BlockData, grid: Grid, tr_s: float, config: MapConfig) -> np.ndarray:
    """Normalise a series vertex by vertex, bring it to the wanted rate and draw it on the flat map.

    Parameters
    ----------
    data : BlockData
        Series, reference (the mean of the source run) and mask.
    grid : Grid
        In MNI space.
    tr_s : float
        Between frames, seconds.
    config : MapConfig

    Returns
    -------
    array of shape (T, P), float32
        Frames at 0, 1 / rate, ... up to the last source frame. 0 where the images hold no brain.

    Raises
    ------
    FmrisynthError
        Not in MNI space, too little cortex, or too short a series.
    """
    frame_times_s(data.bold_XYZT.shape[3], tr_s, config)
    sample = sampling_matrix(grid, config.surfaces)
    series_VT = sample(data.bold_XYZT)
    reference_V = sample(data.reference_XYZ[..., None])[:, 0]
    brain_V = reference_V > LEAST_SIGNAL * np.median(reference_V)
    if brain_V.mean() < LEAST_COVERAGE:
        raise FmrisynthError(
            f"the images hold signal at {brain_V.mean():.0%} of the cortex, expected {LEAST_COVERAGE:.0%} or more; they are not in "
            "MNI space or hold a part of the brain only. Prepare whole-brain data in MNI space."
        )
    baseline_V = reference_V if config.baseline == "run" else series_VT.mean(axis=1)
    return draw_series(series_VT, baseline_V, brain_V, tr_s, config)


def frame_times_s(n_frames: int, tr_s: float, config: MapConfig) -> np.ndarray:
    """Times of the map's frames from the first frame of a series on, seconds.

    Raises
    ------
    FmrisynthError
        They are fewer than a clip needs.
    """
    duration_s = (n_frames - 1) * tr_s
    times_s = np.arange(int(duration_s * config.rate_hz + 1e-6) + 1) / config.rate_hz
    if len(times_s) < config.n_frames:
        raise FmrisynthError(
            f"{n_frames} frames every {tr_s:g} s make {len(times_s)} at {config.rate_hz:g} Hz, expected {config.n_frames} or more; "
            "take longer series, or lower maps.n_frames or maps.rate_hz."
        )
    return times_s


def draw_series(
    series_VT: np.ndarray, baseline_V: np.ndarray, brain_V: np.ndarray, tr_s: float, config: MapConfig
) -> np.ndarray:
    """Normalise, bring to the wanted rate and draw values at vertices; see `map_series`.

    Parameters
    ----------
    series_VT : array
    baseline_V : array
        What is subtracted.
    brain_V : bool array
        Vertices that hold data; others are 0.
    tr_s : float
    config : MapConfig
    """
    times_s = frame_times_s(series_VT.shape[1], tr_s, config)
    picture = flat_map(config.pixel_mm, config.surfaces)
    scale_V = series_VT.std(axis=1) if config.scale == "series" else baseline_V / 100
    scale_V = np.where(brain_V & (scale_V > 0), scale_V, np.inf)
    change_VT = (series_VT - baseline_V[:, None]) / scale_V[:, None]
    times_in_s = np.arange(change_VT.shape[1]) * tr_s
    change_VT = change_VT @ temporal_matrix(times_in_s, times_s, tr_s, 1 / config.rate_hz).T
    if config.clip is not None:
        change_VT = np.clip(change_VT, -config.clip, config.clip)
    frames_PT = picture.matrix @ change_VT.astype(np.float32)
    if config.per_frame:
        spread = frames_PT.std(axis=0)
        frames_PT = (frames_PT - frames_PT.mean(axis=0)) / np.where(spread > 0, spread, 1)
    return np.ascontiguousarray(frames_PT.T, dtype=np.float32)


def write_subject(folder: Path, subject: str, series: Sequence[Series], config: MapConfig) -> int:
    """Map all series of a subject and write shard and index; returns how many."""
    frames = [one.frames(config).astype(np.float16) for one in series]
    shard, index = naming.subject_flatmaps(subject)
    write_bytes(folder / shard, save_arrays({TENSOR: np.concatenate(frames)}))
    ends = np.cumsum([len(f) for f in frames])
    rows = [
        {
            "first": end - len(f), "n_frames": len(f), "condition": s.condition, "split": s.split, "filename": s.filename,
            "source": s.source, **{name: s.attributes.get(name) for name in ATTRIBUTES},
        }
        for s, f, end in zip(series, frames, ends, strict=True)
    ]  # fmt: skip
    write_tsv(folder / index, COLUMNS, rows, last=True)
    return len(frames)


@dataclass(frozen=True, slots=True)
class MapRow:
    """One series of a folder of flat maps."""

    subject: str
    first: int
    n_frames: int
    condition: str
    split: str | None
    filename: str
    source: str | None


class FlatMaps:
    """The series of a folder by number; frames are read when asked for.

    Parameters
    ----------
    folder : Path
        With ``sub-*_flatmaps.tsv`` and shards.
    config : MapConfig
        They were made with.

    Attributes
    ----------
    rows : list of MapRow
    picture : FlatMap
    digest : str
        SHA-256 of names and contents.
    """

    def __init__(self, folder: Path, config: MapConfig, subjects: Sequence[str] | None = None) -> None:
        self.folder, self.config = folder, config
        self.picture: FlatMap = flat_map(config.pixel_mm, config.surfaces)
        found = sorted(folder.glob("sub-*_flatmaps.tsv"))
        if subjects is not None:
            found = [p for p in found if p.name.split("_")[0].removeprefix("sub-") in set(subjects)]
        if not found:
            raise FmrisynthError(
                f"{folder}: expected flat maps, found no sub-*_flatmaps.tsv; run `fmrisynth embed` on a dataset."
            )
        self.rows: list[MapRow] = []
        for path in found:
            subject = path.name.split("_")[0].removeprefix("sub-")
            for row in read_tsv(path, ("first", "n_frames", "condition", "filename")):
                known = {key: None if row.get(key) in (None, "", "n/a") else row[key] for key in ("split", "source")}
                try:
                    first, n_frames = int(row["first"]), int(row["n_frames"])
                    if first < 0 or not config.n_frames <= n_frames:
                        raise ValueError(f"found {first} and {n_frames}")
                except ValueError as error:
                    raise FmrisynthError(
                        f"{path}: expected first frame and number of frames of a series, {config.n_frames} or more ({error}); "
                        "make the maps again."
                    ) from None
                self.rows.append(
                    MapRow(subject, first, n_frames, row["condition"], known["split"], row["filename"], known["source"])
                )

    @property
    def digest(self) -> str:
        """SHA-256 of the names and contents of indices and shards."""
        subjects = sorted({row.subject for row in self.rows})
        files = [self.folder / name for subject in subjects for name in naming.subject_flatmaps(subject)]
        return hashlib.sha256(content_digest(self.folder, files).encode()).hexdigest()

    def select(self, split: str) -> list[int]:
        """Numbers of the series of one split."""
        return [i for i, row in enumerate(self.rows) if row.split == split]

    def read(self, i: int, start: int | None = 0) -> np.ndarray:
        """A clip of ``n_frames`` frames, (T, P) float32, from frame ``start``; None gives all frames."""
        row = self.rows[i]
        path = self.folder / naming.subject_flatmaps(row.subject)[0]
        try:
            with safe_open(path, framework="numpy") as shard:
                part = shard.get_slice(TENSOR)
                if row.first + row.n_frames > part.get_shape()[0] or part.get_shape()[1] != self.picture.n_pixels:
                    raise ValueError(f"it holds {part.get_shape()} numbers")
                begin = row.first + (start or 0)
                end = row.first + row.n_frames if start is None else begin + self.config.n_frames
                return part[begin:end].astype(np.float32)
        except (OSError, SafetensorError, ValueError, IndexError) as error:
            raise FmrisynthError(
                f"{path}: expected a shard of flat maps, it cannot be read ({error}); make it again."
            ) from None

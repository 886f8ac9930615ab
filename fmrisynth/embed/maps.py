"""Series of volumes as frames of the flat map, and the folder they are kept in.

One safetensors shard per subject with one tensor, ``frames``, float16 of shape (series, T, P); one TSV index beside it, written last.

Axis legend: X, Y, Z voxel axes; V vertices; P valid pixels of the flat map; T frames; N series.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
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
COLUMNS = ("row", "condition", "split", *ATTRIBUTES, "filename", "source")
LEAST_SIGNAL = 0.05
"""Vertices whose reference is below this share of its median over the cortex count as outside the brain."""


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
    duration_s = (data.bold_XYZT.shape[3] - 1) * tr_s
    times_s = np.arange(int(duration_s * config.rate_hz + 1e-6) + 1) / config.rate_hz
    if len(times_s) < config.n_frames:
        raise FmrisynthError(
            f"{data.bold_XYZT.shape[3]} frames every {tr_s:g} s make {len(times_s)} at {config.rate_hz:g} Hz, expected "
            f"{config.n_frames} or more; prepare longer windows, or lower maps.n_frames or maps.rate_hz."
        )
    sample, picture = sampling_matrix(grid), flat_map(config.pixel_mm)
    series_VT = sample(data.bold_XYZT)
    reference_V = sample(data.reference_XYZ[..., None])[:, 0]
    brain_V = reference_V > LEAST_SIGNAL * np.median(reference_V)
    if brain_V.mean() < LEAST_COVERAGE:
        raise FmrisynthError(
            f"the images hold signal at {brain_V.mean():.0%} of the cortex, expected {LEAST_COVERAGE:.0%} or more; they are not in "
            "MNI space or hold a part of the brain only. Prepare whole-brain data in MNI space."
        )
    baseline_V = reference_V if config.baseline == "run" else series_VT.mean(axis=1)
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


def write_subject(folder: Path, subject: str, blocks: Sequence[Block], config: MapConfig) -> int:
    """Map all series of a subject and write shard and index; returns how many."""
    frames = [map_block(block, config).astype(np.float16) for block in blocks]
    if len({f.shape for f in frames}) != 1:
        raise FmrisynthError(
            f"sub-{subject}: expected series of one length, found {sorted({len(f) for f in frames})} frames; prepare them with one window."
        )
    shard, index = naming.subject_flatmaps(subject)
    write_bytes(folder / shard, save_arrays({TENSOR: np.stack(frames)}))
    rows = [
        {
            "row": i, "condition": b.condition, "split": b.split, "filename": b.bold.as_posix(), "source": b.source,
            **{name: b.attributes.get(name) for name in ATTRIBUTES},
        }
        for i, b in enumerate(blocks)
    ]  # fmt: skip
    write_tsv(folder / index, COLUMNS, rows, last=True)
    return len(frames)


@dataclass(frozen=True, slots=True)
class MapRow:
    """One series of a folder of flat maps."""

    subject: str
    row: int
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
        self.picture: FlatMap = flat_map(config.pixel_mm)
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
            for row in read_tsv(path, ("row", "condition", "filename")):
                known = {key: None if row.get(key) in (None, "", "n/a") else row[key] for key in ("split", "source")}
                if not row["row"].isdigit():
                    raise FmrisynthError(
                        f"{path}: expected the number of a row, found {row['row']!r}; make the maps again."
                    )
                self.rows.append(
                    MapRow(subject, int(row["row"]), row["condition"], known["split"], row["filename"], known["source"])
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
                if row.row >= part.get_shape()[0] or part.get_shape()[2] != self.picture.n_pixels:
                    raise ValueError(f"it holds {part.get_shape()} numbers")
                last = None if start is None else start + self.config.n_frames
                return part[row.row, start:last].astype(np.float32)
        except (OSError, SafetensorError, ValueError, IndexError) as error:
            raise FmrisynthError(
                f"{path}: expected a shard of flat maps, it cannot be read ({error}); make it again."
            ) from None

    def n_frames(self, i: int) -> int:
        """Frames of a series."""
        row = self.rows[i]
        with safe_open(self.folder / naming.subject_flatmaps(row.subject)[0], framework="numpy") as shard:
            return int(shard.get_slice(TENSOR).get_shape()[1])

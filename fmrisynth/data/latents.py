"""The latents directory: what `tokenize` writes and `train` reads.

One safetensors shard per subject with one tensor, ``latents``, float32 of shape (blocks, C, T, x, y, z),
raw encoder output (whole runs stand one behind the other along T in a single block, and a table beside them has their
events); one TSV index per subject beside it, written last, so that its presence means the subject
is complete; and ``tokenizer/``, the tokenizer they were made with, whose ``tokenizer.json`` holds the
per-channel mean and standard deviation.

Nothing but the index is held in memory: a row is read from its shard when it is asked for.

Axis legend: B blocks, C latent channels, T frames; x, y, z latent axes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor

from fmrisynth.bids import naming
from fmrisynth.bids.atomic import write_bytes
from fmrisynth.bids.events import Event, read_events
from fmrisynth.bids.sidecars import read_tsv, write_tsv
from fmrisynth.data.blocks import ATTRIBUTES, MAX_SECONDS, Block, further_attributes
from fmrisynth.errors import FmrisynthError
from fmrisynth.parse import read_json

TOKENIZER_FOLDER = "tokenizer"
TENSOR = "latents"
INDEX_COLUMNS = (
    "row", "condition", "split", "onset_s", "duration_s", "tr_s", *ATTRIBUTES, "filename", "source",
)  # fmt: skip
RUN_COLUMNS = (*INDEX_COLUMNS, "first_frame", "n_frames")
EVENT_COLUMNS = ("row", "onset", "duration", "trial_type", "modulation")


@dataclass(frozen=True, slots=True)
class LatentRow:
    """One block instance of a latents directory.

    Attributes
    ----------
    subject : str
        Label without ``sub-``.
    row : int
        Row in the subject's shard.
    condition : str
        Condition label.
    split : str or None
        ``train``, ``val`` or ``test``.
    onset_s, duration_s, tr_s : float
        Block onset after the first frame, block duration, time between frames; seconds.
    attributes : mapping
        Known attributes (``phase_encoding``, ``sex``, ``age``, and others that the dataset has).
    filename : str
        The block's image, relative to the block dataset.
    first_frame, n_frames : int
        Where a whole run stands in its shard; 0 and 0 for blocks.
    """

    subject: str
    row: int
    condition: str
    split: str | None
    onset_s: float
    duration_s: float
    tr_s: float
    attributes: Mapping[str, str]
    filename: str
    first_frame: int = 0
    n_frames: int = 0


class LatentDataset:
    """Random access to the blocks of a latents directory.

    Parameters
    ----------
    root : Path
        The directory.
    rows : sequence of LatentRow
        What it gives access to, in order.
    shape : tuple of int
        (C, T, x, y, z) of one block.
    latent_mean, latent_std : tensor of shape (C,), float32
        Statistics that a generator standardises with.
    tokenizer_info : mapping
        The content of ``tokenizer.json``.
    """

    def __init__(
        self, root: Path, rows: Sequence[LatentRow], shape: tuple[int, ...], latent_mean: Tensor, latent_std: Tensor,
        tokenizer_info: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self.root = root
        self.rows = list(rows)
        self.shape = shape
        self.latent_mean = latent_mean
        self.latent_std = latent_std
        self.tokenizer_info = tokenizer_info

    @classmethod
    def open(cls, path: Path, *, subjects: Sequence[str] | None = None) -> LatentDataset:
        """Open a latents directory: reads the indices and the headers of the shards.

        Raises
        ------
        FmrisynthError
            Not a latents directory; no latent statistics; a shard is missing or damaged, or its shape is
            not that of its index or of the other shards.
        """
        root = Path(path)
        if not root.is_dir():
            raise FmrisynthError(f"{root}: there is no such folder; make it with `fmrisynth tokenize`.")
        info = _read_tokenizer_json(root)
        found = sorted(p.name[4:].removesuffix("_latents.tsv") for p in root.glob("sub-*_latents.tsv"))
        if not found:
            raise FmrisynthError(
                f"{root}: expected a latents directory, found no sub-*_latents.tsv; run `fmrisynth tokenize` first."
            )
        chosen = found if subjects is None else list(subjects)
        rows: list[LatentRow] = []
        shape: tuple[int, ...] | None = None
        for subject in chosen:
            if subject not in found:
                raise FmrisynthError(f"{root}: there are no latents of sub-{subject}; run `fmrisynth tokenize` on it.")
            own = read_index(root, subject)
            n_blocks, *rest = shard_shape(root / naming.subject_latents(subject)[0])
            runs = any(row.n_frames for row in own)
            if n_blocks != (1 if runs else len(own)) or (runs and sum(row.n_frames for row in own) != rest[1]):
                raise FmrisynthError(
                    f"{root}: sub-{subject} has {n_blocks} blocks of {rest[1]} frames in its shard, not the {len(own)} of its index; "
                    "delete both and run `fmrisynth tokenize` again."
                )
            if runs:
                rest[1] = int(info["n_frames"])
            if shape is not None and tuple(rest) != shape:
                raise FmrisynthError(
                    f"{root}: latents of sub-{subject} have shape {tuple(rest)}, those before it {shape}; encode all "
                    "subjects with one tokenizer, from one dataset."
                )
            shape = tuple(rest)
            rows += own
        mean = torch.tensor(info["latent_mean"], dtype=torch.float32)
        std = torch.tensor(info["latent_std"], dtype=torch.float32)
        if shape is None or len(shape) != 5 or len(mean) != shape[0] or len(std) != shape[0]:
            raise FmrisynthError(
                f"{root}: latents of shape {shape} do not fit a tokenizer with {len(mean)} channels; encode them again."
            )
        return cls(root, rows, shape, mean, std, info)

    @property
    def tokenizer_dir(self) -> Path:
        """Folder of the tokenizer that made the latents."""
        return self.root / TOKENIZER_FOLDER

    @property
    def conditions(self) -> list[str]:
        """Condition labels, sorted."""
        return sorted({row.condition for row in self.rows})

    @property
    def subjects(self) -> list[str]:
        """Subject labels, in order."""
        return list(dict.fromkeys(row.subject for row in self.rows))

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, *, split: str | None = None, conditions: Iterable[str] | None = None) -> LatentDataset:
        """The rows of one split, or of some conditions, as a dataset of their own."""
        wanted = None if conditions is None else set(conditions)
        rows = [
            row for row in self.rows
            if (split is None or row.split == split) and (wanted is None or row.condition in wanted)
        ]  # fmt: skip
        return LatentDataset(self.root, rows, self.shape, self.latent_mean, self.latent_std, self.tokenizer_info)

    def load(self, index: int) -> Tensor:
        """Raw latents of one block, (C, T, x, y, z) float32."""
        row = self.rows[index]
        return self._read(row, row.first_frame, row.n_frames) if row.n_frames else self._read(row, 0, None)

    def load_frames(self, index: int, first: int, n: int) -> Tensor:
        """Raw latents of some frames of a whole run, (C, n, x, y, z) float32."""
        row = self.rows[index]
        if not 0 <= first <= first + n <= row.n_frames:
            raise IndexError(f"frames {first} to {first + n} of a run of {row.n_frames}")
        return self._read(row, row.first_frame + first, n)

    def _read(self, row: LatentRow, first: int, n: int | None) -> Tensor:
        path = self.root / naming.subject_latents(row.subject)[0]
        try:
            with safe_open(path, framework="pt") as shard:
                part = shard.get_slice(TENSOR)
                return part[row.row] if n is None else part[0, :, first : first + n]
        except (SafetensorError, OSError, IndexError) as error:
            raise FmrisynthError(
                f"{path}: block {row.row} cannot be read ({error}); encode the subject again."
            ) from None

    def load_many(self, indices: Sequence[int]) -> Tensor:
        """Raw latents of several blocks, (B, C, T, x, y, z) float32."""
        return torch.stack([self.load(index) for index in indices])

    def standardise(self, latent: Tensor) -> Tensor:
        """``(latent - mean) / std`` per channel; channels are the axis five from the end."""
        shape = (-1, 1, 1, 1, 1)
        return (latent - self.latent_mean.view(shape)) / self.latent_std.view(shape)

    def __getitem__(self, index: int) -> Tensor:
        """Standardised latents of one block, (C, T, x, y, z) float32."""
        return self.standardise(self.load(index))


def write_runs(root: Path, subject: str, latents: Sequence[Tensor], runs: Sequence[Block]) -> None:
    """Write a subject's whole runs: shard, events, and last the index.

    Parameters
    ----------
    latents : sequence of tensors of shape (C, T, x, y, z), float32
        Of `runs`, in order; T may differ.
    runs : sequence of Block
        Where they come from.
    """
    events = [(number, event) for number, run in enumerate(runs) for event in read_events(run.events_path).events]
    rows = [
        dict(zip(EVENT_COLUMNS, (number, e.onset_s, e.duration_s, e.label, e.modulation), strict=True))
        for number, e in events
    ]
    write_tsv(root / naming.latent_events(subject), EVENT_COLUMNS, rows)
    lengths = [part.shape[1] for part in latents]
    firsts = [sum(lengths[:number]) for number in range(len(lengths))]
    frames = [{"first_frame": first, "n_frames": n} for first, n in zip(firsts, lengths, strict=True)]
    _write(root, subject, torch.cat(list(latents), dim=1)[None], runs, RUN_COLUMNS, frames)


def read_run_events(root: Path, subject: str) -> dict[int, tuple[Event, ...]]:
    """What happens in a subject's runs, by row."""
    path = root / naming.latent_events(subject)
    found: dict[int, list[Event]] = {}
    for row in read_tsv(path, EVENT_COLUMNS):
        try:
            event = Event(
                _seconds(row["onset"]),
                _seconds(row["duration"]),
                sys.intern(row["trial_type"]),
                float(row["modulation"]),
            )
            found.setdefault(_row(row["row"]), []).append(event)
        except ValueError as error:
            raise FmrisynthError(f"{path}: a number cannot be read ({error}); encode the subject again.") from None
    return {number: tuple(events) for number, events in found.items()}


def write_subject(root: Path, subject: str, latents_BCTXYZ: Tensor, blocks: Sequence[Block]) -> None:
    """Write a subject's shard and then its index; both atomically.

    Parameters
    ----------
    latents_BCTXYZ : tensor of shape (B, C, T, x, y, z), float32
        Latents of `blocks`, in order.
    blocks : sequence of Block
        Where they come from.
    """
    _write(root, subject, latents_BCTXYZ, blocks, INDEX_COLUMNS, [{}] * len(blocks))


def _write(
    root: Path, subject: str, latents_BCTXYZ: Tensor, blocks: Sequence[Block], columns: Sequence[str],
    more: Sequence[Mapping[str, Any]],
) -> None:  # fmt: skip
    shard, index = (root / name for name in naming.subject_latents(subject))
    if not bool(torch.isfinite(latents_BCTXYZ).all()):
        raise FmrisynthError(
            f"{shard}: refused to write latents that are not finite; the tokenizer or the block is broken."
        )
    write_bytes(shard, save_tensors({TENSOR: latents_BCTXYZ.float().contiguous()}))
    names = [*ATTRIBUTES, *further_attributes(blocks)]
    rows = [
        {
            "row": number, "condition": block.condition, "split": block.split, "onset_s": block.onset_s,
            "duration_s": block.duration_s, "tr_s": block.tr_s, "filename": block.bold.as_posix(),
            "source": block.source, **{name: block.attributes.get(name) for name in names}, **more[number],
        }
        for number, block in enumerate(blocks)
    ]  # fmt: skip
    write_tsv(index, tuple(dict.fromkeys([*columns, *names])), rows, last=True)


def read_index(root: Path, subject: str) -> list[LatentRow]:
    """The index of one subject."""
    path = root / naming.subject_latents(subject)[1]
    required = ("row", "condition", "split", "onset_s", "duration_s", "tr_s", "filename")
    rows = []
    for cells in read_tsv(path, required):
        names = [*ATTRIBUTES, *(column for column in cells if column not in RUN_COLUMNS)]
        try:
            rows.append(
                LatentRow(
                    subject=subject, row=_row(cells["row"]), condition=sys.intern(cells["condition"]),
                    split=_known(cells["split"]), onset_s=_seconds(cells["onset_s"]),
                    duration_s=_seconds(cells["duration_s"]), tr_s=_seconds(cells["tr_s"]),
                    attributes={a: sys.intern(v) for a in names if (v := _known(cells.get(a))) is not None},
                    filename=cells["filename"], first_frame=_row(cells.get("first_frame") or "0"),
                    n_frames=_row(cells.get("n_frames") or "0"),
                )
            )  # fmt: skip
        except ValueError as error:
            raise FmrisynthError(f"{path}: a number cannot be read ({error}); encode the subject again.") from None
    return rows


def shard_shape(path: Path) -> tuple[int, ...]:
    """Shape of the tensor in a shard, from its header alone.

    Raises
    ------
    FmrisynthError
        Missing, damaged, or not a latents shard.
    """
    try:
        path.open("rb").close()  # says why a file cannot be read, which safetensors does not
        with safe_open(path, framework="pt") as shard:
            if list(shard.keys()) != [TENSOR]:
                raise FmrisynthError(f"{path}: expected one tensor named {TENSOR}, found {', '.join(shard.keys())}.")
            part = shard.get_slice(TENSOR)
            if part.get_dtype() != "F32" or len(part.get_shape()) != 6:
                raise FmrisynthError(
                    f"{path}: expected float32 latents with six axes, found {part.get_dtype()} of shape {part.get_shape()}."
                )
            return tuple(part.get_shape())
    except (SafetensorError, OSError) as error:
        why = getattr(error, "strerror", None) or error
        raise FmrisynthError(
            f"{path}: the shard cannot be read ({why}); fix its permissions, or delete it and encode the subject again."
        ) from None


def _read_tokenizer_json(root: Path) -> dict[str, Any]:
    path = root / TOKENIZER_FOLDER / "tokenizer.json"
    if not path.is_file():
        raise FmrisynthError(
            f"{root}: expected a latents directory with its {TOKENIZER_FOLDER}/ folder, found none; "
            "make it with `fmrisynth tokenize`."
        )
    try:
        info = read_json(path)
        mean, std = np.asarray(info["latent_mean"], float), np.asarray(info["latent_std"], float)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FmrisynthError(
            f"{path}: the tokenizer's latent mean and standard deviation cannot be read ({error!r}); encode again."
        ) from None
    if mean.ndim != 1 or mean.shape != std.shape or not np.isfinite(mean).all() or not (std > 0).all():
        raise FmrisynthError(f"{path}: the latent mean and standard deviation are not usable; fit the tokenizer again.")
    return info


def _row(cell: str) -> int:
    if not 0 <= (row := int(cell)) < 10**9:
        raise ValueError(f"expected the number of a row, found {cell}")
    return row


def _seconds(cell: str) -> float:
    if not abs(seconds := float(cell)) <= MAX_SECONDS:  # also refuses nan
        raise ValueError(f"expected seconds, found {cell}")
    return seconds


def _known(cell: str | None) -> str | None:
    return None if cell in (None, "", "n/a") else sys.intern(cell)

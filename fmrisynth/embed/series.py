"""What `embed` reads: series of volumes of a block or run dataset, or dense series of the cortex (CIFTI), participant by participant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from fmrisynth.bids.sources import read_participants
from fmrisynth.config.prepare import SplitConfig
from fmrisynth.data.blocks import RUN, Block, block_files, read_subject, subjects_of, table_rows
from fmrisynth.data.splits import SPLITS, split_of
from fmrisynth.embed.cifti import find_cifti, map_cifti
from fmrisynth.embed.maps import Series, map_block
from fmrisynth.errors import FmrisynthError


@dataclass(frozen=True)
class Participant:
    """All series of a person, and what a table says of them beside."""

    series: list[Series]
    table: list[dict[str, object]] = field(default_factory=list)


def open_series(dataset: Path, seed: int) -> dict[str, Callable[[], Participant]]:
    """How to read each participant's series, by label; CIFTI files are taken where there are any.

    People of CIFTI files are in the split that a column ``split`` of ``participants.tsv`` says, else in one by hash, with the shares of
    `prepare`.

    Raises
    ------
    FmrisynthError
        Neither CIFTI series nor a block or run dataset.
    """
    dense = find_cifti(dataset) if dataset.is_dir() else {}
    if dense:
        table = read_participants(dataset)
        return {
            subject: partial(_cifti, dataset, subject, files, table.get(subject, {}).get("split"), seed)
            for subject, files in sorted(dense.items())
        }
    return {subject: partial(_blocks, dataset, subject) for subject in subjects_of(dataset)}


def _blocks(dataset: Path, subject: str) -> Participant:
    blocks = read_subject(dataset, subject)
    return Participant([_of_block(block) for block in blocks], table_rows(blocks))


def _of_block(block: Block) -> Series:
    return Series(
        block.bold.as_posix(), block.condition, block.split, block.source, tuple(block_files([block])), partial(map_block, block),
        block.attributes,
    )  # fmt: skip


def _cifti(dataset: Path, subject: str, files: list[Path], split: str | None, seed: int) -> Participant:
    if split not in (*SPLITS, None, "", "n/a"):
        raise FmrisynthError(
            f"{dataset / 'participants.tsv'}: expected {', '.join(SPLITS)} in the column split, found {split!r} for sub-{subject}; "
            "correct it."
        )
    chosen = split if split in SPLITS else split_of(subject, seed, SplitConfig())
    names = [path.relative_to(dataset).as_posix() for path in files]
    return Participant(
        [
            Series(name, RUN, chosen, name, (path,), partial(map_cifti, path))
            for name, path in zip(names, files, strict=True)
        ]
    )

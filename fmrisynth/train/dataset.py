"""Read a latents directory row by row; memory does not grow with the cohort.

Axis legend: C latent channels, T frames, F = C*T, X Y Z latent grid.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import statistics
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fmrisynth.errors import FmrisynthError

OPEN_SHARDS = 64  # memory-mapped shards kept open
MISSING = ("", "n/a")


@dataclass(frozen=True)
class LatentRow:
    """One block instance.

    Attributes
    ----------
    shard : Path
        The subject's safetensors file.
    row : int
        Index into its first axis.
    split : str
        train, val or test.
    attributes : dict of str to str
        The index's columns, ``condition`` among them; empty cells and n/a are left out.
    """

    shard: Path
    row: int
    split: str
    attributes: dict[str, str]

    def __str__(self) -> str:
        return f"{self.shard.name} row {self.row}"


class LatentTable:
    """Index of all latents of a directory, and lazy access to them.

    Parameters
    ----------
    root : Path
        Output of `tokenize`.

    Attributes
    ----------
    rows : list of LatentRow
        In the order of subjects and blocks.
    latent_shape : tuple of int
        C, T, X, Y, Z.
    latent_mean_C, latent_std_C : Tensor of shape (C,), float32
    digest : str
        SHA-256 of all index files and the tokenizer's description.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        indices = sorted(root.glob("sub-*_latents.tsv"))
        if not indices:
            raise FmrisynthError(
                f"{root}: expected latents (sub-*_latents.tsv + .safetensors), found none; "
                "run fmrisynth tokenize PREPARED OUT and pass its OUT."
            )
        description = root / "tokenizer" / "tokenizer.json"
        self.tokenizer = description.parent
        try:
            text = description.read_bytes()
            self._tokenizer: dict[str, Any] = json.loads(text)
        except (OSError, ValueError) as error:
            raise FmrisynthError(
                f"{description}: expected the tokenizer's description beside the latents ({error}); "
                "run fmrisynth tokenize again."
            ) from None
        self.tokenizer_digest = hashlib.sha256(text).hexdigest()
        total = hashlib.sha256(text)
        self.rows: list[LatentRow] = []
        for index in indices:
            total.update(index.name.encode() + index.read_bytes())
            self.rows += self._read_index(index)
        self.digest = total.hexdigest()
        self._open: OrderedDict[Path, Any] = OrderedDict()
        self.latent_shape: tuple[int, ...] = tuple(self._slice(self.rows[0].shard).get_shape()[1:])
        self.latent_mean_C, self.latent_std_C = self._statistics()

    def select(self, split: str) -> list[LatentRow]:
        """Rows of one split."""
        return [row for row in self.rows if row.split == split]

    def vocabulary(self, rows: list[LatentRow], names: list[str]) -> dict[str, list[str]]:
        """Sorted labels of each attribute over the given rows."""
        found: dict[str, list[str]] = {}
        for name in names:
            labels = sorted({row.attributes[name] for row in rows if name in row.attributes})
            if not labels:
                columns = ", ".join(sorted({key for row in rows for key in row.attributes}))
                raise FmrisynthError(
                    f"{self.root}: attribute {name!r} has no value in any training row (columns with values: "
                    f"{columns}); remove it from conditioning.attributes or add it to the index."
                )
            found[name] = labels
        return found

    def read(self, row: LatentRow) -> Tensor:
        """Normalised latents of one instance, (F, X, Y, Z), float32, F in the order (c t)."""
        latent_CTXYZ: Tensor = self._slice(row.shard)[row.row]
        if tuple(latent_CTXYZ.shape) != self.latent_shape:
            raise FmrisynthError(
                f"{row.shard}: expected latents of shape {self.latent_shape}, found {tuple(latent_CTXYZ.shape)}; "
                "all subjects need one grid and one tokenizer: run fmrisynth tokenize again into an empty folder."
            )
        mean, std = (s[:, None, None, None, None] for s in (self.latent_mean_C, self.latent_std_C))
        return ((latent_CTXYZ.float() - mean) / std).flatten(0, 1)

    def _read_index(self, index: Path) -> list[LatentRow]:
        shard = index.with_suffix(".safetensors")
        with index.open(newline="", encoding="utf-8") as stream:
            records = list(csv.DictReader(stream, delimiter="\t"))
        rows = []
        for record in records:
            attributes = {
                key: value for key, value in record.items() if value not in MISSING and value is not None
            }
            try:
                rows.append(LatentRow(shard, int(attributes.pop("row")), attributes.pop("split"), attributes))
            except (KeyError, ValueError) as error:
                raise FmrisynthError(
                    f"{index}: expected columns row, condition and split in every line, found none of {error}; "
                    "run fmrisynth tokenize again for this subject."
                ) from None
            if "condition" not in attributes:
                raise FmrisynthError(
                    f"{index}: row {rows[-1].row} names no condition; run fmrisynth tokenize again."
                )
        return rows

    def _slice(self, shard: Path) -> Any:
        if shard not in self._open:
            try:
                self._open[shard] = safe_open(shard, framework="pt").get_slice("latents")
            except (OSError, SafetensorError) as error:
                raise FmrisynthError(
                    f"{shard}: expected a safetensors file with a tensor 'latents' ({error}); "
                    "delete the subject's files and run fmrisynth tokenize again."
                ) from None
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(shard)
        return self._open[shard]

    def _statistics(self) -> tuple[Tensor, Tensor]:
        mean, std = self._tokenizer.get("latent_mean"), self._tokenizer.get("latent_std")
        usable = (
            isinstance(mean, list)
            and isinstance(std, list)
            and len(mean) == len(std) == self.latent_shape[0]
            and all(math.isfinite(m) for m in mean)
            and all(math.isfinite(s) and s > 0 for s in std)
        )
        if not usable:
            raise FmrisynthError(
                f"{self.tokenizer / 'tokenizer.json'}: expected latent_mean and latent_std with "
                f"{self.latent_shape[0]} finite entries (std > 0), found {mean} and {std}; "
                "run fmrisynth tokenize again: training needs latents of known scale."
            )
        return torch.tensor(mean, dtype=torch.float32), torch.tensor(std, dtype=torch.float32)


def block_timing(rows: Sequence[LatentRow]) -> dict[str, dict[str, float]]:
    """Median block onset and duration of each condition, seconds: the events of a synthetic block.

    Rows without these columns are left out.
    """
    seen: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        for name in ("onset_s", "duration_s"):
            if name in row.attributes:
                times = seen.setdefault(row.attributes["condition"], {})
                times.setdefault(name, []).append(float(row.attributes[name]))
    return {label: {name: statistics.median(v) for name, v in times.items()} for label, times in seen.items()}

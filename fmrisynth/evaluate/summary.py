"""What is kept of a dataset: one pass over its windows, the same for real, synthetic and baseline data.

Nothing here grows with the number of subjects but a few thousand numbers per block; the windows on cells lie on disk.

Axis legend: N blocks, T frames, K conditions, V voxels, S voxels of the resampling, C cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from fmrisynth.bids.atomic import atomic_path
from fmrisynth.config.glm import GlmConfig
from fmrisynth.evaluate.probes import Probes
from fmrisynth.evaluate.properties import N_GROUPS, BlockRows, Measured, Properties, PropertyAccumulator, Sums
from fmrisynth.evaluate.response import Pattern, make_pattern
from fmrisynth.evaluate.rois import positions_mm
from fmrisynth.glm.effects import fit_one
from fmrisynth.glm.windows import Window, block_design


class WindowStore:
    """Windows on cells (percent signal change averaged over cells, float16), in a temporary file that ends with the object."""

    def __init__(self) -> None:
        self._width = 0
        self._file = TemporaryFile()  # noqa: SIM115 (lives as long as the array that maps it)
        self._people: list[str] = []
        self._conditions: list[str] = []
        self._anatomy: list[np.ndarray] = []

    def add(self, person: str, condition: str, cells_CT: np.ndarray, anatomy_C: np.ndarray) -> None:
        """Append a window (see `Probes.on_cells`)."""
        row = cells_CT.T.reshape(-1).astype(np.float16)
        self._file.write(row.tobytes())
        self._width = row.size
        self._anatomy.append(anatomy_C)
        self._people.append(person)
        self._conditions.append(condition)

    def blocks(self) -> Blocks:
        """Everything that was added; windows are mapped from disk."""
        self._file.flush()
        windows_NCT = np.memmap(self._file, np.float16, "r", shape=(len(self._people), self._width))
        return Blocks(windows_NCT, np.stack(self._anatomy), np.array(self._people), np.array(self._conditions))


@dataclass(frozen=True, eq=False)
class Blocks:
    """Windows and log reference volumes on cells, (N, C * T) and (N, C), with each block's subject and condition."""

    windows_NCT: np.ndarray
    anatomy_NC: np.ndarray
    people_N: np.ndarray
    conditions_N: np.ndarray

    def first(self, n: int | None) -> Blocks:
        """The first so many, all by default."""
        return Blocks(*(getattr(self, entry.name)[:n] for entry in fields(self)))


@dataclass(frozen=True, eq=False)
class Summary:
    """One dataset, reduced.

    Attributes
    ----------
    properties : Properties
        What the checks look at.
    windows_NCT : array of shape (N, C * T), float16
        Percent signal change averaged over cells: the space of privacy audit and classifiers. On disk.
    """

    properties: Properties
    windows_NCT: np.ndarray

    @property
    def conditions_N(self) -> np.ndarray:
        """Condition of each block."""
        return self.properties.rows.conditions_N

    @property
    def people_N(self) -> np.ndarray:
        """Subject of each block."""
        return self.properties.rows.people_N

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return len(self.people_N)

    @property
    def blocks(self) -> Blocks:
        """Windows and anatomies."""
        return Blocks(self.windows_NCT, self.properties.rows.anatomy_NC, self.people_N, self.conditions_N)

    def save(self, path: Path) -> None:
        """Write to ``path.npz``, and the windows to ``path.npy``."""
        p = self.properties
        arrays = {f"rows|{entry.name}": getattr(p.rows, entry.name) for entry in fields(p.rows)}
        for name, sums in (("sums", p.sums), *((f"part{i}", part) for i, part in enumerate(p.parts))):
            arrays |= {"|".join((name, *key)): value for key, value in sums.items()}
        save_arrays(path, arrays | {"voxels": p.voxels_S, "n_voxels": np.array(p.n_voxels)}, self.windows_NCT)

    @classmethod
    def load(cls, path: Path) -> Summary:
        """Read what `save` wrote."""
        arrays, windows_NCT = load_arrays(path)
        sums: dict[str, Sums] = {}
        for name, value in arrays.items():
            first, *key = name.split("|")
            if key and first != "rows":
                sums.setdefault(first, Sums())[tuple(key)] = value
        rows = BlockRows(*(arrays[f"rows|{entry.name}"] for entry in fields(BlockRows)))
        parts = [sums[f"part{i}"] for i in range(len(sums) - 1)]
        return cls(Properties(rows, sums["sums"], parts, arrays["voxels"], int(arrays["n_voxels"])), windows_NCT)


def save_arrays(path: Path, arrays: Mapping[str, Any], windows_NCT: np.ndarray) -> None:
    """Write arrays to ``path.npz``, and windows to ``path.npy``, from where they can be mapped."""
    for suffix, write in (
        (".npy", lambda file: np.save(file, windows_NCT)),
        (".npz", lambda file: np.savez(file, **arrays)),
    ):
        with atomic_path(path.with_suffix(suffix)) as temporary, temporary.open("wb") as file:
            write(file)


def load_arrays(path: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Read what `save_arrays` wrote."""
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as stored:
        arrays: dict[str, Any] = dict(stored)
    return arrays, np.load(path.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)


class Summariser:
    """Takes windows one at a time; see `summarise`."""

    def __init__(
        self, probes: Probes, config: GlmConfig, voxels_S: np.ndarray, patterns: dict[str, Pattern] | None = None, *,
        n_groups: int = N_GROUPS, as_samples: bool = False, keep_effects: bool = True,
    ) -> None:  # fmt: skip
        self._config, self._store = config, WindowStore()
        self._keep = PropertyAccumulator(
            probes, patterns or {}, voxels_S, n_groups=n_groups, as_samples=as_samples, keep_effects=keep_effects
        )

    def measure(self, window: Window) -> Measured:
        """What a window leaves."""
        return self._keep.measure(window, block_design(window.block, self._config), fit_one(window, self._config))

    def add(self, one: Measured) -> None:
        """Add what `measure` found; windows must come subject by subject."""
        self._keep.add(one)
        self._store.add(one.subject, one.condition, one.cells_CT, one.anatomy_C)

    def finish(self) -> Summary:
        """The summary of all windows."""
        return Summary(self._keep.finish(), self._store.blocks().windows_NCT)


def summarise(windows: Iterable[Window], summariser: Summariser) -> Summary:
    """Reduce a stream of windows in percent signal change, inside the probes' mask."""
    for window in windows:
        summariser.add(summariser.measure(window))
    return summariser.finish()


class Reference:
    """What is known of people who are in none of the compared datasets: group maps and mean windows of their blocks, by condition."""

    def __init__(self, config: GlmConfig) -> None:
        self._config, self._sums = config, Sums()

    def watch(self, windows: Iterable[Window]) -> Iterator[Window]:
        """Pass windows through and learn from each."""
        for window in windows:
            condition = window.block.condition
            self._sums.people("people", condition, fit_one(window, self._config).effect)
            self._sums.accumulate(("mean", condition), window.percent_TV)
            yield window

    def arrays(self, probes: Probes) -> dict[str, np.ndarray]:
        """Conditions (K,) that have two or more blocks; effect and squared standard error of their group maps (K, V); courses of their patterns (K, T)."""
        empty = np.zeros(0)
        rows = BlockRows(*(empty for _ in fields(BlockRows)))
        known = Properties(rows, self._sums, [], empty.astype(int), int(probes.mask_XYZ.sum()))
        names = [key[1] for key, n in self._sums.items() if key[2:] == ("n",) and n >= 2]
        maps = [known.group(name) for name in names]
        found = {
            "conditions": np.array(names, str), "effect": np.array([m.effect for m in maps]), "variance": np.array([m.variance for m in maps]),
        }  # fmt: skip
        means = [self._sums["mean", name] / known.n_people(name) for name in names]
        weights = [pattern.weights_V for pattern in patterns_of(found, probes).values()]
        return found | {"course": np.array([mean @ weight for mean, weight in zip(means, weights, strict=True)])}


def patterns_of(reference: Mapping[str, np.ndarray], probes: Probes) -> dict[str, Pattern]:
    """Where and how strongly each condition answers, from the maps of `Reference.arrays`."""
    positions = positions_mm(probes.mask_XYZ, probes.grid)
    return {
        str(name): make_pattern(effect, variance, positions, probes.mirror_V)
        for name, effect, variance in zip(
            reference["conditions"], reference["effect"], reference["variance"], strict=True
        )
    }

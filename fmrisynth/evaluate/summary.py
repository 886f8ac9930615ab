"""What is kept of a dataset: one pass over its windows, the same for real, synthetic and baseline data.

Nothing here grows with the number of subjects but a few thousand numbers per block; the windows on cells lie on disk.

Axis legend: N blocks, T frames, K conditions, V voxels, S voxels of the resampling, C cells.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np

from fmrisynth.bids.atomic import atomic_path
from fmrisynth.config.glm import GlmConfig
from fmrisynth.evaluate.probes import Probes, log_anatomy
from fmrisynth.evaluate.properties import (
    ACTIVE_SHARE,
    N_GROUPS,
    N_LAGS,
    BlockRows,
    Properties,
    Sums,
    autocorrelation,
    fisher_correlation,
    power_spectrum,
    smoothness_fwhm_mm,
)
from fmrisynth.evaluate.response import Pattern, make_pattern
from fmrisynth.evaluate.rois import positions_mm
from fmrisynth.glm.effects import fit_one
from fmrisynth.glm.statistics import Estimate
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

    def at(self, index: np.ndarray | slice) -> Blocks:
        """Some of them."""
        return Blocks(*(getattr(self, entry.name)[index] for entry in fields(self)))


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


@dataclass(frozen=True)
class Measured:
    """What one window leaves: the numbers of its row, what goes into sums, and its mean courses and log reference volume on cells."""

    subject: str
    condition: str
    numbers: tuple[Any, ...]
    estimate: Estimate
    residual_variance_V: np.ndarray
    connectivity_PP: np.ndarray
    cells_CT: np.ndarray
    anatomy_C: np.ndarray


class Summariser:
    """Reduces windows one at a time, which must come person by person, in percent signal change inside the probes' mask.

    Parameters
    ----------
    probes : Probes
    config : GlmConfig
    voxels_S : int array
        Voxels of the resampling.
    patterns : mapping of str to Pattern, optional
        Where and how strongly each condition answers in other people.
    n_groups : int, default 20
        The k-th person to come with a condition first is dealt to group ``k % n_groups``, so that no group holds a condition alone
        in whatever order samples come; 1 for no groups.
    as_samples : bool
        Every block is a sample of its own in group maps, as a generator's are; groups stay groups of people.
    keep_effects : bool
        Keep every block's effect at `voxels_S` (float16).
    """

    def __init__(
        self, probes: Probes, config: GlmConfig, voxels_S: np.ndarray, patterns: dict[str, Pattern] | None = None, *,
        n_groups: int = N_GROUPS, as_samples: bool = False, keep_effects: bool = True,
    ) -> None:  # fmt: skip
        self._probes, self._config, self._voxels, self._patterns = probes, config, voxels_S, patterns or {}
        self._as_samples, self._keep_effects = as_samples, keep_effects
        self._n_voxels = int(probes.mask_XYZ.sum())
        self._sums, self._parts = Sums(), [] if n_groups == 1 else [Sums()]
        self._n_groups = n_groups
        self._group_of: dict[str, int] = {}
        self._dealt: Counter[str] = Counter()
        self._rows: list[tuple] = []
        self._current: str | None = None
        self._several = False
        self._pending: dict[str, list[Estimate]] = {}
        self._rng = np.random.default_rng(0)
        self._store = WindowStore()

    def measure(self, window: Window) -> Measured:
        """What a window leaves."""
        block, percent, probes = window.block, window.percent_TV, self._probes
        design, estimate = block_design(block, self._config), fit_one(window, self._config)
        effect_V = estimate.effect
        n_frames = len(percent)
        remainder_TT = np.eye(n_frames) - design.matrix_TP @ design.pinv_PT
        residual_TU = remainder_TT.astype(np.float32) @ np.take(percent, probes.near_U, axis=1)
        residual_variance = estimate.variance.astype(np.float64) / design.covariance_PP[0, 0]
        cells_CT, parcels_PT, courses_RT = probes.project(percent)
        centring_TT = np.eye(n_frames) - 1 / n_frames
        gram_TT = centring_TT @ (percent @ percent.T).astype(np.float64) @ centring_TT
        anatomy_C = log_anatomy(probes.cells @ window.reference_V)
        change_C = np.log1p(np.maximum(cells_CT.mean(axis=1), -99.0) / 100.0).astype(np.float32)
        pattern = self._patterns.get(block.condition)
        nothing = np.float32(np.nan)
        numbers = (
            block.attributes.get("phase_encoding") or "",
            courses_RT,
            autocorrelation(gram_TT, min(N_LAGS, n_frames - 1)),
            power_spectrum(gram_TT, percent.shape[1]),
            smoothness_fwhm_mm(residual_TU, probes.pairs, probes.grid.voxel_mm),
            float(residual_variance.mean()),
            anatomy_C, anatomy_C + change_C, (cells_CT @ design.pinv_PT[0]).astype(np.float32),
            np.full(n_frames, nothing) if pattern is None else percent @ pattern.weights_V,
            nothing if pattern is None else effect_V @ pattern.weights_V,
            nothing if pattern is None or pattern.odd_weights_V is None else effect_V @ pattern.odd_weights_V,
            np.full(3, nothing) if pattern is None else pattern.place_mm(effect_V),
            effect_V[self._voxels].astype(np.float16) if self._keep_effects else np.zeros(0, np.float16),
        )  # fmt: skip
        connectivity_PP = fisher_correlation(parcels_PT @ remainder_TT)
        return Measured(
            block.subject, block.condition, numbers, estimate, residual_variance, connectivity_PP, cells_CT, anatomy_C
        )

    def add(self, one: Measured) -> None:
        """Add what `measure` found."""
        if one.subject != self._current:
            self._close_person()
            self._current = one.subject
        if one.subject not in self._group_of:
            self._group_of[one.subject] = self._dealt[one.condition] % self._n_groups
            self._dealt[one.condition] += 1
        group = self._group_of[one.subject]
        while self._n_groups > 1 and group >= len(self._parts):
            self._parts.append(Sums())
        for sums, at in self._targets(group):
            sums.accumulate(("blocks",), 1.0)
            sums.accumulate(("residual variance",), one.residual_variance_V[at])
            sums.accumulate(("connectivity",), one.connectivity_PP)
        self._pending.setdefault(one.condition, []).append(one.estimate)
        self._rows.append((one.subject, one.condition, group, *one.numbers))
        self._store.add(one.subject, one.condition, one.cells_CT, one.anatomy_C)

    def _targets(self, group: int) -> Iterator[tuple[Sums, np.ndarray | slice]]:
        yield self._sums, slice(None)
        if self._n_groups > 1:
            yield self._parts[group], self._voxels

    def _close_person(self) -> None:
        for condition, estimates in self._pending.items():
            people = [[e] for e in estimates] if self._as_samples else [estimates]
            self._several |= len(people[0]) > 1
            for own in people:
                mean_V = np.asarray(np.mean([e.effect for e in own], axis=0, dtype=np.float64))
                single_V = own[int(self._rng.integers(len(own)))].effect
                n_active = max(1, round(ACTIVE_SHARE * len(single_V)))
                active_V = np.zeros(len(single_V), bool)
                active_V[np.argpartition(single_V, -n_active)[-n_active:]] = True
                for sums, at in self._targets(self._group_of[str(self._current)]):
                    sums.people("people", condition, mean_V[at])
                    sums.people("single", condition, single_V[at])
                    sums.accumulate(("active", condition), active_V[at].astype(np.float64))
                variance_V = np.sum([e.variance for e in own], axis=0, dtype=np.float64) / len(own) ** 2
                self._sums.accumulate(("fixed", condition, "variance"), variance_V)
                self._sums.accumulate(("fixed", condition, "dof"), float(sum(e.dof for e in own)))
        self._pending = {}

    def take(self, windows: Iterable[Window]) -> Summary:
        """Reduce a stream of windows."""
        for window in windows:
            self.add(self.measure(window))
        return self.finish()

    def finish(self) -> Summary:
        """The summary of all windows."""
        self._close_person()
        if not self._several:
            for sums in (self._sums, *self._parts):
                for key in [key for key in sums if key[0] == "single"]:
                    del sums[key]
        rows = BlockRows(*(np.array(column) for column in zip(*self._rows, strict=True)))
        properties = Properties(rows, self._sums, self._parts, self._voxels, self._n_voxels)
        return Summary(properties, self._store.blocks().windows_NCT)


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
        """Conditions (K,) that have two or more blocks; effect and squared standard error of their group maps (K, V);
        courses of their patterns (K, T).
        """
        names = [key[1] for key, n in self._sums.items() if key[2:] == ("n",) and n >= 2]
        maps = [self._sums.group(name) for name in names]
        found = {
            "conditions": np.array(names, str),
            "effect": np.array([m.effect for m in maps]),
            "variance": np.array([m.variance for m in maps]),
        }
        means = [self._sums["mean", name] / self._sums["people", name, "n"] for name in names]
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

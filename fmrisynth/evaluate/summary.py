"""What is kept of a dataset: one pass over its windows, the same for real, synthetic and baseline data.

Nothing here grows with the number of subjects but a few thousand numbers per block; the windows on cells lie on disk.

Axis legend: N blocks, T frames, V voxels, S voxels of the resampling, C cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from tempfile import TemporaryFile

import numpy as np

from fmrisynth.config.glm import GlmConfig
from fmrisynth.evaluate.probes import Probes
from fmrisynth.evaluate.properties import N_GROUPS, Properties, PropertyAccumulator
from fmrisynth.evaluate.response import Pattern, make_pattern
from fmrisynth.evaluate.rois import positions_mm
from fmrisynth.glm.effects import fit_one
from fmrisynth.glm.windows import Window, block_design


class WindowStore:
    """Windows on cells (percent signal change averaged over cells), in a temporary file that ends with the object."""

    def __init__(self, probes: Probes) -> None:
        self._probes, self._n, self._width = probes, 0, 0
        self._file = TemporaryFile()  # noqa: SIM115 (lives as long as the array that maps it)
        self.people: list[str] = []
        self.anatomy: list[np.ndarray] = []

    def add(self, window: Window) -> None:
        """Append a window."""
        row = (self._probes.cells @ window.percent_TV.T).T.reshape(-1).astype(np.float32)
        self._file.write(row.tobytes())
        self._n, self._width = self._n + 1, row.size
        log_C = np.log(np.maximum(self._probes.cells @ window.reference_V, 1e-6))
        self.anatomy.append((log_C - log_C.mean()).astype(np.float32))
        self.people.append(window.block.subject)

    def watch(self, windows: Iterable[Window]) -> Iterator[Window]:
        """Pass windows through and append each."""
        for window in windows:
            self.add(window)
            yield window

    def windows_NCT(self) -> np.ndarray:
        """All windows, (N, C * T), mapped from disk."""
        self._file.flush()
        return np.memmap(self._file, np.float32, "r", shape=(self._n, self._width))


@dataclass(frozen=True, eq=False)
class Summary:
    """One dataset, reduced.

    Attributes
    ----------
    properties : Properties
        What the checks look at.
    windows_NCT : array of shape (N, C * T), float32
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
    def anatomy_NC(self) -> np.ndarray:
        """Log reference volume of each block on cells, mean removed."""
        return self.properties.rows.anatomy_NC

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return len(self.people_N)


class Summariser:
    """Takes windows one at a time; see `summarise`."""

    def __init__(
        self, probes: Probes, config: GlmConfig, voxels_S: np.ndarray, patterns: dict[str, Pattern] | None = None, *,
        n_groups: int = N_GROUPS, as_samples: bool = False, keep_effects: bool = False,
    ) -> None:  # fmt: skip
        self._config, self._store = config, WindowStore(probes)
        self._keep = PropertyAccumulator(
            probes, patterns or {}, voxels_S, n_groups=n_groups, as_samples=as_samples, keep_effects=keep_effects
        )

    def add(self, window: Window) -> None:
        """Add a window; they must come subject by subject."""
        self._keep.add(window, block_design(window.block, self._config), fit_one(window, self._config))
        self._store.add(window)

    def finish(self) -> Summary:
        """The summary of all windows."""
        return Summary(self._keep.finish(), self._store.windows_NCT())


def summarise(windows: Iterable[Window], summariser: Summariser) -> Summary:
    """Reduce a stream of windows in percent signal change, inside the probes' mask."""
    for window in windows:
        summariser.add(window)
    return summariser.finish()


def patterns_of(reference: Properties, probes: Probes, conditions: Iterable[str]) -> dict[str, Pattern]:
    """Where and how strongly each condition answers, from the group maps of the reference people (two or more)."""
    positions = positions_mm(probes.mask_XYZ, probes.grid)
    found = {}
    for condition in conditions:
        if reference.n_people(condition) >= 2:
            group = reference.group(condition)
            found[condition] = make_pattern(group.effect, group.variance, positions, probes.mirror_V)
    return found

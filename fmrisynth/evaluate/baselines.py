"""Three generators that need no network, fitted on the training split and scored like any other.

``class mean + residuals``
    the mean training window of the condition plus the residual (window minus its own class mean) of a
    random training block of *any* condition: right mean, right noise, no model of their dependence.
``PCA-Gaussian``
    a Gaussian with the condition's training mean and sample covariance; written in the training windows
    themselves, ``mean + sum_i w_i (x_i - mean) / sqrt(n - 1)`` with independent standard normal ``w``, which is PCA with
    all components kept.
``nearest training sample``
    for each synthetic block the training block nearest to it: what a look-up table would have scored.

Axis legend: N blocks, T frames, V voxels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from fmrisynth.evaluate.summary import Summary
from fmrisynth.glm.windows import Window

NAMES = ("class mean + residuals", "PCA-Gaussian", "nearest training sample")


class TrainingStore:
    """Class means of all training windows, and a random subset of the windows on disk (float32).

    Parameters
    ----------
    folder : Path
        Where the temporary file lies.
    per_condition : int
        Windows kept per condition (reservoir sampling: each has the same chance).
    seed : int
        Seed of the choice.
    """

    def __init__(self, folder: Path, per_condition: int, seed: int) -> None:
        self.folder, self.per_condition = folder, per_condition
        self.rng = np.random.default_rng(seed)
        self.counts: dict[str, int] = {}
        self.sums: dict[str, np.ndarray] = {}
        self.kept: dict[str, list[tuple[int, Window]]] = {}
        self.files: dict[str, np.memmap] = {}

    def watch(self, windows: Iterable[Window]) -> Iterator[Window]:
        """Pass windows through and remember them; `position` is their number in the stream."""
        for position, window in enumerate(windows):
            self._add(position, window)
            yield window

    def _add(self, position: int, window: Window) -> None:
        condition = window.block.condition
        if condition not in self.counts:
            self.counts[condition] = 0
            self.sums[condition] = np.zeros(window.percent_TV.shape)
            self.kept[condition] = []
            self.files[condition] = np.memmap(
                self.folder / f"{len(self.files)}.f32", np.float32, "w+",
                shape=(self.per_condition, *window.percent_TV.shape),
            )  # fmt: skip
        n = self.counts[condition]
        self.counts[condition] += 1
        self.sums[condition] += window.percent_TV
        slot = n if n < self.per_condition else int(self.rng.integers(n + 1))
        if slot >= self.per_condition:
            return
        self.files[condition][slot] = window.percent_TV
        record = (position, replace(window, percent_TV=np.zeros((0, 0), np.float32)))
        if slot < len(self.kept[condition]):
            self.kept[condition][slot] = record
        else:
            self.kept[condition].append(record)

    def mean(self, condition: str) -> np.ndarray:
        """Class mean over all training windows, (T, V)."""
        return self.sums[condition] / self.counts[condition]

    def window(self, condition: str, slot: int) -> Window:
        """A kept training window."""
        _, record = self.kept[condition][slot]
        return replace(record, percent_TV=np.array(self.files[condition][slot]))

    def positions(self, condition: str) -> list[int]:
        """Stream positions of the kept windows."""
        return [position for position, _ in self.kept[condition]]


@contextmanager
def training_store(out: Path, per_condition: int, seed: int) -> Iterator[TrainingStore]:
    """A `TrainingStore` whose file is deleted at the end."""
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out, prefix=".training-") as folder:
        yield TrainingStore(Path(folder), per_condition, seed)


def _renamed(window: Window, percent_TV: np.ndarray, name: str, number: int) -> Window:
    block = replace(window.block, subject=f"{name}{number + 1:04d}", split=None)
    return Window(block, percent_TV.astype(np.float32), window.reference_V)


def class_mean_residuals(store: TrainingStore, conditions: list[str], n: int, seed: int) -> Iterator[Window]:
    """`n` samples per condition of class mean plus a resampled residual."""
    rng = np.random.default_rng(seed)
    pool = [(c, slot) for c in store.kept for slot in range(len(store.kept[c]))]
    number = 0
    for condition in conditions:
        template = store.window(condition, 0)
        for _ in range(n):
            other, slot = pool[int(rng.integers(len(pool)))]
            residual = store.window(other, slot).percent_TV - store.mean(other)
            yield _renamed(template, store.mean(condition) + residual, "classmean", number)
            number += 1


def pca_gaussian(store: TrainingStore, conditions: list[str], n: int, seed: int) -> Iterator[Window]:
    """`n` samples per condition of a Gaussian with the training mean and covariance (kept windows)."""
    rng = np.random.default_rng(seed)
    number = 0
    for condition in conditions:
        kept = len(store.kept[condition])
        template = store.window(condition, 0)
        windows = store.files[condition][:kept]
        centre = windows.mean(axis=0)
        for _ in range(n):
            weights = rng.standard_normal(kept).astype(np.float32) / np.sqrt(max(kept - 1, 1))
            sample = centre + np.tensordot(weights, windows, axes=1) - weights.sum() * centre
            yield _renamed(template, sample, "gaussian", number)
            number += 1


def nearest_training(
    store: TrainingStore, train: Summary, synthetic: Summary, conditions: list[str], n: int
) -> Iterator[Window]:
    """For up to `n` synthetic blocks per condition, the nearest kept training window of that condition."""
    number = 0
    for condition in conditions:
        positions = np.array(store.positions(condition))
        candidates = train.windows_NCT[positions]
        for index in np.flatnonzero(synthetic.conditions_N == condition)[:n]:
            distance = np.linalg.norm(candidates - synthetic.windows_NCT[index], axis=1)
            window = store.window(condition, int(np.argmin(distance)))
            yield _renamed(window, window.percent_TV, "nearest", number)
            number += 1

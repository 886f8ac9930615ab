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

from fmrisynth.evaluate.summary import Summary, WindowStore
from fmrisynth.glm.windows import Window

NAMES = ("class mean + residuals", "PCA-Gaussian", "low-rank Gaussian", "nearest training sample")

MODE_SHARE = 0.5
"""Share of the residuals' variance that the modes of the low-rank Gaussian hold."""


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


def low_rank_gaussian(store: TrainingStore, conditions: list[str], n: int, seed: int) -> Iterator[Window]:
    """`n` samples per condition: class mean plus Gaussian noise with the leading modes of the kept residuals of all conditions.

    Residuals (window minus class mean) are scaled to unit variance per temporal frequency and voxel. Their leading modes that hold
    `MODE_SHARE` of the variance are drawn with the right covariance, the rest as independent noise of the variance that is missing.
    """
    from scipy.fft import dct, idct

    pool = [(c, slot) for c in store.kept for slot in range(len(store.kept[c]))]
    shape = store.window(*pool[0]).percent_TV.shape
    folder = store.folder / "residuals.f32"
    residuals_NFV = np.memmap(folder, np.float32, "w+", shape=(len(pool), *shape))
    for row, (condition, slot) in enumerate(pool):
        residual = store.window(condition, slot).percent_TV - store.mean(condition)
        kept = store.counts[condition]
        residual *= np.sqrt(kept / max(kept - 1, 1))
        residuals_NFV[row] = dct(residual, axis=0, norm="ortho")
    sd_FV = np.sqrt(np.mean([np.square(row) for row in residuals_NFV], axis=0))
    scale_FV = np.where(sd_FV > 0, 1 / np.maximum(sd_FV, 1e-12), 0).astype(np.float32)
    gram = np.zeros((len(pool), len(pool)))
    for row in range(shape[0]):  # one frequency at a time: all residuals do not fit in memory
        unit = residuals_NFV[:, row] * scale_FV[row]
        gram += unit @ unit.T
    values, vectors = np.linalg.eigh(gram)
    values, vectors = values[::-1].clip(min=0), vectors[:, ::-1]
    n_modes = int(np.searchsorted(np.cumsum(values) / values.sum(), MODE_SHARE)) + 1
    weights_NM = vectors[:, :n_modes] / np.sqrt(len(pool))
    explained_FV = np.zeros(shape, np.float32)
    for mode in range(n_modes):
        explained_FV += np.square(
            np.tensordot(weights_NM[:, mode].astype(np.float32), residuals_NFV, axes=1) * scale_FV
        )
    rest_FV = sd_FV * np.sqrt(np.maximum(1 - explained_FV, 0))
    rng = np.random.default_rng(seed)
    for number in range(n * len(conditions)):
        condition = conditions[number // n]
        drawn = (weights_NM @ rng.standard_normal(n_modes)).astype(np.float32)
        noise_FV = np.tensordot(drawn, residuals_NFV, axes=1) + rest_FV * rng.standard_normal(shape, np.float32)
        sample = store.mean(condition) + idct(noise_FV, axis=0, norm="ortho")
        yield _renamed(store.window(condition, 0), sample, "lowrank", number)


def nearest_training(
    store: TrainingStore, train: WindowStore, synthetic: Summary, conditions: list[str], n: int
) -> Iterator[Window]:
    """For up to `n` synthetic blocks per condition, the nearest kept training window of that condition."""
    number, train_NCT = 0, train.windows_NCT()
    for condition in conditions:
        candidates = train_NCT[np.array(store.positions(condition))]
        for index in np.flatnonzero(synthetic.conditions_N == condition)[:n]:
            distance = np.linalg.norm(candidates - synthetic.windows_NCT[index], axis=1)
            window = store.window(condition, int(np.argmin(distance)))
            yield _renamed(window, window.percent_TV, "nearest", number)
            number += 1

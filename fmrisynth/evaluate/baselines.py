"""Two generators that need no network, fitted on training blocks and scored like any other.

``class mean + residuals``
    the mean training window of the condition plus the residual (window minus its own class mean) of a random training block of *any*
    condition: right mean, right noise, no model of their dependence. It writes training data out again.
``low-rank Gaussian``
    the class mean plus Gaussian noise: the leading modes of the residuals of all conditions with their covariance, and
    independent noise of the variance that is missing in every temporal frequency and voxel.

Axis legend: N blocks, M modes, F temporal frequencies (T of them), T frames, V voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from tempfile import TemporaryFile

import numpy as np
from scipy.fft import dct

from fmrisynth.data.blocks import Block
from fmrisynth.glm.windows import Window

N_MODES = 50
MODE_VOXELS = 10_000
"""The modes' weights in the blocks are found at so many random voxels, and their maps at all."""

AT_ONCE = 20


def choose_blocks(train: list[Block], conditions: list[str], per_condition: int, seed: int) -> list[Block]:
    """At most so many random training blocks of each condition, in the order of the dataset."""
    rng = np.random.default_rng(seed)
    chosen: set[int] = set()
    for condition in conditions:
        own = [i for i, block in enumerate(train) if block.condition == condition]
        chosen |= {int(i) for i in rng.permutation(own)[:per_condition]}
    return [train[i] for i in sorted(chosen)]


class TrainingWindows:
    """Training windows in temporal frequencies (cosines), on disk, and their class means."""

    def __init__(self, windows: Iterable[Window]) -> None:
        self._file = TemporaryFile()  # noqa: SIM115 (lives as long as the object)
        self.example: dict[str, Window] = {}
        self.conditions: list[str] = []
        self.means: dict[str, np.ndarray] = {}
        for window in windows:
            condition, values_FV = window.block.condition, dct(window.percent_TV, axis=0, norm="ortho")
            self.shape = values_FV.shape
            self._file.write(values_FV.astype(np.float16).tobytes())
            self.conditions.append(condition)
            self.example.setdefault(condition, replace(window, percent_TV=np.zeros((0, 0), np.float32)))
            self.means[condition] = self.means.get(condition, 0.0) + values_FV
        self._file.flush()
        self.means = {c: (total / self.conditions.count(c)).astype(np.float32) for c, total in self.means.items()}

    def residual(self, row: int, frequency: int | None = None) -> np.ndarray:
        """A window minus its class mean, (F, V) or one frequency of it (V,), float32; scaled to the variance of new blocks."""
        condition, n_voxels = self.conditions[row], self.shape[1]
        first, count = (0, self.shape[0] * n_voxels) if frequency is None else (frequency * n_voxels, n_voxels)
        self._file.seek(2 * (row * self.shape[0] * n_voxels + first))
        values = np.frombuffer(self._file.read(2 * count), np.float16).astype(np.float32)
        mean_FV, n = self.means[condition], self.conditions.count(condition)
        mean = mean_FV if frequency is None else mean_FV[frequency]
        return (values.reshape(mean.shape) - mean) * np.float32(np.sqrt(n / max(n - 1, 1)))

    def sample(self, condition: str, noise_FV: np.ndarray, name: str, number: int) -> Window:
        """A window of the class mean and given noise."""
        example = self.example[condition]
        block = replace(example.block, subject=f"{name}{number + 1:04d}", split=None)
        percent_TV = dct(self.means[condition] + noise_FV, type=3, axis=0, norm="ortho")
        return Window(block, percent_TV.astype(np.float32), example.reference_V)


def class_mean_residuals(training: TrainingWindows, conditions: list[str], n: int, seed: int) -> Iterator[Window]:
    """`n` samples per condition of class mean plus the residual of a random training block."""
    rng = np.random.default_rng(seed)
    for number in range(n * len(conditions)):
        noise_FV = training.residual(int(rng.integers(len(training.conditions))))
        yield training.sample(conditions[number // n], noise_FV, "classmean", number)


def low_rank_gaussian(training: TrainingWindows, conditions: list[str], n: int, seed: int) -> Iterator[Window]:
    """`n` samples per condition of class mean plus Gaussian noise, `N_MODES` modes and the rest independent."""
    rng = np.random.default_rng(seed)
    (n_frequencies, n_voxels), n_blocks = training.shape, len(training.conditions)
    some_S = np.sort(rng.permutation(n_voxels)[:MODE_VOXELS])
    gram = np.zeros((n_blocks, n_blocks))
    variance_FV = np.zeros(training.shape, np.float32)
    for f in range(n_frequencies):  # one frequency at a time: all residuals do not fit in memory
        residuals_NV = np.stack([training.residual(row, f) for row in range(n_blocks)])
        variance_FV[f] = np.einsum("nv,nv->v", residuals_NV, residuals_NV) / n_blocks
        unit_NS = residuals_NV[:, some_S] / np.sqrt(np.maximum(variance_FV[f, some_S], 1e-12))
        gram += unit_NS @ unit_NS.T
    weights_NM = (np.linalg.eigh(gram)[1][:, -N_MODES:] / np.sqrt(n_blocks)).astype(np.float32)
    modes_MFV = np.empty((weights_NM.shape[1], *training.shape), np.float32)
    for f in range(n_frequencies):
        modes_MFV[:, f] = weights_NM.T @ np.stack([training.residual(row, f) for row in range(n_blocks)])
    rest_FV = np.sqrt(np.maximum(variance_FV - np.einsum("mfv,mfv->fv", modes_MFV, modes_MFV), 0.0))
    for first in range(0, n * len(conditions), AT_ONCE):
        numbers = range(first, min(first + AT_ONCE, n * len(conditions)))
        drawn_KM = rng.standard_normal((len(numbers), len(modes_MFV)), np.float32)
        common_KFV = np.tensordot(drawn_KM, modes_MFV, axes=1)
        for number, noise_FV in zip(numbers, common_KFV, strict=True):
            noise_FV += rest_FV * rng.standard_normal(training.shape, np.float32)
            yield training.sample(conditions[number // n], noise_FV, "lowrank", number)


GENERATORS: dict[str, Callable[[TrainingWindows, list[str], int, int], Iterator[Window]]] = {
    "class mean + residuals": class_mean_residuals, "low-rank Gaussian": low_rank_gaussian,
}  # fmt: skip

"""What is kept of a dataset: one pass over its windows, the same for real, synthetic and baseline data.

Nothing here holds a cohort in memory: per block a few thousand numbers are kept, per subject and
condition one effect map.

Axis legend: N blocks, T frames, V voxels, C cells, P parcels, R regions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import sparse

from fmrisynth.config.glm import GlmConfig
from fmrisynth.data.grid import Grid
from fmrisynth.evaluate.resampling import GroupEffects
from fmrisynth.evaluate.rois import Roi
from fmrisynth.glm.effects import EffectRow, EffectTable, combine_blocks, fit_one
from fmrisynth.glm.statistics import Estimate, RunningGroup
from fmrisynth.glm.windows import Window, block_design

CELL_VOXELS = 4
"""Cells have the size of a latent voxel of a 4x tokenizer: the space of the privacy audit and the classifiers."""

PARCEL_VOXELS = 8
MAX_PAIRS = 20_000
N_LAGS = 5


def cell_matrix(mask_XYZ: np.ndarray, side: int) -> sparse.csr_matrix:
    """Averaging over cubes of `side` voxels that lie at least half inside the mask.

    Returns
    -------
    csr_matrix of shape (C, V), float32
        Rows sum to one. If no cube is half full, all that touch the mask are kept.
    """
    where = np.argwhere(mask_XYZ) // side
    n_sides = -(-np.array(mask_XYZ.shape) // side)
    flat = np.asarray(np.ravel_multi_index(tuple(where.T), tuple(n_sides)))
    _, index, counts = np.unique(flat, return_inverse=True, return_counts=True)
    keep = counts >= side**3 / 2
    if not keep.any():
        keep = counts > 0
    number = np.cumsum(keep) - 1
    inside = keep[index]
    rows, columns = number[index[inside]], np.flatnonzero(inside)
    weights = (1.0 / counts[index[inside]]).astype(np.float32)
    return sparse.csr_matrix((weights, (rows, columns)), shape=(int(keep.sum()), len(flat)))


def neighbour_pairs(mask_XYZ: np.ndarray, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per axis, indices (into the mask's voxels) of neighbouring pairs, at most `MAX_PAIRS` of them."""
    number = np.full(mask_XYZ.shape, -1)
    number[mask_XYZ] = np.arange(int(mask_XYZ.sum()))
    rng = np.random.default_rng(seed)
    pairs = []
    for axis in range(3):
        low = np.take(number, range(mask_XYZ.shape[axis] - 1), axis=axis).ravel()
        high = np.take(number, range(1, mask_XYZ.shape[axis]), axis=axis).ravel()
        good = np.flatnonzero((low >= 0) & (high >= 0))
        if len(good) > MAX_PAIRS:
            good = rng.choice(good, MAX_PAIRS, replace=False)
        pairs.append((low[good], high[good]))
    return pairs


def smoothness_fwhm_mm(
    residual_TV: np.ndarray, pairs: Sequence[tuple[np.ndarray, np.ndarray]], voxel_mm: Sequence[float]
) -> float:
    """Smoothness of noise from the variance of neighbour differences (Forman et al. 1995).

    ``fwhm = d sqrt(-2 ln 2 / ln(1 - var(difference) / (2 var)))`` per axis with voxel side d; geometric mean over
    axes. NaN where the residuals do not vary or are rougher than white noise.
    """
    widths = []
    for (low, high), side in zip(pairs, voxel_mm, strict=True):
        if low.size == 0:
            continue
        a, b = residual_TV[:, low], residual_TV[:, high]
        variance = (np.square(a).mean() + np.square(b).mean()) / 2
        ratio = np.square(a - b).mean() / (2 * variance) if variance > 0 else np.nan
        if not 0 < ratio < 1:
            return float("nan")
        widths.append(side * np.sqrt(-2 * np.log(2) / np.log(1 - ratio)))
    return float(np.exp(np.mean(np.log(widths)))) if widths else float("nan")


def autocorrelation(centred_TV: np.ndarray, n_lags: int) -> np.ndarray:
    """Autocorrelation over time at lags 1 .. n_lags, pooled over voxels (biased estimator)."""
    total = float(np.square(centred_TV).sum(dtype=np.float64))
    if total <= 0:
        return np.full(n_lags, np.nan)
    return np.array(
        [float((centred_TV[lag:] * centred_TV[:-lag]).sum(dtype=np.float64)) / total for lag in range(1, n_lags + 1)]
    )


def power_spectrum(centred_TV: np.ndarray) -> np.ndarray:
    """Periodogram averaged over voxels, frequencies 1 .. T // 2 of the window (%^2)."""
    amplitude = np.fft.rfft(centred_TV, axis=0)[1:]
    return np.square(np.abs(amplitude)).mean(axis=1) / len(centred_TV)


@dataclass
class Probes:
    """The fixed projections that every window goes through."""

    grid: Grid
    mask_XYZ: np.ndarray
    rois: list[Roi]
    cells: sparse.csr_matrix = field(init=False)
    parcels: sparse.csr_matrix = field(init=False)
    regions: sparse.csr_matrix = field(init=False)
    pairs: list[tuple[np.ndarray, np.ndarray]] = field(init=False)

    def __post_init__(self) -> None:
        self.cells = cell_matrix(self.mask_XYZ, CELL_VOXELS)
        self.parcels = cell_matrix(self.mask_XYZ, PARCEL_VOXELS)
        if self.rois:
            weights = np.stack([roi.voxels_V / roi.voxels_V.sum() for roi in self.rois]).astype(np.float32)
        else:
            weights = np.zeros((0, int(self.mask_XYZ.sum())), np.float32)
        self.regions = sparse.csr_matrix(weights)
        self.pairs = neighbour_pairs(self.mask_XYZ)


@dataclass(frozen=True)
class BlockInfo:
    """What a row of the per-block arrays is."""

    subject: str
    condition: str
    phase_encoding: str | None


@dataclass(frozen=True)
class Summary:
    """One dataset, reduced.

    Attributes
    ----------
    blocks : list of BlockInfo
        N blocks.
    table : EffectTable
        Fixed effects per subject and condition.
    windows_NCT : array of shape (N, C * T), float32
        Percent signal change averaged over cells: the space of privacy audit and classifiers.
    anatomy_NC : array of shape (N, C), float32
        Log reference volume averaged over cells, mean removed.
    courses_NRT : array of shape (N, R, T)
        ROI mean time courses, percent.
    autocorrelation_NL, spectrum_NF, fwhm_mm_N : arrays
        Per block.
    residual_variance_V : array of shape (V,)
        Mean over blocks of the window GLM's residual variance.
    effect_variance : dict of str to array of shape (V,)
        Variance of single-block effects between blocks, per condition with two or more.
    connectivity_PP : array of shape (P, P)
        Mean over blocks (Fisher z) of parcel correlations of residuals.
    """

    blocks: list[BlockInfo]
    table: EffectTable
    windows_NCT: np.ndarray
    anatomy_NC: np.ndarray
    courses_NRT: np.ndarray
    autocorrelation_NL: np.ndarray
    spectrum_NF: np.ndarray
    fwhm_mm_N: np.ndarray
    residual_variance_V: np.ndarray
    effect_variance: dict[str, np.ndarray]
    connectivity_PP: np.ndarray

    @property
    def conditions_N(self) -> np.ndarray:
        """Condition of each block."""
        return np.array([block.condition for block in self.blocks])

    @property
    def subjects_N(self) -> np.ndarray:
        """Subject of each block."""
        return np.array([block.subject for block in self.blocks])


def summarise(windows: Iterable[Window], probes: Probes, config: GlmConfig) -> Summary:
    """Reduce a stream of windows, which must come subject by subject.

    Parameters
    ----------
    windows : iterable of Window
        In percent signal change, inside the probes' mask.
    probes : Probes
        Projections.
    config : GlmConfig
        The window GLM.
    """
    keep = _Accumulator(probes, config)
    for window in windows:
        keep.add(window)
    return keep.finish()


class _Accumulator:
    def __init__(self, probes: Probes, config: GlmConfig) -> None:
        self.probes, self.config = probes, config
        n_voxels, n_parcels = int(probes.mask_XYZ.sum()), probes.parcels.shape[0]
        self.blocks: list[BlockInfo] = []
        self.cells: list[np.ndarray] = []
        self.anatomy: list[np.ndarray] = []
        self.courses: list[np.ndarray] = []
        self.lags: list[np.ndarray] = []
        self.spectra: list[np.ndarray] = []
        self.widths: list[float] = []
        self.residual_variance = np.zeros(n_voxels)
        self.connectivity = np.zeros((n_parcels, n_parcels))
        self.spread: dict[str, RunningGroup] = {}
        self.rows: list[EffectRow] = []
        self.effects: list[np.ndarray] = []
        self.variances: list[np.ndarray] = []
        self.current: str | None = None
        self.split: str | None = None
        self.pending: dict[str, list[Estimate]] = {}

    def add(self, window: Window) -> None:
        block, percent = window.block, window.percent_TV
        if block.subject != self.current:
            self._close_subject()
            self.current, self.split = block.subject, block.split
        estimate = fit_one(window, self.config)
        self.pending.setdefault(block.condition, []).append(estimate)
        self.spread.setdefault(block.condition, RunningGroup(percent.shape[1])).add(estimate.effect)

        design = block_design(block, self.config)
        residual = (percent - (design.matrix_TP @ (design.pinv_PT @ percent.astype(np.float64)))).astype(np.float32)
        centred = percent - percent.mean(axis=0)
        probes = self.probes
        self.blocks.append(BlockInfo(block.subject, block.condition, block.attributes.get("phase_encoding")))
        self.cells.append((probes.cells @ percent.T).T.reshape(-1).astype(np.float32))
        self.anatomy.append(_log_anatomy(probes.cells @ window.reference_V))
        self.courses.append((probes.regions @ percent.T).astype(np.float32))
        self.lags.append(autocorrelation(centred, min(N_LAGS, len(percent) - 1)))
        self.spectra.append(power_spectrum(centred))
        self.widths.append(smoothness_fwhm_mm(residual, probes.pairs, probes.grid.voxel_mm))
        self.residual_variance += np.square(residual).sum(axis=0, dtype=np.float64) / design.dof
        self.connectivity += _fisher_correlation(probes.parcels @ residual.T)

    def _close_subject(self) -> None:
        for condition, estimates in self.pending.items():
            combined = combine_blocks(estimates)
            self.rows.append(EffectRow(str(self.current), condition, len(estimates), combined.dof, self.split))
            self.effects.append(combined.effect)
            self.variances.append(combined.variance)
        self.pending = {}

    def finish(self) -> Summary:
        self._close_subject()
        n = len(self.blocks)
        probes = self.probes
        spread = {
            condition: group.estimate().variance.astype(np.float64) * group.n
            for condition, group in self.spread.items() if group.n >= 2
        }  # fmt: skip
        return Summary(
            blocks=self.blocks,
            table=EffectTable(
                probes.grid, probes.mask_XYZ, tuple(self.rows), np.stack(self.effects), np.stack(self.variances)
            ),
            windows_NCT=np.stack(self.cells),
            anatomy_NC=np.stack(self.anatomy),
            courses_NRT=np.stack(self.courses),
            autocorrelation_NL=np.stack(self.lags),
            spectrum_NF=np.stack(self.spectra),
            fwhm_mm_N=np.array(self.widths),
            residual_variance_V=self.residual_variance / n,
            effect_variance=spread,
            connectivity_PP=np.tanh(self.connectivity / n),
        )


def _log_anatomy(cells_C: np.ndarray) -> np.ndarray:
    log = np.log(np.maximum(cells_C, 1e-6))
    return (log - log.mean()).astype(np.float32)


def _fisher_correlation(series_PT: np.ndarray) -> np.ndarray:
    centred = series_PT - series_PT.mean(axis=1, keepdims=True)
    norm = np.sqrt(np.square(centred).sum(axis=1, keepdims=True))
    unit = np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 0)
    r = np.clip(unit @ unit.T, -0.999, 0.999)
    np.fill_diagonal(r, 0.0)
    return np.arctanh(r)


def group_effects(table: EffectTable, conditions: Sequence[str]) -> GroupEffects:
    """Effect maps of a table, arranged for resampling."""
    subjects = tuple(table.subjects)
    number = {subject: index for index, subject in enumerate(subjects)}
    where = {condition: table.where(condition) for condition in conditions}
    return GroupEffects(
        tuple(conditions), subjects,
        {condition: table.effects_RV[index] for condition, index in where.items()},
        {condition: np.array([number[table.rows[i].subject] for i in index], int) for condition, index in where.items()},
    )  # fmt: skip

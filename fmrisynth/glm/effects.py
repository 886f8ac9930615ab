"""Effects of subjects: window GLM per block, fixed effects per condition, in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fmrisynth.config.glm import GlmConfig
from fmrisynth.data.blocks import Block, common_grid
from fmrisynth.data.grid import Grid
from fmrisynth.errors import FmrisynthError
from fmrisynth.glm.contrasts import Contrast
from fmrisynth.glm.design import Design
from fmrisynth.glm.statistics import Estimate, fit_windows, fixed_effects
from fmrisynth.glm.windows import Window, block_design, common_mask, iterate_windows


@dataclass(frozen=True)
class EffectRow:
    """One row of an `EffectTable`: a subject's fixed effect of one condition."""

    subject: str
    condition: str
    n_blocks: int
    dof: float
    split: str | None = None


@dataclass(frozen=True)
class EffectTable:
    """Effects of many subjects inside one mask.

    Attributes
    ----------
    grid : Grid
    mask_XYZ : bool array
        V voxels.
    rows : tuple of EffectRow
        What each row of the arrays is.
    effects_RV, variances_RV : array of shape (R, V), float32
        Percent signal change, and its squared standard error.
    """

    grid: Grid
    mask_XYZ: np.ndarray
    rows: tuple[EffectRow, ...]
    effects_RV: np.ndarray
    variances_RV: np.ndarray

    @property
    def conditions(self) -> list[str]:
        """Condition labels, in order of first appearance."""
        return list(dict.fromkeys(row.condition for row in self.rows))

    @property
    def subjects(self) -> list[str]:
        """Subject labels, in order of first appearance."""
        return list(dict.fromkeys(row.subject for row in self.rows))

    def where(self, condition: str) -> np.ndarray:
        """Indices of a condition's rows."""
        return np.array([i for i, row in enumerate(self.rows) if row.condition == condition], dtype=int)


def fit_one(window: Window, config: GlmConfig) -> Estimate:
    """Effect of one window's block, arrays of shape (V,)."""
    design = block_design(window.block, config)
    if config.resolved_noise_model == "ar1":
        return _fit_ar1(window.percent_TV, design)
    estimate = fit_windows(window.percent_TV[None], design)
    return Estimate(estimate.effect[0], estimate.variance[0], estimate.dof)


def _fit_ar1(percent_TV: np.ndarray, design: Design) -> Estimate:
    from nilearn.glm.contrasts import compute_contrast
    from nilearn.glm.first_level import run_glm

    labels, results = run_glm(percent_TV.astype(np.float64), design.matrix_TP, noise_model="ar1")
    contrast = np.zeros(len(design.names))
    contrast[0] = 1.0
    found = compute_contrast(labels, results, contrast)
    return Estimate(
        np.asarray(found.effect_size(), np.float32).reshape(-1),
        np.asarray(found.effect_variance(), np.float32).reshape(-1),
        float(design.dof),
    )


def combine_blocks(estimates: Sequence[Estimate]) -> Estimate:
    """Fixed effect over a subject's blocks of one condition."""
    return fixed_effects(
        np.stack([e.effect for e in estimates]),
        np.stack([e.variance for e in estimates]),
        np.array([e.dof for e in estimates]),
    )


def combine_conditions(contrast: Contrast, estimates: dict[str, Estimate]) -> Estimate:
    """A contrast of independent conditions: weighted effects, squared-weighted variances, summed dof."""
    effect = sum(w * estimates[c].effect.astype(np.float64) for c, w in contrast.weights.items())
    variance = sum(w**2 * estimates[c].variance.astype(np.float64) for c, w in contrast.weights.items())
    return Estimate(
        np.asarray(effect, np.float32), np.asarray(variance, np.float32),
        float(sum(estimates[c].dof for c in contrast.weights)),
    )  # fmt: skip


def fit_subject(windows: Iterable[Window], config: GlmConfig) -> dict[str, tuple[Estimate, int]]:
    """Fixed effects of one subject: condition -> (estimate, number of blocks)."""
    found: dict[str, list[Estimate]] = {}
    for window in windows:
        found.setdefault(window.block.condition, []).append(fit_one(window, config))
    return {condition: (combine_blocks(list_), len(list_)) for condition, list_ in found.items()}


def subject_effects(
    blocks: Sequence[Block],
    config: GlmConfig | None = None,
    *,
    grid: Grid | None = None,
    mask_XYZ: np.ndarray | None = None,
) -> EffectTable:
    """Effects of all subjects of a block dataset, without any file being written.

    Subjects are read one at a time; what is held is two float32 maps per subject and condition.

    Parameters
    ----------
    blocks : sequence of Block
        Blocks of one dataset (or of several on one grid).
    config : GlmConfig, optional
        The window GLM.
    grid, mask_XYZ : optional
        Grid and voxels; default the first block's grid and the voxels usable in every block.

    Returns
    -------
    EffectTable
    """
    if not blocks:
        raise FmrisynthError("there are no blocks to analyse; check the split, the conditions and the dataset.")
    config = config or GlmConfig()
    grid = grid or common_grid(blocks)
    if mask_XYZ is None:
        mask_XYZ = common_mask(blocks, grid, config.min_reference_fraction)
    by_subject: dict[str, list[Block]] = {}
    for block in blocks:
        by_subject.setdefault(block.subject, []).append(block)
    rows, effects, variances = [], [], []
    for subject, own in by_subject.items():
        for condition, (estimate, n) in fit_subject(iterate_windows(own, mask_XYZ, grid, config), config).items():
            rows.append(EffectRow(subject, condition, n, estimate.dof, own[0].split))
            effects.append(estimate.effect)
            variances.append(estimate.variance)
    return EffectTable(grid, mask_XYZ, tuple(rows), np.stack(effects), np.stack(variances))

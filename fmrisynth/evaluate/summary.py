"""What is kept of a dataset: one pass over its windows, the same for real, synthetic and baseline data.

Nothing here holds a cohort in memory: per block a few thousand numbers are kept, per subject and
condition one effect map.

Axis legend: N blocks, T frames, V voxels, C cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fmrisynth.config.glm import GlmConfig
from fmrisynth.evaluate.probes import Probes
from fmrisynth.evaluate.properties import N_GROUPS, Properties, PropertyAccumulator
from fmrisynth.evaluate.resampling import GroupEffects
from fmrisynth.glm.effects import EffectRow, EffectTable, combine_blocks, fit_one
from fmrisynth.glm.statistics import Estimate
from fmrisynth.glm.windows import Window, block_design


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
    block_effects_RV : array of shape (R, V), float32
        For each row of the table the effect of one of its blocks, chosen at random; a synthetic sample has only one.
    windows_NCT : array of shape (N, C * T), float32
        Percent signal change averaged over cells: the space of privacy audit and classifiers.
    anatomy_NC : array of shape (N, C), float32
        Log reference volume averaged over cells, mean removed.
    properties : Properties
        What the realism checks look at.
    """

    blocks: list[BlockInfo]
    table: EffectTable
    block_effects_RV: np.ndarray
    windows_NCT: np.ndarray
    anatomy_NC: np.ndarray
    properties: Properties

    @property
    def conditions_N(self) -> np.ndarray:
        """Condition of each block."""
        return self.properties.conditions_N

    @property
    def subjects_N(self) -> np.ndarray:
        """Subject of each block."""
        return self.properties.subjects_N


def summarise(windows: Iterable[Window], probes: Probes, config: GlmConfig, *, n_groups: int = N_GROUPS) -> Summary:
    """Reduce a stream of windows, which must come subject by subject.

    Parameters
    ----------
    windows : iterable of Window
        In percent signal change, inside the probes' mask.
    probes : Probes
        Projections.
    config : GlmConfig
        The window GLM.
    n_groups : int, default 20
        Groups of subjects that can be left out of the properties; each costs memory for two maps per condition.
    """
    keep = _Accumulator(probes, config, n_groups)
    for window in windows:
        keep.add(window)
    return keep.finish()


class _Accumulator:
    def __init__(self, probes: Probes, config: GlmConfig, n_groups: int) -> None:
        self.probes, self.config = probes, config
        self.properties = PropertyAccumulator(probes, n_groups)
        self.blocks: list[BlockInfo] = []
        self.cells: list[np.ndarray] = []
        self.anatomy: list[np.ndarray] = []
        self.rows: list[EffectRow] = []
        self.effects: list[np.ndarray] = []
        self.block_effects: list[np.ndarray] = []
        self.variances: list[np.ndarray] = []
        self.current: str | None = None
        self.split: str | None = None
        self.pending: dict[str, list[Estimate]] = {}
        self.rng = np.random.default_rng(0)

    def add(self, window: Window) -> None:
        block, percent = window.block, window.percent_TV
        if block.subject != self.current:
            self._close_subject()
            self.current, self.split = block.subject, block.split
        estimate = fit_one(window, self.config)
        self.pending.setdefault(block.condition, []).append(estimate)
        self.properties.add(window, block_design(block, self.config), estimate.effect)
        self.blocks.append(BlockInfo(block.subject, block.condition, block.attributes.get("phase_encoding")))
        self.cells.append((self.probes.cells @ percent.T).T.reshape(-1).astype(np.float32))
        self.anatomy.append(_log_anatomy(self.probes.cells @ window.reference_V))

    def _close_subject(self) -> None:
        for condition, estimates in self.pending.items():
            combined = combine_blocks(estimates)
            self.rows.append(EffectRow(str(self.current), condition, len(estimates), combined.dof, self.split))
            self.effects.append(combined.effect)
            self.variances.append(combined.variance)
            chosen = int(self.rng.integers(len(estimates)))
            self.block_effects.append(combined.effect if len(estimates) == 1 else estimates[chosen].effect)
        self.pending = {}

    def finish(self) -> Summary:
        self._close_subject()
        effects_RV = np.stack(self.effects)
        single = all(row.n_blocks == 1 for row in self.rows)
        return Summary(
            blocks=self.blocks,
            table=EffectTable(
                self.probes.grid,
                self.probes.mask_XYZ,
                tuple(self.rows),
                effects_RV,
                np.stack(self.variances),
            ),
            block_effects_RV=effects_RV if single else np.stack(self.block_effects),
            windows_NCT=np.stack(self.cells),
            anatomy_NC=np.stack(self.anatomy),
            properties=self.properties.finish(),
        )


def _log_anatomy(cells_C: np.ndarray) -> np.ndarray:
    log = np.log(np.maximum(cells_C, 1e-6))
    return (log - log.mean()).astype(np.float32)


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

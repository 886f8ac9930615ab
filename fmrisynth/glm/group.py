"""Group maps with an honest label of the model behind them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fmrisynth.glm.effects import EffectTable
from fmrisynth.glm.statistics import Estimate, fixed_effects, random_effects

RANDOM_EFFECTS = "random effects over subjects"
SINGLE_SUBJECT = "single subject: fixed effects"


@dataclass(frozen=True)
class GroupMap:
    """A group map of one condition or contrast.

    Attributes
    ----------
    estimate : Estimate
        Effect, variance, dof over V voxels.
    model : str
        `RANDOM_EFFECTS` or `SINGLE_SUBJECT`.
    n_subjects, n_blocks : int
        What went in.
    """

    estimate: Estimate
    model: str
    n_subjects: int
    n_blocks: int


def group_map(table: EffectTable, condition: str) -> GroupMap:
    """The group map of a condition; one subject falls back to its own fixed effects, and says so."""
    where = table.where(condition)
    n_blocks = sum(table.rows[i].n_blocks for i in where)
    if len(where) >= 2:
        return GroupMap(random_effects(table.effects_RV[where]), RANDOM_EFFECTS, len(where), n_blocks)
    dofs = np.array([table.rows[i].dof for i in where])
    estimate = fixed_effects(table.effects_RV[where], table.variances_RV[where], dofs)
    return GroupMap(estimate, SINGLE_SUBJECT, len(where), n_blocks)

"""Pairs of sessions of one person, for forecasts: what comes later, from what was before.

Axis legend: F = C*T, X Y Z latent grid.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fmrisynth.config.train import DELTA_T
from fmrisynth.data.attributes import Number, Values
from fmrisynth.data.latents import LatentRow
from fmrisynth.errors import FmrisynthError
from fmrisynth.train.dataset import TrainingLatents


class TrainingPairs(TrainingLatents):
    """An instance is an ordered pair of sessions of a person: `read` gives the later one, `start` the earlier one.

    The attributes are those of the earlier session, and how many years later the other was (`DELTA_T`), by the ages at both. The
    modality has to be the same.

    Attributes
    ----------
    pairs : list of (int, int)
        Rows of the earlier and of the later session.

    Raises
    ------
    FmrisynthError
        Nobody has two sessions at different, known ages.
    """

    def __init__(self, root: Path, leave_out: Sequence[str] = ()) -> None:
        super().__init__(root, leave_out)
        self._ages = {i: age for i, row in enumerate(self.dataset.rows) if (age := age_of(row)) is not None}
        sessions: dict[tuple[str, str, str | None], list[int]] = {}
        for i in self._ages:
            row = self.dataset.rows[i]
            sessions.setdefault((row.subject, row.condition, row.split), []).append(i)
        self.pairs = [
            (one, other)
            for own in sessions.values()
            for one in own
            for other in own
            if self._ages[one] < self._ages[other]
        ]
        if not self.pairs:
            raise FmrisynthError(
                f"{self.root}: expected people with sessions at different ages, found none; give ages (numbers of years) in the dataset's "
                "table of sessions and prepare again."
            )

    def select(self, split: str) -> list[int]:
        """See `TrainingLatents.select`."""
        return [i for i in range(len(self.pairs)) if self.row(i).split == split]

    def read(self, instance: int) -> Tensor:
        """The later session, see `TrainingLatents.read`."""
        return super().read(self.pairs[instance][1])

    def start(self, instance: int) -> Tensor:
        """The earlier session, (F, X, Y, Z)."""
        return super().read(self.pairs[instance][0])

    def row(self, instance: int) -> LatentRow:
        """What is known of the earlier session."""
        return self.dataset.rows[self.pairs[instance][0]]

    def years(self, instance: int) -> float:
        """Between the two sessions."""
        one, other = self.pairs[instance]
        return self._ages[other] - self._ages[one]

    def attribute(self, instance: int, name: str) -> str | None:
        """See `TrainingLatents.attribute`."""
        return repr(self.years(instance)) if name == DELTA_T else super().attribute(instance, name)

    def vocabulary(
        self, instances: Sequence[int], names: Sequence[str], numbers: Collection[str] = ()
    ) -> dict[str, Values]:
        """See `TrainingLatents.vocabulary`; time is told in units of its root mean square, so 0 is 0 and all may be the same."""
        found = super().vocabulary(instances, names, [name for name in numbers if name != DELTA_T])
        squares = [self.years(i) ** 2 for i in instances]
        return found | {DELTA_T: Number(0.0, math.sqrt(sum(squares) / len(squares)))}

    def amounts(self, instances: Sequence[int]) -> dict[str, int]:
        """How many sessions and people some pairs are of."""
        sessions = {number for i in instances for number in self.pairs[i]}
        return super().amounts(instances) | {"n_instances": len(sessions)}

    def extent(self, instances: Sequence[int]) -> dict[str, Any]:
        """How many pairs, and the shortest and the longest time between two sessions, years."""
        years = [self.years(i) for i in instances]
        return {"n_pairs": len(years), DELTA_T: [min(years), max(years)]}

    def describe(self, instance: int) -> str:
        """See `TrainingLatents.describe`."""
        one, other = self.pairs[instance]
        return f"sub-{self.row(instance).subject} rows {one} and {other}"


def age_of(row: LatentRow) -> float | None:
    """Age at a session, years; None where it is not known or no number (HCP gives ranges)."""
    try:
        age = float(row.attributes["age"])
    except (KeyError, ValueError):
        return None
    return age if math.isfinite(age) else None

"""What a forecast is of: written into its sidecar by `sample`, read by `evaluate`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmrisynth.bids import naming
from fmrisynth.data.blocks import Block, read_blocks, subjects_of
from fmrisynth.errors import FmrisynthError
from fmrisynth.parse import read_json

KEY = "Forecast"


@dataclass(frozen=True)
class ForecastOf:
    """Whose later anatomy, from which scan.

    Attributes
    ----------
    dataset, baseline : str
        Name of the dataset; the reference volume in it that the forecast starts at, a path relative to it.
    age, years : float
        Age at that scan, and how much later the forecast is, years.
    within_training : bool
        Whether training saw times as long and as short.
    """

    dataset: str
    baseline: str
    age: float
    years: float
    within_training: bool

    def sidecar(self) -> dict[str, Any]:
        """The key of a sidecar; times are in years."""
        return {
            KEY: {
                "Dataset": self.dataset, "Baseline": self.baseline, "BaselineAge": self.age, "DeltaT": self.years,
                "WithinTraining": self.within_training,
            }
        }  # fmt: skip


def forecast_of(block: Block) -> ForecastOf | None:
    """What a block's sidecar says; None where it is no forecast.

    Raises
    ------
    FmrisynthError
        The sidecar cannot be read.
    """
    path = block.root / naming.block_companion(block.bold, "sidecar")
    try:
        said = dict(read_json(path)).get(KEY)
        if said is None:
            return None
        found = ForecastOf(
            str(said["Dataset"]), str(said["Baseline"]), float(said["BaselineAge"]), float(said["DeltaT"]), bool(said["WithinTraining"])
        )  # fmt: skip
        if not (math.isfinite(found.age) and math.isfinite(found.years)):
            raise ValueError("a time is not finite")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise FmrisynthError(
            f"{path}: what it is a forecast of cannot be read ({error!r}); make the forecast again."
        ) from None
    return found


def are_forecasts(root: Path) -> bool:
    """Whether a dataset holds forecasts."""
    return forecast_of(read_blocks(root, subjects=subjects_of(root)[:1])[0]) is not None

"""What happens in every frame of a run: how long each condition is on, as the network is told it.

Axis legend: T frames of a run, S frames of a window and before it, K conditions, D descriptors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fmrisynth.bids.events import Event
from fmrisynth.bids.sidecars import read_tsv
from fmrisynth.conditions import suggest
from fmrisynth.errors import FmrisynthError, UsageError

IMPULSE_S = 0.5
"""How long an event counts that has no duration."""


def occupancy(events: Sequence[Event], conditions: Sequence[str], n_frames: int, tr_s: float) -> np.ndarray:
    """Share of every frame's interval during which each condition is on, times its modulation.

    Frame t stands for the interval from t to t + 1 repetition times after the start of the run.

    Parameters
    ----------
    events : sequence of Event
        Seconds after the start of the run; parts outside the run do not count.
    conditions : sequence of str
        Columns.
    n_frames : int
        T.
    tr_s : float
        Repetition time, seconds.

    Returns
    -------
    float32 array of shape (T, K)
        Where events of one condition overlap, their shares add up.

    Raises
    ------
    UsageError
        An event is of no known condition.
    """
    columns = {condition: column for column, condition in enumerate(conditions)}
    starts_T = tr_s * np.arange(n_frames)
    on_TK = np.zeros((n_frames, len(conditions)))
    for event in events:
        if event.label not in columns:
            raise UsageError(f"The model does not know {event.label!r}: {suggest(event.label, conditions)}")
        end_s = event.onset_s + (event.duration_s or IMPULSE_S)
        shared_T = np.minimum(end_s, starts_T + tr_s) - np.maximum(event.onset_s, starts_T)
        on_TK[:, columns[event.label]] += event.modulation * shared_T.clip(min=0) / tr_s
    return on_TK.astype(np.float32)


def window_occupancy(on_TK: np.ndarray, first: int, n_frames: int, n_before: int) -> np.ndarray:
    """The rows of a window and of `n_before` frames before it, (S, K); rows outside the run are 0."""
    rows = np.arange(first - n_before, first + n_frames)
    inside = (rows >= 0) & (rows < len(on_TK))
    window_SK = np.zeros((len(rows), on_TK.shape[1]), dtype=np.float32)
    window_SK[inside] = on_TK[rows[inside]]
    return window_SK


def read_descriptors(path: Path) -> dict[str, tuple[float, ...]]:
    """Descriptors of conditions: a table with the column ``condition``, then columns of numbers.

    Raises
    ------
    FmrisynthError
        The table cannot be read, a condition stands twice, or a cell is no finite number.
    """
    rows = read_tsv(path, ("condition",))
    names = [name for name in (rows[0] if rows else {}) if name != "condition"]
    if not names:
        raise FmrisynthError(f"{path}: expected the column condition and columns of numbers, found no numbers.")
    found: dict[str, tuple[float, ...]] = {}
    for line, row in enumerate(rows, start=2):
        try:
            values = tuple(float(row[name]) for name in names)
        except ValueError:
            values = (np.nan,)
        if not np.isfinite(values).all() or row["condition"] in found:
            raise FmrisynthError(
                f"{path}: expected finite numbers for a condition named once, found otherwise in line {line}."
            )
        found[row["condition"]] = values
    return found

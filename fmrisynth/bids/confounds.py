"""Confound tables: which columns are regressors, and which frames are no signal.

The named strategies and their columns are those of nilearn's ``load_confounds``; names of fMRIPrep 1.x are understood
too. Whatever the strategy, frames that a table marks as non-steady-state or as outliers are never used as signal.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmrisynth.bids.sidecars import read_tsv
from fmrisynth.errors import FmrisynthError

_MOTION = r"(trans|rot)_[xyz]"
_FULL = r"(_derivative1)?(_power2)?"
STRATEGIES: dict[str, str] = {
    "none": "(?!)",
    "auto": rf"{_MOTION}|csf|white_matter",
    "simple": rf"{_MOTION}{_FULL}|csf|white_matter",
    "scrubbing": rf"({_MOTION}|csf|white_matter){_FULL}",
}
"""Strategy -> regular expression of the columns it takes.

``auto``: 6 movement parameters, CSF and white matter. ``simple`` and ``scrubbing``: as in nilearn's
``load_confounds_strategy``, without its high-pass, which the design has; `SCRUB` says which frames ``scrubbing`` drops.
"""

SCRUB = {"framewise_displacement": 0.5, "std_dvars": 1.5}
"""``scrubbing`` drops frames above these (mm; standardised), and stretches of fewer than `MIN_STRETCH` between them."""

MIN_STRETCH = 5
_BAD_FRAME = re.compile(r"(non_steady_state|motion)_outlier_?\d+")


@dataclass(frozen=True)
class Confounds:
    """A table of confounds.

    Attributes
    ----------
    path : Path
        Where it came from.
    columns : dict of str to array of shape (n_frames,)
        Numeric columns in today's names; missing values of first frames are the column's mean.
    bad_frames : frozenset of int
        Frames marked as non-steady-state or outlying.
    """

    path: Path
    columns: dict[str, np.ndarray]
    bad_frames: frozenset[int]

    def regressors(self, strategy: str) -> dict[str, np.ndarray]:
        """The regressors of a named strategy; constant columns are left out."""
        pattern = re.compile(STRATEGIES[strategy])
        return {name: values for name, values in self.columns.items() if pattern.fullmatch(name) and np.ptp(values) > 0}

    def dropped(self, strategy: str) -> frozenset[int]:
        """Frames that are no signal under a named strategy: `bad_frames`, and what ``scrubbing`` adds."""
        if strategy != "scrubbing":
            return self.bad_frames
        n_frames = max((len(values) for values in self.columns.values()), default=0)
        good = np.ones(n_frames, dtype=bool)
        good[sorted(self.bad_frames)] = False
        for name, limit in SCRUB.items():
            if name in self.columns:
                good &= self.columns[name] <= limit
        edges = np.flatnonzero(np.diff(np.concatenate([[0], good.astype(int), [0]])))
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            if stop - start < MIN_STRETCH:
                good[start:stop] = False
        return frozenset(map(int, np.flatnonzero(~good)))


def read_confounds(path: Path, n_frames: int | None) -> Confounds:
    """Read a confounds table of fMRIPrep, or HCP's ``Movement_Regressors.txt``.

    Parameters
    ----------
    path : Path
        The table; one that ends with ``.txt`` has no header and HCP's twelve columns.
    n_frames : int or None
        Frames of the run; None where they are not known.

    Raises
    ------
    FmrisynthError
        Unreadable table, another number of rows than frames, or a regressor that is no number.
    """
    rows = _rows_of_hcp(path) if path.suffix == ".txt" else read_tsv(path)
    if n_frames is not None and len(rows) != n_frames:
        raise FmrisynthError(
            f"{path}: expected one row per frame ({n_frames}), found {len(rows)}; check that it belongs to the run."
        )
    columns: dict[str, np.ndarray] = {}
    bad: set[int] = set()
    wanted = re.compile("|".join([*STRATEGIES.values(), *SCRUB]))
    for name in rows[0] if rows else ():
        known = _today(name)
        marks = _BAD_FRAME.fullmatch(known)
        if marks or wanted.fullmatch(known):
            values = _numbers(path, name, [row[name] for row in rows])
            if marks:
                bad |= set(map(int, np.flatnonzero(np.nan_to_num(values) != 0)))
            else:
                mean = np.nanmean(values) if np.isfinite(values).any() else 0.0
                columns[known] = np.where(np.isfinite(values), values, mean)
    return Confounds(path, columns, frozenset(bad))


def _numbers(path: Path, name: str, cells: Sequence[str]) -> np.ndarray:
    try:
        values = np.array([np.nan if cell.strip() in ("", "n/a", "NaN", "nan") else float(cell) for cell in cells])
    except ValueError as error:
        raise FmrisynthError(
            f"{path}: a confound holds something that is no number ({name}: {error}); correct the table."
        ) from None
    return np.where(np.isfinite(values), values, np.nan)


def _today(name: str) -> str:
    """A column's name as fMRIPrep writes it now: ``RotX`` -> ``rot_x``, ``NonSteadyStateOutlier00`` -> ..."""
    snake = re.sub(r"(?<=[a-z])(?=[A-Z0-9])", "_", name).lower() if re.search("[A-Z]", name) else name
    return {"x": "trans_x", "y": "trans_y", "z": "trans_z"}.get(snake, snake)


def _rows_of_hcp(path: Path) -> list[dict[str, str]]:
    names = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]
    names += [f"{name}_derivative1" for name in names]
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise FmrisynthError(f"{path}: the movement regressors cannot be read ({error}).") from None
    if any(len(cells) != len(names) for cells in lines):
        raise FmrisynthError(f"{path}: expected {len(names)} columns of movement regressors; get the file again.")
    return [dict(zip(names, cells, strict=True)) for cells in lines]

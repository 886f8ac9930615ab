"""``fmrisynth evaluate --unit anatomy`` of forecasts: do people change as forecast?

A probe of age that learned from real training people reads how much older a brain has become (Van Puyvelde et al. 2026, BrainG3N,
Section 3.4), and volumes are compared voxel by voxel with the person's own later scan.

Axis legend: N pairs of a forecast and the real follow-up, D features, P people, X Y Z voxel axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from fmrisynth.bids.origin import read_origin
from fmrisynth.config.evaluate import EvaluateConfig
from fmrisynth.data.blocks import Block, anatomies_of, common_grid, read_blocks, subjects_of
from fmrisynth.data.forecasts import ForecastOf, forecast_of
from fmrisynth.data.grid import Grid
from fmrisynth.embed.probes import correlation, ridge_numbers
from fmrisynth.errors import FmrisynthError
from fmrisynth.evaluate.anatomies import cells, slope, volume_of
from fmrisynth.progress import count, log, track
from fmrisynth.report import Element, Figure, Page, Section, Table, Text
from fmrisynth.report.brain import mosaic
from fmrisynth.report.html import banner_of

MATCH_YEARS = 0.25
"""A scan so near to the time of a forecast is its real follow-up."""

LEAST_TRAINED, LEAST_HELD_OUT = 20, 5
"""People in training, for the probe, and outside, for the numbers."""

SHOWN = 3
"""People in the picture."""

FORECAST, NO_CHANGE, MEAN_CHANGE, FOLLOW_UP = (
    "forecast",
    "no change",
    "mean change of training people",
    "real follow-up",
)

Interval = tuple[float, float, float]


@dataclass(frozen=True)
class Pair:
    """A forecast and what came of the person.

    Attributes
    ----------
    said : ForecastOf
    forecast, baseline, follow_up : Block
    """

    said: ForecastOf
    forecast: Block
    baseline: Block
    follow_up: Block


@dataclass(frozen=True)
class Row:
    """How well one way to say what will be does; intervals are of 95 %, None where there is none.

    Attributes
    ----------
    name : str
    r_years, slope_years : Interval or None
        Of the change in probed age, on the years that passed.
    r_real, slope_real : Interval or None
        On the change in probed age of the real follow-up.
    error : Interval or None
        Root mean square difference from the real follow-up over that of the earlier scan, geometric mean: below 1 is better than no
        change.
    pattern : Interval or None
        Correlation over voxels of the change with the real one, mean.
    """

    name: str
    r_years: Interval | None
    slope_years: Interval | None
    r_real: Interval | None
    slope_real: Interval | None
    error: Interval | None
    pattern: Interval | None


@dataclass(frozen=True)
class Measured:
    """Changes of one way to say what will be, one a pair."""

    age_N: np.ndarray
    error_N: np.ndarray
    pattern_N: np.ndarray


def evaluate_forecasts(
    real_root: Path, synthetic_root: Path, config: EvaluateConfig
) -> tuple[dict[str, Any], Page, list[str]]:
    """Compare forecasts with what came; see `fmrisynth.evaluate.run_stage.evaluate_runs`.

    Raises
    ------
    FmrisynthError
        Too few people in training or with a real follow-up, or another grid.
    """
    real = [
        block
        for subject in subjects_of(real_root)
        for block in anatomies_of(read_blocks(real_root, subjects=[subject]))
    ]
    grid = common_grid(real)
    pairs, n_alone, n_trained = match(real_root, synthetic_root, real)
    trained = [block for block in real if block.split == "train" and _age(block) is not None]
    n_training, n_people = len({b.subject for b in trained}), len({p.forecast.subject for p in pairs})
    if n_training < LEAST_TRAINED or n_people < LEAST_HELD_OUT:
        raise FmrisynthError(
            f"{synthetic_root}: expected {LEAST_TRAINED} training people with ages in {real_root.name}, and forecasts of "
            f"{LEAST_HELD_OUT} others who have a scan at that time, found {n_training} and {n_people}; forecast people outside the "
            "training split at the times of their later sessions (`sample --from` without delta_t)."
        )
    probe, mean_change_XYZ = learn(trained, grid)
    years_N = np.array([pair.said.years for pair in pairs])
    people_N = np.array([pair.forecast.subject for pair in pairs])
    measured, shown = measure(pairs, grid, probe, mean_change_XYZ)
    rows = [row_of(name, one, years_N, measured[FOLLOW_UP].age_N, people_N) for name, one in measured.items()]
    metrics = {
        "unit": "anatomy", "kind": "forecasts",
        "datasets": {"real": {"name": real_root.name, "origin": read_origin(real_root).to_json(), "training_people": n_training},
                     "forecasts": {"name": synthetic_root.name, "origin": read_origin(synthetic_root).to_json()}},
        "people": n_people, "pairs": len(pairs), "without_follow_up": n_alone, "of_training_people": n_trained,
        "years": sorted(set(years_N.tolist())),
        "outside_training_times": sum(not pair.said.within_training for pair in pairs),
        "rows": {row.name: asdict(row) for row in rows}, "config_hash": config.digest(),
    }  # fmt: skip
    lines = [
        f"{count(len(pairs), 'forecast')} of {n_people} people who were not trained on, {years_N.min():g} to {years_N.max():g} years on",
        *(_told(row) for row in rows),
    ]
    if n_alone or n_trained:
        lines.append(f"Left out: {n_alone} without a scan at that time, {n_trained} of training people")
    page = Page(
        title="Forecasts against what came" + (" (phantom)" if read_origin(real_root).is_phantom else ""),
        subtitle=lines[1],
        banner=banner_of(read_origin(real_root), read_origin(synthetic_root)),
        facts=(("real", f"{real_root.name}: {n_training} people in training"), ("forecasts", f"{synthetic_root.name}: {lines[0]}")),
        sections=[
            Section("How people change", _table(rows)),
            Section("Where", _pictures(shown, grid)),
            Section("Methods", [Text(_METHODS)]),
        ],
    )  # fmt: skip
    return metrics, page, lines


_METHODS = (
    "The probe is ridge regression of age on the mean intensities of cells, of all sessions of the real training people (see the "
    "evaluation of drawn anatomies). Its change from the earlier scan is compared with the years that passed and with its change in the "
    "person's real follow-up. Slopes are least squares with a constant; ridge regression shrinks ages, so the slope to reach is that "
    "of the real follow-up. Mean change: the change a year of the training people, voxel by voxel, by regression through the origin "
    "over all pairs of their sessions, times the years. Errors and correlations of changes are over voxels of either brain. Intervals "
    "of 95 % leave out one person at a time (jackknife). Forecasts of training people are left out."
)


def match(real_root: Path, forecast_root: Path, real: Sequence[Block]) -> tuple[list[Pair], int, int]:
    """Forecasts with their baseline and real follow-up; how many have none, and how many are of training people.

    Raises
    ------
    FmrisynthError
        A baseline is not in the real dataset, or a volume is no forecast.
    """
    baselines = {block.reference_path.relative_to(real_root).as_posix(): block for block in real}
    pairs, n_alone, n_trained = [], 0, 0
    for block in read_blocks(forecast_root):
        said = forecast_of(block)
        if said is None:
            raise FmrisynthError(
                f"{block.path}: expected a forecast as the others are, found none; keep them in a folder of their own."
            )
        baseline = baselines.get(said.baseline)
        if baseline is None or baseline.subject != block.subject:
            raise FmrisynthError(
                f"{block.path}: is a forecast from {said.baseline} of {said.dataset}, which is not in {real_root}; give the dataset "
                "that was named with --from."
            )
        if baseline.split == "train":
            n_trained += 1
            continue
        at = said.age + said.years
        later = [
            (abs(age - at), b)
            for b in real
            if b.subject == block.subject and b is not baseline and (age := _age(b)) is not None
        ]
        near = [b for off, b in sorted(later, key=lambda one: one[0]) if off <= MATCH_YEARS]
        if near and said.years > 0:
            pairs.append(Pair(said, block, baseline, near[0]))
        else:
            n_alone += 1
    if not any(block.split == "train" for block in real):
        log.warning(
            "%s: says of nobody that they were trained on, so forecasts of training people cannot be told.", real_root
        )
    return pairs, n_alone, n_trained


def learn(trained: Sequence[Block], grid: Grid) -> tuple[Callable[[np.ndarray], np.ndarray], np.ndarray]:
    """A probe of age, and the change of the volume in a year, of training people."""
    rows, ages = [], []
    change_XYZ, total = np.zeros(grid.shape), 0.0
    seen: list[tuple[float, np.ndarray]] = []
    for number, block in enumerate(track(trained, "Training people", total=len(trained))):
        if number and block.subject != trained[number - 1].subject:
            seen = []
        volume_XYZ, age = volume_of(block, grid), _age(block)
        assert age is not None
        for other, before_XYZ in seen:
            change_XYZ += (age - other) * (volume_XYZ - before_XYZ)
            total += (age - other) ** 2
        seen.append((age, volume_XYZ))
        rows.append(cells(volume_XYZ))
        ages.append(age)
    probe = ridge_numbers(np.stack(rows), np.array(ages))
    return probe.predict, (change_XYZ / total if total else change_XYZ).astype(np.float32)


def measure(
    pairs: Sequence[Pair], grid: Grid, probe: Callable[[np.ndarray], np.ndarray], mean_change_XYZ: np.ndarray
) -> tuple[dict[str, Measured], list[tuple[Pair, np.ndarray, np.ndarray, np.ndarray]]]:
    """Changes of every way, by pair; and (pair, earlier scan, real change, change as forecast) of the first people."""
    found: dict[str, list[tuple[float, float, float]]] = {
        name: [] for name in (FORECAST, NO_CHANGE, MEAN_CHANGE, FOLLOW_UP)
    }
    shown: dict[str, tuple[Pair, np.ndarray, np.ndarray, np.ndarray]] = {}
    for pair in track(pairs, "Forecasts", total=len(pairs)):
        before_XYZ, after_XYZ, said_XYZ = (volume_of(b, grid) for b in (pair.baseline, pair.follow_up, pair.forecast))
        mean_XYZ = np.where(before_XYZ > 0, before_XYZ + np.float32(pair.said.years) * mean_change_XYZ, 0)
        ways = {FORECAST: said_XYZ, NO_CHANGE: before_XYZ, MEAN_CHANGE: mean_XYZ, FOLLOW_UP: after_XYZ}
        ages = dict(zip(ways, probe(np.stack([cells(v) for v in ways.values()])), strict=True))
        inside = (before_XYZ > 0) | (after_XYZ > 0) | (said_XYZ > 0)
        real_V = (after_XYZ - before_XYZ)[inside]
        if not real_V.any():
            raise FmrisynthError(
                f"{pair.follow_up.reference_path}: is the same volume as the earlier scan; give the person's own later scan."
            )
        for name, volume_XYZ in ways.items():
            change_V = (volume_XYZ - before_XYZ)[inside]
            error = float(np.sqrt(np.square(change_V - real_V).mean() / np.square(real_V).mean()))
            pattern = float(np.corrcoef(change_V, real_V)[0, 1]) if change_V.any() else np.nan
            found[name].append((float(ages[name] - ages[NO_CHANGE]), error, pattern))
        shown.setdefault(pair.forecast.subject, (pair, before_XYZ, after_XYZ - before_XYZ, said_XYZ - before_XYZ))
        if len(shown) > SHOWN:
            shown.pop(pair.forecast.subject)
    return {name: Measured(*map(np.array, zip(*values, strict=True))) for name, values in found.items()}, list(
        shown.values()
    )


def row_of(name: str, one: Measured, years_N: np.ndarray, real_age_N: np.ndarray, people_N: np.ndarray) -> Row:
    """The numbers of one way, with intervals."""
    still = bool(np.ptp(one.age_N) == 0)

    def of(number: Callable[[np.ndarray], float]) -> Interval | None:
        return jackknife(number, people_N)

    varies = np.ptp(years_N) > 0
    return Row(
        name,
        of(lambda i: correlation(years_N[i], one.age_N[i])) if varies and not still else None,
        of(lambda i: slope(years_N[i], one.age_N[i])) if varies else None,
        of(lambda i: correlation(real_age_N[i], one.age_N[i])) if name != FOLLOW_UP and not still else None,
        of(lambda i: slope(real_age_N[i], one.age_N[i])) if name != FOLLOW_UP else None,
        of(lambda i: float(np.exp(np.log(one.error_N[i].clip(1e-9)).mean()))) if name != FOLLOW_UP else None,
        of(lambda i: float(one.pattern_N[i].mean())) if name not in (FOLLOW_UP, NO_CHANGE) else None,
    )


def jackknife(number: Callable[[np.ndarray], float], people_N: np.ndarray) -> Interval:
    """A number of pairs, and its 95 % interval by leaving out one person at a time (Student's t).

    Parameters
    ----------
    number : callable
        Of the indices of pairs.
    people_N : array of str
        Whose pair it is.
    """
    everyone = np.arange(len(people_N))
    names = np.unique(people_N)
    value, n = number(everyone), len(names)
    left_out = np.array([number(everyone[people_N != name]) for name in names])
    reach = float(stdtrit(n - 1, 0.975) * np.sqrt((n - 1) * left_out.var()))
    return value, value - reach, value + reach


def _age(block: Block) -> float | None:
    try:
        age = float(block.attributes["age"])
    except (KeyError, ValueError):
        return None
    return age if np.isfinite(age) else None


def _shown(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval[0]:.2f} [{interval[1]:.2f}, {interval[2]:.2f}]"


def _told(row: Row) -> str:
    parts = [
        f"{what} {_shown(value)}"
        for what, value in (
            ("on the years r", row.r_years), ("slope", row.slope_years), ("on the real change r", row.r_real), ("slope", row.slope_real),
            ("voxel error", row.error), ("pattern r", row.pattern),
        )
        if value is not None
    ]  # fmt: skip
    return f"{row.name}: {', '.join(parts)}"


def _table(rows: Sequence[Row]) -> list[Element]:
    columns = [
        "", "r, years", "slope, years", "r, real change", "slope, real change", "voxel error / no change", "pattern of the change, r",
    ]  # fmt: skip
    cells_ = [
        [row.name, *map(_shown, (row.r_years, row.slope_years, row.r_real, row.slope_real, row.error, row.pattern))] for row in rows
    ]  # fmt: skip
    said = "Change in probed age against the years that passed and against the change in the real follow-up; then voxel by voxel."
    return [Table(columns, cells_, said)]


def _pictures(shown: Sequence[tuple[Pair, np.ndarray, np.ndarray, np.ndarray]], grid: Grid) -> list[Element]:
    figures: list[Element] = []
    for number, (pair, before_XYZ, real_XYZ, said_XYZ) in enumerate(shown, 1):
        mask_XYZ = before_XYZ > 0
        limit = float(np.percentile(np.abs(real_XYZ[mask_XYZ]), 99)) or 1.0
        rows = [("real change", real_XYZ), ("change as forecast", said_XYZ)]
        figure = mosaic(rows, before_XYZ, mask_XYZ, grid, limits=[limit] * 2, unit="units of the brain's mean")
        said = f"sub-{pair.forecast.subject}, {pair.said.years:g} years after {pair.said.age:g}; one scale, over the earlier scan."
        figures.append(Figure.of(figure, said, name=f"person-{number}"))
    return figures

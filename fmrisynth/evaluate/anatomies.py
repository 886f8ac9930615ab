"""``fmrisynth evaluate --unit anatomy``: do synthetic people look like people, like those asked for, and like nobody in particular?

What was asked for is read back by probes that learned it from real anatomies (Van Puyvelde et al. 2026, BrainG3N, Section 3.3).

Axis legend: N people, D features (cells of 4 x 4 x 4 voxels), X Y Z voxel axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmrisynth.bids.origin import read_origin
from fmrisynth.config.evaluate import EvaluateConfig
from fmrisynth.data.blocks import ATTRIBUTES, Block, common_grid, further_attributes, read_blocks
from fmrisynth.data.grid import Grid
from fmrisynth.data.normalisation import normalise
from fmrisynth.embed.probes import MAX_CLASSES, as_numbers, balanced_accuracy, correlation, ridge_classes, ridge_numbers
from fmrisynth.errors import FmrisynthError
from fmrisynth.evaluate.slices import MISSING, compare_slices, slices_section
from fmrisynth.progress import count, track
from fmrisynth.report import Element, Figure, Page, Section, Table, Text
from fmrisynth.report.brain import mosaic
from fmrisynth.report.html import banner_of

CELL = 4
"""Side of a feature's cell, voxels."""

SOME_BRAIN = 0.05
"""A mean volume that is brighter, in units of the brain's mean, has brain there in somebody."""

FOLDS, RESAMPLES = 5, 1000
LEAST_PEOPLE = 20


@dataclass(frozen=True)
class People:
    """The anatomies of a dataset, one a row.

    Attributes
    ----------
    blocks : list of Block
    features_ND : float32 array
        Intensity in units of the brain's mean, averaged over cells; 0 outside the brain.
    volume_N : array
        Of the brain mask, ml.
    mean_XYZ, std_XYZ : float32 arrays
        Over people, of the same values before averaging.
    """

    blocks: list[Block]
    features_ND: np.ndarray
    volume_N: np.ndarray
    mean_XYZ: np.ndarray
    std_XYZ: np.ndarray

    def values(self, name: str) -> list[str | None]:
        """An attribute of each person."""
        return [block.attributes.get(name) for block in self.blocks]

    def of_split(self, split: str) -> np.ndarray:
        """Rows of one split."""
        return np.array([i for i, block in enumerate(self.blocks) if block.split == split], dtype=int)


@dataclass(frozen=True)
class Control:
    """How well an attribute can be read from real people, and from those it was asked of.

    Attributes
    ----------
    name, measure : str
        ``r`` of a number, ``accuracy`` (balanced) of labels.
    real, asked : (value, low, high) or None
        Real people in folds whose probe has not seen them; synthetic people against what was asked, with 95 % bootstrap intervals.
    slope_real, slope_asked : float or None
        Of what is read on the truth (numbers): below 1 because ridge regression shrinks.
    n_real, n_asked, n_open : int
        People with the attribute; synthetic people of whom it was asked, and of whom it was left open.
    typical_real, typical_open : float or None
        Mean of what is read (numbers), or share of the last label: of real people, and where it was left open.
    """

    name: str
    measure: str
    real: tuple[float, float, float]
    asked: tuple[float, float, float] | None
    slope_real: float | None
    slope_asked: float | None
    n_real: int
    n_asked: int
    n_open: int
    typical_real: float
    typical_open: float | None


def evaluate_anatomies(
    real_root: Path, synthetic_root: Path, config: EvaluateConfig
) -> tuple[dict[str, Any], Page, list[str]]:
    """Compare two datasets of anatomies; see `fmrisynth.evaluate.run_stage.evaluate_runs`.

    Raises
    ------
    FmrisynthError
        Another grid, or too few people.
    """
    real_blocks, synthetic_blocks = (_first_blocks(root) for root in (real_root, synthetic_root))
    grid = common_grid(real_blocks)
    real, synthetic = read_people(real_blocks, grid), read_people(synthetic_blocks, grid)
    rng = np.random.default_rng(config.seed)
    names = [*ATTRIBUTES, *further_attributes(real_blocks)]
    controls = [c for name in names if (c := control(name, real, synthetic, rng)) is not None]
    spread = spread_ratio(real.features_ND, synthetic.features_ND, rng)
    privacy = nearest(real, synthetic)
    slices = compare_slices(
        real_blocks, synthetic_blocks, lambda block: volume_of(block, grid), real.mean_XYZ > SOME_BRAIN, grid,
        tokenizer_folder=config.tokenizer, inception=config.inception, seed=config.seed,
    )  # fmt: skip
    metrics = {
        "unit": "anatomy",
        "datasets": {
            name: {"name": root.name, "people": len(people.blocks), "origin": read_origin(root).to_json()}
            for name, root, people in (("real", real_root, real), ("synthetic", synthetic_root, synthetic))
        },
        "brain_volume_ml": {
            name: {"mean": float(people.volume_N.mean()), "sd": float(people.volume_N.std(ddof=1))}
            for name, people in (("real", real), ("synthetic", synthetic))
        },
        "attributes": [asdict(one) for one in controls], "spread": spread, "privacy": privacy,
        "slices": None if slices is None else slices.to_json(), "config_hash": config.digest(),
    }  # fmt: skip
    lines = [_told(one) for one in controls]
    sizes = (f"{people.volume_N.mean():.0f} ± {people.volume_N.std(ddof=1):.0f}" for people in (synthetic, real))
    lines.append("Brain volume, synthetic and real: {} and {} ml (mean and SD)".format(*sizes))
    lines.append(f"Spread between people, synthetic / real: {spread[0]:.2f} [{spread[1]:.2f}, {spread[2]:.2f}]")
    if privacy is not None:
        lines.append(
            f"Nearest training anatomy: {privacy['ratio']:.2f} times as far as for people who were not trained on; "
            f"{count(privacy['n_close'], 'synthetic person')} closer than 95 % of them."
        )
    phantom = read_origin(real_root).is_phantom
    page = Page(
        title="Anatomies: synthetic against " + ("phantom" if phantom else "real"),
        subtitle=lines[-2] if privacy is not None else lines[-1],
        banner=banner_of(read_origin(real_root), read_origin(synthetic_root)),
        facts=(
            ("real", f"{real_root.name}: {len(real.blocks)} people"),
            ("synthetic", f"{synthetic_root.name}: {len(synthetic.blocks)} people"),
        ),
        sections=[
            Section("What was asked for", _control_table(controls)),
            Section("Between people", _spread_section(real, synthetic, grid, lines[len(controls) :])),
            Section("Slices seen by a network", slices_section(slices)),
            Section("Methods", [Text(_METHODS)]),
        ],
    )
    return metrics, page, lines + (["Note: " + MISSING] if slices is None else [slices.sentence, *slices.notes])


_METHODS = (
    f"A feature is the mean intensity of a cell of {CELL} x {CELL} x {CELL} voxels in units of the brain's mean, 0 outside the brain. "
    "Probes are those of fmrisynth embed: ridge regression (numbers) and ridge classification (labels) of standardised features, their "
    "strength chosen by leave-one-out among the people "
    f"they are fitted to. Real: {FOLDS} folds over real people. As asked: a probe of all real people reads the synthetic ones. Left open: "
    "synthetic people of whom the attribute was not asked. Intervals are 95 % bootstrap intervals over people. Spread is the summed "
    "variance of the features over people. Distances to the nearest training anatomy are Euclidean in these features, of synthetic "
    "people and of real people outside the training split."
)


def _first_blocks(root: Path) -> list[Block]:
    """The first anatomy of each person."""
    first = list({block.subject: block for block in reversed(read_blocks(root))}.values())[::-1]
    if len(first) < LEAST_PEOPLE:
        raise FmrisynthError(
            f"{root}: expected at least {LEAST_PEOPLE} people, found {len(first)}; take more, the numbers would say nothing."
        )
    return first


def read_people(blocks: Sequence[Block], grid: Grid) -> People:
    """Read the reference volume of each person.

    Raises
    ------
    FmrisynthError
        A volume lies on another grid.
    """
    rows, volumes, total, squares = [], [], np.zeros(grid.shape), np.zeros(grid.shape)
    for block in track(blocks, "Anatomies", total=len(blocks)):
        volume_XYZ = volume_of(block, grid)
        total += volume_XYZ
        squares += np.square(volume_XYZ, dtype=np.float64)
        rows.append(cells(volume_XYZ))
        volumes.append(block.load_mask().sum() * np.prod(grid.voxel_mm) / 1000)
    mean_XYZ = total / len(rows)
    std_XYZ = np.sqrt(np.maximum(squares / len(rows) - mean_XYZ**2, 0))
    return People(
        list(blocks), np.stack(rows), np.array(volumes), mean_XYZ.astype(np.float32), std_XYZ.astype(np.float32)
    )


def volume_of(block: Block, grid: Grid) -> np.ndarray:
    """The reference volume of a person in units of the brain's mean, 0 outside the brain, float32.

    Raises
    ------
    FmrisynthError
        It lies on another grid.
    """
    if not block.load_grid().same_as(grid):
        raise FmrisynthError(
            f"{block.path}: its grid differs from that of the first real person; resample one of them."
        )
    data = block.load()
    return normalise(data.reference_XYZ[..., None], data.reference_XYZ, data.mask_XYZ, "relative")[..., 0]


def cells(volume_XYZ: np.ndarray) -> np.ndarray:
    """Means over cells, flat; sides are filled up with zeros."""
    padded = np.pad(volume_XYZ, [(0, -side % CELL) for side in volume_XYZ.shape])
    x, y, z = (side // CELL for side in padded.shape)
    return padded.reshape(x, CELL, y, CELL, z, CELL).mean(axis=(1, 3, 5)).ravel().astype(np.float32)


def control(name: str, real: People, synthetic: People, rng: np.random.Generator) -> Control | None:
    """Read an attribute from real people and from synthetic ones; None where it does not vary over real people, or is a name."""
    from sklearn.model_selection import KFold

    known = np.array([i for i, value in enumerate(real.values(name)) if value is not None], dtype=int)
    texts = [real.values(name)[i] or "" for i in known]
    if len(known) < LEAST_PEOPLE or len(set(texts)) < 2:
        return None
    labels = sorted(set(texts))
    number = len(labels) > MAX_CLASSES and as_numbers(np.array(labels)) is not None
    if not number and len(labels) > MAX_CLASSES:  # names, most likely
        return None

    def code(text: str) -> float | int:
        return float(text) if number else labels.index(text)

    truth_N = np.array([code(text) for text in texts])
    fit = ridge_numbers if number else ridge_classes
    answer_N = np.zeros_like(truth_N)
    for train, test in KFold(FOLDS, shuffle=True, random_state=0).split(known):
        answer_N[test] = fit(real.features_ND[known[train]], truth_N[train]).predict(real.features_ND[known[test]])
    probe = fit(real.features_ND[known], truth_N).predict
    asked = [i for i, value in enumerate(synthetic.values(name)) if value is not None and (number or value in labels)]
    left_open = [i for i, value in enumerate(synthetic.values(name)) if value is None]
    score = correlation if number else balanced_accuracy
    asked_scores, slope_asked = None, None
    if len(asked) > 1:
        wanted_N = np.array([code(synthetic.values(name)[i] or "") for i in asked])
        if np.ptp(wanted_N) > 0:
            read_N = probe(synthetic.features_ND[asked])
            asked_scores = _with_interval(score, wanted_N, read_N, rng)
            slope_asked = slope(wanted_N, read_N) if number else None
    return Control(
        name=name, measure="r" if number else "accuracy", real=_with_interval(score, truth_N, answer_N, rng), asked=asked_scores,
        slope_real=slope(truth_N, answer_N) if number else None, slope_asked=slope_asked,
        n_real=len(known), n_asked=len(asked), n_open=len(left_open), typical_real=float(answer_N.mean()),
        typical_open=float(probe(synthetic.features_ND[left_open]).mean()) if left_open else None,
    )  # fmt: skip


def spread_ratio(real_ND: np.ndarray, synthetic_ND: np.ndarray, rng: np.random.Generator) -> tuple[float, float, float]:
    """Summed variance over people, synthetic / real, with a 95 % bootstrap interval over the people of both."""

    def power(x_ND: np.ndarray) -> np.ndarray:
        n = len(x_ND)
        return np.square(x_ND - x_ND.mean(axis=0)).sum(axis=1, dtype=np.float64) * n / (n - 1)

    one_N, other_N = power(real_ND), power(synthetic_ND)
    ratios = [
        other_N[rng.integers(len(other_N), size=len(other_N))].mean()
        / one_N[rng.integers(len(one_N), size=len(one_N))].mean()
        for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(other_N.mean() / one_N.mean()), float(low), float(high)


def nearest(real: People, synthetic: People) -> dict[str, Any] | None:
    """Distances to the nearest training anatomy, of synthetic people and of real people outside the training split."""
    train = real.of_split("train")
    others = np.setdiff1d(np.arange(len(real.blocks)), train)
    if len(train) < LEAST_PEOPLE or len(others) < LEAST_PEOPLE:
        return None
    trained_ND = real.features_ND[train]
    floor_N, own_N = (_distances(x, trained_ND) for x in (real.features_ND[others], synthetic.features_ND))
    return {
        "ratio": float(np.median(own_N) / np.median(floor_N)), "n_close": int((own_N < np.percentile(floor_N, 5)).sum()),
        "n": len(own_N), "expected_close": 0.05 * len(own_N),
    }  # fmt: skip


def _distances(x_ND: np.ndarray, among_MD: np.ndarray) -> np.ndarray:
    squared_NM = np.square(x_ND).sum(1)[:, None] + np.square(among_MD).sum(1) - 2 * x_ND @ among_MD.T
    return np.sqrt(np.maximum(squared_NM, 0)).min(axis=1)


def _with_interval(
    score: Callable[[np.ndarray, np.ndarray], float],
    truth_N: np.ndarray,
    answer_N: np.ndarray,
    rng: np.random.Generator,
) -> tuple[float, float, float]:
    draws = (rng.integers(len(truth_N), size=len(truth_N)) for _ in range(RESAMPLES))
    low, high = np.nanpercentile([score(truth_N[d], answer_N[d]) for d in draws], [2.5, 97.5])
    return score(truth_N, answer_N), float(low), float(high)


def slope(truth_N: np.ndarray, answer_N: np.ndarray) -> float:
    """Least squares slope of the answer on the truth, with a constant."""
    centred_N = truth_N - truth_N.mean()
    return float(centred_N @ answer_N / (centred_N @ centred_N))


def _interval(values: tuple[float, float, float] | None) -> str:
    return "not asked" if values is None else f"{values[0]:.2f} [{values[1]:.2f}, {values[2]:.2f}]"


def _told(one: Control) -> str:
    return f"{one.name} ({one.measure}): real people {_interval(one.real)}, as asked {_interval(one.asked)}"


def _control_table(controls: Sequence[Control]) -> list[Element]:
    if not controls:
        return [Text("No attribute varies over the real people.", note=True)]
    columns = [
        "attribute", "measure", "real", "as asked", "slope, real", "slope, as asked", "mean, real", "mean, left open",
        "people, real", "asked", "open",
    ]  # fmt: skip

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    rows = [
        [c.name, c.measure, _interval(c.real), _interval(c.asked), number(c.slope_real), number(c.slope_asked), number(c.typical_real),
         number(c.typical_open), c.n_real, c.n_asked, c.n_open]
        for c in controls
    ]  # fmt: skip
    said = (
        "How well a probe reads an attribute from people it has not seen, and from synthetic people of whom a value was asked. Means "
        "are of what is read; of labels the share of the last one."
    )
    return [Table(columns, rows, said)]


def _spread_section(real: People, synthetic: People, grid: Grid, lines: Sequence[str]) -> list[Element]:
    mask_XYZ = (real.mean_XYZ > SOME_BRAIN) | (synthetic.mean_XYZ > SOME_BRAIN)
    rows = [
        ("standard deviation, real", real.std_XYZ), ("standard deviation, synthetic", synthetic.std_XYZ),
        ("difference of the means", synthetic.mean_XYZ - real.mean_XYZ),
    ]  # fmt: skip
    limit = float(np.percentile(real.std_XYZ[mask_XYZ], 99.5))
    figure = mosaic(rows, real.mean_XYZ, mask_XYZ, grid, limits=[limit] * 3, unit="units of the brain's mean")
    said = "How people differ, voxel by voxel, and how the mean synthetic person differs from the mean real one; one scale."
    return [Text(" ".join(f"{line.rstrip('.')}." for line in lines)), Figure.of(figure, said, name="spread")]

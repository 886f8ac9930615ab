"""Utility: what synthetic blocks are worth to who wants to decode conditions from real ones.

As the field measures it (conditional ICA, Tajini et al. 2021): a classifier is trained on n real people's blocks with so many times as many
synthetic ones added, and tested on other real people; class mean plus noise, and noise added to the real blocks, are the controls.

Axis legend: N blocks, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fmrisynth.evaluate.checks import BY_KEY, Verdict
from fmrisynth.evaluate.distinguish import in_turn
from fmrisynth.evaluate.jackknife import MIN_SUBJECTS
from fmrisynth.evaluate.summary import Summary

REAL_PEOPLE = (2, 5, 10)
MULTIPLES = (0, 1, 3)
N_REPEATS = 3
"""Draws of the real people of a cell of the grid."""


def _standardised(train_x: np.ndarray, test_x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    centre, scale = train_x.mean(axis=0), train_x.std(axis=0)
    scale = np.where(scale > 1e-6 * max(float(scale.max()), 1e-12), scale, np.inf)
    return (train_x - centre) / scale, (test_x - centre) / scale


def classify(train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray) -> np.ndarray:
    """Predict conditions with a ridge classifier on features standardised by the training set.

    The penalty is the number of features, so that a feature's weight is shrunk by half when it carries as
    much noise as signal; classes are weighted equally.
    """
    from sklearn.linear_model import RidgeClassifier

    train, test = _standardised(train_x, test_x)
    model = RidgeClassifier(alpha=float(train_x.shape[1]), class_weight="balanced")
    return np.asarray(model.fit(train, train_y).predict(test))


def classify_by_discriminant(train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray) -> np.ndarray:
    """Predict conditions with a linear discriminant (Ledoit-Wolf covariance) on the leading components."""
    from sklearn.decomposition import PCA
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    train, test = _standardised(train_x, test_x)
    components = PCA(min(50, len(train) - 1, train.shape[1]), random_state=0).fit(train)
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    return np.asarray(model.fit(components.transform(train), train_y).predict(components.transform(test)))


CLASSIFIERS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "ridge": classify, "discriminant": classify_by_discriminant,
}  # fmt: skip


def _blocks(summary: Summary, conditions: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    chosen = np.flatnonzero(np.isin(summary.conditions_N, conditions))
    return np.asarray(summary.windows_NCT[chosen]), summary.conditions_N[chosen], summary.people_N[chosen]


def utility_check(real: Summary, other: Summary, peer: Summary | None, conditions: list[str]) -> Verdict:
    """Accuracy on real test blocks after training on samples, as a share of that after training on as many real blocks.

    The mean of two classifiers; the interval leaves out test people (delete-one jackknife).
    """
    check = BY_KEY["utility"]
    x, y, people = _blocks(real, conditions)
    if len(conditions) < 2 or peer is None or len(set(people)) < MIN_SUBJECTS:
        return Verdict(check, "unclear", note="It needs two conditions, training people and five test people.")
    right = np.zeros((2, len(y)))
    for row, source in enumerate((other, peer)):
        train_x, train_y, _ = _blocks(source, conditions)
        for classifier in CLASSIFIERS.values():
            right[row] += (classifier(train_x, train_y, x) == y) / len(CLASSIFIERS)
    chance = 1 / len(conditions)
    names, code = np.unique(people, return_inverse=True)
    own, best = right.mean(axis=1)
    if best - chance <= 0.05:
        return Verdict(check, "unclear", best, own, note="Real blocks teach the classifiers nothing either.")

    def share(kept: np.ndarray) -> float:
        a, b = right[:, kept].mean(axis=1) - chance
        return float(a / b)

    left_out = np.array([share(code != index) for index in range(len(names))])
    value = float((own - chance) / (best - chance))
    reach = 1.959964 * float(np.sqrt((len(names) - 1) * left_out.var()))
    note = f"Chance {chance:.2f}; mean of {' and '.join(CLASSIFIERS)}."
    return Verdict(check, check.answer(value - reach, value + reach), float(best), float(own), value, value - reach, value + reach, note=note)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One cell of the grid: accuracy on real test blocks, mean and standard deviation over draws of the real people."""

    classifier: str
    n_real_people: int
    added: str
    multiple: int
    accuracy: float
    sd: float
    n_train: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def utility_grid(
    real: Summary, train: Summary, sources: dict[str, Summary], conditions: list[str], seed: int
) -> list[Cell]:
    """Accuracy on the real test people by number of real training people, by what was added, and by how much.

    Parameters
    ----------
    real, train : Summary
        Tested on; where the real training people come from.
    sources : dict of str to Summary
        What may be added: the samples, baselines.
    conditions : list of str
    seed : int
        Of the draws.
    """
    if len(conditions) < 2:
        return []
    test_x, test_y, _ = _blocks(real, conditions)
    x, y, people = _blocks(train, conditions)
    names = np.unique(people)
    cells: dict[tuple[str, int, str, int], list[tuple[float, int]]] = {}
    for n in (n for n in REAL_PEOPLE if n <= len(names)):
        for repeat in range(N_REPEATS):
            rng = np.random.default_rng([seed, n, repeat])
            own = np.isin(people, rng.permutation(names)[:n])
            if len(set(y[own])) < 2:
                continue
            for added in ("nothing", "noise", *sources):
                for multiple in (0,) if added == "nothing" else MULTIPLES[1:]:
                    more_x, more_y = _added(added, multiple, x[own], y[own], sources, rng)
                    train_x, train_y = np.concatenate([x[own], more_x]), np.concatenate([y[own], more_y])
                    for name, classifier in CLASSIFIERS.items():
                        accuracy = float(np.mean(classifier(train_x, train_y, test_x) == test_y))
                        cells.setdefault((name, n, added, multiple), []).append((accuracy, len(train_y)))
    return [
        Cell(*key, float(np.mean([a for a, _ in found])), float(np.std([a for a, _ in found])), found[0][1])
        for key, found in cells.items()
    ]


def _added(
    added: str, multiple: int, x: np.ndarray, y: np.ndarray, sources: dict[str, Summary], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    if added == "nothing":
        return x[:0], y[:0]
    if (
        added == "noise"
    ):  # the standard augmentation: the real blocks again, with half their own standard deviation of noise
        again = np.tile(x, (multiple, 1))
        return again + 0.5 * x.std(axis=0) * rng.standard_normal(again.shape, dtype=np.float32), np.tile(y, multiple)
    source = sources[added]
    rows = []
    for condition, count in zip(*np.unique(y, return_counts=True), strict=True):
        pool = np.flatnonzero(source.conditions_N == condition)
        if len(pool):
            rows.append(in_turn(source.people_N, rng.permutation(pool))[: multiple * int(count)])
    index = np.sort(np.concatenate(rows)) if rows else np.zeros(0, int)
    return np.asarray(source.windows_NCT[index]), source.conditions_N[index]

"""Utility: what synthetic blocks are worth to who wants to decode conditions from real ones.

As the field measures it (conditional ICA, Tajini et al. 2021): a classifier is trained on the effects of n real
people's blocks with so many times as many synthetic ones added, and tested on other real people. Class mean plus noise
and conditional ICA, both made from the same n people, are the rivals; the same blocks again with noise are the standard
augmentation. Blocks are told by their effect maps on cells.

Axis legend: N blocks, D features (cells or components).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.special import stdtrit

from fmrisynth.evaluate.checks import BY_KEY, Verdict
from fmrisynth.evaluate.distinguish import in_turn
from fmrisynth.evaluate.jackknife import MIN_SUBJECTS
from fmrisynth.evaluate.summary import Summary

REAL_PEOPLE = (2, 5, 10)
MULTIPLES = (1, 3)
SOURCES = ("noise", "class mean + noise", "conditional ICA", "samples")
N_REPEATS = 5
"""Draws of the real people of a cell of the grid."""

N_COMPONENTS = 100
"""The grid works on so many principal components of the effects of people who are neither trained nor tested on."""

N_SOURCES = 30
"""Independent components of conditional ICA."""


CLASSIFIERS = ("ridge", "discriminant")


def classify(kind: str, train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray) -> np.ndarray:
    """Predict conditions from features that are standardised by the training set.

    ``ridge``: a ridge classifier whose penalty is the number of features, so that a feature's weight is shrunk by half
    when it carries as much noise as signal; classes are weighted equally. ``discriminant``: a linear discriminant
    (Ledoit-Wolf covariance) on the 50 leading components.
    """
    from sklearn.decomposition import PCA
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.linear_model import RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    n, n_features = train_x.shape
    steps = [RidgeClassifier(alpha=float(n_features), class_weight="balanced")]
    if kind == "discriminant":
        components = PCA(min(50, n - 1, n_features), random_state=0)
        steps = [components, LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")]
    return np.asarray(make_pipeline(StandardScaler(), *steps).fit(train_x, train_y).predict(test_x))


def _blocks(summary: Summary, conditions: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    chosen = np.flatnonzero(np.isin(summary.conditions_N, conditions))
    rows = summary.properties.rows
    return rows.effect_NC[chosen], rows.conditions_N[chosen], rows.people_N[chosen]


def utility_check(real: Summary, other: Summary, peer: Summary | None, conditions: list[str]) -> Verdict:
    """Accuracy on real test blocks after training on samples, as a share of that after training on as many real blocks.

    The mean of two classifiers; the interval leaves out test people (delete-one jackknife).
    """
    check = BY_KEY["utility"]
    x, y, people = _blocks(real, conditions)
    if (
        peer is None
        or len(conditions) < 2
        or min(p.properties.fewest(conditions) for p in (real, other, peer)) < MIN_SUBJECTS
    ):
        note = f"It needs two conditions, and {MIN_SUBJECTS} test people, training people and samples in each."
        return Verdict(check, "unclear", note=note)
    right = np.zeros((2, len(y)))
    for row, source in enumerate((other, peer)):
        train_x, train_y, _ = _blocks(source, conditions)
        for kind in CLASSIFIERS:
            right[row] += (classify(kind, train_x, train_y, x) == y) / len(CLASSIFIERS)
    chance = 1 / len(conditions)
    own, best = right.mean(axis=1)
    if best - chance <= 0.05:
        return Verdict(check, "unclear", best, own, note="Real blocks teach the classifiers nothing either.")
    note = f"Chance {chance:.2f}; mean of {' and '.join(CLASSIFIERS)}."
    return Verdict.of(check, float(best), float(own), *share_of_skill(right, people, chance), note=note)


def share_of_skill(right_2N: np.ndarray, people: np.ndarray, chance: float) -> tuple[float, float]:
    """Accuracy above chance in the first row as a share of that in the second, and the reach of its 95 % interval over people."""
    names, code = np.unique(people, return_inverse=True)

    def share(kept: np.ndarray) -> float:
        own, best = right_2N[:, kept].mean(axis=1) - chance
        return float(own / best)

    left_out = np.array([share(code != index) for index in range(len(names))])
    variance = (len(names) - 1) * float(left_out.var())
    return share(code >= 0), float(stdtrit(len(names) - 1, 0.975) * np.sqrt(variance))


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


class ConditionalIca:
    """Conditional ICA (Tajini et al. 2021): independent components of unlabelled blocks, coloured for each class.

    The components' samples are drawn from their own distributions in other people's blocks, one independently of the
    other, and given the mean and the (Ledoit-Wolf) covariance of the class. The conditions of the `unlabelled_ND`
    blocks of other people are not used.
    """

    def __init__(self, unlabelled_ND: np.ndarray) -> None:
        from sklearn.decomposition import FastICA

        n = min(N_SOURCES, unlabelled_ND.shape[1], len(unlabelled_ND) // 4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # any rotation of the components will do: not converged is no fault
            self._ica = FastICA(n, whiten="unit-variance", random_state=0).fit(unlabelled_ND)
        self._sources_NS = self._ica.transform(unlabelled_ND)

    def sample(self, own_ND: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        """`n` new blocks of the class of some blocks, (n, D)."""
        from sklearn.covariance import ledoit_wolf

        own_NS = self._ica.transform(own_ND)
        drawn_NS = np.stack([rng.choice(column, n) for column in self._sources_NS.T], axis=1)
        values_S, vectors_SS = np.linalg.eigh(ledoit_wolf(own_NS)[0])  # all 0 for a single block
        root_SS = vectors_SS * np.sqrt(values_S.clip(min=0))
        return np.asarray(self._ica.inverse_transform(own_NS.mean(axis=0) + drawn_NS @ root_SS.T))


def _added(
    added: str, own_x: np.ndarray, size: int, pool_x: np.ndarray, spread_D: np.ndarray, ica: ConditionalIca, rng: np.random.Generator
) -> np.ndarray:  # fmt: skip
    """New blocks of one class: from the real ones at hand, or for ``samples`` from the synthetic ones (`pool_x`, donors in turn)."""
    noise_ND = spread_D * rng.standard_normal((size, len(spread_D)))
    if added == "samples":
        return pool_x[:size]
    if added == "conditional ICA":
        return ica.sample(own_x, size, rng)
    if added == "class mean + noise":
        return own_x.mean(axis=0) + noise_ND
    return own_x[rng.integers(len(own_x), size=size)] + 0.5 * noise_ND  # the standard augmentation


def utility_grid(
    real: Summary, train: Summary, others: Summary, synthetic: Summary, conditions: list[str], seed: int
) -> list[Cell]:
    """Accuracy on the real test people by number of real training people, by what was added, and by how much.

    `real` is tested on; few real people come from `train`; the labels of `others` are not used; `synthetic` are the samples.
    """
    from sklearn.decomposition import PCA

    if len(conditions) < 2:
        return []
    unlabelled = _blocks(others, conditions)[0]
    reduce = PCA(min(N_COMPONENTS, len(unlabelled) - 1, unlabelled.shape[1]), random_state=0).fit(unlabelled).transform
    (test_x, test_y, _), (x, y, people), (sample_x, sample_y, donors) = (
        (reduce(own_x), own_y, names)
        for own_x, own_y, names in (_blocks(s, conditions) for s in (real, train, synthetic))
    )
    ica = ConditionalIca(reduce(unlabelled))
    names = np.unique(people)
    found: dict[tuple[str, int, str, int], list[tuple[float, int]]] = {}
    for n in (n for n in REAL_PEOPLE if n <= len(names)):
        for repeat in range(N_REPEATS):
            rng = np.random.default_rng([seed, n, repeat])
            own = np.isin(people, rng.permutation(names)[:n])
            own_x, own_y = x[own], y[own]
            labels, counts = np.unique(own_y, return_counts=True)
            if len(labels) < 2 or counts.min() < 2:
                continue
            spread_D = np.sqrt(np.mean([own_x[own_y == c].var(axis=0, ddof=1) for c in labels], axis=0))
            for added, multiple in [("nothing", 0), *product(SOURCES, MULTIPLES)]:
                train_x, train_y = [own_x], [own_y]
                for condition, count in zip(labels, counts, strict=True) if multiple else ():
                    pool = in_turn(donors, rng.permutation(np.flatnonzero(sample_y == condition)))
                    more = _added(
                        added, own_x[own_y == condition], multiple * count, sample_x[pool], spread_D, ica, rng
                    )
                    train_x.append(more)
                    train_y.append(np.full(len(more), condition))
                all_x, all_y = np.concatenate(train_x), np.concatenate(train_y)
                for kind in CLASSIFIERS:
                    accuracy = float(np.mean(classify(kind, all_x, all_y, test_x) == test_y))
                    found.setdefault((kind, n, added, multiple), []).append((accuracy, len(all_y)))
    return [
        Cell(*key, float(np.mean([a for a, _ in each])), float(np.std([a for a, _ in each])), each[0][1])
        for key, each in found.items()
    ]

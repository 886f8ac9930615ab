"""Utility: does a condition classifier trained on synthetic blocks work on real ones, and the other way round?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fmrisynth.evaluate.scoring import wilson_interval
from fmrisynth.evaluate.summary import Summary


@dataclass(frozen=True)
class Transfer:
    """Accuracy of one training and test set."""

    trained_on: str
    tested_on: str
    accuracy: float
    low: float
    high: float
    n_train: int
    n_test: int
    chance: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "trained_on": self.trained_on, "tested_on": self.tested_on, "accuracy": self.accuracy,
            "interval_95": [self.low, self.high], "n_train": self.n_train, "n_test": self.n_test, "chance": self.chance,
        }  # fmt: skip


def classify(train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray) -> np.ndarray:
    """Predict conditions with a ridge classifier on features standardised by the training set.

    The penalty is the number of features, so that a feature's weight is shrunk by half when it carries as
    much noise as signal; classes are weighted equally.
    """
    from sklearn.linear_model import RidgeClassifier

    centre, scale = train_x.mean(axis=0), train_x.std(axis=0)
    scale = np.where(scale > 1e-6 * max(float(scale.max()), 1e-12), scale, np.inf)
    model = RidgeClassifier(alpha=float(train_x.shape[1]), class_weight="balanced")
    model.fit((train_x - centre) / scale, train_y)
    return np.asarray(model.predict((test_x - centre) / scale))


def transfers(real: Summary, synthetic: Summary, train: Summary | None, conditions: list[str]) -> list[Transfer]:
    """Synthetic to real, real to synthetic, and real training to real test as the ceiling.

    Features are percent-signal windows averaged over cells. Empty for fewer than two conditions.
    """
    if len(conditions) < 2:
        return []
    sets = {"synthetic": synthetic, "real test": real} | ({"real training": train} if train is not None else {})
    data = {}
    for name, summary in sets.items():
        chosen = np.isin(summary.conditions_N, conditions)
        data[name] = (summary.windows_NCT[chosen], summary.conditions_N[chosen])
    plans = [("synthetic", "real test")]
    plans += (
        [("real training", "synthetic"), ("real training", "real test")]
        if train is not None
        else [("real test", "synthetic")]
    )
    found = []
    for source, target in plans:
        x, y = data[source]
        test_x, test_y = data[target]
        if len(set(y)) < 2 or not len(test_y):
            continue
        accuracy = float(np.mean(classify(x, y, test_x) == test_y))
        low, high = wilson_interval(accuracy, len(test_y))
        found.append(Transfer(source, target, accuracy, low, high, len(y), len(test_y), 1 / len(conditions)))
    return found

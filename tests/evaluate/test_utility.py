"""The grid of augmentations, on planted effects."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from fmrisynth.evaluate.utility import MULTIPLES, SOURCES, ConditionalIca, utility_grid

CONDITIONS = ["a", "b", "c"]


def test_conditional_ica_has_the_mean_and_covariance_of_the_class(rng):
    mix = rng.standard_normal((20, 20)) / np.sqrt(20)
    unlabelled = rng.laplace(size=(2000, 20)) @ mix
    own = rng.laplace(size=(2000, 20)) @ mix * 2 + 3
    drawn = ConditionalIca(unlabelled).sample(own, 5000, rng)
    np.testing.assert_allclose(drawn.mean(axis=0), own.mean(axis=0), atol=0.25)
    assert np.corrcoef(np.cov(drawn.T).ravel(), np.cov(own.T).ravel())[0, 1] > 0.98
    assert np.trace(np.cov(drawn.T)) == pytest.approx(np.trace(np.cov(own.T)), rel=0.1)
    alone = ConditionalIca(unlabelled).sample(own[:1], 4, rng)  # a class of one block has no spread of its own
    assert np.isfinite(alone).all()
    np.testing.assert_allclose(alone, np.repeat(alone[:1], 4, axis=0))


def test_good_samples_help_who_has_few_people_and_noise_does_not(rng):
    means = {c: 0.35 * rng.standard_normal(120) for c in CONDITIONS}

    def dataset(n_people: int, n_blocks: int, signal: float = 1.0) -> SimpleNamespace:
        labels = np.tile(np.repeat(CONDITIONS, n_blocks), n_people)
        people = np.repeat([f"p{i}" for i in range(n_people)], n_blocks * len(CONDITIONS))
        effects = np.stack([signal * means[c] for c in labels]) + rng.standard_normal((len(labels), 120))
        rows = SimpleNamespace(effect_NC=effects, conditions_N=labels, people_N=people)
        return SimpleNamespace(properties=SimpleNamespace(rows=rows), conditions_N=labels, people_N=people)

    real, train, others = dataset(40, 2), dataset(12, 2), dataset(30, 2)
    good, bad = (utility_grid(real, train, others, dataset(60, 1, signal), CONDITIONS, 0) for signal in (1.0, 0.0))

    def accuracy(cells, added, multiple):
        return np.mean([c.accuracy for c in cells if (c.n_real_people, c.added, c.multiple) == (2, added, multiple)])

    assert accuracy(good, "samples", 3) > accuracy(good, "nothing", 0) + 0.05
    assert accuracy(bad, "samples", 3) < accuracy(good, "samples", 3) - 0.1
    assert {(c.added, c.multiple) for c in good} == {("nothing", 0), *((s, m) for s in SOURCES for m in MULTIPLES)}
    assert {c.n_real_people for c in good} == {2, 5, 10}

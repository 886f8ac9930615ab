"""Weighted group maps, split halves, and the coverage of the bootstrap interval."""

from __future__ import annotations

import numpy as np
import pytest

from fmrisynth.evaluate.resampling import (
    GroupEffects,
    bootstrap_scores,
    centred_interval,
    draw_halves,
    draw_weights,
    split_half_scores,
    weighted_z,
)
from fmrisynth.evaluate.scoring import noise_free_ceiling, wilson_interval
from fmrisynth.glm.map_scores import score_maps
from fmrisynth.glm.statistics import random_effects


def group(effects: dict[str, np.ndarray], shared: bool) -> GroupEffects:
    """Subjects shared by all conditions (real), or one condition each (synthetic)."""
    sizes = [len(values) for values in effects.values()]
    if shared:
        return GroupEffects(
            tuple(effects), tuple(map(str, range(sizes[0]))), effects, {c: np.arange(sizes[0]) for c in effects}
        )
    starts = np.cumsum([0, *sizes[:-1]])
    members = {c: start + np.arange(size) for c, start, size in zip(effects, starts, sizes, strict=True)}
    return GroupEffects(tuple(effects), tuple(map(str, range(sum(sizes)))), effects, members)


def test_unit_weights_give_the_random_effects_map(rng):
    effects = (rng.standard_normal((12, 300)) + 0.7).astype(np.float32)
    found = weighted_z(effects, np.ones((1, 12)))[0]
    np.testing.assert_allclose(found, random_effects(effects).z, atol=1e-4)


def test_integer_weights_equal_repeated_subjects(rng):
    effects = (rng.standard_normal((6, 100)) + 3).astype(np.float32)
    weights = np.array([[2, 0, 1, 1, 3, 0], [1, 1, 1, 1, 1, 1]])
    found = weighted_z(effects, weights)
    np.testing.assert_allclose(found[0], random_effects(np.repeat(effects, weights[0], axis=0)).z, atol=2e-3)
    np.testing.assert_allclose(found[1], random_effects(effects).z, atol=1e-3)


def test_half_weights_are_the_half_groups(rng):
    effects = rng.standard_normal((9, 50)).astype(np.float32)
    data = group({"a": effects}, shared=True)
    first, second = draw_halves(data, rng, 5)
    assert ((first + second) == 1).all()
    assert (first.sum(axis=1) == 4).all()
    chosen = first[0] > 0
    np.testing.assert_allclose(weighted_z(effects, first[:1])[0], random_effects(effects[chosen]).z, atol=1e-3)


def test_draws_stay_within_conditions(rng):
    effects = {c: rng.standard_normal((n, 5)).astype(np.float32) for c, n in (("a", 7), ("b", 9))}
    weights = draw_weights(group(effects, shared=False), rng, 50)
    assert (weights[:, :7].sum(axis=1) == 7).all()
    assert (weights[:, 7:].sum(axis=1) == 9).all()


def test_equal_subjects_give_zero_not_infinity():
    assert (weighted_z(np.full((5, 3), 2.0, np.float32), np.ones((2, 5))) == 0).all()


def test_split_halves_of_noise_do_not_correlate(rng):
    data = group({c: rng.standard_normal((10, 400)).astype(np.float32) for c in "abcd"}, shared=True)
    corr = np.concatenate([s.corr for s in split_half_scores(data, 48, 3)])
    assert abs(corr.mean()) < 0.05


def test_spearman_brown_by_simulation():
    """The noise-free map correlates with the whole sample's map as the split half predicts."""
    rng = np.random.default_rng(5)
    truth = rng.standard_normal(20_000)
    halves = [truth + 1.5 * rng.standard_normal(20_000) for _ in range(2)]
    r_half = np.corrcoef(*halves)[0, 1]
    whole = np.mean(halves, axis=0)
    assert noise_free_ceiling(r_half) == pytest.approx(np.corrcoef(truth, whole)[0, 1], abs=0.01)


def test_wilson_interval_by_hand():
    low, high = wilson_interval(0.5, 10)
    assert (low, high) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson_interval(1.0, 7)[1] == 1.0


def test_intervals_hold_the_observed_score(rng):
    found = centred_interval(0.8, np.tanh(1.0 + 0.1 * rng.standard_normal(500)), correlation=True)
    assert found.low < 0.8 < found.high
    share = centred_interval(1.0, np.full(100, 6 / 7), correlation=False)
    assert (share.low, share.high) == (pytest.approx(6 / 7), 1.0)


def simulate_coverage(n_simulations: int, n_repeats: int, seed: int) -> dict[str, float]:
    """Share of bootstrap intervals that cover the score's expectation, over simulated studies.

    Subjects differ in their overall response, in a few spatial patterns and in white noise, as real effect
    maps do; real subjects have all conditions, synthetic samples one.
    """
    rng = np.random.default_rng(seed)
    k, n_voxels, rank, n_real, n_synthetic = 5, 120, 6, 15, 20
    truth = rng.standard_normal((k, n_voxels)) + rng.standard_normal(n_voxels)
    patterns = rng.standard_normal((rank, n_voxels)) / np.sqrt(rank)

    def study(n: int) -> dict[str, np.ndarray]:
        return {
            str(c): (
                truth[c] * (1 + 0.3 * rng.standard_normal((n, 1)))
                + 1.5 * rng.standard_normal((n, rank)) @ patterns
                + 0.7 * rng.standard_normal((n, n_voxels))
            ).astype(np.float32)
            for c in range(k)
        }

    observed: dict[str, list[float]] = {"corr": [], "rsa_pearson": []}
    intervals: dict[str, list[tuple[float, float]]] = {"corr": [], "rsa_pearson": []}
    for index in range(n_simulations):
        real, synthetic = group(study(n_real), shared=True), group(study(n_synthetic), shared=False)
        maps = [np.stack([random_effects(d.effects[c]).z for c in d.conditions]) for d in (real, synthetic)]
        scores = score_maps(*maps)
        draws = list(bootstrap_scores(real, synthetic, np.arange(k), n_repeats, index))
        for name in observed:
            value = float(getattr(scores, name))
            drawn = np.concatenate([getattr(d, name) for d in draws])
            found = centred_interval(value, drawn, correlation=True)
            observed[name].append(value)
            intervals[name].append((found.low, found.high))
    coverage = {}
    for name, values in observed.items():
        expected = np.tanh(np.mean(np.arctanh(values)))
        coverage[name] = float(np.mean([low <= expected <= high for low, high in intervals[name]]))
    return coverage


def test_interval_covers_roughly():
    coverage = simulate_coverage(60, 64, 11)
    assert 0.85 <= coverage["corr"] <= 1.0
    assert 0.82 <= coverage["rsa_pearson"] <= 1.0


@pytest.mark.slow
def test_interval_covers_in_92_to_98_percent_of_500_studies():
    coverage = simulate_coverage(500, 200, 12)
    print(coverage)
    assert 0.92 <= coverage["corr"] <= 0.98
    assert 0.92 <= coverage["rsa_pearson"] <= 0.98

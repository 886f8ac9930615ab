"""Hand-worked cases of Corr, RSA, Top-1 and the permutation tests."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fmrisynth.glm.map_scores import (
    map_correlations,
    off_diagonal,
    pearson,
    permute_corr,
    permute_rsa,
    permute_top1,
    score_maps,
    spearman,
    top1_hits,
)


def test_correlations_are_numpys(rng):
    a, b = rng.standard_normal((4, 50)), rng.standard_normal((3, 50))
    np.testing.assert_allclose(map_correlations(a, b), np.corrcoef(np.vstack([a, b]))[:4, 4:], atol=1e-12)


def test_float32_maps_with_a_large_offset_keep_their_correlation(rng):
    a = rng.standard_normal((2, 5000)).astype(np.float32)
    shifted = a + np.float32(100)
    assert map_correlations(a, shifted)[0, 0] == pytest.approx(1.0, abs=1e-4)


def test_a_constant_map_has_no_correlation():
    found = map_correlations(np.ones((1, 9)), np.arange(9.0)[None])
    assert np.isnan(found).all()
    assert not top1_hits(found, np.array([0])).any()


def test_corr_of_four_voxels_by_hand():
    real = np.array([[1.0, 2, 3, 4], [1, -1, 1, -1], [4, 3, 2, 1]])
    synthetic = np.array([[2.0, 4, 6, 8], [1, -1, -1, 1], [4, 3, 2, 1]])
    found = score_maps(real, synthetic)
    np.testing.assert_allclose(found.corr_K, [1.0, 0.0, 1.0], atol=1e-12)
    assert found.corr == pytest.approx(2 / 3)
    # Map 2 correlates 0 with its own real map and 0 or less elsewhere: ties and losses are misses.
    assert found.top1 == pytest.approx(2 / 3)


def test_rsa_by_hand():
    """Three maps with known pairwise correlations: pairs (1, 0, -1) against (1, 0, -1) and against its order reversed."""
    real_pairs = np.array([0.9, 0.1, -0.5])
    assert pearson(real_pairs, np.array([0.8, 0.0, -0.6])) == pytest.approx(1.0)
    assert spearman(real_pairs, np.array([-0.6, 0.0, 0.8])) == pytest.approx(-1.0)
    matrix = np.array([[1, 0.9, 0.1], [0.9, 1, -0.5], [0.1, -0.5, 1]])
    np.testing.assert_array_equal(off_diagonal(matrix), real_pairs)


def test_rsa_agrees_with_scipy_on_maps(rng):
    real, synthetic = rng.standard_normal((7, 90)), rng.standard_normal((7, 90))
    rows, columns = np.triu_indices(7, 1)
    a, b = np.corrcoef(real)[rows, columns], np.corrcoef(synthetic)[rows, columns]
    found = score_maps(real, synthetic)
    assert found.rsa_pearson == pytest.approx(stats.pearsonr(a, b)[0])
    assert found.rsa_spearman == pytest.approx(stats.spearmanr(a, b)[0])


def test_rsa_needs_three_conditions_and_top1_two_candidates(rng):
    maps = rng.standard_normal((3, 20))
    assert score_maps(maps[:2], maps[:2]).rsa_pearson is None
    assert score_maps(maps[:1], maps[:1]).top1 is None
    assert score_maps(maps, maps[:1], np.array([0])).top1 == 1.0


def test_top1_among_more_real_than_synthetic_conditions():
    real = np.eye(4)
    synthetic = np.array([[0.2, 0.1, 0, 1.0]])
    assert score_maps(real, synthetic, np.array([0])).top1 == 0.0
    assert score_maps(real, synthetic, np.array([3])).top1 == 1.0


def test_batches_equal_single_calls(rng):
    real, synthetic = rng.standard_normal((5, 4, 60)), rng.standard_normal((5, 4, 60))
    batch = score_maps(real, synthetic)
    for index in range(5):
        one = score_maps(real[index], synthetic[index])
        assert batch.corr[index] == pytest.approx(float(one.corr))
        assert batch.rsa_spearman[index] == pytest.approx(float(one.rsa_spearman))
        assert batch.top1[index] == pytest.approx(float(one.top1))


@given(st.integers(3, 7), st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_perfect_copies_and_scale_invariance(k, seed):
    maps = np.random.default_rng(seed).standard_normal((k, 40))
    found = score_maps(maps, 3.0 * maps + 1.0)
    assert found.corr == pytest.approx(1.0)
    assert found.rsa_pearson == pytest.approx(1.0)
    assert found.top1 == 1.0


def test_permutation_of_corr_by_enumeration():
    cross = np.array([[0.9, 0.2, 0.1], [0.3, 0.8, 0.0], [0.2, 0.1, 0.7]])
    null = [np.mean([cross[i, order[i]] for i in range(3)]) for order in permutations(range(3))]
    found = permute_corr(cross)
    assert found.n == 6
    assert found.exact
    assert found.p == pytest.approx(np.mean(np.array(null) >= 0.8 - 1e-9)) == pytest.approx(1 / 6)


def test_permutation_of_top1_by_enumeration():
    """All three right: only the identity does as well, p = 1/6. All wrong: every order does as well, p = 1."""
    assert permute_top1(np.eye(3)).p == pytest.approx(1 / 6)
    cyclic = np.roll(np.eye(3), 1, axis=1)
    assert permute_top1(cyclic).p == pytest.approx(1.0)


def test_mantel_of_equal_matrices_counts_the_automorphisms(rng):
    values = rng.standard_normal((5, 5))
    matrix = values + values.T
    assert permute_rsa(matrix, matrix).p == pytest.approx(1 / 120)
    assert permute_rsa(matrix[:3, :3], matrix[:3, :3]) is None


def test_permutation_p_is_uniform_under_the_null():
    """Under random labels the exact test of five conditions rejects at 10 % about 10 % of the time."""
    rng = np.random.default_rng(0)
    p = [permute_corr(rng.standard_normal((5, 5))).p for _ in range(400)]
    assert 0.06 < np.mean(np.array(p) <= 0.1) < 0.14


def test_many_conditions_are_sampled_not_enumerated(rng):
    found = permute_corr(np.eye(12) + 0.1 * rng.standard_normal((12, 12)))
    assert not found.exact
    assert found.n == 5040
    assert found.p == pytest.approx(1 / 5040)

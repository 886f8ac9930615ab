"""The three scores of the paper (section 3.2 and A.6), written for one or many pairs of map sets.

K conditions, real group maps r_k, synthetic group maps s_k, all over the same V voxels:

- Corr: mean over k of Pearson(r_k, s_k);
- RSA: correlation of the off-diagonal entries of the two K x K matrices of map correlations;
- Top-1: share of k for which r_k is the real map that s_k correlates with most.

Axis legend: B repeats (bootstrap, split halves), K, L conditions, N samples, V voxels.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from math import factorial

import numpy as np

EXACT_PERMUTATIONS = 5040
"""All orders are tried up to 7 conditions; beyond, this many random ones."""


def map_correlations(a_KV: np.ndarray, b_LV: np.ndarray) -> np.ndarray:
    """Pearson correlation of every row of one set of maps with every row of another.

    Parameters
    ----------
    a_KV : array of shape (..., K, V)
        Maps; leading axes are broadcast.
    b_LV : array of shape (..., L, V)
        Maps over the same voxels.

    Returns
    -------
    array of shape (..., K, L), float64
        NaN where a map is constant, has missing voxels or none at all (the correlation does not exist).
    """
    if np.shape(a_KV)[-1] == 0:
        return np.full((*np.shape(a_KV)[:-1], np.shape(b_LV)[-2]), np.nan)
    return np.matmul(_unit_rows(a_KV), np.swapaxes(_unit_rows(b_LV), -1, -2)).astype(np.float64)


def _unit_rows(maps: np.ndarray) -> np.ndarray:
    maps = np.asarray(maps)
    if maps.dtype != np.float32:
        maps = maps.astype(np.float64)
    centred = maps - maps.mean(axis=-1, keepdims=True, dtype=np.float64).astype(maps.dtype)
    norm = np.sqrt(np.einsum("...v,...v->...", centred, centred, dtype=np.float64))[..., None]
    level = np.abs(maps).max(axis=-1, keepdims=True, initial=0.0) * np.sqrt(maps.shape[-1])
    norm = np.where(norm > 1e-6 * level, norm, np.nan)
    return (centred / norm).astype(maps.dtype)


def off_diagonal(matrix_KK: np.ndarray) -> np.ndarray:
    """Upper off-diagonal entries, shape (..., K (K - 1) / 2), row by row."""
    rows, columns = np.triu_indices(matrix_KK.shape[-1], 1)
    return matrix_KK[..., rows, columns]


def pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson correlation along the last axis; NaN where a side is constant."""
    x = np.asarray(x, dtype=np.float64)
    y = np.asarray(y, dtype=np.float64)
    return map_correlations(x[..., None, :], y[..., None, :])[..., 0, 0]


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation along the last axis (ties share their mean rank)."""
    from scipy.stats import rankdata

    return pearson(rankdata(x, axis=-1), rankdata(y, axis=-1))


@dataclass(frozen=True)
class Scores:
    """The paper's scores of one or many pairs of map sets; leading axes as the input's.

    Attributes
    ----------
    corr_K : array of shape (..., K)
        Pearson(r_k, s_k) per condition.
    corr : array
        Its mean over conditions.
    rsa_pearson, rsa_spearman : array or None
        None for fewer than three conditions: one pair has no correlation.
    top1 : array or None
        None where fewer than two real candidates exist.
    cross_KL : array of shape (..., K, L)
        Pearson(s_k, r_l), the confusion matrix behind Top-1.
    """

    corr_K: np.ndarray
    corr: np.ndarray
    rsa_pearson: np.ndarray | None
    rsa_spearman: np.ndarray | None
    top1: np.ndarray | None
    cross_KL: np.ndarray


def score_maps(real_LV: np.ndarray, synthetic_KV: np.ndarray, target_K: np.ndarray | None = None) -> Scores:
    """Corr, RSA and Top-1.

    Parameters
    ----------
    real_LV : array of shape (..., L, V)
        Real group maps: the candidates of Top-1.
    synthetic_KV : array of shape (..., K, V)
        Synthetic group maps.
    target_K : int array of shape (K,), optional
        Index of each synthetic condition among the real ones; default ``0 .. K-1``. Real conditions that
        were not synthesised stay candidates of Top-1 and take no part in Corr and RSA.
    """
    n_synthetic, n_real = synthetic_KV.shape[-2], real_LV.shape[-2]
    target = np.arange(n_synthetic) if target_K is None else np.asarray(target_K)
    cross = map_correlations(synthetic_KV, real_LV)
    own = cross[..., np.arange(n_synthetic), target]
    rsa_pearson = rsa_spearman = None
    if n_synthetic >= 3:
        real_pairs = off_diagonal(map_correlations(real_LV[..., target, :], real_LV[..., target, :]))
        synthetic_pairs = off_diagonal(map_correlations(synthetic_KV, synthetic_KV))
        rsa_pearson = pearson(real_pairs, synthetic_pairs)
        rsa_spearman = spearman(real_pairs, synthetic_pairs)
    return Scores(
        corr_K=own,
        corr=own.mean(axis=-1),
        rsa_pearson=rsa_pearson,
        rsa_spearman=rsa_spearman,
        top1=top1_hits(cross, target).mean(axis=-1) if n_real >= 2 else None,
        cross_KL=cross,
    )


def top1_hits(cross_KL: np.ndarray, target_K: np.ndarray) -> np.ndarray:
    """Whether each row's target is its single highest candidate; a tie is a miss, a NaN too.

    Parameters
    ----------
    cross_KL : array of shape (..., K, L)
        Correlation of each map with each candidate.
    target_K : int array of shape (K,)
        The right candidate of each row.

    Returns
    -------
    bool array of shape (..., K)
    """
    rows = np.arange(cross_KL.shape[-2])
    target = np.asarray(target_K)
    own = cross_KL[..., rows, target]
    others = np.array(cross_KL, dtype=np.float64)
    others[..., rows, target] = -np.inf
    return own > others.max(axis=-1)


@dataclass(frozen=True)
class Permutation:
    """A permutation test over the pairing of conditions.

    Attributes
    ----------
    p : float
        Share of pairings, the true one included, that score at least as high.
    n : int
        Number of pairings.
    exact : bool
        Whether they are all there are.
    """

    p: float
    n: int
    exact: bool


def _orders(k: int, seed: int) -> tuple[np.ndarray, bool]:
    if factorial(k) <= EXACT_PERMUTATIONS:
        return np.array(list(permutations(range(k)))), True
    rng = np.random.default_rng(seed)
    drawn = np.array([rng.permutation(k) for _ in range(EXACT_PERMUTATIONS - 1)])
    return np.vstack([np.arange(k), drawn]), False


def permute_corr(cross_KK: np.ndarray, seed: int = 0) -> Permutation | None:
    """Is Corr higher than with condition labels shuffled? None for fewer than two conditions."""
    k = len(cross_KK)
    if k < 2:
        return None
    orders, exact = _orders(k, seed)
    null = cross_KK[np.arange(k), orders].mean(axis=1)
    return _share(null, float(np.trace(cross_KK) / k), exact)


def permute_top1(cross_KK: np.ndarray, seed: int = 0) -> Permutation | None:
    """Is Top-1 higher than with condition labels shuffled? None for fewer than two conditions."""
    k = len(cross_KK)
    if k < 2:
        return None
    orders, exact = _orders(k, seed)
    hit_KL = np.stack([top1_hits(cross_KK, np.full(k, column)) for column in range(k)], axis=1)
    null = hit_KL[np.arange(k), orders].mean(axis=1)
    return _share(null, float(np.trace(hit_KL) / k), exact)


def permute_rsa(real_KK: np.ndarray, synthetic_KK: np.ndarray, seed: int = 0) -> Permutation | None:
    """Mantel test of RSA (Pearson): conditions of one matrix shuffled. None for fewer than four conditions."""
    k = len(real_KK)
    if k < 4:
        return None
    orders, exact = _orders(k, seed)
    rows, columns = np.triu_indices(k, 1)
    shuffled = synthetic_KK[orders[:, rows], orders[:, columns]]
    null = pearson(np.broadcast_to(off_diagonal(real_KK), shuffled.shape), shuffled)
    return _share(null, float(pearson(off_diagonal(real_KK), off_diagonal(synthetic_KK))), exact)


def _share(null: np.ndarray, observed: float, exact: bool) -> Permutation:
    return Permutation(float(np.mean(null >= observed - 1e-12)), len(null), exact)

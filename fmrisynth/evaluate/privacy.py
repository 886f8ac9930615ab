"""Memorisation audit: are synthetic blocks nearer to training blocks than training blocks are to each other?

After BrainG3N (Appendix H): L2 distances to the nearest neighbour, synthetic to training against training
to training of *other subjects*, with the 5th percentile of the latter as threshold. Two things are added:
the ratio of nearest to second-nearest distance (other subject), which is small for a copy and near 1 for
a sample that is merely smooth; and the audit of the anatomy (reference volumes) beside the dynamics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

_CHUNK = 512
MAX_QUERIES = 2000
"""Training blocks whose own neighbours are looked for: enough for a percentile."""

EXACT_SHARE = 0.1
"""A sample nearer to a training block than this share of the median training distance is a copy."""

NEAR_COPY_RATIO = 0.8
"""A near copy is at most this share as far from its training block as from the next subject's."""


@dataclass(frozen=True)
class Audit:
    """Nearest-neighbour distances and what they say.

    Attributes
    ----------
    train_nearest_N, synthetic_nearest_M : arrays
        Distance to the nearest training block (training: of another subject).
    threshold : float
        The percentile of `train_nearest_N`.
    share_below : float
        Share of synthetic samples under the threshold.
    copies : list of int
        Synthetic samples under the threshold whose nearest training block is also singled out (ratio of
        first to second distance under the same percentile of the training ratios, and under 0.8), and exact copies.
    outcome : {"pass", "warn", "fail"}
    ratio_of_means : float
        Mean synthetic over mean training nearest distance (BrainG3N's 1.55).
    n_distinct : int
        Synthetic samples that differ from each other.
    """

    train_nearest_N: np.ndarray
    synthetic_nearest_M: np.ndarray
    threshold: float
    share_below: float
    copies: list[int]
    outcome: str
    ratio_of_means: float
    n_distinct: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "n_training": len(self.train_nearest_N), "n_synthetic": len(self.synthetic_nearest_M), "n_distinct": self.n_distinct,
            "threshold": self.threshold, "share_below_threshold": self.share_below, "n_copies": len(self.copies),
            "ratio_of_mean_distances": self.ratio_of_means, "outcome": self.outcome,
            "training_to_training": _five_numbers(self.train_nearest_N),
            "synthetic_to_training": _five_numbers(self.synthetic_nearest_M),
        }  # fmt: skip


def _five_numbers(values: np.ndarray) -> dict[str, float]:
    names = ("min", "p05", "median", "p95", "max")
    return dict(zip(names, map(float, np.percentile(values, [0, 5, 50, 95, 100])), strict=True))


def nearest_two(
    query_MD: np.ndarray, train_ND: np.ndarray, train_subjects: np.ndarray, query_subjects: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Distance to the nearest training row, and to the nearest one of a further subject.

    Parameters
    ----------
    query_MD, train_ND : arrays
        Features.
    train_subjects : array of shape (N,)
        Subject of each training row.
    query_subjects : array of shape (M,), optional
        Subject of each query; its own subject's rows are not neighbours.

    Returns
    -------
    first, second : arrays of shape (M,)
    """
    first = np.empty(len(query_MD))
    second = np.empty(len(query_MD))
    names, codes = np.unique(train_subjects, return_inverse=True)
    for start in range(0, len(query_MD), _CHUNK):
        query = query_MD[start : start + _CHUNK].astype(np.float64)
        squares = np.square(query).sum(axis=1)[:, None]
        best = np.full((len(query), len(names)), np.inf)
        for at in range(0, len(train_ND), _CHUNK):  # both sides in pieces: training windows lie on disk
            train = train_ND[at : at + _CHUNK].astype(np.float64)
            distance2 = squares + np.square(train).sum(axis=1) - 2 * query @ train.T
            for column, code in enumerate(codes[at : at + _CHUNK]):
                np.minimum(best[:, code], distance2[:, column], out=best[:, code])
        if query_subjects is not None:
            own = query_subjects[start : start + _CHUNK]
            best[own[:, None] == names[None, :]] = np.inf
        best.sort(axis=1)
        first[start : start + _CHUNK] = np.sqrt(np.maximum(best[:, 0], 0.0))
        second[start : start + _CHUNK] = np.sqrt(np.maximum(best[:, 1], 0.0)) if best.shape[1] > 1 else np.inf
    return first, second


def _more_often(hits: int, n: int, reference_hits: int, n_reference: int) -> bool:
    from scipy.stats import fisher_exact

    table = [[hits, n - hits], [reference_hits, n_reference - reference_hits]]
    return bool(fisher_exact(table, alternative="greater").pvalue < 0.01)


def audit(
    train_ND: np.ndarray, train_subjects: np.ndarray, synthetic_MD: np.ndarray, percentile: float = 5.0, *,
    one_each: bool = False,
) -> Audit | None:  # fmt: skip
    """Audit synthetic features against training features; None with fewer than three training subjects.

    The outcome is ``fail`` when any sample is a copy (distance under a tenth of the training median) or when
    samples are singled-out neighbours more often than training blocks are (Fisher's exact test, one-sided,
    p < 0.01); ``warn`` when they lie under the threshold more often than training blocks do, without
    pointing at single training blocks (over-smooth samples do that); else ``pass``. For ``warn`` equal samples count
    once: a thousand samples on one mean reference volume say as much about anatomy as one does.
    With `one_each` the training side is one block of each person: what a person's blocks share (anatomy) is not so many independent distances.
    """

    if len(np.unique(train_subjects)) < 3:
        return None
    every = np.unique(train_subjects, return_index=True)[1] if one_each else np.arange(len(train_ND))
    asked = np.sort(np.random.default_rng(0).permutation(every)[:MAX_QUERIES])
    train_first, train_second = nearest_two(train_ND[asked], train_ND, train_subjects, train_subjects[asked])
    first, second = nearest_two(synthetic_MD, train_ND, train_subjects)
    threshold = float(np.percentile(train_first, percentile))
    finite = np.isfinite(train_second) & (train_second > 0)
    train_ratio = train_first[finite] / train_second[finite]
    ratio_threshold = min(float(np.percentile(train_ratio, percentile)), NEAR_COPY_RATIO) if train_ratio.size else 0.0
    ratio = np.divide(first, second, out=np.ones_like(first), where=np.isfinite(second) & (second > 0))
    below = first < threshold
    exact = first < EXACT_SHARE * float(np.median(train_first))
    copies = np.flatnonzero(exact | (below & (ratio < ratio_threshold)))
    train_below = int((train_first < threshold).sum())
    train_copies = int(((train_first[finite] < threshold) & (train_ratio < ratio_threshold)).sum())
    n, m = len(train_first), len(first)
    _, distinct = np.unique(synthetic_MD, axis=0, return_index=True)
    if exact.any() or _more_often(len(copies), m, train_copies, n):
        outcome = "fail"
    else:
        outcome = "warn" if _more_often(int(below[distinct].sum()), len(distinct), train_below, n) else "pass"
    mean_train = float(train_first.mean())
    return Audit(
        train_first, first, threshold, float(below.mean()), [int(i) for i in copies], outcome,
        float(first.mean()) / mean_train if mean_train > 0 else 1.0, len(distinct),
    )  # fmt: skip

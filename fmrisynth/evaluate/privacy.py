"""Memorisation audit: are synthetic blocks nearer to training blocks than training blocks are to each other?

After BrainG3N (Appendix H): L2 distances to the nearest neighbour, synthetic to training against training
to training of *other subjects*, with the 5th percentile of the latter as threshold. Three things are added:
the ratio of nearest to second-nearest distance (other subject), which is small for a copy and near 1 for
a sample that is merely smooth; the distance of the nearest training block from the mean of the other subjects' blocks, which a copy
undercuts and a blend does not (a class mean always has the same nearest block: the quietest one); and the audit of the anatomy (reference
volumes) beside the dynamics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

_CHUNK = 512
MAX_QUERIES = 2000
"""Training blocks whose own neighbours are looked for: enough for a percentile."""

PERCENTILE = 5.0
"""Of training distances: a sample nearer to a training block than this is under the threshold."""

EXACT_SHARE = 0.1
"""A sample nearer to a training block than this share of the median training distance is a copy."""

NEAR_COPY_RATIO = 0.8
"""A near copy is at most this share as far from its training block as from the next subject's, and as the block is from
the mean of others.
"""


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
        Synthetic samples under the threshold whose nearest training block is also singled out (ratio of first to second
        distance under the same percentile of the training ratios, and under 0.8; nearer than 0.8 of the block's
        distance from the mean of others), and exact copies.
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
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance to the nearest training row, to the nearest one of a further subject, and which row the nearest is.

    With `query_subjects` the rows of a query's own subject are no neighbours. Three arrays of shape (M,).
    """
    first, second, row = np.empty(len(query_MD)), np.empty(len(query_MD)), np.zeros(len(query_MD), int)
    names, codes = np.unique(train_subjects, return_inverse=True)
    for start in range(0, len(query_MD), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        query = np.asarray(query_MD[chunk], np.float32)
        squares = np.einsum("md,md->m", query, query)[:, None]
        best = np.full((len(query), len(names)), np.inf)
        smallest = np.full(len(query), np.inf)
        for at in range(0, len(train_ND), _CHUNK):  # both sides in pieces: training windows lie on disk
            train = np.asarray(train_ND[at : at + _CHUNK], np.float32)
            distance2 = squares + np.einsum("nd,nd->n", train, train) - 2 * query @ train.T
            if query_subjects is not None:
                distance2[query_subjects[chunk, None] == train_subjects[None, at : at + _CHUNK]] = np.inf
            for column, code in enumerate(codes[at : at + _CHUNK]):
                np.minimum(best[:, code], distance2[:, column], out=best[:, code])
            nearest = distance2.argmin(axis=1)
            found = distance2[np.arange(len(query)), nearest]
            row[chunk] = np.where(found < smallest, at + nearest, row[chunk])
            smallest = np.minimum(smallest, found)
        best.sort(axis=1)
        first[chunk] = np.sqrt(np.maximum(best[:, 0], 0.0))
        second[chunk] = np.sqrt(np.maximum(best[:, 1], 0.0)) if best.shape[1] > 1 else np.inf
    return first, second, row


def distance_from_others(train_ND: np.ndarray, subjects: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """How far each row is from the mean of other subjects' rows of its group (of all groups where its own has none), (N,)."""
    names, code = np.unique(groups, return_inverse=True)
    totals, counts = np.zeros((len(names), train_ND.shape[1])), np.bincount(code)
    for row, group in enumerate(code):
        totals[group] += train_ND[row]
    distance = np.empty(len(train_ND))
    for subject in np.unique(subjects):
        own = np.flatnonzero(subjects == subject)
        values, rest, n_rest = train_ND[own].astype(np.float64), totals.copy(), counts.copy()
        np.subtract.at(rest, code[own], values)
        np.subtract.at(n_rest, code[own], 1)
        mean = np.where(n_rest[:, None] > 0, rest / np.maximum(n_rest, 1)[:, None], rest.sum(axis=0) / n_rest.sum())
        distance[own] = np.linalg.norm(values - mean[code[own]], axis=1)
    return distance


def _more_often(hits: int, n: int, reference_hits: int, n_reference: int) -> bool:
    from scipy.stats import fisher_exact

    table = [[hits, n - hits], [reference_hits, n_reference - reference_hits]]
    return bool(fisher_exact(table, alternative="greater").pvalue < 0.01)


class Gallery:
    """Training rows that samples are compared with, and how training rows compare with each other.

    Features are rows; rows of one of the `groups` have something in common (the condition). With `one_each` the
    training side is one row of each person: what a person's blocks share (anatomy) is not so many independent
    distances. Refuses fewer than three subjects (`ValueError`).
    """

    def __init__(
        self, train_ND: np.ndarray, subjects: np.ndarray, groups: np.ndarray | None = None, *,
        one_each: bool = False,
    ) -> None:  # fmt: skip
        if len(np.unique(subjects)) < 3:
            raise ValueError("an audit needs training rows of at least three subjects")
        self._train_ND, self._subjects = train_ND, subjects
        self._spread_N = distance_from_others(train_ND, subjects, np.zeros(len(subjects)) if groups is None else groups)
        every = np.unique(subjects, return_index=True)[1] if one_each else np.arange(len(train_ND))
        asked = np.sort(np.random.default_rng(0).permutation(every)[:MAX_QUERIES])
        self.nearest_N, second, row = nearest_two(train_ND[asked], train_ND, subjects, subjects[asked])
        self._threshold = float(np.percentile(self.nearest_N, PERCENTILE))
        finite = np.isfinite(second) & (second > 0)
        ratio = np.divide(self.nearest_N, second, out=np.ones_like(second), where=finite)
        self._ratio = min(float(np.percentile(ratio[finite], PERCENTILE)), NEAR_COPY_RATIO) if finite.any() else 0.0
        self._n_copies = int(self._singled_out(self.nearest_N, second, row).sum())

    @property
    def reach(self) -> float:
        """Rows nearer to each other than this are the same."""
        return EXACT_SHARE * float(np.median(self.nearest_N))

    def _singled_out(self, first: np.ndarray, second: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Near one training row, and nearer to it than the next subject's and than the mean of the others is: no blend."""
        ratio = np.divide(first, second, out=np.ones_like(first), where=np.isfinite(second) & (second > 0))
        nearer_than_a_blend = first < NEAR_COPY_RATIO * self._spread_N[row]
        return (first < self._threshold) & (ratio < self._ratio) & nearer_than_a_blend

    def audit(self, synthetic_MD: np.ndarray) -> Audit:
        """Audit samples.

        The outcome is ``fail`` when any sample is a copy (distance under a tenth of the training median) or when
        samples single out a training row more often than training rows do (Fisher's exact test, one-sided, p < 0.01);
        ``warn`` when they lie under the threshold more often than training rows do without that (over-smooth samples
        and means do that); else ``pass``. For ``warn`` equal samples count once: a thousand samples on one mean
        reference volume say as much about anatomy as one does.
        """
        first, second, row = nearest_two(synthetic_MD, self._train_ND, self._subjects)
        below, exact = first < self._threshold, first < self.reach
        copies = np.flatnonzero(exact | self._singled_out(first, second, row))
        n, m = len(self.nearest_N), len(first)
        distinct = list({np.asarray(sample).tobytes(): index for index, sample in enumerate(synthetic_MD)}.values())
        if exact.any() or _more_often(len(copies), m, self._n_copies, n):
            outcome = "fail"
        else:
            # A person's blocks are near or far together: so many independent distances as there are people.
            n_people = len(np.unique(self._subjects))
            near = round(n_people * float((self.nearest_N < self._threshold).mean()))
            outcome = "warn" if _more_often(int(below[distinct].sum()), len(distinct), near, n_people) else "pass"
        mean_train = float(self.nearest_N.mean())
        return Audit(
            self.nearest_N, first, self._threshold, float(below.mean()), [int(i) for i in copies], outcome,
            float(first.mean()) / mean_train if mean_train > 0 else 1.0, len(distinct),
        )  # fmt: skip

"""Checks that bring their own interval: classifiers of real against synthetic, duplicates, copies and utility.

Axis legend: N, M blocks, D features.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.special import stdtrit

from fmrisynth.evaluate.checks import BY_KEY, Answer, Verdict
from fmrisynth.evaluate.jackknife import MIN_SUBJECTS
from fmrisynth.evaluate.privacy import Audit
from fmrisynth.evaluate.summary import Blocks, Summary

N_FOLDS = 5
MAX_BLOCKS = 600
"""Blocks of each side that a classifier is given."""


def effective_number(features_ND: np.ndarray, reach: float) -> float:
    """``n² / sum n_i²`` of groups of rows that are linked by distances under `reach`: how many different ones there are, by weight."""
    from scipy.sparse.csgraph import connected_components
    from sklearn.neighbors import radius_neighbors_graph

    graph = radius_neighbors_graph(features_ND, reach, metric="euclidean")
    _, label = connected_components(graph, directed=False)
    counts = np.bincount(label)
    return float(len(features_ND) ** 2 / np.square(counts).sum())


def distinct_check(other: Summary, reach: float | None) -> Verdict:
    """Do the samples differ from each other? Two are the same within `reach`, a tenth of the distance between training people."""
    check = BY_KEY["distinct"]
    if reach is None:
        return Verdict(check, "unclear", note="It needs training blocks of at least three people for a scale.")
    n = other.n_blocks
    value = effective_number(np.asarray(other.windows_NCT, np.float32), reach) / n
    return Verdict.of(check, None, round(value * n, 1), value, 0.0)


def donors_check(other: Summary, peer: Summary | None) -> Verdict:
    """How many different anatomies are behind the samples, against as many real blocks?

    Two blocks have one anatomy when they differ by less than halfway between blocks of one person and of two.
    """
    check = BY_KEY["donors"]
    if peer is None or len(set(peer.people_N)) < MIN_SUBJECTS:
        return Verdict(check, "unclear", note=f"It needs training blocks of at least {MIN_SUBJECTS} people.")
    anatomy, people = peer.blocks.anatomy_NC, peer.people_N
    from scipy.spatial.distance import cdist

    distance = cdist(anatomy, anatomy)
    same = people[:, None] == people
    own = distance[same & ~np.eye(len(people), dtype=bool)]
    between = np.where(same, np.inf, distance).min(axis=1)
    reach = (float(np.median(own)) if own.size else 0.0) / 2 + float(np.median(between)) / 2
    best, found = (effective_number(s.blocks.anatomy_NC, min(reach, 0.9 * float(between.min()))) for s in (peer, other))
    return Verdict.of(check, best, found, found / best, 0.0)


def _balanced(real: Summary, other: Summary, conditions: tuple[str, ...]) -> tuple[Blocks, Blocks]:
    """As many blocks of each condition on both sides, people in turn."""
    rng = np.random.default_rng(0)
    chosen: tuple[list[int], list[int]] = ([], [])
    limit = max(1, MAX_BLOCKS // len(conditions))
    for condition in conditions:
        pools = [rng.permutation(np.flatnonzero(s.conditions_N == condition)) for s in (real, other)]
        n = min(limit, *(len(pool) for pool in pools))
        for index, summary, pool in zip(chosen, (real, other), pools, strict=True):
            index.extend(in_turn(summary.people_N, pool)[:n])
    return real.blocks.at(np.sort(chosen[0])), other.blocks.at(np.sort(chosen[1]))


def in_turn(people_N: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """The indices of a pool, one of each person before the second of any."""
    seen: dict[str, int] = {}
    rank = []
    for index in pool:
        person = str(people_N[index])
        rank.append(seen.get(person, 0))
        seen[person] = rank[-1] + 1
    return pool[np.argsort(rank, kind="stable")]


def _features(kind: str, windows_ND: np.ndarray, n_frames: int) -> np.ndarray:
    """Leading components of the standardised windows (found without labels), or mean and log standard deviation over time of each cell."""
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    if kind == "linear":
        n = min(40, len(windows_ND) // 4, windows_ND.shape[1])
        unit_ND = StandardScaler().fit_transform(windows_ND)
        return StandardScaler().fit_transform(PCA(n, svd_solver="randomized", random_state=0).fit_transform(unit_ND))
    cells = windows_ND.reshape(len(windows_ND), n_frames, -1)
    return np.concatenate([cells.mean(axis=1), np.log(cells.std(axis=1) + 1e-6)], axis=1)


def _held_out_scores(kind: str, x_ND: np.ndarray, y: np.ndarray, people: np.ndarray) -> np.ndarray:
    """Score of every block by a classifier that has not seen its person."""
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

    model = LogisticRegression(C=0.1, max_iter=500)
    if kind == "forest":
        model = ExtraTreesClassifier(100, min_samples_leaf=3, random_state=0, max_features="sqrt")
    folds = StratifiedGroupKFold(N_FOLDS, shuffle=True, random_state=0)
    return cross_val_predict(model, x_ND, y, groups=people, cv=folds, method="predict_proba")[:, 1]


def auc_of(scores: np.ndarray, y: np.ndarray, people: np.ndarray) -> tuple[float, float]:
    """AUC and the reach of its 95 % interval, by leaving out whole people of either side (structural components, DeLong
    et al. 1988, per person).
    """
    from scipy.stats import rankdata

    positive, negative = scores[y == 1], scores[y == 0]
    ranks = rankdata(np.concatenate([positive, negative]))
    m, n = len(positive), len(negative)
    above = (ranks[:m] - rankdata(positive)) / n
    below = 1 - (ranks[m:] - rankdata(negative)) / m
    auc = float(above.mean())
    variance, fewest = 0.0, len(scores)
    for values, own in ((above, people[y == 1]), (below, people[y == 0])):
        _, code = np.unique(own, return_inverse=True)
        g = int(code.max()) + 1
        fewest = min(fewest, g)
        sums = np.bincount(code, values - auc)
        variance += g / max(g - 1, 1) * float(np.square(sums).sum()) / len(values) ** 2
    return auc, float(stdtrit(max(fewest - 1, 1), 0.975) * np.sqrt(variance))


@lru_cache(maxsize=4)  # the control is the same for every dataset that is judged
def held_out_auc(kind: str, real: Summary, other: Summary, conditions: tuple[str, ...]) -> tuple[float, float] | None:
    """AUC of a classifier of real against other blocks and the reach of its interval; None for too few people."""
    a, b = _balanced(real, other, conditions)
    if min(len(set(a.people_N)), len(set(b.people_N))) < N_FOLDS:
        return None
    people = np.concatenate(
        [np.char.add("real ", a.people_N.astype(str)), np.char.add("other ", b.people_N.astype(str))]
    )
    y = np.repeat([0, 1], [len(a.people_N), len(b.people_N)])
    windows_ND = np.concatenate([a.windows_NCT, b.windows_NCT]).astype(np.float32)
    x = _features(kind, windows_ND, real.properties.rows.response_NT.shape[1])
    return auc_of(_held_out_scores(kind, x, y, people), y, people)


def classifier_checks(real: Summary, other: Summary, peer: Summary | None, conditions: list[str]) -> list[Verdict]:
    """Two kinds of classifiers, each with its own control of real against real; folds hold whole people."""
    verdicts = []
    for kind in ("linear", "forest"):
        check = BY_KEY[f"{kind}_classifier"]
        control = held_out_auc(kind, real, peer, tuple(conditions)) if peer is not None else None
        found = held_out_auc(kind, real, other, tuple(conditions)) if control is not None else None
        if control is None or found is None:
            note = f"It needs {N_FOLDS} people on every side, training people as a control among them."
            verdicts.append(Verdict(check, "unclear", note=note))
            continue
        value = max(0.0, found[0] - 0.5) - max(0.0, control[0] - 0.5)
        verdicts.append(Verdict.of(check, control[0], found[0], value, float(np.hypot(found[1], control[1]))))
    return verdicts


def copies_check(key: str, audit: Audit | None) -> Verdict:
    """The privacy audit as a check: copies fail; samples that are merely near everything leave the question open."""
    check = BY_KEY[key]
    if audit is None:
        return Verdict(check, "unclear", note="It needs training blocks of at least three people.")
    answers: dict[str, tuple[Answer, str]] = {
        "pass": ("pass", "No sample singles out a training block more often than chance."),
        "warn": ("unclear", "Samples lie nearer to the training data than training blocks of different subjects do, but single out none: "
                 "over-smooth samples and means do that."),
        "fail": ("fail", "Samples are copies or near copies of single training blocks."),
    }  # fmt: skip
    (answer, note), n = answers[audit.outcome], len(audit.synthetic_nearest_M)
    note = (
        f"{100 * audit.share_below:.0f} % of {n} samples ({audit.n_distinct} distinct) lie under the threshold. {note}"
    )
    return Verdict(check, answer, None, None, len(audit.copies) / n, note=note)

"""How much of a dataset's variance subjects, tasks and phase encoding explain, and its principal components (paper, A.1)."""

from __future__ import annotations

import numpy as np

from fmrisynth.evaluate.summary import Summary


def variance_shares(features_NC: np.ndarray, labels: list[str]) -> float | None:
    """Share of total variance that lies between the groups of a label (eta squared, all features pooled).

    The share that random labels would reach, ``(groups - 1) / (N - 1)``, is removed (epsilon squared), so that
    many groups do not explain variance by number alone; never below 0. None for one group.
    """
    groups = list(dict.fromkeys(labels))
    n = len(labels)
    if len(groups) < 2 or n <= len(groups):
        return None
    centred = np.asarray(features_NC, np.float32) - features_NC.mean(axis=0, dtype=np.float64).astype(np.float32)
    total = float(np.einsum("nc,nc->", centred, centred, dtype=np.float64))
    if total <= 0:
        return None
    names = np.array(labels)
    between = sum(
        float(np.square(centred[names == g].mean(axis=0)).sum(dtype=np.float64)) * int((names == g).sum())
        for g in groups
    )
    within = (total - between) / (n - len(groups))
    return max(0.0, (between - (len(groups) - 1) * within) / total)


def principal_components(features_NC: np.ndarray, n: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the first `n` principal components, and their shares of variance."""
    centred = features_NC - features_NC.mean(axis=0)
    gram = centred @ centred.T
    values, vectors = np.linalg.eigh(gram.astype(np.float64))
    order = np.argsort(values)[::-1][:n]
    total = max(float(values.clip(min=0).sum()), 1e-30)
    scores = vectors[:, order] * np.sqrt(values[order].clip(min=0))
    if scores.shape[1] < n:
        scores = np.pad(scores, ((0, 0), (0, n - scores.shape[1])))
    shares = np.zeros(n)
    shares[: len(order)] = values[order].clip(min=0) / total
    return scores, shares


def explained_variance(summary: Summary) -> dict[str, float | None]:
    """Share of the variance of block-mean volumes and of dynamics that subject, phase encoding and task explain."""
    rows = summary.properties.rows
    encodings = list(rows.phase_encodings_N)
    conditions, subjects = list(summary.conditions_N), list(summary.people_N)
    shares = {
        "volumes by subject": variance_shares(rows.volume_NC, subjects),
        "volumes by task": variance_shares(rows.volume_NC, conditions),
        "dynamics by subject": variance_shares(summary.windows_NCT, subjects),
        "dynamics by task": variance_shares(summary.windows_NCT, conditions),
    }
    if all(encodings):
        shares["volumes by phase encoding"] = variance_shares(rows.volume_NC, encodings)
    return shares

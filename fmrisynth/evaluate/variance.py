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


def intraclass_correlation(features_NC: np.ndarray, people: np.ndarray, conditions: np.ndarray) -> float:
    """How much of the variance between blocks of a condition is the person's: ICC(1,1), all features pooled.

    One-way random effects of Shrout and Fleiss (1979) within conditions, ``s / (s + w)`` with w the mean square between blocks of a person
    and condition and ``s = (mean square between people - w) / k``, k the blocks a person (where these differ, the mean of Searle et al.
    1992). Mean squares are summed over features, as Shou et al. (2013) do for images. Blocks have no order, so that ICC(3,1), which removes
    what all second blocks have in common, has no meaning here.

    Parameters
    ----------
    features_NC : array of shape (N, C)
    people, conditions : arrays of N labels

    Returns
    -------
    float
        0 on average where blocks of a person are no more alike than those of others, and then often below; NaN where nobody has two blocks
        of a condition, or a condition one person.
    """
    between, within, between_dof, within_dof, each = 0.0, 0.0, 0, 0, 0.0
    for condition in np.unique(conditions):
        own_NC = np.asarray(features_NC[conditions == condition], np.float64)
        _, person_N, count_P = np.unique(people[conditions == condition], return_inverse=True, return_counts=True)
        sums_PC = np.zeros((len(count_P), own_NC.shape[1]))
        np.add.at(sums_PC, person_N, own_NC)
        mean_PC = sums_PC / count_P[:, None]
        between += float((count_P @ np.square(mean_PC - own_NC.mean(axis=0))).sum())
        within += float(np.square(own_NC - mean_PC[person_N]).sum())
        between_dof, within_dof = between_dof + len(count_P) - 1, within_dof + len(own_NC) - len(count_P)
        each += count_P.sum() - np.square(count_P).sum() / count_P.sum()
    if not (between_dof and within_dof):
        return float("nan")
    noise = within / within_dof
    person = (between / between_dof - noise) * between_dof / each
    return person / (person + noise) if person + noise > 0 else float("nan")

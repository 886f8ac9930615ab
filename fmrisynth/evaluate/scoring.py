"""The paper's scores of a dataset's group maps: values, permutation p, intervals and real-against-real ceilings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fmrisynth.evaluate.properties import Properties
from fmrisynth.glm.group import SINGLE_SUBJECT
from fmrisynth.glm.map_scores import (
    Scores,
    map_correlations,
    permute_corr,
    permute_rsa,
    permute_top1,
    score_maps,
    top1_hits,
)

SCORES = ("corr", "rsa_pearson", "rsa_spearman", "top1")
MIN_FINITE = 0.5
"""Below this share of voxels with a z, group maps of effects stand in for maps of z."""


@dataclass
class Score:
    """One number, or the reason why there is none.

    Attributes
    ----------
    value : float or None
    low, high : float or None
        95 % interval.
    p : float or None
        Permutation p over the pairing of conditions.
    n : int
        What it was computed from: conditions, pairs or samples (see `unit`).
    unit : str
    note : str
        How the number is reduced, or why it is missing.
    """

    value: float | None
    n: int
    unit: str
    low: float | None = None
    high: float | None = None
    p: float | None = None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is missing is null with its note."""
        return {
            "value": self.value, "interval_95": None if self.low is None else [self.low, self.high], "p": self.p,
            "n": self.n, "unit": self.unit, "note": self.note,
        }  # fmt: skip


@dataclass
class GroupMaps:
    """Group maps of one dataset over one list of conditions."""

    conditions: list[str]
    z_KV: np.ndarray
    effect_KV: np.ndarray
    models: dict[str, str]
    n_subjects: dict[str, int]


def group_maps(properties: Properties, conditions: Sequence[str]) -> GroupMaps:
    """Group maps of the given conditions; z is NaN where there is no statistic."""
    return GroupMaps(
        list(conditions),
        np.stack([properties.z(c) for c in conditions]),
        np.stack([properties.group(c).effect for c in conditions]),
        {c: properties.model(c) for c in conditions},
        {c: properties.n_people(c) for c in conditions},
    )


@dataclass
class Comparison:
    """A dataset scored against the real group maps."""

    scores: dict[str, Score]
    corr_per_condition: dict[str, float | None]
    cross_KL: np.ndarray
    map_kind: str
    notes: list[str] = field(default_factory=list)


def shared_maps(
    real: Properties, other: Properties, conditions: Sequence[str], candidates: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, str, list[str]]:
    """Maps over the voxels that have a z in all of them, or effect maps where too few have one."""
    real_KV, other_KV = np.stack([real.z(c) for c in candidates]), np.stack([other.z(c) for c in conditions])
    finite = np.isfinite(real_KV).all(axis=0) & np.isfinite(other_KV).all(axis=0)
    if finite.all():
        return real_KV, other_KV, "z", []
    if finite.mean() >= MIN_FINITE:
        note = f"{int((~finite).sum())} of {finite.size} voxels have no z in some map and were left out."
        return real_KV[:, finite], other_KV[:, finite], "z", [note]
    lacking = [c for c, z in zip(conditions, other_KV, strict=True) if np.isfinite(z).mean() < MIN_FINITE]
    lacking += [f"{c} (real)" for c, z in zip(candidates, real_KV, strict=True) if np.isfinite(z).mean() < MIN_FINITE]
    effects = [np.stack([p.group(c).effect for c in names]) for p, names in ((real, candidates), (other, conditions))]
    note = f"No between-subject variance in {', '.join(lacking)}: z does not exist there, so maps of effects were compared instead."
    return effects[0], effects[1], "effect", [note]


def map_scores(real: Properties, other: Properties, conditions: Sequence[str], candidates: Sequence[str]) -> Scores:
    """The paper's scores of two datasets; `candidates` starts with `conditions`."""
    real_maps, other_maps, _, _ = shared_maps(real, other, conditions, candidates)
    return score_maps(real_maps, other_maps, np.arange(len(conditions)))


def compare_maps(
    real: Properties, other: Properties, conditions: Sequence[str], candidates: Sequence[str], seed: int
) -> Comparison:
    """Score one dataset (synthetic, baseline, other real blocks) against the real group maps, without intervals.

    Parameters
    ----------
    real, other : Properties
    conditions, candidates : sequence of str
        Those of both datasets, and all real ones, the first list first.
    seed : int
        Seed of random permutations.
    """
    k, n_candidates = len(conditions), len(candidates)
    real_maps, other_maps, kind, notes = shared_maps(real, other, conditions, candidates)
    found = score_maps(real_maps, other_maps, np.arange(k))
    if any(real.model(c) == SINGLE_SUBJECT for c in candidates):
        notes.append("Real group maps are single subject: fixed effects over its blocks.")
    if any(other.model(c) == SINGLE_SUBJECT for c in conditions):
        notes.append("Some of the compared group maps come from one sample: fixed effects, not random effects.")
    scores = {"corr": Score(_finite(found.corr), k, "conditions")}
    if scores["corr"].value is None:
        scores["corr"].note = "A group map is constant, so its correlation does not exist."
    pairs = k * (k - 1) // 2
    for name, value in (("rsa_pearson", found.rsa_pearson), ("rsa_spearman", found.rsa_spearman)):
        if value is None:
            note = f"Not computed: {k} condition{'s give' if k > 1 else ' gives'} {pairs} pair{'s' if pairs != 1 else ''}; RSA needs three."
            scores[name] = Score(None, pairs, "pairs", note=note)
        else:
            note = f"Only {pairs} pairs of conditions: read it with care." if pairs < 10 else ""
            scores[name] = Score(_finite(value), pairs, "pairs", note=note)
    if found.top1 is None:
        note = "Not computed: one candidate condition leaves nothing to choose."
        scores["top1"] = Score(None, k, "conditions", note=note)
    else:
        share = float(found.top1)
        low, high = wilson_interval(share, k)
        note = f"{n_candidates} candidates, chance {1 / n_candidates:.2f}; Wilson's interval over conditions."
        scores["top1"] = Score(share, k, "conditions", low, high, note=note)
    tests = {
        "corr": permute_corr(found.cross_KL[:, :k], seed),
        "rsa_pearson": permute_rsa(map_correlations(real_maps[:k], real_maps[:k]), map_correlations(other_maps, other_maps), seed),
        "top1": permute_top1(found.cross_KL[:, :k], seed),
    }  # fmt: skip
    for name, test in tests.items():
        if test is not None and scores[name].value is not None:
            scores[name].p = test.p
    hits_N = sample_hits(real, other, conditions, candidates)
    if hits_N is not None:
        share = float(hits_N.mean())
        low, high = wilson_interval(share, len(hits_N))
        scores["top1_per_sample"] = Score(share, len(hits_N), "blocks", low, high, note=f"Chance {1 / n_candidates:.2f}.")  # fmt: skip
    per_condition = {c: _finite(v) for c, v in zip(conditions, found.corr_K, strict=True)}
    return Comparison(scores, per_condition, found.cross_KL, kind, notes)


def _finite(value: Any) -> float | None:
    number = float(value)
    return number if np.isfinite(number) else None


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of n independent trials (Wilson)."""
    z2 = 1.959964**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    reach = 1.959964 / (1 + z2 / n) * np.sqrt(share * (1 - share) / n + z2 / (4 * n**2))
    return max(0.0, float(centre - reach)), min(1.0, float(centre + reach))


def sample_hits(
    real: Properties, other: Properties, conditions: Sequence[str], candidates: Sequence[str]
) -> np.ndarray | None:
    """Whether each block's own effect map is nearest to the real group map of its condition; None where effects were not kept."""
    if other.rows.effects_NS.shape[-1] == 0 or len(candidates) < 2:
        return None
    real = real if real.n_voxels == other.rows.effects_NS.shape[1] else real.at_resampled
    maps = np.stack([real.z(c) for c in candidates])
    finite = np.isfinite(maps).all(axis=0)
    if finite.mean() < MIN_FINITE:
        maps, finite = np.stack([real.group(c).effect for c in candidates]), np.ones_like(finite)
    # The largest correlation, without the block's own mean and norm, which are the same for every candidate.
    centred_LS = np.where(finite, maps, 0.0) - finite * maps[:, finite].mean(axis=1, keepdims=True)
    unit_LS = (centred_LS / np.linalg.norm(centred_LS, axis=1, keepdims=True)).astype(np.float32)
    cross_NL = other.rows.effects_NS.astype(np.float32) @ unit_LS.T
    chosen = [other.rows.conditions_N == condition for condition in conditions]
    return np.concatenate([top1_hits(cross_NL[own], np.full(own.sum(), index)) for index, own in enumerate(chosen)])


def split_half_ceiling(
    real: Properties, conditions: Sequence[str], n_repeats: int, seed: int
) -> tuple[dict[str, Score], str]:
    """Real against real: random halves of the subjects (whole groups of them); mean and 95 % range over halves.

    Returns
    -------
    scores : dict of str to Score
        Empty with the reason in the second value when there are too few subjects.
    note : str
    """
    fewest = real.fewest(conditions)
    if fewest < 4 or n_repeats < 2:
        return {}, f"No split-half ceiling: it needs at least four subjects per condition, found {fewest}."
    rng = np.random.default_rng(seed)
    drawn_halves = [real.halves(rng) for _ in range(n_repeats)]
    whole = [pair for pair in drawn_halves if all(half.n_people(c) >= 2 for half in pair for c in conditions)]
    if not whole:
        return {}, "No split-half ceiling: no half of the subjects has two of every condition."
    found = [map_scores(*pair, conditions, conditions) for pair in whole]
    scores = {}
    for name in SCORES:
        drawn = [getattr(one, name) for one in found]
        if any(d is None for d in drawn):
            continue
        values = np.array(drawn, float)
        values = values[np.isfinite(values)]
        if values.size:
            low, high = np.percentile(values, [2.5, 97.5])
            scores[name] = Score(float(values.mean()), len(whole), "random halves", float(low), float(high))
    note = f"{len(whole)} random halves of {fewest} subjects; each half has about {fewest // 2}, so its maps are noisier than the whole."
    return scores, note


def noise_free_ceiling(split_half_corr: float) -> float:
    """Expected correlation of the *true* group map with the full sample's map, from the split-half r.

    Spearman-Brown: the reliability of the whole is ``2 r / (1 + r)``; a noise-free map correlates with it by the root.

    Examples
    --------
    >>> round(noise_free_ceiling(0.9), 3)
    0.973
    """
    r = max(split_half_corr, 0.0)
    return float(np.sqrt(2 * r / (1 + r)))

"""Scores with their interval, ceiling, permutation p and per-sample companion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fmrisynth.evaluate.resampling import (
    MIN_SUBJECTS,
    GroupEffects,
    bootstrap_scores,
    centred_interval,
    split_half_scores,
)
from fmrisynth.evaluate.summary import group_effects
from fmrisynth.glm.effects import EffectTable
from fmrisynth.glm.group import SINGLE_SUBJECT, group_map
from fmrisynth.glm.map_scores import (
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


def group_maps(table: EffectTable, conditions: Sequence[str]) -> GroupMaps:
    """Group maps of the given conditions; z is NaN where there is no statistic."""
    groups = [group_map(table, condition) for condition in conditions]
    return GroupMaps(
        list(conditions),
        np.stack([g.estimate.z for g in groups]),
        np.stack([g.estimate.effect for g in groups]),
        {c: g.model for c, g in zip(conditions, groups, strict=True)},
        {c: g.n_subjects for c, g in zip(conditions, groups, strict=True)},
    )


@dataclass
class Comparison:
    """A dataset scored against the real group maps."""

    scores: dict[str, Score]
    corr_per_condition: dict[str, float | None]
    cross_KL: np.ndarray
    map_kind: str
    notes: list[str] = field(default_factory=list)


def _shared_maps(real: GroupMaps, other: GroupMaps) -> tuple[np.ndarray, np.ndarray, str, list[str]]:
    """Maps over the voxels that have a z in all of them, or effect maps where too few have one."""
    finite = np.isfinite(real.z_KV).all(axis=0) & np.isfinite(other.z_KV).all(axis=0)
    n = finite.size
    if finite.mean() >= MIN_FINITE:
        notes = (
            [] if finite.all() else [f"{n - int(finite.sum())} of {n} voxels have no z in some map and were left out."]
        )
        return real.z_KV[:, finite], other.z_KV[:, finite], "z", notes
    lacking = [c for c, z in zip(other.conditions, other.z_KV, strict=True) if np.isfinite(z).mean() < MIN_FINITE]
    lacking += [
        f"{c} (real)" for c, z in zip(real.conditions, real.z_KV, strict=True) if np.isfinite(z).mean() < MIN_FINITE
    ]
    return (
        real.effect_KV, other.effect_KV, "effect",
        [f"No between-subject variance in {', '.join(lacking)}: z does not exist there, so maps of effects were compared instead."],
    )  # fmt: skip


def compare_maps(
    real: GroupMaps, other: GroupMaps, real_table: EffectTable, other_table: EffectTable, *,
    bootstrap_repeats: int, voxels: np.ndarray, seed: int, block_effects_RV: np.ndarray | None = None,
) -> Comparison:  # fmt: skip
    """Score one dataset (synthetic, baseline, training split) against the real group maps.

    Parameters
    ----------
    real, other : GroupMaps
        `real` holds every candidate condition, those of `other` first and in the same order.
    real_table, other_table : EffectTable
        Where the resamples come from.
    bootstrap_repeats : int
        0 for no intervals.
    voxels : int array
        Voxels of the bootstrap.
    seed : int
        Seed of bootstrap and random permutations.
    block_effects_RV : array of shape (R, V), optional
        Effects of single blocks, one for each row of `other_table`, to be classified one by one.
    """
    k, n_candidates = len(other.conditions), len(real.conditions)
    target = np.arange(k)
    real_maps, other_maps, kind, notes = _shared_maps(real, other)
    found = score_maps(real_maps, other_maps, target)
    square = found.cross_KL[:, :k]
    single = [c for c, model in real.models.items() if model == SINGLE_SUBJECT]
    if single:
        notes.append("Real group maps are single subject: fixed effects over its blocks.")
    if any(model == SINGLE_SUBJECT for model in other.models.values()):
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
        scores["top1"] = Score(
            None, k, "conditions", note="Not computed: one candidate condition leaves nothing to choose."
        )
    else:
        scores["top1"] = Score(
            _finite(found.top1), k, "conditions", note=f"{n_candidates} candidates, chance {1 / n_candidates:.2f}."
        )
    _add_p(
        scores, square, map_correlations(real_maps[:k], real_maps[:k]), map_correlations(other_maps, other_maps), seed
    )
    _add_intervals(scores, real, real_table, other, other_table, kind, bootstrap_repeats, voxels, seed, notes)
    if block_effects_RV is not None and n_candidates >= 2:
        scores["top1_per_sample"] = sample_top1(other_table, block_effects_RV, other.conditions, real, kind)
    return Comparison(
        scores,
        {c: _finite(v) for c, v in zip(other.conditions, found.corr_K, strict=True)},
        found.cross_KL, kind, notes,
    )  # fmt: skip


def _finite(value: Any) -> float | None:
    number = float(value)
    return number if np.isfinite(number) else None


def _add_p(scores: dict[str, Score], cross_KK, real_KK, other_KK, seed: int) -> None:
    if not np.isfinite(cross_KK).all():
        return
    for name, test in (
        ("corr", permute_corr(cross_KK, seed)), ("rsa_pearson", permute_rsa(real_KK, other_KK, seed)),
        ("top1", permute_top1(cross_KK, seed)),
    ):  # fmt: skip
        if test is not None and scores[name].value is not None:
            scores[name].p = test.p


def _add_intervals(
    scores: dict[str, Score], real: GroupMaps, real_table: EffectTable, other: GroupMaps, other_table: EffectTable,
    kind: str, n_repeats: int, voxels: np.ndarray, seed: int, notes: list[str],
) -> None:  # fmt: skip
    fewest = min([*real.n_subjects.values(), *other.n_subjects.values()])
    if n_repeats < 2:
        return
    if fewest < MIN_SUBJECTS or kind != "z":
        notes.append(
            f"No bootstrap intervals: they need z maps of at least {MIN_SUBJECTS} subjects and samples per condition, found {fewest}."
        )
        return
    real_groups = group_effects(real_table, real.conditions).voxels(voxels)
    other_groups = group_effects(other_table, other.conditions).voxels(voxels)
    batches = list(bootstrap_scores(real_groups, other_groups, np.arange(len(other.conditions)), n_repeats, seed))
    for name in SCORES:
        drawn = [getattr(batch, name) for batch in batches]
        if scores[name].value is None or any(d is None for d in drawn):
            continue
        values = np.concatenate(drawn)
        interval = centred_interval(
            float(scores[name].value or 0.0), values[np.isfinite(values)], correlation=name != "top1"
        )
        scores[name].low, scores[name].high = interval.low, interval.high


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of n independent trials (Wilson)."""
    z2 = 1.959964**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    reach = 1.959964 / (1 + z2 / n) * np.sqrt(share * (1 - share) / n + z2 / (4 * n**2))
    return max(0.0, float(centre - reach)), min(1.0, float(centre + reach))


def sample_top1(
    table: EffectTable, block_effects_RV: np.ndarray, conditions: Sequence[str], real: GroupMaps, kind: str
) -> Score:
    """Share of single blocks (one per row of the table) whose own effect map is nearest to the right real group map."""
    candidates = real.z_KV if kind == "z" else real.effect_KV
    finite = np.isfinite(candidates).all(axis=0)
    hits = []
    for index, condition in enumerate(conditions):
        cross = map_correlations(block_effects_RV[table.where(condition)][:, finite], candidates[:, finite])
        hits.append(top1_hits(cross, np.full(len(cross), index)))
    hit = np.concatenate(hits)
    low, high = wilson_interval(float(hit.mean()), len(hit))
    return Score(float(hit.mean()), len(hit), "blocks", low, high, note=f"Chance {1 / len(candidates):.2f}.")


def leave_one_out_top1(table: EffectTable, block_effects_RV: np.ndarray, conditions: Sequence[str]) -> Score | None:
    """Top-1 of single real blocks, one of each subject and condition, against the group maps of the other subjects.

    A sample is one block, so what real single blocks reach is its ceiling; subjects whose maps average several reach more.
    """
    data = group_effects(table, conditions)
    if min(data.n_per_condition.values()) < 3 or len(conditions) < 2:
        return None
    hits = []
    sums = {
        c: (data.effects[c].sum(axis=0, dtype=np.float64), np.square(data.effects[c], dtype=np.float64).sum(axis=0))
        for c in conditions
    }
    for subject in range(len(data.subjects)):
        maps, own = [], {}
        for condition in conditions:
            total, square = sums[condition]
            n = len(data.members[condition])
            row = np.flatnonzero(data.members[condition] == subject)
            if row.size:
                mine = data.effects[condition][row[0]].astype(np.float64)
                own[condition] = block_effects_RV[table.where(condition)[row[0]]]
                total, square, n = total - mine, square - mine**2, n - 1
            mean = total / n
            variance = np.maximum(square / n - mean**2, 1e-12) / (n - 1)
            maps.append(mean / np.sqrt(variance))
        for condition, block in own.items():
            cross = map_correlations(block[None], np.stack(maps).astype(np.float32))
            hits.append(bool(top1_hits(cross, np.array([list(conditions).index(condition)]))[0]))
    share = float(np.mean(hits))
    low, high = wilson_interval(share, len(hits))
    return Score(
        share,
        len(hits),
        "blocks",
        low,
        high,
        note="One block of each subject and condition against the others' group maps.",
    )


def split_half_ceiling(
    table: EffectTable, conditions: Sequence[str], n_repeats: int, voxels: np.ndarray, seed: int
) -> tuple[dict[str, Score], str]:
    """Real against real: random halves of the subjects; mean and 95 % range over halves.

    Returns
    -------
    scores : dict of str to Score
        Empty with the reason in the second value when there are too few subjects.
    note : str
    """
    data: GroupEffects = group_effects(table, conditions)
    fewest = min(data.n_per_condition.values())
    if fewest < 4 or n_repeats < 2:
        return {}, f"No split-half ceiling: it needs at least four subjects per condition, found {fewest}."
    batches = list(split_half_scores(data.voxels(voxels), n_repeats, seed))
    scores = {}
    for name in SCORES:
        drawn = [getattr(batch, name) for batch in batches]
        if any(d is None for d in drawn):
            continue
        values = np.concatenate(drawn)
        values = values[np.isfinite(values)]
        if values.size:
            low, high = np.percentile(values, [2.5, 97.5])
            scores[name] = Score(float(values.mean()), n_repeats, "random halves", float(low), float(high))
    return (
        scores,
        f"{n_repeats} random halves of {fewest} subjects; each half has {fewest // 2}, so its maps are noisier than the whole.",
    )


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

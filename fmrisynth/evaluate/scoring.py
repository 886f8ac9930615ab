"""The paper's scores of a dataset's group maps: values, permutation p, intervals and real-against-real ceilings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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

    `low` and `high` are its 95 % interval, `p` is by permutation of the pairing of conditions; it was computed from `n`
    conditions, pairs or blocks (`unit`); `note` says how it is reduced, or why it is missing.
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


@dataclass(frozen=True)
class Maps:
    """Group maps of two datasets: z, or effects where too few voxels have a z. Where all of them are finite they are compared."""

    real_LV: np.ndarray
    other_KV: np.ndarray
    kind: str
    notes: list[str]

    @property
    def finite_V(self) -> np.ndarray:
        """Voxels that are finite in all maps."""
        return np.isfinite(self.real_LV).all(axis=0) & np.isfinite(self.other_KV).all(axis=0)

    @property
    def compared(self) -> tuple[np.ndarray, np.ndarray]:
        """Real and other maps at these voxels."""
        finite_V = self.finite_V
        return (
            (self.real_LV, self.other_KV) if finite_V.all() else (self.real_LV[:, finite_V], self.other_KV[:, finite_V])
        )


@dataclass
class Comparison:
    """A dataset scored against the real group maps."""

    scores: dict[str, Score]
    corr_per_condition: dict[str, float | None]
    cross_KL: np.ndarray
    maps: Maps
    notes: list[str] = field(default_factory=list)


def shared_maps(real: Properties, other: Properties, conditions: Sequence[str], candidates: Sequence[str]) -> Maps:
    """Maps over the voxels that have a z in all of them, or effect maps where too few have one; `candidates` starts with `conditions`."""
    maps = Maps(np.stack([real.z(c) for c in candidates]), np.stack([other.z(c) for c in conditions]), "z", [])
    n_lost = int((~maps.finite_V).sum())
    if n_lost == 0:
        return maps
    if n_lost <= (1 - MIN_FINITE) * maps.finite_V.size:
        note = f"{n_lost} of {maps.finite_V.size} voxels have no z in some map and were left out."
        return replace(maps, notes=[note])
    named = [
        *zip(conditions, maps.other_KV, strict=True),
        *zip([f"{c} (real)" for c in candidates], maps.real_LV, strict=True),
    ]
    lacking = ", ".join(name for name, z in named if np.isfinite(z).mean() < MIN_FINITE)
    real_LV, other_KV = (np.stack([p.group(c).effect for c in n]) for p, n in ((real, candidates), (other, conditions)))
    note = (
        f"No between-subject variance in {lacking}: z does not exist there, so maps of effects were compared instead."
    )
    return Maps(real_LV, other_KV, "effect", [note])


def map_scores(real: Properties, other: Properties, conditions: Sequence[str], candidates: Sequence[str]) -> Scores:
    """The paper's scores of two datasets."""
    return score_maps(*shared_maps(real, other, conditions, candidates).compared, np.arange(len(conditions)))


def compare_maps(
    real: Properties, other: Properties, conditions: Sequence[str], candidates: Sequence[str], seed: int
) -> Comparison:
    """Score one dataset (synthetic, baseline, other real blocks) against the real group maps, without intervals.

    `conditions` are those of both datasets, `candidates` all real ones, the former first; `seed` is that of random permutations.
    """
    k, n_candidates = len(conditions), len(candidates)
    maps = shared_maps(real, other, conditions, candidates)
    (real_maps, other_maps), notes = maps.compared, list(maps.notes)
    found = score_maps(real_maps, other_maps, np.arange(k))
    if any(real.model(c) == SINGLE_SUBJECT for c in candidates):
        notes.append("Real group maps are single subject: fixed effects over its blocks.")
    if any(other.model(c) == SINGLE_SUBJECT for c in conditions):
        notes.append("Some of the compared group maps come from one sample: fixed effects, not random effects.")
    corr, pairs = _finite(found.corr), k * (k - 1) // 2
    note = "A group map is constant, so its correlation does not exist." if corr is None else ""
    scores = {"corr": Score(corr, k, "conditions", note=note)}
    note = f"Only {pairs} pairs of conditions: read it with care." if pairs < 10 else ""
    if found.rsa_pearson is None:
        note = f"Not computed: {k} condition{'s give' if k > 1 else ' gives'} {pairs} pair{'s' if pairs != 1 else ''}; RSA needs three."
    scores["rsa_pearson"] = Score(_finite(found.rsa_pearson), pairs, "pairs", note=note)
    scores["rsa_spearman"] = Score(_finite(found.rsa_spearman), pairs, "pairs", note=note)
    note = "Not computed: one candidate condition leaves nothing to choose."
    scores["top1"] = Score(None, k, "conditions", note=note)
    if found.top1 is not None:
        note = f"{n_candidates} candidates, chance {1 / n_candidates:.2f}; Wilson's interval over conditions."
        scores["top1"] = Score(float(found.top1), k, "conditions", *wilson_interval(float(found.top1), k), note=note)
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
        interval, note = wilson_interval(share, len(hits_N)), f"Chance {1 / n_candidates:.2f}."
        scores["top1_per_sample"] = Score(share, len(hits_N), "blocks", *interval, note=note)
    per_condition = {c: _finite(v) for c, v in zip(conditions, found.corr_K, strict=True)}
    return Comparison(scores, per_condition, found.cross_KL, maps, notes)


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and np.isfinite(value) else None


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

    Without scores, where there are too few subjects, the second value says so.
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

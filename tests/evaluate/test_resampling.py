"""Group maps from sums, halves of people, and what the scores' intervals cover."""

from __future__ import annotations

import numpy as np
import pytest

from fmrisynth.evaluate import jackknife
from fmrisynth.evaluate.analysis import add_intervals
from fmrisynth.evaluate.checks import Context
from fmrisynth.evaluate.distinguish import auc_of
from fmrisynth.evaluate.jackknife import gather, jackknife_variance, judge
from fmrisynth.evaluate.properties import BlockRows, Properties, Sums
from fmrisynth.evaluate.scoring import Comparison, Maps, Score, map_scores, noise_free_ceiling, wilson_interval
from fmrisynth.evaluate.utility import share_of_skill
from fmrisynth.glm.statistics import random_effects


def properties_of(effects: dict[str, np.ndarray], n_groups: int = 20, **numbers: np.ndarray) -> Properties:
    """Properties of people of whom only effect maps are known, (S, V) per condition, and some numbers of their blocks."""
    sums, parts = Sums(), [Sums() for _ in range(min(n_groups, max(len(e) for e in effects.values())))]
    people, conditions, groups = [], [], []
    for condition, maps in effects.items():
        for index, effect in enumerate(maps):
            for part in (sums, parts[index % len(parts)]):
                part.people("people", condition, effect)
            people.append(f"{index}")
            conditions.append(condition)
            groups.append(index % len(parts))
    n = len(people)
    empty = {field: np.zeros((n, 1)) for field in BlockRows.__dataclass_fields__}
    rows = BlockRows(
        **empty
        | numbers
        | {"people_N": np.array(people), "conditions_N": np.array(conditions), "group_N": np.array(groups)}
    )
    n_voxels = next(iter(effects.values())).shape[1]
    return Properties(rows, sums, parts, np.arange(n_voxels), n_voxels)


SIMULATED = ("corr", "rsa", "gain", "gain_spread", "effect_variance", "smoothness", "autocorrelation", "spectrum")
"""Checks of each kind: shares of scores of maps; ratios of means, spreads, variances of maps and powers; and a difference."""


@pytest.fixture
def only_simulated(monkeypatch):
    monkeypatch.setattr(jackknife, "STATISTICS", tuple(c for c in jackknife.STATISTICS if c.key in SIMULATED))


def test_sums_give_the_random_effects_map(rng):
    effects = (rng.standard_normal((12, 300)) + 0.7).astype(np.float32)
    found = properties_of({"a": effects})
    np.testing.assert_allclose(found.z("a"), random_effects(effects).z, atol=1e-5)
    for gone in ((0,), (3, 4), (0, 11)):
        part = found.without(gone, 12)
        np.testing.assert_allclose(part.z("a"), random_effects(np.delete(effects, gone, axis=0)).z, atol=1e-5)
    fewer = found.without((1,), 5)  # groups of groups: every fifth
    np.testing.assert_allclose(fewer.z("a"), random_effects(np.delete(effects, (1, 6, 11), axis=0)).z, atol=1e-5)


def test_copies_have_no_z():
    assert np.isnan(properties_of({"a": np.full((5, 3), 2.0, np.float32)}).z("a")).all()


def test_halves_are_disjoint_groups_of_people(rng):
    effects = rng.standard_normal((9, 50)).astype(np.float32)
    first, second = properties_of({"a": effects}).halves(rng)
    chosen = np.isin(np.arange(9).astype(str), first.rows.people_N)
    assert chosen.sum() == 4
    assert set(first.rows.people_N) | set(second.rows.people_N) == set(np.arange(9).astype(str))
    np.testing.assert_allclose(first.z("a"), random_effects(effects[chosen]).z, atol=1e-5)
    np.testing.assert_allclose(second.z("a"), random_effects(effects[~chosen]).z, atol=1e-5)


def test_a_candidate_of_one_person_takes_the_interval_and_not_its_truth(rng, only_simulated):
    """Without the only person of a condition there is no map to choose from: no interval, where r = 0 would make a wide one."""
    truth = rng.standard_normal((3, 200))
    maps = {c: {k: (truth[int(k)] + rng.standard_normal((n, 200))).astype(np.float32) for k, n in own.items()}
            for c, own in {"real": {"0": 8, "1": 8, "2": 1}, "other": {"0": 8, "1": 8}}.items()}  # fmt: skip

    def variance(candidates: list[str]) -> np.ndarray | None:
        real, other = properties_of(maps["real"]), properties_of(maps["other"])
        real.sums["fixed", "2", "variance"], real.sums["fixed", "2", "dof"] = np.ones(200), np.array(10.0)
        evidence = gather(real, other, other, Context(["0", "1"], candidates, []))
        return evidence.variance("corr", lambda one: one.other)

    assert variance(["0", "1", "2"]) is None
    assert variance(["0", "1"]) < 0.01


def test_halves_of_noise_do_not_correlate(rng):
    data = properties_of({c: rng.standard_normal((10, 400)).astype(np.float32) for c in "abcd"})
    corr = [float(map_scores(*data.halves(rng), list("abcd"), list("abcd")).corr) for _ in range(40)]
    assert abs(np.mean(corr)) < 0.05


def test_spearman_brown_by_simulation():
    """The noise-free map correlates with the whole sample's map as the split half predicts."""
    rng = np.random.default_rng(5)
    truth = rng.standard_normal(20_000)
    halves = [truth + 1.5 * rng.standard_normal(20_000) for _ in range(2)]
    r_half = np.corrcoef(*halves)[0, 1]
    whole = np.mean(halves, axis=0)
    assert noise_free_ceiling(r_half) == pytest.approx(np.corrcoef(truth, whole)[0, 1], abs=0.01)


def test_wilson_interval_by_hand():
    low, high = wilson_interval(0.5, 10)
    assert (low, high) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson_interval(1.0, 7)[1] == 1.0


def test_jackknife_variance_of_sums_and_products():
    """Exact for a mean; of products of means, which the jackknife alone counts twice, most of what is too much is taken off."""
    rng = np.random.default_rng(4)
    n, draws = 20, 400

    def estimates(number):
        x = rng.standard_normal((draws, n, 2))
        groups = np.arange(n)
        one = np.stack([number(x[:, groups != g].mean(axis=1)) for g in groups])
        two = np.stack([number(x[:, (groups != g) & (groups != (g + 1) % n)].mean(axis=1)) for g in groups])
        return jackknife_variance(one, two), (n - 1) * one.var(axis=0), x

    found, _, x = estimates(lambda mean: mean[:, 0])
    np.testing.assert_allclose(found, x[..., 0].var(axis=1) / (n - 1), rtol=1e-6)
    found, plain, _ = estimates(lambda mean: mean[:, 0] * mean[:, 1])
    assert 1.0 < found.mean() * n**2 < 1.6 < plain.mean() * n**2  # the variance of the product is 1 / n^2


def simulate_coverage(n_simulations: int, seed: int) -> dict[str, float]:
    """Share of 95 % intervals that cover the expectation of a judged number, over simulated studies.

    The size of study for which power is stated: 20 real people, 50 samples, 7 conditions. People differ in their overall response, in a few
    spatial patterns and in white noise, as real effect maps do, and in the numbers of their blocks; real people have all conditions,
    synthetic samples one; a third dataset of as many blocks as there are samples sets the ceiling.
    """
    rng = np.random.default_rng(seed)
    k, n_voxels, rank, n_real, n_synthetic = 7, 120, 6, 20, 50
    truth = rng.standard_normal((k, n_voxels)) + rng.standard_normal(n_voxels)
    patterns = rng.standard_normal((rank, n_voxels)) / np.sqrt(rank)
    names = [str(c) for c in range(k)]
    context = Context(names, names, [], timing={"known": None})

    def study(n: int, *, several: bool, shift: float = 0.0) -> Properties:
        effects = {
            str(c): (
                truth[c] * (1 + 0.3 * rng.standard_normal((n, 1)))
                + 1.5 * rng.standard_normal((n, rank)) @ patterns
                + 0.7 * rng.standard_normal((n, n_voxels))
            ).astype(np.float32)
            for c in range(k)
        }
        person = rng.standard_normal((1, n, 4)) if several else rng.standard_normal((k, n, 4))
        own = (shift + 0.7 * person + 0.7 * rng.standard_normal((k, n, 4))).reshape(-1, 4)
        power = np.exp(0.3 * own[:, 3:] + 0.3 * rng.standard_normal((k * n, 6)))
        return properties_of(
            effects, gain_N=1 + 0.3 * own[:, 0], fwhm_mm_N=5 * np.exp(0.2 * own[:, 1]),
            autocorrelation_NL=0.3 + 0.1 * own[:, 2:3], spectrum_NF=power,
        )  # fmt: skip

    values: dict[str, list[float]] = {key: [] for key in (*SIMULATED, "corr itself", "rsa itself")}
    intervals: dict[str, list[tuple[float, float]]] = {key: [] for key in values}
    for _ in range(n_simulations):
        peer, synthetic = study(n_synthetic, several=False), study(n_synthetic, several=False, shift=0.5)
        evidence = gather(study(n_real, several=True), synthetic, peer, context)
        verdicts = judge(evidence)
        for key in SIMULATED:
            if verdicts[key].low is None:  # a ceiling too low to be judged
                continue
            scale = np.log if verdicts[key].check.kind == "ratio" else np.asarray
            values[key].append(float(scale(verdicts[key].value)))
            intervals[key].append((float(scale(verdicts[key].low)), float(scale(verdicts[key].high))))
        for key in ("corr", "rsa"):
            score = Comparison(
                {"corr": Score(1, 1, ""), "rsa_pearson": Score(1, 1, "")},
                {},
                np.zeros(0),
                Maps(np.zeros(0), np.zeros(0), "z", []),
            )
            name = "rsa_pearson" if key == "rsa" else key
            score.scores[name].value = evidence.whole[key].other
            add_intervals(score, evidence)
            values[f"{key} itself"].append(score.scores[name].value)
            intervals[f"{key} itself"].append((score.scores[name].low, score.scores[name].high))
    return {
        key: float(np.mean([low <= np.mean(values[key]) <= high for low, high in intervals[key]])) for key in values
    }


def test_intervals_cover_roughly(only_simulated):
    coverage = simulate_coverage(12, 11)
    assert all(share >= 0.7 for share in coverage.values()), coverage


@pytest.mark.slow
def test_intervals_cover_in_92_to_98_percent_of_500_studies(only_simulated):
    coverage = simulate_coverage(500, 12) | simulate_coverage_of_classifiers(500, 13)
    print(coverage)
    assert all(0.92 <= share <= 0.98 for share in coverage.values()), coverage


def simulate_coverage_of_classifiers(n_simulations: int, seed: int) -> dict[str, float]:
    """The same for the area under the curve of held-out scores, and for the share of what classifiers learn from real blocks."""
    rng = np.random.default_rng(seed)
    areas, shares = [], []
    for _ in range(n_simulations):
        real, samples = np.repeat(np.arange(20), 7), 20 + np.arange(140)  # 20 people with 7 blocks, 140 samples
        people = np.concatenate([real, samples])
        y = (people >= 20).astype(int)
        scores = 0.7 * y + 0.7 * rng.standard_normal(160)[people] + rng.standard_normal(280)
        areas.append(auc_of(scores, y, people))
        skill = 1.2 + 0.5 * rng.standard_normal(20)[real]  # some people are easier to tell for both
        right = [rng.random(140) < 1 / (1 + np.exp(-level - skill + 1.2)) for level in (0.4, 1.2)]
        shares.append(share_of_skill(np.array(right, float), real, 1 / 7))
    covered = {}
    for name, found in (("auc", areas), ("utility", shares)):
        value, reach = np.array(found).T
        covered[name] = float(np.mean(np.abs(value - value.mean()) <= reach))
    return covered

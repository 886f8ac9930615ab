"""Intervals of the checks: leaving out groups against computing again, and coverage in simulated studies."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from fmrisynth.config.glm import GlmConfig
from fmrisynth.data.blocks import Block
from fmrisynth.evaluate.checks import Context, Verdict
from fmrisynth.evaluate.jackknife import Evidence, gather, judge, standings
from fmrisynth.evaluate.probes import Probes
from fmrisynth.evaluate.properties import Properties
from fmrisynth.evaluate.rois import Roi
from fmrisynth.evaluate.summary import Summariser
from fmrisynth.glm.design import window_design
from fmrisynth.glm.windows import Window
from tests.evaluate.conftest import GRID, brain_mask, smooth_map

CONDITION = "motor_rh"
DESIGN = window_design(0.0, 18.0, 12, 1.44)


def block_of(subject: str, condition: str) -> Block:
    return Block(Path(), subject, condition, Path("x_bold.nii.gz"), 0.0, 18.0, 1.44, 12)


class Population:
    """Subjects with an effect and a noise level of their own, and coloured noise that is stronger in some places."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        mask = brain_mask()
        self.effect_V = smooth_map(rng)[mask]
        self.noise_sd_V = 4 * (1 + 0.3 * smooth_map(rng, sigma=2)[mask].clip(-2, 2))
        self.rois = [Roi(str(i), "*", smooth_map(rng, sigma=2)[mask] > 1, "") for i in range(8)]
        self.probes = Probes(GRID, mask, self.rois)

    def subject(
        self, rng: np.random.Generator, name: str, n_blocks: int, variance: float = 1.0, level_sd: float = 0.2
    ) -> list[Window]:
        mask = self.probes.mask_XYZ
        own_V = self.effect_V + 0.7 * smooth_map(rng)[mask]
        level = np.exp(level_sd * rng.standard_normal()) * np.sqrt(variance)
        windows = []
        for _ in range(n_blocks):
            noise_TV = np.stack([gaussian_filter(rng.standard_normal(GRID.shape), 0.8)[mask] for _ in range(12)])
            for t in range(1, 12):
                noise_TV[t] = 0.4 * noise_TV[t - 1] + np.sqrt(1 - 0.16) * noise_TV[t]
            percent_TV = DESIGN.matrix_TP[:, :1] * own_V + level * self.noise_sd_V * noise_TV
            block = block_of(name, CONDITION)
            windows.append(Window(block, percent_TV.astype(np.float32), np.ones(len(own_V), np.float32)))
        return windows

    def properties(self, subjects: list[list[Window]], n_groups: int = 20) -> Properties:
        voxels = np.arange(int(self.probes.mask_XYZ.sum()))
        keep = Summariser(self.probes, GlmConfig(), voxels, n_groups=n_groups, keep_effects=False)
        for windows in subjects:
            for window in windows:
                keep.add(keep.measure(window))
        return keep.finish().properties

    def cohort(self, rng: np.random.Generator, n: int, n_blocks: int = 1, **differences: float) -> Properties:
        return self.properties([self.subject(rng, f"s{k}", n_blocks, **differences) for k in range(n)])


def judged(
    population: Population, real: Properties, other: Properties, peer: Properties | None = None
) -> tuple[dict[str, Verdict], Evidence]:
    evidence = gather(real, other, peer, Context([CONDITION], [CONDITION], population.rois))
    return judge(evidence), evidence


@pytest.fixture(scope="module")
def population() -> Population:
    return Population()


def test_leaving_out_a_group_is_computing_again_without_it(population, rng):
    subjects = [population.subject(rng, f"s{k}", 2) for k in range(9)]
    whole = population.properties(subjects, n_groups=4)
    assert whole.n_groups == 4
    for group in range(4):
        part = whole.without((group,), 4)
        again = population.properties([own for k, own in enumerate(subjects) if k % 4 != group])
        assert set(part.rows.people_N) == set(again.rows.people_N)
        for name in ("courses_NRT", "autocorrelation_NL", "spectrum_NF", "fwhm_mm_N", "block_variance_N"):
            np.testing.assert_array_equal(getattr(part.rows, name), getattr(again.rows, name))
        np.testing.assert_allclose(part.residual_variance_V, again.residual_variance_V, rtol=1e-10)
        np.testing.assert_allclose(part.connectivity_PP, again.connectivity_PP, atol=1e-10)
        np.testing.assert_allclose(part.z(CONDITION), again.z(CONDITION), atol=1e-4)


def test_samples_that_are_all_as_noisy_are_told_from_people(population, rng):
    real, alike, people = (population.cohort(rng, 40, level_sd=sd) for sd in (0.2, 0.0, 0.2))
    poor, good = (judged(population, real, other)[0]["variance_spread"] for other in (alike, people))
    assert poor.real == pytest.approx(0.4, rel=0.3)  # twice the standard deviation of the level, which is squared
    assert poor.answer == "fail"
    assert poor.high < 1 / 2
    assert good.answer != "fail"
    assert good.low < 1 < good.high


def test_a_planted_difference_is_found_in_both_directions(population, rng):
    real, like, unlike = (population.cohort(rng, 25, variance=v) for v in (1.0, 1.0, 3.0))
    (good, ours), (bad, theirs) = (judged(population, real, other) for other in (like, unlike))
    assert standings(ours, theirs)["residual_variance"] == "farther"
    assert standings(theirs, ours)["residual_variance"] == "nearer"
    assert standings(ours, theirs)["smoothness"] == "even"
    assert good["residual_variance"].low < 1 < good["residual_variance"].high
    assert good["residual_variance"].answer == "pass"
    assert bad["residual_variance"].low > 1.5
    assert bad["residual_variance"].answer == "fail"


@pytest.mark.parametrize("order", ["by condition", "in turn"])
def test_no_group_holds_a_condition_alone(population, rng, order):
    """Twenty conditions of six samples, in the order of conditions or in turn: each stays when any group is left out."""
    numbers = (
        [(c, k) for c in range(20) for k in range(6)]
        if order == "by condition"
        else [(c, k) for k in range(6) for c in range(20)]
    )
    window = population.subject(rng, "s", 1)[0]
    keep = Summariser(population.probes, GlmConfig(), np.arange(10))
    for condition, number in numbers:
        block = block_of(f"s{condition}-{number}", f"task_{condition}")
        keep.add(keep.measure(replace(window, block=block)))
    whole = keep.finish().properties
    for group in range(whole.n_groups):
        part = whole.without((group, (group + 1) % whole.n_groups), whole.n_groups)
        assert len(set(part.rows.conditions_N)) == 20


def test_few_people_give_no_interval_and_no_answer(population, rng):
    real, samples = population.cohort(rng, 6), population.cohort(rng, 4)
    verdicts, evidence = judged(population, real, samples)
    assert {v.answer for v in verdicts.values()} == {"unclear"}
    assert all(v.low is None and v.high is None for v in verdicts.values())
    assert set(standings(evidence, evidence).values()) == {None}


@pytest.mark.slow
def test_coverage(population):
    """60 studies of 30 subjects with two blocks, twice 50 samples of the same population, and 50 peers."""
    rng = np.random.default_rng(1)
    studies, compared = [], []
    for _ in range(60):
        real, peer = population.cohort(rng, 30, n_blocks=2), population.cohort(rng, 50)
        (one, ours), (_, theirs) = (judged(population, real, population.cohort(rng, 50), peer) for _ in range(2))
        studies.append(one)
        compared.append(standings(ours, theirs))
    print()
    for key in studies[0]:
        column = [verdicts[key] for verdicts in studies if verdicts[key].low is not None]
        if len(column) < 60:
            continue
        expected = np.mean([verdict.value for verdict in column])
        covered = np.mean([verdict.low <= expected <= verdict.high for verdict in column])
        found = Counter(verdict[key] for verdict in compared)
        answers = Counter(verdict.answer for verdict in column)
        print(f"{key}: {100 * covered:.0f} % of intervals hold the expectation, {dict(found)}, {dict(answers)}")
        assert covered >= 0.85  # 95 % in 60 studies: below 85 % once in 1,350
        assert found["even"] >= 51
        assert answers["fail"] <= 5

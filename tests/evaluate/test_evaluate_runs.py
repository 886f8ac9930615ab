"""Comparisons of whole runs, on numbers with a planted answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fmrisynth.bids.events import Event
from fmrisynth.errors import FmrisynthError
from fmrisynth.evaluate.run_checks import fir_correlation, judge, peak_delay_s, run_checks, slopes, spread_ratio
from fmrisynth.evaluate.runs import RunNumbers, fir_design

N_VOXELS, N_LAGS, TR_S = 3000, 18, 1.44


def course(delay_s: float = 0.0) -> np.ndarray:
    at = np.arange(N_LAGS) * TR_S
    return np.exp(-0.5 * ((at - 8.0 - delay_s) / 3.0) ** 2)


def people(rng, truth_KV, n=12, noise=1.0, spread=0.3, delay_s=0.0, **numbers) -> list[RunNumbers]:
    found = []
    for _ in range(n):
        own = truth_KV * (1 + spread * rng.standard_normal((len(truth_KV), 1))) + noise * rng.standard_normal(
            truth_KV.shape
        )
        fir_KLR = np.broadcast_to(course(delay_s)[None, :, None], (len(truth_KV), N_LAGS, len(truth_KV)))
        plain = {"sd": 1.0, "lag1": 0.3, "power_B": np.ones(6), "global_sd": 0.2, "border": 1.0} | numbers
        jitter = {key: value * np.exp(0.02 * rng.standard_normal()) for key, value in plain.items()}
        found.append(
            RunNumbers(
                effects_KV=own.astype(np.float32), fir_KLR=fir_KLR + 0.02 * rng.standard_normal(fir_KLR.shape),
                connectivity_CC=np.eye(20, k=1, dtype=np.float32) + 0.01 * rng.standard_normal((20, 20)), **jitter,
            )
        )  # fmt: skip
    return found


@pytest.fixture
def truth_KV(rng):
    return rng.standard_normal((3, N_VOXELS))


def test_slopes_are_those_planted_whatever_the_noise(rng, truth_KV):
    mixing_KK = np.array([[1.0, -0.65, 0.0], [0.0, 1.2, 0.0], [0.3, 0.0, 0.8]])
    real = people(rng, truth_KV, n=16, noise=4.0, spread=0.0)
    synthetic = people(rng, mixing_KK @ truth_KV, n=200, noise=4.0, spread=0.0)
    assert np.abs(slopes(real, synthetic) - mixing_KK).max() < 0.12


def test_latency_and_shape_of_responses(rng, truth_KV):
    real, late = people(rng, truth_KV), people(rng, truth_KV, delay_s=1.5)
    assert peak_delay_s(real, late, tr_s=TR_S) == pytest.approx([1.5] * 3, abs=0.15)
    assert fir_correlation(real, late).max() < 0.96
    assert fir_correlation(real, people(rng, truth_KV)).min() > 0.99


def test_spread_between_people(rng, truth_KV):
    one = people(rng, truth_KV, n=60, noise=0.05, spread=0.3)
    other = people(rng, truth_KV, n=60, noise=0.05, spread=0.15)
    assert spread_ratio(one, other) == pytest.approx([np.log(0.5)] * 3, abs=0.25)


def test_good_people_pass_and_each_fault_fails_its_check(rng, truth_KV):
    checks = run_checks(TR_S)
    real = people(rng, truth_KV, n=20)
    good = {v.check.key: v.answer for v in judge(checks, real, people(rng, truth_KV, n=20))}
    assert [key for key, answer in good.items() if answer == "fails"] == []
    assert sum(answer == "passes" for answer in good.values()) >= len(good) - 3
    faults = {
        "amplitude": people(rng, 1.5 * truth_KV, n=20), "latency": people(rng, truth_KV, n=20, delay_s=1.5),
        "leakage": people(rng, truth_KV - 0.6 * truth_KV[[1, 2, 0]], n=20), "border": people(rng, truth_KV, n=20, border=1.4),
        "sd": people(rng, truth_KV, n=20, sd=1.5), "lag1": people(rng, truth_KV, n=20, lag1=0.1),
        "power0": people(rng, truth_KV, n=20, power_B=np.array([0.3, 1, 1, 1, 1, 1.0])),
        "maps": people(rng, rng.standard_normal(truth_KV.shape), n=20),
    }  # fmt: skip
    for key, faulty in faults.items():
        answers = {v.check.key: v.answer for v in judge([c for c in checks if c.key == key], real, faulty)}
        assert answers == {key: "fails"}


def test_two_people_cannot_be_told(rng, truth_KV):
    few = people(rng, truth_KV, n=2)
    assert {v.answer for v in judge(run_checks(TR_S), few, few)} == {"cannot tell"}


def test_people_who_lack_a_condition_are_left_out_and_separate_runs_dilute_nothing(tmp_path, caplog):
    """Two runs with a condition each: responses are those of the run where it occurs, not means with the other's zeros."""
    from fmrisynth.config.simulate import SimulateConfig
    from fmrisynth.evaluate.runs import Plan, RunCohort, measure, regions_of
    from fmrisynth.simulate import simulate_cohort

    for task, condition in (("one", "motor_rh"), ("two", "motor_lh")):
        table = f"onset\tduration\ttrial_type\n8\t12\t{condition}\n40\t12\t{condition}\n"
        (tmp_path / f"task-{task}_events.tsv").write_text(table)
    config = SimulateConfig(
        layout="runs", n_subjects=2, seed=3, directions=("LR",), write_truth=False,
        events=(tmp_path / "task-one_events.tsv", tmp_path / "task-two_events.tsv"),
    )  # fmt: skip
    simulate_cohort(tmp_path / "runs", config)
    both = RunCohort.open(tmp_path / "runs")
    plan = Plan.of(both, both)
    regions_RV = regions_of(np.stack([p.effects_KV for p in measure(both, plan, None, "")]))
    whole = measure(both, plan, regions_RV, "")[0]
    name = next(iter(both.people))
    single = RunCohort(both.root, {name: [run for run in both.people[name] if run.entities["task"] == "one"]})
    alone = measure(single, replace(plan, conditions=("motor_rh",), n_lags_K=plan.n_lags_K[1:]), regions_RV[1:], "")[0]
    np.testing.assert_allclose(whole.fir_KLR[1, :, 1], alone.fir_KLR[0, :, 0], atol=1e-5)
    with pytest.raises(FmrisynthError, match="motor_lh"):
        measure(single, plan, regions_RV, "")


def test_impulse_responses_separate_what_overlaps(rng):
    events = [Event(float(on), 2.0, "ab"[i % 2]) for i, on in enumerate(np.cumsum(rng.uniform(2.5, 9, 60)))]
    times_s = (np.arange(300) + 0.5) * TR_S
    n_lags = np.array([12, 12])
    x_TP = fir_design(events, ("a", "b"), n_lags, times_s, TR_S)
    assert x_TP.shape == (300, 24)
    truth_P = rng.standard_normal(24)
    assert np.linalg.lstsq(x_TP, x_TP @ truth_P, rcond=None)[0] == pytest.approx(truth_P)

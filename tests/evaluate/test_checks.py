"""The three answers, and the statistics behind them, against worked or planted truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmrisynth.bids.origin import PHANTOM, Origin
from fmrisynth.evaluate.checks import BY_KEY, CHECKS, Check
from fmrisynth.evaluate.cohorts import perhaps_seen
from fmrisynth.evaluate.distinguish import effective_number
from fmrisynth.evaluate.response import Timing, make_pattern, mirror_index
from fmrisynth.evaluate.verdicts import Judgement, headline
from fmrisynth.glm.design import window_design
from tests.evaluate.conftest import GRID, brain_mask

RATIO = Check("r", "", "", "ratio", 1.2, 1.5, "")
SHARE = Check("s", "", "", "share", 0.9, 0.7, "")


@pytest.mark.parametrize(
    ("factors", "answer"),
    [
        ((0.95, 1.1), "pass"), ((1.1, 1.45), "pass"), ((1.25, 1.9), "fail"), ((0.4, 0.8), "fail"), ((0.5, 2.0), "unclear"),
        ((1.1, 1.6), "unclear"), ((1.25, 1.4), "fail"),
    ],
)  # fmt: skip
def test_three_answers(factors, answer):
    assert RATIO.answer(*np.log(factors)) == answer


def test_a_wide_interval_is_never_green_and_more_than_the_ceiling_is_no_fault():
    assert SHARE.answer(-0.88, 1.0) == "unclear"
    assert SHARE.answer(1.1, 1.4) == "pass"
    assert SHARE.answer(0.2, 0.5) == "fail"


@given(st.sampled_from(CHECKS), st.floats(-3, 3), st.floats(0, 3), st.floats(0, 3))
def test_a_wider_interval_never_turns_one_answer_into_the_other(check, centre, reach, more):
    narrow = check.answer(centre - reach, centre + reach)
    wide = check.answer(centre - reach - more, centre + reach + more)
    assert wide in (narrow, "unclear")


def test_every_check_states_what_it_detects():
    assert len({check.key for check in CHECKS}) == len(CHECKS)
    for check in CHECKS:
        assert check.detects
        tolerated, alternative = check.limits
        assert 0 <= tolerated <= alternative


@pytest.mark.parametrize("delay", [-2.9, -1.5, 0.0, 0.72, 1.5, 2.9])
def test_timing_finds_a_planted_delay(delay):
    """Courses of a block whose onset is moved; before its onset the response is flat."""

    def course(onset):
        return window_design(onset, 14.0, 12, 1.44).matrix_TP[:, 0]

    found, _ = Timing(course(4.0), 1.44)(3.0 * course(4.0 + delay) + 5.0)
    assert found == pytest.approx(delay, abs=0.15)


def test_timing_finds_a_planted_width():
    fine = np.arange(0, 40, 0.1)

    def smear(sd):
        response = window_design(10.0, 12.0, 400, 0.1).matrix_TP[:, 0]
        kernel = np.exp(-0.5 * (np.arange(-8, 8.05, 0.1) / max(sd, 1e-3)) ** 2)
        return np.convolve(response, kernel / kernel.sum(), mode="same")[
            np.searchsorted(fine, 6 + 1.44 * np.arange(12))
        ]

    delay, change = Timing(smear(0.0), 1.44)(smear(1.5))
    assert change == pytest.approx(1.5**2, rel=0.35)
    assert abs(delay) < 0.2


def test_mirror_is_its_own_inverse_and_odd_gain_turns_its_sign(rng):
    mask = brain_mask()
    affine = GRID.affine.copy()
    affine[0, 3] = -22.5  # voxels lie mirrored about x = 0
    mirror = mirror_index(mask, affine)
    assert (mirror >= 0).all()
    np.testing.assert_array_equal(mirror[mirror], np.arange(len(mirror)))
    effect = rng.standard_normal(len(mirror)).astype(np.float32)
    pattern = make_pattern(effect, np.ones_like(effect), np.argwhere(mask) * 3.0, mirror)
    assert effect @ pattern.weights_V == pytest.approx(1.0, rel=1e-5)
    assert effect[mirror] @ pattern.odd_weights_V == pytest.approx(-(effect @ pattern.odd_weights_V), rel=1e-4)


def test_effective_number_by_hand():
    features = np.array([[0.0], [0.01], [0.02], [5.0]])  # three linked, one alone: 16 / (9 + 1)
    assert effective_number(features, 0.015) == pytest.approx(1.6)
    assert effective_number(features, 0.001) == pytest.approx(4.0)


def test_rules_name_both_limits_in_words():
    factor = "surely {} a factor of {:g}"
    assert RATIO.rule == f"passes if {factor.format('within', 1.5)}, fails if {factor.format('beyond', 1.2)}"
    assert SHARE.rule.startswith(
        f"passes if surely above {SHARE.alternative:g}, fails if surely below {SHARE.tolerated:g} of what"
    )
    assert BY_KEY["copies"].rule == "passes if none is found beyond chance, fails if any is"


def test_too_few_people_are_said_once():
    lines = [Judgement("a", "unclear", "A", ""), Judgement("b", "unclear", "B", ""), Judgement("c", "info", "C", "")]
    assert headline(lines, 2).startswith("Too few people: none of the 2 checks could be decided (most need 5 people")
    assert headline(lines, 2).endswith("the fewest are 2).")
    assert headline(lines, 9) == "The samples pass 0 of 2 checks. On 2 these data cannot tell."


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Origin("measured", "mine", 30), "if these people are among them, it has seen them"),
        (Origin("measured", "another", 30), "."),
        (PHANTOM, "."),
        (None, "if it was on them, every score is optimistic"),
    ],
)
def test_a_model_may_have_seen_the_people_whose_data_have_the_name_of_its_own(model, said):
    found = perhaps_seen(Origin("measured", "mine"), Origin("synthetic", trained_on=model))
    assert said in found
    assert (found == ".") == (said == ".")

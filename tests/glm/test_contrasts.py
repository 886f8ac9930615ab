"""Contrast formulas."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmrisynth.errors import UsageError
from fmrisynth.glm.contrasts import camel_case, parse_contrast

NAMES = ["face", "object", "scramble", "motor_rh", "motor_lh", "wm_2bk_places", "2back"]


@pytest.mark.parametrize(
    ("formula", "weights", "name"),
    [
        ("motor_rh - motor_lh", {"motor_rh": 1, "motor_lh": -1}, "motorRhMinusMotorLh"),
        ("face - (object + scramble) / 2", {"face": 1, "object": -0.5, "scramble": -0.5},
         "faceMinusObjectPlusScrambleOver2"),
        ("ffa = face - 0.5*object - scramble*.5", {"face": 1, "object": -0.5, "scramble": -0.5}, "ffa"),
        ("-face", {"face": -1}, "minusFace"),
        ("2 * (face - object) - face", {"face": 1, "object": -2}, "2TimesFaceMinusObjectMinusFace"),
        ("wm_2bk_places - 2back", {"wm_2bk_places": 1, "2back": -1}, "wm2bkPlacesMinus2back"),
        ("MOTOR:rh - motor:lh", {"motor_rh": 1, "motor_lh": -1}, "motorRhMinusMotorLh"),
        ("2 * WM 2bk:places - WM:2bk_places", {"wm_2bk_places": 1}, "2TimesWm2bkPlacesMinusWm2bkPlaces"),
    ],
)  # fmt: skip
def test_formula(formula, weights, name):
    contrast = parse_contrast(formula, NAMES)
    assert dict(contrast.weights) == pytest.approx(weights)
    assert contrast.name == name


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("fase", "did you mean face"),
        ("MOTOR:rg", "there is no condition 'MOTOR:rg'; did you mean motor_rh"),
        ("face - face", "cancel"),
        ("face * object", "sums of conditions"),
        ("face / 0", "sums of conditions"),
        ("1 / face", "sums of conditions"),
        ("face - 1", "bare number"),
        ("face - (object", "not closed"),
        ("face object", "did not expect"),
        ("face -", "too early"),
        ("", "empty"),
        ("face; import os", "cannot read"),
        ("a b = face", "one word"),
    ],
)
def test_bad_formula(formula, message):
    with pytest.raises(UsageError, match=message):
        parse_contrast(formula, NAMES)


@given(st.lists(st.tuples(st.sampled_from(NAMES[:5]), st.integers(-9, 9).filter(bool)), min_size=1, max_size=6))
def test_formula_is_linear(terms):
    expected: dict[str, float] = {}
    for name, weight in terms:
        expected[name] = expected.get(name, 0) + weight
    expected = {key: value for key, value in expected.items() if value}
    formula = " + ".join(f"({weight}) * {name}" for name, weight in terms)
    if expected:
        assert dict(parse_contrast(formula, NAMES).weights) == pytest.approx(expected)
    else:
        with pytest.raises(UsageError):
            parse_contrast(formula, NAMES)


@given(st.text(max_size=30))
def test_names_are_bids_values(text):
    assert camel_case(text).isalnum()
    assert camel_case(text).isascii()

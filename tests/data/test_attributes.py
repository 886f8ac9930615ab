"""Attributes as the network gets them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmrisynth.data.attributes import Number, encode, encode_asked, n_labels, nulls
from fmrisynth.errors import UsageError

VOCABULARY = {"condition": ["a", "b", "c"], "sex": ["F", "M"], "age": Number(mean=40.0, std=10.0)}


def test_labels_are_numbered_and_numbers_standardised():
    assert encode_asked(VOCABULARY, {"condition": "b", "sex": "M", "age": "55"}) == [1, 1, 1.5]
    assert n_labels(VOCABULARY) == [3, 2, 0]


def test_what_is_not_said_is_null():
    found, null = encode_asked(VOCABULARY, {"condition": "b"}), nulls(VOCABULARY)
    assert found[:2] == [1, null[1]] == [1, 2]
    assert math.isnan(found[2])
    assert math.isnan(null[2])


@pytest.mark.parametrize(
    ("asked", "said"),
    [({"age": "old"}, "age: expected a number, found 'old'"), ({"age": "inf"}, "expected a number"),
     ({"sex": "m"}, r"did you mean M|known: F, M"), ({"site": "1"}, "no attribute 'site'")],
)  # fmt: skip
def test_what_cannot_be_is_refused(asked, said):
    with pytest.raises(UsageError, match=said):
        encode_asked(VOCABULARY, {"condition": "a", **asked})


@given(st.lists(st.integers(-1000, 1000), min_size=2, unique=True))
def test_the_distribution_of_numbers(values):
    number = Number.of([str(value) for value in values])
    codes = [encode("x", str(value), number) for value in values]
    assert sum(codes) / len(codes) == pytest.approx(0, abs=1e-6)
    assert sum(code**2 for code in codes) / len(codes) == pytest.approx(1)


@pytest.mark.parametrize("values", [["3", "3"], ["1", "nan"], ["1", "old"]])
def test_no_distribution(values):
    with pytest.raises(ValueError, match=r"the same|finite|float"):
        Number.of(values)

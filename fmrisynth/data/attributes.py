"""Attributes that a generator can be asked for: labels out of a list, or numbers.

A network gets a label as its index and a number in standard deviations from the mean of the training instances; what is not
known, or withheld, is the "null": the index after the last label, or NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np

from fmrisynth.errors import UsageError


@dataclass(frozen=True)
class Number:
    """An attribute with a number, for example an age: mean and standard deviation over the training instances."""

    mean: float
    std: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf):
            raise ValueError(f"a number cannot have the mean {self.mean} and the standard deviation {self.std}")

    @classmethod
    def of(cls, values: Sequence[str]) -> Number:
        """The distribution of some values.

        Raises
        ------
        ValueError
            A value is no number, or all are the same.
        """
        numbers = np.array([float(value) for value in values])
        if not np.isfinite(numbers).all():
            raise ValueError("not all of them are finite")
        if len(np.unique(numbers)) < 2:
            raise ValueError("all of them are the same")
        return cls(mean=float(numbers.mean()), std=float(numbers.std()))


Values = list[str] | Number
"""What an attribute may be: labels, or a number."""

Vocabulary = Mapping[str, Values]
"""Attribute -> what it may be, ``condition`` first."""


def n_labels(vocabulary: Vocabulary) -> list[int]:
    """Number of labels of each attribute; 0 stands for a number."""
    return [0 if isinstance(values, Number) else len(values) for values in vocabulary.values()]


def nulls(vocabulary: Vocabulary) -> list[int | float]:
    """What stands for "not known" in each attribute."""
    return [math.nan if isinstance(values, Number) else len(values) for values in vocabulary.values()]


def encode(name: str, value: str | None, values: Values) -> int | float | None:
    """A value as the network gets it; the null for None, None for a label that does not exist.

    Raises
    ------
    UsageError
        Not a number where there should be one.
    """
    if isinstance(values, Number):
        if value is None:
            return math.nan
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise UsageError(f"{name}: expected a number, found {value!r}.")
        return (number - values.mean) / values.std
    if value is None:
        return len(values)
    return values.index(value) if value in values else None


def encode_asked(vocabulary: Vocabulary, asked: Mapping[str, str]) -> list[int | float]:
    """What a user asks for, as the network gets it; attributes not named become "null".

    Raises
    ------
    UsageError
        Unknown name or label; the message offers the nearest one.
    """
    for name in asked:
        if name not in vocabulary:
            raise UsageError(f"This model has no attribute {name!r}: known: {', '.join(vocabulary)}.")
    found = []
    for name, values in vocabulary.items():
        code = encode(name, asked.get(name), values)
        if code is None:
            assert not isinstance(values, Number)
            near = get_close_matches(str(asked[name]), values, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(values)}."
            raise UsageError(f"This model was not trained on {name} {asked[name]!r}: {hint}")
        found.append(code)
    return found

"""Contrasts by formula: ``motor_rh - motor_lh``, ``faces = face - (object + scramble) / 2``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fmrisynth.conditions import fold, load_table, suggest
from fmrisynth.errors import UsageError

_TOKEN = re.compile(r"\s*(?:(?P<number>\d+(?:\.\d*)?(?![\w])|\.\d+)|(?P<name>\w+(?:\.\w+)*)|(?P<sign>[-+*/()]))")

HCP_NAME = re.compile(r"[^\W\d]\w*(?: \w+)?:\w+(?:\.\w+)*")
"""Conditions as HCP writes them: ``MOTOR:cue``, ``WM 2bk:places``, ``WM:2bk_places``."""


@dataclass(frozen=True)
class Contrast:
    """A linear combination of conditions.

    Attributes
    ----------
    name : str
        Camel-case label, usable as a BIDS entity value.
    formula : str
        As written.
    weights : dict of str to float
        Condition -> weight; no zeros.
    """

    name: str
    formula: str
    weights: Mapping[str, float]

    @property
    def title(self) -> str:
        """The formula without its name, for people."""
        return self.formula.split("=", 1)[-1].strip()


def condition_contrasts(conditions: Sequence[str], formulas: Sequence[str]) -> list[Contrast]:
    """The contrasts asked for; by default every condition against the implicit baseline."""
    if formulas:
        return [parse_contrast(formula, conditions) for formula in formulas]
    table = load_table()
    return [Contrast(table.get(label).contrast, label, {label: 1.0}) for label in conditions]


def contrast_task(contrast: Contrast) -> str | None:
    """The task that all conditions of a contrast share, or None."""
    tasks = {load_table().get(label).task for label in contrast.weights}
    return tasks.pop() if len(tasks) == 1 else None


def parse_contrast(text: str, conditions: Sequence[str]) -> Contrast:
    """Read a contrast formula.

    Parameters
    ----------
    text : str
        Sums, differences and multiples of condition names with numbers and parentheses, optionally
        after ``name =``. Names may have HCP's spelling (`HCP_NAME`).
    conditions : sequence of str
        The names that may appear.

    Returns
    -------
    Contrast

    Raises
    ------
    UsageError
        Unknown condition (with a did-you-mean), bad syntax, a product of conditions, or a contrast in
        which everything cancels.

    Examples
    --------
    >>> dict(parse_contrast("a - (b + c) / 2", ["a", "b", "c"]).weights)
    {'a': 1.0, 'b': -0.5, 'c': -0.5}
    """
    text = HCP_NAME.sub(lambda match: _known(match.group(0), conditions, text), text)
    name, separator, formula = text.rpartition("=")
    if separator and not re.fullmatch(r"\s*[A-Za-z]\w*\s*", name):
        raise UsageError(f"contrast {text!r}: the name before '=' must be one word that begins with a letter.")
    terms = _Parser(formula, conditions, text).parse()
    weights = {key: value for key, value in terms.items() if key and abs(value) > 1e-12}
    if terms.get("", 0.0):
        raise UsageError(f"contrast {text!r}: a bare number is not a condition; write weights as 2 * condition.")
    if not weights:
        raise UsageError(f"contrast {text!r}: nothing is left after the conditions cancel.")
    return Contrast(camel_case(name if separator else formula), text.strip(), weights)


def _known(name: str, conditions: Sequence[str], whole: str) -> str:
    """The condition that HCP's spelling means."""
    label = load_table().get(name).label
    found = [known for known in conditions if known == label or fold(known) == fold(name)]
    if len(found) != 1:
        raise UsageError(f"contrast {whole!r}: there is no condition {name!r}; {suggest(label, conditions)}")
    return found[0]


def camel_case(text: str) -> str:
    """A formula or label as letters and digits: ``motor_rh - motor_lh`` -> ``motorRhMinusMotorLh``.

    Examples
    --------
    >>> camel_case("face - (object + scramble) / 2")
    'faceMinusObjectPlusScrambleOver2'
    """
    for sign, word in {"-": " minus ", "+": " plus ", "*": " times ", "/": " over ", ".": " point "}.items():
        text = text.replace(sign, word)
    first, *rest = [part for part in re.split(r"[^0-9A-Za-z]+", text) if part] or ["contrast"]
    return first[:1].lower() + first[1:] + "".join(part[:1].upper() + part[1:] for part in rest)


class _Parser:
    """Recursive descent over linear expressions; a term is a dict of weights, '' holds the constant."""

    def __init__(self, formula: str, conditions: Sequence[str], whole: str) -> None:
        self.conditions, self.whole = list(conditions), whole
        self.tokens: list[tuple[str, str]] = []
        at = 0
        while formula[at:].strip():
            match = _TOKEN.match(formula, at)
            if not match:
                raise UsageError(f"contrast {whole!r}: cannot read {formula[at:].strip()[:20]!r}.")
            kind = str(match.lastgroup)
            self.tokens.append((kind, match.group(kind)))
            at = match.end()
        self.at = 0

    def parse(self) -> dict[str, float]:
        if not self.tokens:
            raise UsageError(f"contrast {self.whole!r}: the formula is empty.")
        result = self._sum()
        if self.at < len(self.tokens):
            raise UsageError(f"contrast {self.whole!r}: did not expect {self.tokens[self.at][1]!r} there.")
        return result

    def _peek(self) -> str:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    def _sum(self) -> dict[str, float]:
        total = self._product()
        while self._peek() in ("+", "-"):
            sign = 1.0 if self._peek() == "+" else -1.0
            self.at += 1
            for key, value in self._product().items():
                total[key] = total.get(key, 0.0) + sign * value
        return total

    def _product(self) -> dict[str, float]:
        left = self._factor()
        while self._peek() in ("*", "/"):
            operator = self._peek()
            self.at += 1
            right = self._factor()
            if operator == "*" and not _is_number(right):
                left, right = right, left
            factor = right.get("", 0.0)
            if not _is_number(right) or (operator == "/" and factor == 0.0):
                raise UsageError(f"contrast {self.whole!r}: only sums of conditions times numbers are contrasts.")
            left = {key: value * (factor if operator == "*" else 1.0 / factor) for key, value in left.items()}
        return left

    def _factor(self) -> dict[str, float]:
        if self.at >= len(self.tokens):
            raise UsageError(f"contrast {self.whole!r}: the formula ends too early.")
        kind, value = self.tokens[self.at]
        self.at += 1
        if value in ("-", "+"):
            return {key: (-v if value == "-" else v) for key, v in self._factor().items()}
        if value == "(":
            inside = self._sum()
            if self._peek() != ")":
                raise UsageError(f"contrast {self.whole!r}: a parenthesis is not closed.")
            self.at += 1
            return inside
        if kind == "number":
            return {"": float(value)}
        if kind == "name":
            if value not in self.conditions:
                hint = suggest(value, self.conditions)
                raise UsageError(f"contrast {self.whole!r}: there is no condition {value!r}; {hint}")
            return {value: 1.0}
        raise UsageError(f"contrast {self.whole!r}: did not expect {value!r} there.")


def _is_number(term: Mapping[str, float]) -> bool:
    return set(term) <= {""}

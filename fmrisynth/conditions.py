"""The condition table: one label for every spelling of a task condition.

A label is ``<task>_<EV stem>`` (``gambling_loss``). The packaged table, ``conditions.yaml``, holds the 23
conditions of the HCP task battery; a user's table of the same form is merged over it, and any BIDS
``task`` / ``trial_type`` pair that is in no table gets the label ``<task>_<trial type>``.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from fmrisynth.errors import UsageError
from fmrisynth.parse import parse_yaml

MergeRule = Literal["rows", "same", "majority"]


@dataclass(frozen=True)
class Condition:
    """One task condition.

    Attributes
    ----------
    label : str
        Lower snake case, ``<task>_<stem>``.
    task : str
        The label's task (``gambling``).
    stem : str
        The rest, which is also the name of HCP's EV file (``loss`` -> ``loss.txt``).
    tasks, trial_types : tuple of str
        Accepted BIDS spellings, folded by `fold`.
    blocks : {"rows", "same", "majority"}
        How rows of an events file become blocks.
    mixes_with : tuple of str
        For ``majority``: further trial types, folded, that may stand inside a block.
    default : bool
        Whether it is one of the paper's seven (Table 2).
    """

    label: str
    task: str
    stem: str
    tasks: tuple[str, ...]
    trial_types: tuple[str, ...]
    blocks: MergeRule = "same"
    mixes_with: tuple[str, ...] = ()
    default: bool = False

    @property
    def camel(self) -> str:
        """The stem as a BIDS entity value (``2bk_places`` -> ``2bkPlaces``)."""
        first, *rest = spell(self.stem)
        return first + "".join(word[:1].upper() + word[1:] for word in rest)

    @property
    def contrast(self) -> str:
        """The whole label as a BIDS entity value (``gambling_loss`` -> ``gamblingLoss``)."""
        return self.task + self.camel[:1].upper() + self.camel[1:]


_SYMBOLS = {"+": "plus", "<": "less", ">": "more", "=": "equals", "%": "percent"}


def spell(name: str) -> list[str]:
    """The words of a name, in ASCII letters and digits, so that names which differ in meaning stay different.

    Signs are spelt out, characters outside ASCII become their code point; blanks, ``_``, hyphens inside a word and
    other punctuation only separate words.

    Examples
    --------
    >>> spell("CS+"), spell("CS-"), spell("left-hand"), spell("-0.5")
    (['CS', 'plus'], ['CS', 'minus'], ['left', 'hand'], ['minus', '0', 'point', '5'])
    >>> spell("schön")
    ['schu00f6n']
    """
    text = unicodedata.normalize("NFC", name).replace("\N{MINUS SIGN}", "-")
    text = re.sub(r"(?<=\d)\.(?=\d)", " point ", text)
    text = re.sub(r"(?<![^\W_])-(?=[^\W_])|(?<=[^\W_])-(?![^\W_])|(?<=[_\s])-$", " minus ", text)
    for symbol, word in _SYMBOLS.items():
        text = text.replace(symbol, f" {word} ")
    text = "".join(c if c.isascii() or unicodedata.category(c)[0] in "PZC" else f"u{ord(c):04x}" for c in text)
    return [word for word in re.split(r"[^0-9A-Za-z]+", text) if word]


@lru_cache(maxsize=4096)
def fold(name: str) -> str:
    """Spelling-insensitive form of a task or trial-type name: `spell` in lower case and in one word."""
    return "".join(spell(name)).lower()


@dataclass(frozen=True)
class ConditionTable:
    """All known conditions, with look-up by label and by BIDS spelling."""

    conditions: dict[str, Condition] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """All labels, in table order."""
        return list(self.conditions)

    @property
    def default_labels(self) -> list[str]:
        """The seven conditions of the reference paper."""
        return [label for label, condition in self.conditions.items() if condition.default]

    def task_conditions(self, task_name: str) -> list[Condition]:
        """Conditions that belong to a BIDS task spelling (``HcpGambling``)."""
        folded = fold(task_name)
        return [c for c in self.conditions.values() if folded in c.tasks]

    def match(self, task_name: str, trial_type: str) -> Condition | None:
        """The condition of a BIDS ``task`` / ``trial_type`` pair, or None."""
        folded = fold(trial_type)
        return next((c for c in self.task_conditions(task_name) if folded in c.trial_types), None)

    def get(self, label: str) -> Condition:
        """The condition of a label, or of another spelling of it (``MOTOR:rh``, ``WM 2bk:places``).

        A condition outside the table is taken as ``<task>_<trial type>``.

        Raises
        ------
        UsageError
            If the label is not of that form.
        """
        if label in self.conditions:
            return self.conditions[label]
        task, stem = _split_label(label)
        return self.match(task, stem) or condition_from_label(label)


def _split_label(label: str) -> tuple[str, str]:
    task, *rest = re.split(r"[_:\s]+", label.strip(), maxsplit=1)
    if not rest or not fold(task) or not fold(rest[0]):
        raise UsageError(f"{label!r} is not a condition label: expected <task>_<condition>, for example gambling_loss.")
    return task, rest[0]


def condition_from_label(label: str) -> Condition:
    """A user's own condition from its label alone: ``oneback_face`` is trial type ``face`` of task ``oneback``."""
    task, stem = _split_label(label)
    label = make_label(task, stem)
    task, _, stem = label.partition("_")
    return Condition(label, task, stem, (task,), (fold(stem),))


def make_label(task_name: str, trial_type: str) -> str:
    """Label of a BIDS pair that no table knows: ``oneback``, ``face`` -> ``oneback_face``."""
    return f"{fold(task_name)}_{'_'.join(spell(trial_type)).lower()}"


def suggest(label: str, known: Iterable[str]) -> str:
    """A ``did you mean`` clause for an unknown condition."""
    known = list(known)
    near = get_close_matches(label, known, n=2, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known are {', '.join(known)}."


@lru_cache(maxsize=8)
def load_table(extra: Path | None = None) -> ConditionTable:
    """Read the packaged condition table, with a user's YAML of the same form merged over it.

    Raises
    ------
    UsageError
        If the user's file cannot be read or is not of that form.
    """
    text = (resources.files("fmrisynth") / "conditions.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    if extra is not None:
        try:
            own = parse_yaml(extra.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{extra}: the condition table cannot be read as YAML ({error}).") from None
        if not isinstance(own, dict) or not isinstance(own.get("conditions"), dict):
            raise UsageError(
                f"{extra}: expected a condition table with a 'conditions' mapping, as in the docs; found none."
            )
    try:
        if extra is not None:
            content["tasks"].update(own.get("tasks") or {})
            content["conditions"].update(own["conditions"])
        return _parse_table(content)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise UsageError(f"{extra or 'conditions.yaml'}: the condition table is malformed ({error!r}).") from None


def _parse_table(content: dict[str, Any]) -> ConditionTable:
    conditions = {}
    for label, entry in content["conditions"].items():
        entry = entry or {}
        if not re.fullmatch(r"[0-9A-Za-z]+_[\w.+-]+", label):
            raise ValueError(f"{label!r} is not <task>_<condition>")
        task, _, stem = label.partition("_")
        about = content["tasks"].get(task, {})
        stem = str(entry.get("ev", stem))
        conditions[label] = Condition(
            label=label,
            task=task,
            stem=stem,
            tasks=tuple(dict.fromkeys(fold(n) for n in [task, *about.get("names", [])])),
            trial_types=tuple(dict.fromkeys(fold(n) for n in [stem, *entry.get("trial_types", [])])),
            blocks=about.get("blocks", "same"),
            mixes_with=tuple(fold(n) for n in about.get("mixes_with", [])),
            default=bool(entry.get("default", False)),
        )
    return ConditionTable(conditions)

"""Which samples are asked for: pure functions from a configuration to seeds and subject labels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import groupby
from pathlib import Path

from fmrisynth.bids import naming
from fmrisynth.bids.sidecars import read_tsv
from fmrisynth.conditions import Condition, ConditionTable, load_table
from fmrisynth.config.sample import SampleConfig
from fmrisynth.data.blocks import ATTRIBUTES, Block, read_subject
from fmrisynth.errors import FmrisynthError, UsageError, must_exist
from fmrisynth.progress import log


@dataclass(frozen=True)
class SampleRequest:
    """One block to be made.

    Attributes
    ----------
    condition : Condition
        What the subject does.
    index : int
        Number of the sample within its condition or, with `block`, of the person; from 0.
    seed : int
        Seed of its random generator, a function of the user's seed, the condition's label, `index` and `block` only (with the same noise
        for all samples not of `index`).
    block : int, optional
        Number of the block among those of its condition that the person does, from 1. None: the sample is a subject of its own.
    attributes : tuple of (name, value)
        What else is asked for.
    """

    condition: Condition
    index: int
    seed: int
    block: int | None = None
    attributes: tuple[tuple[str, str], ...] = ()

    @property
    def subject(self) -> str:
        """BIDS label, ``synthGamblingLoss0001``, or ``synth0001`` for a person who does several blocks."""
        if self.block is not None:
            return naming.synthetic_person(self.index)
        return naming.synthetic_subject(self.condition.contrast, self.index)

    @property
    def desc(self) -> str:
        """``desc`` of the image, ``synthGamblingLoss``."""
        return "synth" + self.condition.camel[:1].upper() + self.condition.camel[1:]


def sample_seed(seed: int, condition: str, index: int) -> int:
    """Seed of one sample, in [0, 2**63).

    Hashing makes the samples of neighbouring seeds, conditions and indices unrelated, and a sample
    independent of how many others are asked for, in which order and on how many machines.
    """
    text = f"fmrisynth sample {seed} {condition} {index}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def make_requests(config: SampleConfig, known: Sequence[str], attributes: Collection[str] = ()) -> list[SampleRequest]:
    """All blocks of this call, in order, after sharding; those of one person stand together.

    Parameters
    ----------
    config : SampleConfig
        What the user asked for.
    known : sequence of str
        Conditions of the model.
    attributes : collection of str
        What can be asked of a person beside `ATTRIBUTES`: further columns of the table of participants that count.

    Raises
    ------
    UsageError
        A condition that the model does not know; the nearest names are offered.
    """
    table = load_table()
    asked = list(known) if config.all_conditions else list(dict.fromkeys(config.conditions))
    labels, wrong = [], []
    for text in asked:
        label = text if text in known else _label(text, table)
        if label in known:
            labels.append(label)
            continue
        near = [] if label in table.conditions else get_close_matches(label, known, n=2, cutoff=0.5)
        knows = f"it knows {', '.join(known)}; train a model of your own for others."
        hint = f"did you mean {' or '.join(near)}?" if near else knows
        wrong.append(f"The model was not trained on a condition {text!r}: {hint}")
    if wrong:
        raise UsageError(" ".join(wrong))
    conditions = [table.get(label) for label in dict.fromkeys(labels)]
    asked_of = _attributes(config, attributes)
    k, n = config.shard
    if config.subjects is not None:
        people = range(config.start_index, config.start_index + config.subjects)[k - 1 :: n]
        return [
            SampleRequest(
                one, index, sample_seed(config.seed, f"{one.label} block {block}", index), block, asked_of(index)
            )
            for index in people
            for one in conditions
            for block in range(1, config.blocks + 1)
        ]
    requests = [
        SampleRequest(
            one,
            index,
            sample_seed(config.seed, one.label, 0 if config.same_noise else index),
            attributes=asked_of(index),
        )
        for one in conditions
        for index in range(config.start_index, config.start_index + config.n)
    ]
    return requests[k - 1 :: n]


def _attributes(config: SampleConfig, further: Collection[str]) -> Callable[[int], tuple[tuple[str, str], ...]]:
    """What is asked for of the person with a number, beside the condition: `ATTRIBUTES` and further ones.

    Raises
    ------
    FmrisynthError
        The table of participants has no attributes, or fewer rows than there are people.
    """
    common = tuple(sorted(config.attributes.items()))
    if config.participants is None:
        return lambda index: common
    rows = read_tsv(must_exist(config.participants, "a table of participants"), ("participant_id",))
    wanted = list(dict.fromkeys([*ATTRIBUTES, *further]))
    names = [name for name in wanted if rows and name in rows[0]]
    n_people = config.start_index + (config.subjects or config.n)
    if not names or len(rows) < n_people:
        raise FmrisynthError(
            f"{config.participants}: expected {n_people} rows with {', '.join(wanted[:-1])} or {wanted[-1]}, found {len(rows)} "
            f"with {', '.join(names) or 'none of them'}; ask for fewer people, or add what is missing."
        )

    if left_out := [name for name in rows[0] if name not in ("participant_id", *names)]:
        log.warning("%s: %s: not known to the model, and not asked for.", config.participants, ", ".join(left_out))

    def of_row(index: int) -> tuple[tuple[str, str], ...]:
        own = {name: value for name in names if (value := rows[index][name]) not in ("", "n/a", None)}
        return tuple(sorted((config.attributes | own).items()))

    return of_row


def by_subject(requests: Sequence[SampleRequest]) -> list[tuple[SampleRequest, ...]]:
    """The blocks of each subject."""
    return [tuple(own) for _, own in groupby(requests, key=lambda request: request.subject)]


def block_of(out: Path, request: SampleRequest) -> Block:
    """A block that was made."""
    same = [b for b in read_subject(out, request.subject) if b.condition == request.condition.label]
    return same[(request.block or 1) - 1]


def _label(text: str, table: ConditionTable) -> str:
    try:
        return table.get(text).label
    except UsageError:
        return text

"""Which samples are asked for: pure functions from a configuration to seeds and subject labels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from fmrisynth.bids import naming
from fmrisynth.conditions import Condition, ConditionTable, load_table
from fmrisynth.config.sample import SampleConfig
from fmrisynth.errors import UsageError


@dataclass(frozen=True)
class SampleRequest:
    """One synthetic subject to be made.

    Attributes
    ----------
    condition : Condition
        What the subject does.
    index : int
        Number of the sample within its condition, from 0.
    seed : int
        Seed of its random generator, a function of the user's seed, the condition's label and `index` only.
    """

    condition: Condition
    index: int
    seed: int

    @property
    def subject(self) -> str:
        """BIDS label, ``synthGamblingLoss0001``."""
        return naming.synthetic_subject(self.condition.contrast, self.index)


def sample_seed(seed: int, condition: str, index: int) -> int:
    """Seed of one sample, in [0, 2**63).

    Hashing makes the samples of neighbouring seeds, conditions and indices unrelated, and a sample
    independent of how many others are asked for, in which order and on how many machines.
    """
    text = f"fmrisynth sample {seed} {condition} {index}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def make_requests(config: SampleConfig, known: Sequence[str]) -> list[SampleRequest]:
    """All samples of this call, in order, after sharding.

    Parameters
    ----------
    config : SampleConfig
        What the user asked for.
    known : sequence of str
        Conditions of the model.

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
        near = get_close_matches(label, known, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"it knows {', '.join(known)}."
        wrong.append(f"The model was not trained on a condition {text!r}: {hint}")
    if wrong:
        raise UsageError(" ".join(wrong))
    requests = [
        SampleRequest(table.get(label), index, sample_seed(config.seed, label, index))
        for label in dict.fromkeys(labels)
        for index in range(config.start_index, config.start_index + config.n)
    ]
    k, n = config.shard
    return requests[k - 1 :: n]


def _label(text: str, table: ConditionTable) -> str:
    try:
        return table.get(text).label
    except UsageError:
        return text

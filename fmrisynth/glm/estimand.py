"""What the effect of a block window estimates, given everything else that happens in its run.

The window GLM knows one block. What other blocks have left behind when the window opens, or bring while it lasts, goes into the estimate:
with the noise-free response of every event, the estimate of a block is ``sum_c weight_c (response of c)`` with
``weight_c = pinv(design)[block] @ regressor_c``. A window that opens while another condition decays thus estimates a difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fmrisynth.bids import naming
from fmrisynth.bids.sidecars import read_tsv
from fmrisynth.config.glm import GlmConfig
from fmrisynth.data.blocks import Block
from fmrisynth.data.windows import RESPONSE_S
from fmrisynth.errors import FmrisynthError
from fmrisynth.glm.windows import block_design

NEGLIGIBLE = 0.02
"""Weights below this are not named."""


@dataclass(frozen=True)
class Event:
    """An event of a run, seconds from the first frame of a window (before it: negative)."""

    condition: str
    onset_s: float
    duration_s: float


def read_events(block: Block) -> list[Event]:
    """The events of a block's table: its own, and those of its run that reach into the window, where the dataset tells them.

    Raises
    ------
    FmrisynthError
        A number cannot be read.
    """
    path = block.root / naming.block_companion(block.bold, "events")
    rows = read_tsv(path, ("onset", "duration", "trial_type"))
    try:
        return [Event(row["trial_type"], float(row["onset"]), float(row["duration"])) for row in rows]
    except ValueError as error:
        raise FmrisynthError(f"{path}: a number cannot be read ({error}); correct the table.") from None


def window_weights(block: Block, events: Sequence[Event], config: GlmConfig) -> dict[str, float]:
    """Weight of each condition's response in the effect of one block window.

    Parameters
    ----------
    block : Block
        Its onset, duration, frames and TR.
    events : sequence of Event
        The block's own and every other whose response reaches into the window.
    config : GlmConfig
        The window GLM.

    Returns
    -------
    dict of str to float
        1 for the block's own condition when it is alone.
    """
    from nilearn.glm.first_level import compute_regressor

    design = block_design(block, config)
    frames_T = np.arange(block.n_frames) * block.tr_s
    weights: dict[str, float] = {}
    for condition in dict.fromkeys(event.condition for event in events):
        own = [
            e
            for e in events
            if e.condition == condition and e.onset_s + e.duration_s > -RESPONSE_S and e.onset_s <= frames_T[-1]
        ]
        if not own:
            continue
        triple = np.array([[e.onset_s, e.duration_s, 1.0] for e in own]).T
        earliest = min(e.onset_s for e in own)
        regressor, _ = compute_regressor(triple, config.hrf, frames_T, min_onset=min(-24.0, earliest - block.tr_s))
        weights[condition] = float(design.pinv_PT[0] @ regressor[:, 0])
    return weights


def mean_weights(blocks: Sequence[Block], config: GlmConfig) -> dict[str, float] | None:
    """Mean over blocks of `window_weights`; None where no block's table holds any event but its own."""
    found = [(block, read_events(block)) for block in blocks]
    if not any(len(events) > 1 for _, events in found):
        return None
    total: dict[str, float] = {}
    for block, events in found:
        for condition, weight in window_weights(block, events, config).items():
            total[condition] = total.get(condition, 0.0) + weight / len(found)
    return total


def describe(weights: dict[str, float]) -> str:
    """Weights as a formula, the largest first.

    Examples
    --------
    >>> describe({"language_story": 1.0, "language_math": -0.87})
    'language_story - 0.87 language_math'
    """
    parts: list[str] = []
    for condition, weight in sorted(weights.items(), key=lambda item: -abs(item[1])):
        if abs(weight) < NEGLIGIBLE:
            continue
        size = "" if abs(abs(weight) - 1) < 0.005 else f"{abs(weight):.2f} "
        sign = "-" if weight < 0 else "+"
        parts.append(f"{sign} {size}{condition}" if parts else ("-" if weight < 0 else "") + f"{size}{condition}")
    return " ".join(parts)


def estimates(blocks: Sequence[Block], weights: dict[str, float], config: GlmConfig) -> str:
    """What the map of a contrast estimates, as a formula, or why that is not known.

    Parameters
    ----------
    blocks : sequence of Block
        The blocks that the map was made of, and others.
    weights : dict of str to float
        The contrast.
    """
    total: dict[str, float] = {}
    for condition, factor in weights.items():
        own = mean_weights([block for block in blocks if block.condition == condition], config)
        if own is None:
            return "not known: the events tables of these blocks hold no other block of their runs"
        for name, weight in own.items():
            total[name] = total.get(name, 0.0) + factor * weight
    return describe(total)

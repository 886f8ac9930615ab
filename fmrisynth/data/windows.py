"""Which windows can be cut from a run, and why the others cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fmrisynth.bids.events import FoundBlock
from fmrisynth.bids.runs import Timing
from fmrisynth.config.prepare import BlocksConfig, WindowConfig

NEGATIVE_ONSET = "starts before the run"
PAST_END = "runs past the end"
TOO_SHORT = "too short"
OVERLAPPING = "overlaps another block"
DROP_REASONS = (NEGATIVE_ONSET, PAST_END, TOO_SHORT, OVERLAPPING)

_TOLERANCE_S = 1e-3


@dataclass(frozen=True)
class Window:
    """A window of a run that belongs to one block.

    Attributes
    ----------
    block : FoundBlock
        The block.
    start_s : float
        Time of the first output frame, seconds after the start of the run.
    n_frames : int
        Output frames.
    tr_s : float
        Their spacing, seconds.
    """

    block: FoundBlock
    start_s: float
    n_frames: int
    tr_s: float

    @property
    def times_s(self) -> np.ndarray:
        """Time of every output frame, seconds after the start of the run."""
        return self.start_s + self.tr_s * np.arange(self.n_frames)

    @property
    def onset_s(self) -> float:
        """Onset of the block after the first output frame, seconds."""
        return self.block.onset_s - self.start_s


@dataclass(frozen=True)
class Dropped:
    """A block for which no window is cut."""

    block: FoundBlock
    reason: str


def plan_windows(
    blocks: Sequence[FoundBlock], timing: Timing, window: WindowConfig, rules: BlocksConfig, tr_s: float
) -> tuple[list[Window], list[Dropped]]:
    """Choose the windows of a run.

    Parameters
    ----------
    blocks : sequence of FoundBlock
        Blocks of all conditions asked for, in order of onset.
    timing : Timing
        Of the source run.
    window, rules : WindowConfig, BlocksConfig
        Length and place of windows; which blocks are usable.
    tr_s : float
        Spacing of the output frames, seconds.

    Returns
    -------
    windows : list of Window
        Never reaching outside the run.
    dropped : list of Dropped
        The other blocks with the reason.
    """
    windows, dropped = [], []
    overlapping = _overlapping(blocks, rules)
    for number, block in enumerate(blocks):
        start_s = block.onset_s + window.delay_s
        if window.align == "frame":
            nearest = round((start_s - timing.first_frame_s) / timing.tr_s)
            start_s = timing.first_frame_s + nearest * timing.tr_s
        candidate = Window(block, start_s, window.n_frames, tr_s)
        if block.onset_s < -_TOLERANCE_S or start_s < timing.first_frame_s - timing.tr_s / 2 - _TOLERANCE_S:
            dropped.append(Dropped(block, NEGATIVE_ONSET))
        elif number in overlapping:
            dropped.append(Dropped(block, OVERLAPPING))
        elif _is_past_the_end(candidate, timing):
            dropped.append(Dropped(block, PAST_END))
        elif block.duration_s < rules.min_duration_s - _TOLERANCE_S:
            dropped.append(Dropped(block, TOO_SHORT))
        else:
            windows.append(candidate)
    return windows, dropped


def _is_past_the_end(window: Window, timing: Timing) -> bool:
    """The last output frame must lie in the run with its whole length, and near an acquired frame."""
    ends_s = window.start_s + window.n_frames * window.tr_s
    last_frame_s = timing.first_frame_s + (timing.n_frames - 1) * timing.tr_s
    return ends_s > timing.end_s + _TOLERANCE_S or window.times_s[-1] > last_frame_s + timing.tr_s / 2 + _TOLERANCE_S


def _overlapping(blocks: Sequence[FoundBlock], rules: BlocksConfig) -> set[int]:
    """Blocks whose label is ambiguous: of two of one condition the later, of two conditions both.

    Blocks that are dropped anyway (before the run, too short: button presses, cues) take nothing with them.
    """
    found: set[int] = set()
    usable = [
        number for number, block in enumerate(blocks)
        if block.onset_s >= -_TOLERANCE_S and block.duration_s >= rules.min_duration_s - _TOLERANCE_S
    ]  # fmt: skip
    for at, first in enumerate(usable):
        one = blocks[first]
        for second in usable[at + 1 :]:
            other = blocks[second]
            if other.onset_s >= one.end_s:
                break
            if min(one.end_s, other.end_s) - other.onset_s <= rules.overlap_s:
                continue
            if other.condition.label != one.condition.label:
                found |= {first, second}
            elif first not in found:
                found.add(second)
    return found

"""Which windows can be cut from a run, and why the others cannot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fmrisynth.bids import naming
from fmrisynth.bids.events import Event, FoundBlock
from fmrisynth.bids.runs import Timing
from fmrisynth.conditions import Condition
from fmrisynth.config.prepare import BlocksConfig, WindowConfig
from fmrisynth.data.blocks import RUN

NEGATIVE_ONSET = "starts before the run"
PAST_END = "runs past the end"
TOO_SHORT = "too short"
OVERLAPPING = "overlaps another block"
NO_SIGNAL = "lies in volumes that are no signal"
DROP_REASONS = (NEGATIVE_ONSET, PAST_END, TOO_SHORT, OVERLAPPING, NO_SIGNAL)

MAX_BAD_SHARE = 1 / 3
"""Windows with a larger share of bad frames are dropped; others get them from their neighbours."""

RESPONSE_S = 32.0
"""How long an event's response lasts after its end (nilearn's length of the response)."""

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


def events_of_window(window: Window, blocks: Iterable[FoundBlock]) -> tuple[Event, ...]:
    """A window's block, and the other blocks of the run whose response reaches into it.

    Where blocks of different conditions cover each other (a condition and a special case of it), the shorter one
    counts, and one that covers the window's own block does not.

    Returns
    -------
    tuple of Event
        Seconds after the first frame of the window; in order of onset.
    """
    kept = [window.block]
    for block in sorted(blocks, key=lambda block: (block.duration_s, block.onset_s)):
        apart = all(block.end_s <= other.onset_s or other.end_s <= block.onset_s for other in kept)
        if apart and block.end_s > window.start_s - RESPONSE_S and block.onset_s < window.times_s[-1]:
            kept.append(block)
    return tuple(
        sorted(Event(round(b.onset_s - window.start_s, 6), round(b.duration_s, 6), b.condition.label) for b in kept)
    )


def run_window(timing: Timing, task: str, tr_s: float) -> Window:
    """A whole run as one window; its frames stand for the middle of their repetition time, as those of most runs do."""
    n_frames = int(timing.end_s / tr_s + _TOLERANCE_S)
    whole = Condition(RUN, task, naming.RUN_DESC, (), ())
    return Window(FoundBlock(whole, 0.0, timing.end_s), tr_s / 2, n_frames, tr_s)


def plan_windows(
    blocks: Sequence[FoundBlock],
    timing: Timing,
    window: WindowConfig,
    rules: BlocksConfig,
    tr_s: float,
    *,
    bad_frames: frozenset[int] = frozenset(),
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
    bad_frames : frozenset of int
        Frames that are no signal (non-steady-state, outlying).

    Returns
    -------
    windows : list of Window
        Never reaching outside the run.
    dropped : list of Dropped
        The other blocks with the reason.
    """
    candidates = []
    for block in blocks:
        start_s = block.onset_s + window.delay_s
        if window.align == "frame":
            nearest = round((start_s - timing.first_frame_s) / timing.tr_s)
            start_s = timing.first_frame_s + nearest * timing.tr_s
        candidates.append(Window(block, start_s, window.n_frames, tr_s))
    windows, dropped = [], []
    overlapping = _overlapping(candidates, rules)
    for number, candidate in enumerate(candidates):
        block = candidate.block
        if block.onset_s < -_TOLERANCE_S or candidate.start_s < timing.first_frame_s - timing.tr_s / 2 - _TOLERANCE_S:
            dropped.append(Dropped(block, NEGATIVE_ONSET))
        elif number in overlapping:
            dropped.append(Dropped(block, OVERLAPPING))
        elif _is_past_the_end(candidate, timing):
            dropped.append(Dropped(block, PAST_END))
        elif block.duration_s < rules.min_duration_s - _TOLERANCE_S:
            dropped.append(Dropped(block, TOO_SHORT))
        elif bad_frames and _lacks_signal(candidate, timing, bad_frames):
            dropped.append(Dropped(block, NO_SIGNAL))
        else:
            windows.append(candidate)
    return windows, dropped


def _lacks_signal(window: Window, timing: Timing, bad_frames: frozenset[int]) -> bool:
    """Whether a window begins or ends in bad frames, or has too many: they cannot be interpolated then."""
    inside = np.flatnonzero(
        np.abs(timing.times_s - window.times_s[:, None]).min(axis=0) <= timing.tr_s / 2 + _TOLERANCE_S
    )
    bad = [int(frame) in bad_frames for frame in inside]
    return not bad or bad[0] or bad[-1] or sum(bad) > MAX_BAD_SHARE * len(bad)


def _is_past_the_end(window: Window, timing: Timing) -> bool:
    """The last output frame must lie in the run with its whole length, and near an acquired frame."""
    ends_s = window.start_s + window.n_frames * window.tr_s
    last_frame_s = timing.first_frame_s + (timing.n_frames - 1) * timing.tr_s
    return ends_s > timing.end_s + _TOLERANCE_S or window.times_s[-1] > last_frame_s + timing.tr_s / 2 + _TOLERANCE_S


def _overlapping(windows: Sequence[Window], rules: BlocksConfig) -> set[int]:
    """Windows whose label is ambiguous, because another block runs while their own block does, inside the window.

    Of two of one condition the later is dropped. Blocks that are dropped anyway (before the run, too short: button
    presses, cues) take nothing with them, and a block that another one meets only after its window keeps it.
    """
    found: set[int] = set()
    usable = [
        number for number, window in enumerate(windows)
        if window.block.onset_s >= -_TOLERANCE_S and window.block.duration_s >= rules.min_duration_s - _TOLERANCE_S
    ]  # fmt: skip
    for at, first in enumerate(usable):
        one = windows[first]
        for second in usable[at + 1 :]:
            other = windows[second]
            if other.block.onset_s >= one.block.end_s:
                break
            same = other.block.condition.label == one.block.condition.label
            if not same and _shared_s(one, other.block) > rules.overlap_s:
                found.add(first)
            if _shared_s(other, one.block) > rules.overlap_s and not (same and first in found):
                found.add(second)
    return found


def _shared_s(window: Window, other: FoundBlock) -> float:
    """How long another block runs inside the part of a window that its own block fills, seconds."""
    start_s = max(window.block.onset_s, window.start_s, other.onset_s)
    end_s = min(window.block.end_s, window.start_s + window.n_frames * window.tr_s, other.end_s)
    return end_s - start_s

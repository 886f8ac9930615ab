"""Block timing of the seven HCP tasks.

Run lengths, block lengths, cue and fixation periods follow Barch et al. 2013 (NeuroImage 80) and the task
descriptions of the HCP release; the order of blocks is fixed per task and phase encoding, as in HCP, and
onsets vary by some tenths of a second between subjects (trigger and response times).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmrisynth.bids.events import read_events
from fmrisynth.bids.naming import parse_entities
from fmrisynth.conditions import suggest
from fmrisynth.errors import FmrisynthError

N_FRAMES_HCP = {
    "WM": 405, "EMOTION": 176, "GAMBLING": 253, "LANGUAGE": 316, "RELATIONAL": 232, "MOTOR": 284, "SOCIAL": 274,
}  # fmt: skip
"""Volumes per run at a TR of 0.72 s, from HCP's level-1 designs."""

TR_HCP_S = 0.72

CONDITIONS_BY_TASK = {
    "WM": tuple(f"wm_{load}_{kind}" for load in ("2bk", "0bk") for kind in ("body", "faces", "places", "tools")),
    "EMOTION": ("emotion_fear", "emotion_neut"),
    "GAMBLING": ("gambling_loss", "gambling_win"),
    "LANGUAGE": ("language_story", "language_math"),
    "RELATIONAL": ("relational_relation", "relational_match"),
    "MOTOR": ("motor_rh", "motor_lh", "motor_rf", "motor_lf", "motor_t"),
    "SOCIAL": ("social_mental", "social_rnd"),
}  # fmt: skip
"""Condition labels of each task, 23 in all."""


@dataclass(frozen=True)
class Event:
    """One block (or cue) of a run, in seconds from its start, and how strong it is against a usual one."""

    condition: str
    onset_s: float
    duration_s: float
    modulation: float = 1.0


@dataclass(frozen=True)
class Paradigm:
    """Everything that happens in one run.

    Attributes
    ----------
    task : str
        HCP's name of the task (``GAMBLING``).
    n_frames : int
        Volumes of the run.
    events : tuple of Event
        Blocks in order of onset; ``motor_cue`` is the only label that is no condition.
    tables : dict of str to list of (onset_s, duration_s)
        Contents of the other EV files HCP ships (single trials, responses, errors); may be empty lists.
    """

    task: str
    n_frames: int
    events: tuple[Event, ...]
    tables: dict[str, list[tuple[float, float]]]

    def blocks(self, condition: str) -> list[Event]:
        """Blocks of one condition."""
        return [event for event in self.events if event.condition == condition]


def make_paradigm(task: str, direction: str, rng: np.random.Generator, tr_s: float = TR_HCP_S) -> Paradigm:
    """Timing of one run of one subject.

    Parameters
    ----------
    task, direction : str
        ``GAMBLING``, ``LR``.
    rng : Generator
        The subject's generator: jitter, responses, durations of stories.
    tr_s : float
        Repetition time; the run keeps HCP's length in seconds.
    """
    length_s = N_FRAMES_HCP[task] * TR_HCP_S
    builder = _Builder(lead_s=8.0 + float(rng.normal(0, 0.15)), rng=rng, flip=direction == "RL")
    _BUILDERS[task](builder)
    # A block that the end of the run cuts keeps its onset and ends with the run.
    events = tuple(
        Event(e.condition, e.onset_s, round(min(e.duration_s, length_s - e.onset_s), 3))
        for e in builder.events
        if e.onset_s < length_s - 1.0
    )
    tables = {name: [(on, d) for on, d in rows if on + d <= length_s] for name, rows in builder.tables.items()}
    return Paradigm(task, int(length_s / tr_s + 1e-6), events, tables)


MIXED = "MIXED"
"""Task of runs in which blocks and trials of all conditions come in random order and length."""

MIXED_BLOCK_S, MIXED_TRIAL_S, MIXED_GAP_S = (10.0, 30.0), (3.0, 6.0), (3.0, 14.0)
MIXED_TRIALS, MIXED_OVERLAPS = 0.35, 0.15
"""Shares of short trials among the events, and of events that begin while the one before still runs."""


def mixed_paradigm(conditions: Sequence[str], length_s: float, rng: np.random.Generator, tr_s: float) -> Paradigm:
    """A run from which responses of any length can be learned: every condition about as often, in random order.

    Lengths are drawn evenly from `MIXED_BLOCK_S` or `MIXED_TRIAL_S`, gaps from `MIXED_GAP_S`.
    """
    events: list[Event] = []
    now, left = float(rng.uniform(4.0, 10.0)), list[str]()
    while True:
        if not left:
            left = [conditions[i] for i in rng.permutation(len(conditions))]
        duration = float(rng.uniform(*(MIXED_TRIAL_S if rng.random() < MIXED_TRIALS else MIXED_BLOCK_S)))
        if now + duration > length_s:
            break
        events.append(Event(left.pop(), round(now, 3), round(duration, 3)))
        if rng.random() < MIXED_OVERLAPS and left:
            now += duration * float(rng.uniform(0.3, 0.7))
        else:
            now = max(e.onset_s + e.duration_s for e in events) + float(rng.uniform(*MIXED_GAP_S))
    return Paradigm(MIXED, int(length_s / tr_s + 1e-6), tuple(events), {})


def given_paradigm(path: Path, length_s: float | None, tr_s: float) -> Paradigm:
    """What an events file says; without a length, until 16 s after the last event.

    Raises
    ------
    FmrisynthError
        A trial type is no condition of the phantom, or an event lies outside the run.
    """
    table = read_events(path)
    known = {label for labels in CONDITIONS_BY_TASK.values() for label in labels}
    for event in table.events:
        if event.label not in known:
            raise FmrisynthError(
                f"{path}: {event.label!r} is no condition of the phantom; {suggest(event.label, sorted(known))}"
            )
    if not table.events:
        raise FmrisynthError(f"{path}: expected events, found none.")
    last_s = max(event.onset_s + event.duration_s for event in table.events)
    length_s = last_s + 16.0 if length_s is None else length_s
    if table.events[0].onset_s < 0 or last_s > length_s:
        raise FmrisynthError(
            f"{path}: expected events between 0 and {length_s:g} s, found some from {table.events[0].onset_s:g} to {last_s:g} s."
        )
    events = tuple(Event(e.label, e.onset_s, e.duration_s, e.modulation) for e in table.events)
    task = parse_entities(path.name).get("task", "given")
    return Paradigm(task, int(length_s / tr_s + 1e-6), events, {})


class _Builder:
    def __init__(self, lead_s: float, rng: np.random.Generator, flip: bool) -> None:
        self.now, self.rng, self.flip = lead_s, rng, flip
        self.events: list[Event] = []
        self.tables: dict[str, list[tuple[float, float]]] = {}

    def block(self, condition: str, duration_s: float) -> float:
        onset = self.now
        self.events.append(Event(condition, round(onset, 3), round(duration_s, 3)))
        self.now = onset + duration_s + float(abs(self.rng.normal(0, 0.02)))
        return onset

    def wait(self, duration_s: float) -> None:
        self.now += duration_s + float(self.rng.normal(0, 0.02))

    def record(self, table: str, onset_s: float, duration_s: float) -> None:
        self.tables.setdefault(table, []).append((round(onset_s, 3), round(duration_s, 3)))


def _wm(b: _Builder) -> None:
    for name in ("0bk_cor", "0bk_err", "0bk_nlr", "2bk_cor", "2bk_err", "2bk_nlr", "all_bk_cor", "all_bk_err"):
        b.tables[name] = []
    order = ["2bk_tools", "0bk_body", "2bk_places", "0bk_tools", "2bk_body", "0bk_places", "0bk_faces", "2bk_faces"]
    if b.flip:
        order = ["2bk_body", "0bk_faces", "0bk_tools", "2bk_faces", "2bk_places", "0bk_body", "2bk_tools", "0bk_places"]
    for i, kind in enumerate(order):
        onset = b.block(f"wm_{kind}", 27.5)
        for trial in range(10):
            right = "cor" if b.rng.random() < 0.9 else "err"
            for table in (f"{kind[:3]}_{right}", f"all_bk_{right}"):
                b.record(table, onset + 2.5 + 2.5 * trial, 2.5)
        if i % 2:
            b.wait(15.0)


def _emotion(b: _Builder) -> None:
    for _ in range(3):
        for kind in ("neut", "fear"):
            b.wait(3.0)
            b.block(f"emotion_{kind}", 18.0)


def _gambling(b: _Builder) -> None:
    for name in ("loss_event", "neut_event", "win_event"):
        b.tables[name] = []
    for kind in ("loss", "win", "loss", "win") if b.flip else ("win", "loss", "win", "loss"):
        onset = b.block(f"gambling_{kind}", 28.0)
        other = "win" if kind == "loss" else "loss"
        trials = [kind] * 6 + ["neut", other]
        for i, j in enumerate(b.rng.permutation(8)):
            b.record(f"{trials[j]}_event", onset + 3.5 * i, 3.5)
        b.wait(15.0)


def _language(b: _Builder) -> None:
    for name in ("cue", "present_math", "question_math", "response_math", "present_story", "question_story",
                 "response_story"):  # fmt: skip
        b.tables[name] = []
    b.now = max(b.now - 4.0, 0.5)
    for i in range(8):
        kind = "story" if (i % 2 == 0) != b.flip else "math"
        duration = float(b.rng.uniform(22.0, 31.0)) if kind == "story" else float(b.rng.uniform(24.0, 29.0))
        onset = b.block(f"language_{kind}", duration)
        b.record("cue", onset, 1.0)
        b.record(f"present_{kind}", onset + 1.0, duration - 7.0)
        b.record(f"question_{kind}", onset + duration - 6.0, 3.0)
        b.record(f"response_{kind}", onset + duration - 3.0, 3.0)


def _relational(b: _Builder) -> None:
    b.tables["error"] = []
    order = ["relation", "match", "relation", "match", "relation", "match"]
    if b.flip:
        order = ["relation", "match", "match", "relation", "relation", "match"]
    for kind in order:
        b.wait(2.0)
        onset = b.block(f"relational_{kind}", 16.0)
        for trial in range(4):
            if b.rng.random() < 0.2:
                b.record("error", onset + 4.0 * trial, 3.5)
        if len(b.events) % 2 == 0:
            b.wait(16.0)


def _motor(b: _Builder) -> None:
    b.tables["cue"] = []
    order = ["rh", "lf", "t", "rf", "lh", None, "t", "lf", "rh", None, "lh", "rf", None]
    if b.flip:
        order = ["lh", "rf", None, "rh", "t", "lf", None, "lh", "t", "rf", None, "rh", "lf"]
    for effector in order:
        if effector is None:
            b.wait(15.0)
            continue
        onset = b.block("motor_cue", 2.97)
        b.record("cue", onset, 2.97)
        b.block(f"motor_{effector}", 12.15)


def _social(b: _Builder) -> None:
    for name in ("mental_resp", "other_resp"):
        b.tables[name] = []
    for kind in ("rnd", "mental", "rnd", "mental", "mental") if b.flip else ("mental", "rnd", "mental", "rnd", "rnd"):
        onset = b.block(f"social_{kind}", 23.0)
        b.record(
            "mental_resp" if b.rng.random() < (0.9 if kind == "mental" else 0.1) else "other_resp", onset + 20.0, 3.0
        )
        b.wait(15.0)


_BUILDERS: dict[str, Callable[[_Builder], None]] = {
    "WM": _wm, "EMOTION": _emotion, "GAMBLING": _gambling, "LANGUAGE": _language,
    "RELATIONAL": _relational, "MOTOR": _motor, "SOCIAL": _social,
}  # fmt: skip

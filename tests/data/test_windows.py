"""Windows never leave the run, and every block is accounted for."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmrisynth.bids.events import Event, FoundBlock
from fmrisynth.bids.runs import Timing
from fmrisynth.conditions import condition_from_label
from fmrisynth.config.prepare import BlocksConfig, WindowConfig
from fmrisynth.data.resample import temporal_matrix
from fmrisynth.data.windows import (
    DROP_REASONS,
    NEGATIVE_ONSET,
    NO_SIGNAL,
    OVERLAPPING,
    PAST_END,
    TOO_SHORT,
    events_of_window,
    plan_windows,
)

HCP_EMOTION = Timing(176, 0.72)


def block(onset_s: float, duration_s: float = 18.0, label: str = "emotion_fear") -> FoundBlock:
    return FoundBlock(condition_from_label(label), onset_s, duration_s)


def plan(blocks, timing=HCP_EMOTION, window=None, rules=None):
    return plan_windows(blocks, timing, window or WindowConfig(), rules or BlocksConfig(), 1.44)


def test_the_last_fear_block_of_hcp_is_cut_short() -> None:
    blocks = [block(32.05), block(74.18), block(116.31, 10.4)]
    kept, dropped = plan(blocks)
    assert [window.start_s for window in kept] == [32.05, 74.18]
    assert [(d.block.onset_s, d.reason) for d in dropped] == [(116.31, PAST_END)]


def test_neighbours_are_what_reaches_into_the_window() -> None:
    neutral, longer = block(98.0, 10.0, "emotion_neutral"), block(95.0, 30.0, "emotion_any")
    blocks = [block(10.0), block(80.0), neutral, longer, block(108.0)]
    (window,), _ = plan([blocks[4]])
    # The first ends too early; the longer one covers the neutral block and the window's own.
    assert events_of_window(window, blocks) == (
        Event(-28.0, 18.0, "emotion_fear"), Event(-10.0, 10.0, "emotion_neutral"), Event(0.0, 18.0, "emotion_fear"),
    )  # fmt: skip


def test_exact_end() -> None:
    timing = Timing(100, 1.44)
    last = 88 * 1.44  # 12 frames of 1.44 s remain
    kept, _ = plan([block(last)], timing)
    assert len(kept) == 1
    np.testing.assert_allclose(kept[0].times_s, timing.times_s[88:])
    _, dropped = plan([block(last + 0.1)], timing)
    assert [d.reason for d in dropped] == [PAST_END]


def test_reasons() -> None:
    blocks = [block(-0.5), block(20, 5), block(40, 18), block(45, 18), block(80, 18), block(88, 18, "emotion_neut")]
    kept, dropped = plan(blocks)
    assert [window.block.onset_s for window in kept] == [40]
    assert [(d.block.onset_s, d.reason) for d in dropped] == [
        (-0.5, NEGATIVE_ONSET), (20, TOO_SHORT), (45, OVERLAPPING), (80, OVERLAPPING), (88, OVERLAPPING),
    ]  # fmt: skip


def test_neighbours_and_small_overlaps_are_kept() -> None:
    blocks = [block(10, 18), block(28, 18, "emotion_neut"), block(44.5, 18)]
    assert len(plan(blocks)[0]) == 3


def test_delay_and_alignment() -> None:
    (window,), _ = plan([block(10.0)], window=WindowConfig(delay_s=4.0))
    assert (window.start_s, window.onset_s) == (14.0, -4.0)
    (window,), _ = plan([block(10.0)], window=WindowConfig(align="frame"))
    assert window.start_s == pytest.approx(14 * 0.72)
    assert window.onset_s == pytest.approx(10 - 14 * 0.72)
    _, (lost,) = plan([block(2.0)], window=WindowConfig(delay_s=-4.0))
    assert lost.reason == NEGATIVE_ONSET


@given(
    st.lists(st.tuples(st.floats(-20, 400), st.floats(0, 60), st.sampled_from(["x_a", "x_b"])), max_size=12),
    st.integers(1, 300), st.sampled_from([0.72, 1.0, 2.0, 3.0]), st.sampled_from(["onset", "frame"]), st.floats(-5, 10),
    st.floats(0, 1),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_properties(rows, n_frames, tr_s, align, delay_s, first_frame_s) -> None:
    blocks = sorted((block(*row) for row in rows), key=lambda b: (b.onset_s, b.condition.label))
    timing = Timing(n_frames, tr_s, first_frame_s)
    window = WindowConfig(align=align, delay_s=delay_s)
    kept, dropped = plan(blocks, timing, window)
    accounted = Counter(map(id, [w.block for w in kept] + [d.block for d in dropped]))
    assert accounted == Counter(map(id, blocks))
    assert all(d.reason in DROP_REASONS for d in dropped)
    for w in kept:
        assert w.start_s + 12 * 1.44 <= timing.end_s + 1e-2
        assert w.start_s > first_frame_s - tr_s
        assert w.block.onset_s >= -1e-2
        if align == "onset":
            assert w.start_s == w.block.onset_s + delay_s
        weights = temporal_matrix(timing.times_s, w.times_s, tr_s, 1.44)  # never reaches outside the run
        assert np.isfinite(weights).all()


def test_short_rows_inside_a_block_do_not_spoil_it() -> None:
    blocks = [block(10, 18), block(12, 4, "emotion_press"), block(20, 4, "emotion_press")]
    kept, dropped = plan(blocks)
    assert [w.block.onset_s for w in kept] == [10]
    assert {d.reason for d in dropped} == {TOO_SHORT}


def test_a_block_that_is_met_only_after_its_window_is_kept() -> None:
    """A block of 40 s, of which a window needs 17.28 s; another condition begins after them."""
    kept, dropped = plan([block(10, 40), block(30, 18, "emotion_neut")])
    assert [w.block.onset_s for w in kept] == [10]
    assert [(d.block.onset_s, d.reason) for d in dropped] == [(30, OVERLAPPING)]
    kept, _ = plan([block(10, 40), block(15, 18, "emotion_neut")])
    assert kept == []


def test_windows_in_frames_that_are_no_signal() -> None:
    timing = Timing(100, 2.0, 1.0)
    blocks = [block(0), block(40), block(80)]

    def outcome(bad):
        kept, dropped = plan_windows(blocks, timing, WindowConfig(), BlocksConfig(), 1.44, bad_frames=frozenset(bad))
        return [w.block.onset_s for w in kept], [(d.block.onset_s, d.reason) for d in dropped]

    assert outcome({0, 1, 2}) == ([40, 80], [(0, NO_SIGNAL)])  # not yet steady
    assert outcome({23}) == ([0, 40, 80], [])  # one outlier, interpolated
    assert outcome({22, 23, 24, 25}) == ([0, 80], [(40, NO_SIGNAL)])

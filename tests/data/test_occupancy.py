"""What the network is told of a run."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmrisynth.bids.events import Event
from fmrisynth.data.occupancy import IMPULSE_S, occupancy, read_descriptors, window_occupancy
from fmrisynth.errors import FmrisynthError, UsageError

SECONDS = st.floats(-20, 140, allow_nan=False)


@given(st.lists(st.tuples(SECONDS, st.floats(0.01, 60), st.sampled_from("ab")), max_size=8), st.floats(0.5, 3.0))
def test_shares_add_up_to_the_time_that_a_condition_is_on(rows, tr_s):
    n_frames = 60
    on_TK = occupancy([Event(*row) for row in rows], ["a", "b"], n_frames, tr_s)
    for column, condition in enumerate("ab"):
        inside = [min(on + length, n_frames * tr_s) - max(on, 0.0) for on, length, name in rows if name == condition]
        assert on_TK[:, column].sum() * tr_s == pytest.approx(sum(max(0.0, part) for part in inside), abs=1e-3)


def test_one_block_by_hand():
    on_TK = occupancy([Event(1.5, 2.0, "a"), Event(2.0, 0.0, "b"), Event(3.0, 1.0, "b", -2.0)], ["a", "b"], 5, 1.0)
    assert on_TK[:, 0].tolist() == [0, 0.5, 1, 0.5, 0]
    assert on_TK[:, 1].tolist() == [0, 0, IMPULSE_S, -2, 0]


def test_a_condition_that_is_not_known_is_named():
    with pytest.raises(UsageError, match="did you mean motor_rh"):
        occupancy([Event(0, 1, "motor_rj")], ["motor_rh"], 3, 1.0)


def test_windows_reach_over_both_ends():
    on_TK = np.arange(1, 7, dtype=np.float32)[:, None]
    assert window_occupancy(on_TK, 0, 3, 2)[:, 0].tolist() == [0, 0, 1, 2, 3]
    assert window_occupancy(on_TK, 4, 3, 1)[:, 0].tolist() == [4, 5, 6, 0]


@pytest.mark.parametrize(
    "text",
    [
        "condition\na\n",
        "condition\tx\na\tone\n",
        "condition\tx\na\tnan\n",
        "condition\tx\na\t1\na\t2\n",
        "name\tx\na\t1\n",
    ],
)
def test_descriptor_tables_that_cannot_be_right_are_refused(tmp_path, text):
    path = tmp_path / "table.tsv"
    path.write_text(text)
    with pytest.raises(FmrisynthError, match="table"):
        read_descriptors(path)

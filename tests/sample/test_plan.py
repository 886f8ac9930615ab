"""Requests, seeds and shards of the sample stage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmrisynth.config.sample import SampleConfig
from fmrisynth.errors import UsageError
from fmrisynth.sample.plan import make_requests, sample_seed

KNOWN = ("gambling_loss", "motor_rh", "wm_2bk_places")


@given(n=st.integers(1, 12), shards=st.integers(1, 6), seed=st.integers(0, 2**31))
def test_shards_are_a_partition_and_keep_seeds(n, shards, seed):
    config = SampleConfig(all_conditions=True, n=n, seed=seed)
    whole = make_requests(config, KNOWN)
    parts = [
        request
        for k in range(1, shards + 1)
        for request in make_requests(config.model_copy(update={"shard": (k, shards)}), KNOWN)
    ]
    assert sorted(r.subject for r in parts) == sorted(r.subject for r in whole)
    assert {r.subject: r.seed for r in parts} == {r.subject: r.seed for r in whole}
    assert len({r.seed for r in whole}) == len(whole)


def test_a_sample_does_not_depend_on_how_many_are_asked_for():
    few = make_requests(SampleConfig(conditions=("motor_rh",), n=2, start_index=3), KNOWN)
    many = make_requests(SampleConfig(all_conditions=True, n=20), KNOWN)
    assert {r.subject: r.seed for r in few}.items() <= {r.subject: r.seed for r in many}.items()
    assert [r.subject for r in few] == ["synthMotorRh0004", "synthMotorRh0005"]


def test_seeds_are_pinned():
    assert sample_seed(7, "gambling_loss", 0) == sample_seed(7, "gambling_loss", 0)
    assert sample_seed(7, "gambling_loss", 0) != sample_seed(7, "gambling_loss", 1)
    assert sample_seed(7, "gambling_loss", 0) != sample_seed(8, "gambling_loss", 0)
    assert 0 <= sample_seed(7, "gambling_loss", 0) < 2**63


def test_unknown_condition_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match="did you mean gambling_loss"):
        make_requests(SampleConfig(conditions=("gambling_los",)), KNOWN)


def test_spellings_of_the_field_and_all_wrong_ones_at_once():
    config = SampleConfig(conditions=("MOTOR:rh", "WM 2bk:places", "motor_rh"), n=1)
    assert [r.condition.label for r in make_requests(config, KNOWN)] == ["motor_rh", "wm_2bk_places"]
    with pytest.raises(UsageError, match=r"'MOTOR:rx': did you mean.*'loss': .*'REASONING:rel'"):
        make_requests(SampleConfig(conditions=("MOTOR:rx", "MOTOR:rh", "loss", "REASONING:rel"), n=1), KNOWN)


def test_samples_from_the_same_noise_share_their_seed_with_the_first_of_their_condition():
    apart = make_requests(SampleConfig(all_conditions=True, n=3), KNOWN)
    same = make_requests(SampleConfig(all_conditions=True, n=3, same_noise=True), KNOWN)
    assert [r.subject for r in same] == [r.subject for r in apart]
    first = {r.condition.label: r.seed for r in apart if r.index == 0}
    assert [r.seed for r in same] == [first[r.condition.label] for r in same]
    with pytest.raises(ValueError, match="same_noise goes with n samples"):
        SampleConfig(all_conditions=True, subjects=3, same_noise=True)

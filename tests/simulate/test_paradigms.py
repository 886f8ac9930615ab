"""Timing of the runs against what is known of HCP."""

import numpy as np
import pytest

from fmrisynth.conditions import load_table
from fmrisynth.simulate.paradigms import CONDITIONS_BY_TASK, N_FRAMES_HCP, make_paradigm

EXPECTED_BLOCKS = {"wm_2bk_places": 1, "emotion_fear": 3, "gambling_loss": 2, "language_story": 4,
                   "relational_relation": 3, "motor_rh": 2}  # fmt: skip


@pytest.mark.parametrize("task", N_FRAMES_HCP)
@pytest.mark.parametrize("direction", ["LR", "RL"])
def test_blocks_fit_the_run_and_do_not_overlap(task, direction):
    for subject in range(20):
        paradigm = make_paradigm(task, direction, np.random.default_rng(subject))
        assert paradigm.n_frames == N_FRAMES_HCP[task]
        ends = [e.onset_s + e.duration_s for e in paradigm.events]
        assert all(e.onset_s > 0 for e in paradigm.events)
        assert max(ends) <= paradigm.n_frames * 0.72 + 1e-3
        assert all(end <= e.onset_s + 2e-3 for end, e in zip(ends, paradigm.events[1:], strict=False))
        for condition in CONDITIONS_BY_TASK[task]:
            assert len(paradigm.blocks(condition)) >= 1
            if condition in EXPECTED_BLOCKS:
                assert len(paradigm.blocks(condition)) == EXPECTED_BLOCKS[condition]


def test_all_conditions_are_the_tables():
    labels = [label for labels in CONDITIONS_BY_TASK.values() for label in labels]
    assert sorted(labels) == sorted(load_table().labels)
    assert len(labels) == 23


def test_last_fear_block_is_cut_short():
    paradigm = make_paradigm("EMOTION", "LR", np.random.default_rng(0))
    *others, last = paradigm.blocks("emotion_fear")
    assert last.duration_s < 17 < others[0].duration_s


def test_hrf_is_spms():
    from nilearn.glm.first_level import spm_hrf

    from fmrisynth.simulate.hrf import double_gamma

    theirs = spm_hrf(0.1, oversampling=1)
    ours = double_gamma(np.linspace(0, 32, len(theirs)) - 0.1)  # nilearn's begins one step late
    assert np.corrcoef(theirs, ours)[0, 1] > 0.9999


def test_a_long_block_reaches_one():
    from fmrisynth.simulate.hrf import convolved_boxcar

    times = np.arange(0, 200, 0.72)
    regressor, derivative, by_width = convolved_boxcar([10.0], [120.0], [1.0], times)
    assert regressor[(times > 60) & (times < 120)] == pytest.approx(1.0, abs=1e-3)
    assert (regressor[times < 10] == 0).all()
    later, *_ = convolved_boxcar([10.5], [120.0], [1.0], times)
    np.testing.assert_allclose(regressor + 0.5 * derivative, later, atol=0.03)
    wider, *_ = convolved_boxcar([10.0], [120.0], [1.0], times, width=1.1)
    np.testing.assert_allclose(regressor + np.log(1.1) * by_width, wider, atol=0.01)


def test_width_is_the_spread_of_the_response():
    from fmrisynth.simulate.hrf import double_gamma

    t = np.arange(0, 40, 0.01)
    for width in (0.8, 1.0, 1.3):
        response = double_gamma(t, 6.0, width, ratio=0.0)
        mean = (response * t).sum() / response.sum()
        assert mean == pytest.approx(6.0, abs=0.05)
        assert np.sqrt((response * (t - mean) ** 2).sum() / response.sum()) == pytest.approx(
            np.sqrt(6) * width, rel=0.02
        )

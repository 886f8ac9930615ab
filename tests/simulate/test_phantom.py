"""The phantom in memory: determinism, what a block is, and the size of its parts."""

import numpy as np
import pytest

from fmrisynth.config.simulate import ResponseConfig, SimulateConfig
from fmrisynth.data.grid import MNI_3MM, mni_brain_mask
from fmrisynth.errors import UsageError
from fmrisynth.simulate import Phantom
from fmrisynth.simulate.activations import EVENT_LABELS
from tests.simulate.conftest import QUIET


def test_block_is_on_the_standard_grid_and_scaled(subject):
    block = next(subject.blocks("gambling_loss"))
    assert block.bold_XYZT.shape == (*MNI_3MM.shape, 12)
    assert block.bold_XYZT.dtype == np.float32
    assert (block.bold_XYZT[~block.mask_XYZ] == 0).all()
    assert block.reference_XYZ[block.mask_XYZ].mean() == pytest.approx(10_000, rel=1e-3)
    mask = mni_brain_mask()
    overlap = 2 * (mask & block.mask_XYZ).sum() / (mask.sum() + block.mask_XYZ.sum())
    assert overlap > 0.95
    assert block.condition == "gambling_loss"
    assert block.onset_s == 0
    assert block.duration_s == pytest.approx(28, abs=0.1)
    assert {b.phase_encoding for b in subject.blocks("gambling_loss")} == {"LR", "RL"}


def test_same_whatever_the_order(phantom, subject):
    direct = list(phantom.subject(3).run("MOTOR", "RL").blocks("motor_rh"))
    other = phantom.subject(3)
    list(other.run("MOTOR", "LR").blocks("motor_rh"))
    later = list(other.run("MOTOR", "RL").blocks("motor_rh"))
    for a, b in zip(direct, later, strict=True):
        np.testing.assert_array_equal(a.bold_XYZT, b.bold_XYZT)


def test_frames_of_a_run_do_not_depend_on_the_chunk(subject):
    run = subject.run("GAMBLING", "LR")
    whole = run.frames(np.eye(30), 0)
    np.testing.assert_allclose(run.frames(np.eye(5), 20), whole[20:25], rtol=2e-5)


def test_subjects_directions_and_seeds_differ(phantom, subject):
    one = subject.run("GAMBLING", "LR").reference_V
    assert not np.allclose(one, phantom.subject(4).run("GAMBLING", "LR").reference_V, rtol=1e-2)
    assert not np.allclose(one, subject.run("GAMBLING", "RL").reference_V, rtol=1e-2)
    reseeded = Phantom(SimulateConfig(resolution_mm=3, seed=8)).subject(3)
    assert not np.allclose(one, reseeded.run("GAMBLING", "LR").reference_V, rtol=1e-2)


def test_noise_free_glm_recovers_the_truth():
    """nilearn's design on noise-free frames gives back the true map of the subject."""
    import pandas as pd
    from nilearn.glm.first_level import make_first_level_design_matrix

    config = SimulateConfig(
        resolution_mm=3,
        noise=QUIET,
        response=ResponseConfig(block_sd=0, hrf_delay_sd_s=0, region_delay_sd_s=0, width_sd=0),
    )
    subject = Phantom(config).subject(0)
    run = subject.run("GAMBLING", "LR")
    events = pd.DataFrame(
        [{"onset": e.onset_s, "duration": e.duration_s, "trial_type": e.condition} for e in run.paradigm.events]
    )
    times = run.times_s
    design = make_first_level_design_matrix(times, events, hrf_model="spm", drift_model=None)
    percent = run.percent_signal(np.eye(run.n_frames, dtype=np.float32), 0)
    effects = np.linalg.lstsq(design.to_numpy(), percent, rcond=None)[0]
    for condition in ("gambling_loss", "gambling_win"):
        truth = subject.responses.percent_KV[EVENT_LABELS.index(condition)]
        found = effects[list(design.columns).index(condition)]
        # nilearn centres its microtime bins differently: a few percent, not a different map
        np.testing.assert_allclose(found, truth, atol=0.03 * np.abs(truth).max())


def test_blocks_of_some_conditions_are_those_of_all(subject):
    run = subject.run("MOTOR", "LR")
    every = [b for b in run.blocks() if b.condition in ("motor_rh", "motor_t")]
    some = list(run.blocks("motor_rh", "motor_t"))
    assert [b.source_onset_s for b in some] == [b.source_onset_s for b in every]
    np.testing.assert_array_equal(some[1].bold_XYZT, every[1].bold_XYZT)


def test_unknown_names_are_refused(subject):
    with pytest.raises(UsageError, match="did you mean gambling_loss"):
        next(subject.blocks("gambling_los"))
    with pytest.raises(UsageError, match="GAMBLING"):
        subject.run("GAMBLIN", "LR")


def test_relatives_are_alike():
    from fmrisynth.config.simulate import FamilyConfig
    from fmrisynth.simulate.randomness import Traits

    families = FamilyConfig(size=3, heritability=0.8)
    n = 20_000

    def trait(index):
        return Traits(1, index, families).normal("height", (n,))

    def correlation(a, b):
        return np.corrcoef(trait(a), trait(b))[0, 1]

    assert correlation(0, 1) == pytest.approx(0.8, abs=0.03)  # identical twins of family 0
    assert correlation(3, 4) == pytest.approx(0.4, abs=0.03)  # fraternal twins of family 1
    assert correlation(0, 2) == pytest.approx(0.4, abs=0.03)  # siblings
    assert correlation(0, 3) == pytest.approx(0.0, abs=0.03)
    assert trait(2).std() == pytest.approx(1.0, abs=0.03)

"""Noise has the statistics that its settings name, and the phantom is hard in the right order."""

import numpy as np
import pytest

from fmrisynth.config.simulate import NoiseConfig, SimulateConfig
from fmrisynth.simulate.noise import LocalNoise, _quasi_periodic
from fmrisynth.simulate.space import Smoother


def test_local_noise_is_smooth_and_autocorrelated(phantom):
    config = NoiseConfig(local_ar=0.4, local_fwhm_mm=7.0)
    local = LocalNoise(phantom.space, Smoother(phantom.space, 7.0), 0.72, config, 1, "test")
    noise = local.draw(np.eye(24), 0)
    assert noise.std() == pytest.approx(1.0, abs=0.02)
    assert np.abs(noise.std(axis=1).mean() - 1) < 0.02
    ar = (noise[1:] * noise[:-1]).mean()
    assert ar == pytest.approx(0.4, abs=0.03)
    volume = phantom.space.to_grid(noise[0])[12:36, 16:48, 10:40]
    ratio = np.diff(volume, axis=0).var() / volume.var()
    fwhm = 3 * np.sqrt(-2 * np.log(2) / np.log(1 - ratio / 2))
    assert fwhm == pytest.approx(7.0, rel=0.1)


def test_repetition_time_changes_the_autocorrelation(phantom):
    local = LocalNoise(phantom.space, Smoother(phantom.space, 4.0), 2.16, NoiseConfig(local_ar=0.5), 1, "test")
    noise = local.draw(np.eye(24), 0)
    assert (noise[1:] * noise[:-1]).mean() == pytest.approx(0.5**3, abs=0.03)


def test_mixed_frames_are_the_mixture_of_frames(phantom):
    local = LocalNoise(phantom.space, phantom.smoother, 0.72, NoiseConfig(), 1, "test")
    weights = np.random.default_rng(0).normal(size=(3, 10))
    np.testing.assert_allclose(local.draw(weights, 4), weights @ local.draw(np.eye(14), 0)[4:], atol=1e-4)


def test_cardiac_rhythm_is_aliased():
    """1.1 Hz sampled every 0.72 s appears at |1.1 - 1/0.72| Hz."""
    times = np.arange(400) * 0.72
    wave = _quasi_periodic(np.random.default_rng(0), times, 1.1, 0.0)[:, 0]
    frequencies = np.fft.rfftfreq(400, 0.72)
    assert frequencies[np.argmax(np.abs(np.fft.rfft(wave)))] == pytest.approx(1 / 0.72 - 1.1, abs=0.01)


def test_subject_above_phase_encoding_above_task(phantom):
    """The variance of single volumes (paper, Fig. 3)."""
    volumes, masks = [], []
    for index in range(4):
        subject = phantom.subject(index)
        masks.append(subject.anatomy.mask_V)
        for task in ("GAMBLING", "LANGUAGE"):
            for direction in ("LR", "RL"):
                run = subject.run(task, direction)
                _, first, weights = next(run.windows())
                volumes.append(run.frames(weights[8:9], first)[0])
    mask = np.all(masks, axis=0)
    x = np.stack(volumes)[:, mask].reshape(4, 2, 2, -1).astype(np.float64)
    x -= x.mean(axis=(0, 1, 2))
    subject_part = (x.mean(axis=(1, 2)) ** 2).mean()
    direction_part = (x.mean(axis=(0, 1)) ** 2).mean()
    task_part = (x.mean(axis=(0, 2)) ** 2).mean()
    assert subject_part > 5 * direction_part > 25 * task_part


def test_a_runs_drift_and_motion_can_be_switched_off():
    from fmrisynth.simulate import Phantom

    quiet = NoiseConfig(
        local_percent=0, network_percent=0, respiration_percent=0, cardiac_percent=0, drift_percent=0, motion_mm=0
    )
    from fmrisynth.config.simulate import ResponseConfig

    run = Phantom(SimulateConfig(noise=quiet, response=ResponseConfig(amplitude=0))).subject(0).run("MOTOR", "LR")
    assert np.abs(run.percent_signal(np.eye(3, dtype=np.float32), 40)).max() < 1e-5


def test_one_pass_glm_equals_fitting_the_frames(subject):
    """The shortcut of benchmarks/phantom_figures.py."""
    from fmrisynth.glm.design import window_design

    run = subject.run("GAMBLING", "LR")
    event, first, weights = next(run.windows("gambling_loss"))
    design = window_design(0.0, event.duration_s, 12, 1.44)
    slow = design.pinv_PT[0] @ run.percent_signal(weights, first)
    fast = run.percent_signal((design.pinv_PT[:1] @ weights).astype(np.float32), first)[0]
    np.testing.assert_allclose(fast, slow, atol=1e-3)


def test_movement_regressors_are_what_moved_the_data(phantom):
    """Realignment left `motion_residual` of the movement: the data follow the regressors."""
    only_motion = NoiseConfig(
        local_percent=0, network_percent=0, respiration_percent=0, cardiac_percent=0, drift_percent=0, motion_mm=1.0
    )
    from fmrisynth.config.simulate import ResponseConfig
    from fmrisynth.simulate import Phantom

    run = Phantom(SimulateConfig(noise=only_motion, response=ResponseConfig(amplitude=0))).subject(0).run("MOTOR", "LR")
    percent = run.percent_signal(np.eye(run.n_frames, dtype=np.float32), 0)
    motion = run.noise_courses.motion_T6
    fitted = motion @ np.linalg.lstsq(motion, percent, rcond=None)[0]
    assert percent.std() > 0.05
    assert np.abs(percent - fitted).max() < 1e-2 * np.abs(percent).max()

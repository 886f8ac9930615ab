"""Noise has the statistics that its settings name, and the phantom is hard in the right order."""

import numpy as np
import pytest
from scipy import ndimage

from fmrisynth.config.simulate import NoiseConfig, ResponseConfig, SimulateConfig
from fmrisynth.simulate import Phantom
from fmrisynth.simulate.anatomy import gradients
from fmrisynth.simulate.noise import LocalNoise, _quasi_periodic, temporal_noise
from fmrisynth.simulate.space import Smoother
from tests.simulate.conftest import QUIET


def test_full_rank_noise_is_smooth_and_autocorrelated(phantom):
    noise = LocalNoise(Smoother(phantom.space, 7.0), 0.4, 1, "test").draw(np.eye(24), 0)
    assert noise.std() == pytest.approx(1.0, abs=0.02)
    assert np.abs(noise.std(axis=1).mean() - 1) < 0.02
    ar = (noise[1:] * noise[:-1]).mean()
    assert ar == pytest.approx(0.4, abs=0.03)
    volume = phantom.space.to_grid(noise[0])[12:36, 16:48, 10:40]
    ratio = np.diff(volume, axis=0).var() / volume.var()
    fwhm = 3 * np.sqrt(-2 * np.log(2) / np.log(1 - ratio / 2))
    assert fwhm == pytest.approx(7.0, rel=0.1)


def test_mixed_frames_are_the_mixture_of_frames(phantom):
    local = LocalNoise(phantom.thermal_field, 0.5, 1, "test")
    weights = np.random.default_rng(0).normal(size=(3, 10))
    np.testing.assert_allclose(local.draw(weights, 4), weights @ local.draw(np.eye(14), 0)[4:], atol=1e-4)


def test_voxels_differ_in_their_noise_as_in_people(subject):
    """A few voxels carry most of the noise, and they lie in CSF, at the surface, and where the signal drops out."""
    run = subject.run("GAMBLING", "LR")
    percent = run.percent_signal(np.eye(80, dtype=np.float32), 20)
    anatomy, depth = subject.anatomy, subject.phantom.space.depth_mm
    sd = percent.std(axis=0)
    inside = sd[anatomy.mask_V]
    low, middle, high = np.percentile(inside, [1, 50, 99])
    assert high / middle > 3 > 1.5 * middle / low
    assert inside.std() / inside.mean() > 0.4
    deep = anatomy.mask_V & (depth > 12)
    tissue = np.median(sd[deep & (anatomy.csf_V < 0.1) & (anatomy.dephasing_V < 0.1)])
    assert np.median(sd[deep & (anatomy.csf_V > 0.9)]) > 1.3 * tissue
    assert np.median(sd[anatomy.mask_V & (depth < 3)]) > 1.3 * tissue
    assert np.median(sd[anatomy.mask_V & (anatomy.dephasing_V > 0.5)]) > 1.3 * tissue


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


def test_all_noise_can_be_switched_off():
    run = Phantom(SimulateConfig(noise=QUIET, response=ResponseConfig(amplitude=0))).subject(0).run("MOTOR", "LR")
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


@pytest.fixture(scope="module")
def moved():
    """A run in which nothing happens but movement."""
    noise = QUIET.model_copy(update={"motion_mm": 1.0})
    return Phantom(SimulateConfig(noise=noise, response=ResponseConfig(amplitude=0))).subject(0).run("MOTOR", "LR")


def test_movement_regressors_are_what_moved_the_data(moved):
    """Realignment left `motion_residual` of the movement: the data follow the regressors."""
    percent = moved.percent_signal(np.eye(moved.n_frames, dtype=np.float32), 0)
    motion = moved.noise_courses.motion_T6
    fitted = motion @ np.linalg.lstsq(motion, percent, rcond=None)[0]
    assert percent.std() > 0.05
    assert np.abs(percent - fitted).max() < 1e-2 * np.abs(percent).max()


def test_movement_shifts_the_image(moved):
    """Independent reference: the baseline interpolated at moved points; edges change, flat tissue does not."""
    space, anatomy = moved.subject.phantom.space, moved.subject.anatomy
    shift_mm = 0.1
    maps_RV = moved.subject.noise_maps("LR").low_rank_RV[-6:]
    image = space.to_grid(anatomy.baseline["LR"])
    steps = np.sign(space.grid.affine[0, 0]) * shift_mm / 3
    there, back = (ndimage.shift(image, (sign * steps, 0, 0), order=1, mode="nearest") for sign in (-1, 1))
    expected = 50 * space.from_grid(there - back) / anatomy.baseline["LR"]
    inner = anatomy.mask_V & (space.depth_mm > 6) & (anatomy.baseline["LR"] > 0.3)
    predicted = moved.subject.phantom.config.noise.motion_residual * expected
    found = shift_mm * maps_RV[0]
    assert np.corrcoef(found[inner], predicted[inner])[0, 1] > 0.95
    steep = np.abs(gradients(space, anatomy.baseline["LR"])).sum(axis=0)
    high, low = (inner & (steep > np.percentile(steep[inner], 90))), (inner & (steep < np.percentile(steep[inner], 10)))
    assert np.abs(maps_RV[:3][:, high]).mean() > 4 * np.abs(maps_RV[:3][:, low]).mean()


def test_some_runs_have_spikes():
    rng = np.random.default_rng(0)
    runs = [temporal_noise(rng, 400, 0.72, 14, 1.0, NoiseConfig(spikes_per_minute=1.0)).motion_T6 for _ in range(8)]
    jumps = np.concatenate([np.abs(np.diff(m[:, :3], axis=0)).sum(axis=1) for m in runs])
    assert jumps.max() > 8 * np.percentile(jumps, 90)
    calm = temporal_noise(rng, 400, 0.72, 14, 1.0, NoiseConfig(spikes_per_minute=0)).motion_T6
    calm_jumps = np.abs(np.diff(calm[:, :3], axis=0)).sum(axis=1)
    assert calm_jumps.max() < 5 * np.percentile(calm_jumps, 90)

"""Observation noise against what it was measured on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from fmrisynth.models.tokenizers.noise import NoiseMoments, ObservationNoise, matrix_root, smoothing_kernel

SHAPE = (16, 16, 16)


def planted(rng, n_blocks, n_frames=6):
    """Smooth, autocorrelated noise with a standard deviation that differs between voxels."""
    std_XYZ = 0.5 + rng.random(SHAPE)
    white = rng.standard_normal((n_blocks, n_frames, *SHAPE))
    for t in range(1, n_frames):
        white[:, t] = 0.6 * white[:, t - 1] + 0.8 * white[:, t]
    smooth = np.stack([[gaussian_filter(frame, 0.7, mode="wrap") for frame in block] for block in white])
    return smooth / smooth.std() * std_XYZ


def test_drawn_noise_has_the_statistics_of_what_is_lacking():
    rng = np.random.default_rng(0)
    mask_XYZ = np.zeros(SHAPE, bool)
    mask_XYZ[2:-2, 2:-2, 2:-2] = True
    moments = NoiseMoments(mask_XYZ)
    for block in planted(rng, 60) * mask_XYZ:
        moments.add(block.astype(np.float32), np.zeros_like(block, np.float32))
    noise = moments.finish()
    assert noise is not None
    assert noise.is_sound()
    again = NoiseMoments(mask_XYZ)
    for _ in range(120):
        drawn_TXYZ = np.moveaxis(noise.draw(rng), -1, 0) * mask_XYZ
        again.add(drawn_TXYZ, np.zeros_like(drawn_TXYZ))
    drawn = again.finish()
    assert drawn is not None
    ratio = drawn.std_FXYZ[:, mask_XYZ] / noise.std_FXYZ[:, mask_XYZ]
    np.testing.assert_allclose(np.median(ratio, axis=1), 1, atol=0.03)
    power, power_again = (np.square(n.std_FXYZ[:, mask_XYZ]).sum(0) for n in (noise, drawn))
    assert np.corrcoef(power, power_again)[0, 1] > 0.9
    np.testing.assert_allclose(drawn.correlation_FF, noise.correlation_FF, atol=0.03)
    np.testing.assert_allclose(drawn.neighbour_r_F3, noise.neighbour_r_F3, atol=0.05)
    assert not drawn.std_FXYZ[:, ~mask_XYZ].any()


def test_slow_places_and_fast_places_both_vary_as_they_should():
    """One half of the brain drifts, the other is white: places keep their own spectrum, frequencies their own smoothness."""
    rng = np.random.default_rng(0)
    mask_XYZ = np.ones(SHAPE, bool)
    slow_T = np.cos(np.pi * (np.arange(8) + 0.5) / 8)
    moments, blocks = NoiseMoments(mask_XYZ), []
    for _ in range(200):
        block_TXYZ = rng.standard_normal((8, *SHAPE))
        drift_XYZ = gaussian_filter(rng.standard_normal(SHAPE), 1.0, mode="wrap") * 30
        block_TXYZ[:, :8] = 0.5 * block_TXYZ[:, :8] + slow_T[:, None, None, None] * drift_XYZ[:8]
        blocks.append(block_TXYZ.astype(np.float32))
        moments.add(blocks[-1], np.zeros_like(blocks[-1]))
    noise = moments.finish()
    assert noise is not None
    assert noise.neighbour_r_F3[1].min() > 0.5  # frequency 1 is the drift
    assert noise.neighbour_r_F3[2:].max() < 0.1
    drawn = np.stack([np.moveaxis(noise.draw(rng), -1, 0) for _ in blocks])
    steps = [np.diff(values, axis=1).var(axis=(0, 1)) for values in (np.stack(blocks), drawn)]
    for half in (slice(None, 8), slice(8, None)):
        assert steps[1][half].mean() == pytest.approx(steps[0][half].mean(), rel=0.12)


def test_the_same_seed_draws_the_same_noise():
    noise = ObservationNoise(np.ones((3, *SHAPE), np.float32), np.eye(3), np.tile([0.5, 0.3, 0.0], (3, 1)))
    first, second = noise.draw(np.random.default_rng([7, 1])), noise.draw(np.random.default_rng([7, 1]))
    np.testing.assert_array_equal(first, second)
    assert first.shape == (*SHAPE, 3)
    assert first.dtype == np.float32
    assert not np.array_equal(first, noise.draw(np.random.default_rng([8, 1])))


@given(st.floats(0, 0.85))
@settings(max_examples=30, deadline=None)
def test_smoothing_kernel_gives_the_correlation_asked_for(r):
    kernel = smoothing_kernel(r)
    assert np.square(kernel).sum() == pytest.approx(1)
    assert kernel[1:] @ kernel[:-1] == pytest.approx(r, abs=1e-6)


def test_matrix_root():
    a = np.random.default_rng(0).standard_normal((5, 8))
    root = matrix_root(a @ a.T)
    np.testing.assert_allclose(root @ root, a @ a.T, atol=1e-10)


def test_nothing_to_measure_is_no_noise():
    mask = np.ones(SHAPE, bool)
    assert NoiseMoments(mask).finish() is None
    moments = NoiseMoments(mask)
    moments.add(np.zeros((4, *SHAPE), np.float32), np.zeros((4, *SHAPE), np.float32))
    assert moments.finish() is None


def test_decoded_frames_that_vary_too_much_get_no_noise():
    block = np.random.default_rng(0).standard_normal((4, *SHAPE)).astype(np.float32)
    moments = NoiseMoments(np.ones(SHAPE, bool))
    moments.add(block, 1.1 * block)
    assert moments.finish() is None


def test_decoded_frames_and_noise_vary_as_the_originals():
    """Also where the residual is correlated with what was decoded: cell means across a border of variances."""
    rng = np.random.default_rng(0)
    std_XYZ = np.ones(SHAPE)
    std_XYZ[7:] = 2  # the border crosses the cells from 6 to 7
    mask_XYZ = np.ones(SHAPE, bool)
    moments = NoiseMoments(mask_XYZ)

    def decode(block):
        cells = block.reshape(len(block), 8, 2, 8, 2, 8, 2).mean(axis=(2, 4, 6))
        return cells.repeat(2, axis=1).repeat(2, axis=2).repeat(2, axis=3)

    blocks = (rng.standard_normal((100, 6, *SHAPE)) * std_XYZ).astype(np.float32)
    for block in blocks:
        moments.add(block, decode(block))
    noise = moments.finish()
    assert noise is not None
    synthetic = np.stack([decode(block) + np.moveaxis(noise.draw(rng), -1, 0) for block in blocks])
    residual = np.stack([block - decode(block) for block in blocks])

    def border(variance_XYZ):
        """Log ratio to the originals in the cells that the border crosses, in its two layers."""
        return np.log(variance_XYZ / blocks.var(axis=(0, 1)))[6:8].mean(axis=(1, 2))

    np.testing.assert_allclose(border(synthetic.var(axis=(0, 1))), 0, atol=0.02)
    by_residuals = border((blocks - residual).var(axis=(0, 1)) + residual.var(axis=(0, 1)))
    assert (np.abs(by_residuals) > 0.06).all()


def test_noise_of_a_run_has_no_borders():
    """Its variance is the same in every frame, and neighbours are correlated alike wherever they lie."""
    n_frames, shape = 12, (10, 10, 10)
    std_FXYZ = np.ones((n_frames, *shape), np.float32)
    noise = ObservationNoise(std_FXYZ, np.eye(n_frames), np.zeros((n_frames, 3)))  # white
    frames = np.stack([frame.ravel() for frame, _ in zip(noise.draw_frames(3), range(120), strict=False)])
    variance_T = frames.var(axis=1)
    assert np.abs(variance_T - 1).max() < 0.2
    at = np.arange(120) % 6
    assert np.abs([variance_T[at == k].mean() - 1 for k in range(6)]).max() < 0.05
    slow = ObservationNoise(np.zeros_like(std_FXYZ), np.eye(n_frames), np.zeros((n_frames, 3)))
    slow.std_FXYZ[0] = 1.0  # constant over a block
    frames = np.stack([frame.ravel() for frame, _ in zip(slow.draw_frames(3), range(120), strict=False)])
    r_T = [np.corrcoef(frames[t], frames[t + 1])[0, 1] for t in range(118)]
    assert np.abs(np.array(r_T) - np.cos(np.pi / n_frames)).max() < 0.03
    again = [frame for frame, _ in zip(slow.draw_frames(3), range(5), strict=False)]
    assert np.array_equal(again[4].ravel(), frames[4])

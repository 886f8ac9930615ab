"""Resampling in space against nilearn, in time against scipy and analytic signals."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import convolve1d, gaussian_filter
from scipy.signal import firwin

from fmrisynth.data.grid import MNI_3MM, make_grid
from fmrisynth.data.resample import SpatialResampler, axis_matrix, temporal_matrix
from fmrisynth.errors import FmrisynthError

HCP_SHAPE = (91, 109, 91)
HCP_AFFINE = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])


def nilearn_resample(volume, affine, grid, interpolation="linear"):
    from nilearn.image import resample_img

    image = resample_img(
        nib.Nifti1Image(volume, affine), target_affine=grid.affine, target_shape=grid.shape, interpolation=interpolation,
        copy_header=True, force_resample=True,
    )  # fmt: skip
    return image.get_fdata()


@pytest.mark.parametrize(
    "affine",
    [
        HCP_AFFINE,
        np.array([[2.0, 0, 0, -90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]]),
        np.array([[2.3, 0, 0, -101.7], [0, 1.9, 0, -100.2], [0, 0, 2.6, -70.1], [0, 0, 0, 1]]),
    ],
    ids=["HCP", "RAS", "odd"],
)
def test_equals_nilearn(rng, affine) -> None:
    volume = gaussian_filter(rng.standard_normal(HCP_SHAPE), 1).astype(np.float32)
    ours = SpatialResampler(HCP_SHAPE, affine, MNI_3MM)(np.asfortranarray(volume))
    theirs = nilearn_resample(volume, affine, MNI_3MM)
    assert ours.shape == MNI_3MM.shape
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.999999


@pytest.mark.parametrize("n_out", [10, 17, 33, 60])
def test_the_wide_triangle_equals_pillows(rng, n_out) -> None:
    """Pillow's bilinear filter averages over the larger pixels as well; its box has the edges of the pixels at the ends."""
    from PIL import Image

    values = rng.standard_normal(60).astype(np.float32)
    width = 60 / n_out
    ours = axis_matrix(60, (np.arange(n_out) + 0.5) * width - 0.5, width) @ values
    theirs = np.asarray(Image.fromarray(values[None], mode="F").resize((n_out, 1), Image.Resampling.BILINEAR))[0]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_coarser_voxels_do_not_alias(rng) -> None:
    """A pattern finer than the target's voxels vanishes, a constant and (away from edges) a ramp stay what they are."""
    affine = np.array([[-0.7, 0, 0, 90], [0, 0.7, 0, -126], [0, 0, 0.7, -72], [0, 0, 0, 1]])
    shape = (260, 311, 260)  # HCP's structural images
    x, y, z = (np.arange(n) for n in shape)
    fine = ((x[:, None, None] + y[:, None] + z) % 2 * 2.0 - 1).astype(np.float32)
    inside = (slice(4, -4), slice(8, -4), slice(8, -20))
    smooth = SpatialResampler(shape, affine, MNI_3MM, antialias=True)
    assert np.abs(SpatialResampler(shape, affine, MNI_3MM)(fine)[inside]).max() > 0.3
    assert np.abs(smooth(fine)[inside]).max() < 0.01
    ramp = np.broadcast_to((90 - 0.7 * x)[:, None, None], shape).astype(np.float32)
    expected = -70.5 + 3 * np.arange(48)
    np.testing.assert_allclose(smooth(ramp)[inside][:, 5, 5], expected[4:-4], atol=0.02)
    np.testing.assert_allclose(smooth(np.ones(shape, np.float32))[inside], 1.0, atol=1e-5)


def test_axes_in_another_order(rng) -> None:
    volume = rng.standard_normal(HCP_SHAPE).astype(np.float32)
    expected = SpatialResampler(HCP_SHAPE, HCP_AFFINE, MNI_3MM)(volume)
    order = (2, 0, 1)
    moved = SpatialResampler(tuple(HCP_SHAPE[i] for i in order), HCP_AFFINE[:, [*order, 3]], MNI_3MM)
    np.testing.assert_allclose(moved(volume.transpose(order)), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "u1", "<f4", ">f4", "<f8"])
def test_stored_types(rng, dtype) -> None:
    volume = rng.integers(0, 200, HCP_SHAPE)
    resampler = SpatialResampler(HCP_SHAPE, HCP_AFFINE, MNI_3MM)
    np.testing.assert_array_equal(resampler(volume.astype(dtype)), resampler(volume.astype(np.float32)))


def test_same_grid_is_identity_and_padding_is_zero(rng) -> None:
    volume = rng.standard_normal((20, 22, 24)).astype(np.float32)
    affine = np.diag([3.0, 3, 3.3, 1])
    shifted = affine.copy()
    shifted[:3, 3] = affine[:3, :3] @ [-4, -5, 2]
    moved = SpatialResampler(volume.shape, affine, make_grid((32, 32, 16), shifted, "scanner"))(volume)
    np.testing.assert_array_equal(moved[4:24, 5:27], volume[..., 2:18])
    assert (moved[:4] == 0).all()
    assert (moved[24:] == 0).all()


def test_out_argument(rng) -> None:
    resampler = SpatialResampler(HCP_SHAPE, HCP_AFFINE, MNI_3MM)
    cropped = resampler.crop_frame(rng.integers(0, 1000, HCP_SHAPE, dtype=np.int16))
    assert cropped.size < 0.75 * np.prod(HCP_SHAPE)  # crops before resampling
    out = np.empty(MNI_3MM.shape[::-1], dtype=np.float32)
    result = resampler.resample_crop(cropped, out_zyx=out)
    np.testing.assert_array_equal(out.T, result)
    np.testing.assert_array_equal(result, resampler.resample_crop(cropped))


def test_oblique_axes_are_refused_with_the_angle() -> None:
    c, s = np.cos(np.radians(12)), np.sin(np.radians(12))
    tilt = np.eye(4)
    tilt[1:3, 1:3] = [[c, -s], [s, c]]
    with pytest.raises(FmrisynthError, match=r"rotated by 12\.0 degrees.*fMRIPrep.*--native"):
        SpatialResampler(HCP_SHAPE, tilt @ HCP_AFFINE, MNI_3MM)(np.zeros(HCP_SHAPE))


def test_coverage() -> None:
    everything = np.ones(MNI_3MM.shape, dtype=bool)
    assert SpatialResampler(HCP_SHAPE, HCP_AFFINE, MNI_3MM).coverage(everything) > 0.9
    assert SpatialResampler(HCP_SHAPE, np.diag([2.0, 2, 2, 1]), MNI_3MM).coverage(everything) < 0.2
    far = HCP_AFFINE.copy()
    far[0, 3] += 1000
    outside = SpatialResampler(HCP_SHAPE, far, MNI_3MM)
    assert outside.coverage(everything) == 0
    assert (outside(np.ones(HCP_SHAPE)) == 0).all()


@given(st.integers(2, 40), st.lists(st.floats(-5, 45), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_axis_matrix_is_linear_interpolation(n_in: int, coordinates: list[float]) -> None:
    at = np.array(coordinates)
    matrix = axis_matrix(n_in, at)
    values = np.sin(np.arange(n_in))
    inside = (at >= -1e-7) & (at <= n_in - 1 + 1e-7)
    expected = np.where(inside, np.interp(at, np.arange(n_in), values), 0)
    np.testing.assert_allclose(matrix @ values, expected, atol=1e-5)
    assert ((matrix != 0).sum(axis=1) <= 2).all()


@given(st.floats(0.5, 3), st.floats(0.5, 3), st.floats(0, 20))
@settings(max_examples=50, deadline=None)
def test_rows_of_the_temporal_matrix_add_up_to_one(tr_in_s: float, tr_out_s: float, start_s: float) -> None:
    times_in = tr_in_s * np.arange(200)
    times_out = start_s + tr_out_s * np.arange(12)
    if times_out[-1] > times_in[-1]:
        return
    weights = temporal_matrix(times_in, times_out, tr_in_s, tr_out_s)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(weights @ np.full(200, 7.0), 7, rtol=1e-5)


def test_equal_spacing_on_frames_is_exact(rng) -> None:
    values = rng.standard_normal(50)
    times = 2.0 * np.arange(50)
    np.testing.assert_allclose(temporal_matrix(times, times[7:19], 2.0, 2.0) @ values, values[7:19], atol=1e-5)


def test_onset_between_frames_is_where_it_says() -> None:
    """A slow response is sampled at the onset itself, not at the nearest frame."""
    times_in, times_out = 0.72 * np.arange(253), 8.07 + 1.44 * np.arange(12)
    weights = temporal_matrix(times_in, times_out, 0.72, 1.44)
    for period_s in (12, 20, 40):
        wave = np.sin(2 * np.pi * times_in / period_s)
        np.testing.assert_allclose(weights @ wave, np.sin(2 * np.pi * times_out / period_s), atol=0.02)


def test_no_aliasing() -> None:
    """What lies above the output's Nyquist frequency does not fold into the output."""
    times_in, times_out = 0.72 * np.arange(253), 8.0 + 1.44 * np.arange(100)
    weights = temporal_matrix(times_in, times_out, 0.72, 1.44)
    nyquist_hz = 1 / (2 * 1.44)
    for frequency_hz in (1.4 * nyquist_hz, 1.7 * nyquist_hz):
        wave = np.sin(2 * np.pi * frequency_hz * times_in)
        assert np.abs(weights @ wave)[5:-5].max() < 0.1
        assert np.abs(wave[::2]).max() > 0.9  # dropping every other frame would let it through


def test_halving_the_rate_equals_scipy(rng) -> None:
    values = rng.standard_normal(300)
    times = 0.72 * np.arange(300)
    ours = temporal_matrix(times, times[20:280:2], 0.72, 1.44) @ values
    theirs = convolve1d(values, firwin(13, 0.5, window="lanczos"))[20:280:2]
    assert np.corrcoef(ours, theirs)[0, 1] > 0.9999
    np.testing.assert_allclose(ours, theirs, atol=0.02)

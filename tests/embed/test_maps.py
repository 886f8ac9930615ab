"""Volumes on the flattened cortex: the right place, the right side, the same numbers as nilearn's."""

import nibabel as nib
import numpy as np
import pytest

from fmrisynth.config.embed import MapConfig
from fmrisynth.data.blocks import BlockData
from fmrisynth.data.grid import MNI_3MM, make_grid, mni_brain_mask
from fmrisynth.embed.flatmap import LONGEST_EDGE_MM, flat_faces, flat_map, flat_positions
from fmrisynth.embed.maps import map_series
from fmrisynth.embed.pictures import nearest_vertex
from fmrisynth.embed.surface import SIDES, load_surface, sampling_matrix
from fmrisynth.errors import FmrisynthError
from tests.embed.conftest import ball

LAS = make_grid(
    MNI_3MM.shape, MNI_3MM.affine @ np.array([[-1, 0, 0, 47], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), MNI_3MM.space
)
"""The same box with the first axis mirrored."""


def test_the_matrix_equals_nilearns_vol_to_surf(rng):
    from nilearn.datasets import fetch_surf_fsaverage
    from nilearn.surface import vol_to_surf

    box = MNI_3MM.affine.copy()
    box[2, 3] += 24  # cuts the temporal lobes: some samples, and some vertices, lie outside
    grid = make_grid((48, 64, 44), box, MNI_3MM.space)
    volumes = rng.normal(size=(*grid.shape, 2)).astype(np.float32)
    files = fetch_surf_fsaverage("fsaverage5")
    image = nib.Nifti1Image(volumes, grid.affine)
    with pytest.warns(RuntimeWarning, match="empty slice"):  # nilearn's, of vertices without a sample
        expected = np.concatenate(
            [vol_to_surf(image, files[f"pial_{side}"], inner_mesh=files[f"white_{side}"]) for side in SIDES]
        )
    sample = sampling_matrix(grid)
    outside = np.isnan(expected).any(axis=1)
    assert 0 < outside.sum() < len(outside) / 10
    np.testing.assert_array_equal(~sample.reached_V, outside)
    np.testing.assert_allclose(sample(volumes)[~outside], expected[~outside], atol=1e-5)


@pytest.mark.parametrize("grid", [MNI_3MM, LAS], ids=["RAS", "LAS"])
@pytest.mark.parametrize(
    "place_mm", [(-38, -24, 58), (38, -24, 58), (-10, -82, 4), (10, -82, 4), (-50, -22, 8), (50, -22, 8)]
)
def test_a_patch_lands_at_its_vertex_and_pixel(grid, place_mm):
    mask = mni_brain_mask(MNI_3MM)
    mask = mask[::-1] if grid is LAS else mask
    volume = ball(place_mm, 10.0, grid)
    on_vertices = sampling_matrix(grid)(volume[..., None])[:, 0]
    expected, n_left = nearest_vertex(place_mm), load_surface("pial").n_left
    at = load_surface("pial").coordinates_V3
    assert on_vertices[expected] > 0.5
    assert np.linalg.norm(at[on_vertices > 0.5] - place_mm, axis=1).max() < 16
    on_the_side = on_vertices[:n_left] if place_mm[0] < 0 else on_vertices[n_left:]
    assert on_the_side.sum() > 0.99 * on_vertices.sum()

    picture = flat_map(2.4)
    shown = picture.spread(picture.matrix @ on_vertices[:, None])[0]
    row, column = (round(place) for place in picture.place_of(expected))
    assert shown[row - 1 : row + 2, column - 1 : column + 2].max() > 0.5
    halves = shown[:, : picture.shape[1] // 2].sum(), shown[:, picture.shape[1] // 2 :].sum()
    assert halves[place_mm[0] > 0] > 0.99 * sum(halves)


def test_places_of_the_atlas_lie_as_in_the_papers_figures():
    """Frontal poles outwards, occipital poles towards the middle, dorsal up."""
    picture = flat_map(2.4)
    middle = picture.shape[1] / 2
    for side in (-1, 1):
        frontal, visual, hand, temporal = (
            picture.place_of(nearest_vertex((side * x, y, z)))
            for x, y, z in ((24, 60, 6), (10, -90, 2), (38, -24, 58), (50, -10, -30))
        )
        assert abs(frontal[1] - middle) > abs(hand[1] - middle) > abs(visual[1] - middle)
        assert hand[0] < temporal[0]
        assert all((place[1] - middle) * side > 0 for place in (frontal, visual, hand, temporal))


@pytest.mark.parametrize(("pixel_mm", "shape"), [(1.2, (235, 541)), (2.4, (118, 271)), (4.8, (59, 136))])
def test_the_raster_has_the_stated_size_and_interpolates_linearly(pixel_mm, shape):
    picture = flat_map(pixel_mm)
    assert picture.shape == shape
    np.testing.assert_allclose(np.asarray(picture.matrix.sum(axis=1)), 1, atol=1e-5)
    places = flat_positions()
    rows, columns = np.nonzero(picture.valid_HW)
    steps = picture.matrix @ places  # a linear function is reproduced
    assert np.ptp(steps[:, 0] - columns * pixel_mm) < 1e-3
    assert np.ptp(steps[:, 1] + rows * pixel_mm) < 1e-3
    area_cm2 = picture.n_pixels * pixel_mm**2 / 100
    assert area_cm2 == pytest.approx(1160, rel=0.01)


def test_triangles_that_bridge_a_cut_are_left_out():
    corners = flat_positions()[flat_faces()]
    edges = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2)
    assert edges.max() < LONGEST_EDGE_MM
    assert 0 < len(load_surface("flat").faces_F3) - len(flat_faces()) < 100


def a_series(rng, n_frames=12):
    mask = mni_brain_mask(MNI_3MM)
    reference = mask * rng.uniform(8000, 12_000, mask.shape).astype(np.float32)
    bold = reference[..., None] * (1 + 0.01 * rng.standard_normal((*mask.shape, n_frames), dtype=np.float32))
    return BlockData(bold.astype(np.float32), reference, mask)


def test_frames_are_normalised_and_at_one_hertz(rng):
    data = a_series(rng)
    frames = map_series(data, MNI_3MM, 1.44, MapConfig(pixel_mm=4.8))
    assert frames.shape == (16, flat_map(4.8).n_pixels)  # 11 x 1.44 s = 15.84 s
    np.testing.assert_allclose(frames.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(frames.std(axis=1), 1, atol=1e-4)
    plain = map_series(
        data, MNI_3MM, 1.44, MapConfig(pixel_mm=4.8, per_frame=False, rate_hz=1 / 1.44, n_frames=12, clip=None)
    )
    scaled = BlockData(data.bold_XYZT * 3, data.reference_XYZ * 3, data.mask_XYZ)
    again = map_series(
        scaled, MNI_3MM, 1.44, MapConfig(pixel_mm=4.8, per_frame=False, rate_hz=1 / 1.44, n_frames=12, clip=None)
    )
    np.testing.assert_allclose(again, plain, atol=2e-3)  # the unit of intensity does not matter


def test_a_response_as_long_as_the_series_is_kept_with_the_baseline_of_the_run(rng):
    data = a_series(rng)
    data.bold_XYZT[...] += (200 * ball((-38, -24, 58)))[..., None]
    row, column = (round(place) for place in flat_map(4.8).place_of(nearest_vertex((-38, -24, 58))))
    found = {}
    for baseline in ("run", "series"):
        frames = map_series(data, MNI_3MM, 1.44, MapConfig(pixel_mm=4.8, baseline=baseline))
        found[baseline] = flat_map(4.8).spread(frames.T)[:, row, column].mean()
    assert found["run"] > 1.5
    assert abs(found["series"]) < 0.5


def test_series_that_cannot_be_mapped_are_refused(rng):
    data = a_series(rng, 6)
    with pytest.raises(FmrisynthError, match=r"6 frames every 1.44 s make 8 at 1 Hz, expected 16"):
        map_series(data, MNI_3MM, 1.44, MapConfig(pixel_mm=4.8))
    with pytest.raises(FmrisynthError, match="in MNI space, found ones in the participants' own space"):
        sampling_matrix(make_grid(MNI_3MM.shape, MNI_3MM.affine, "scanner"))
    elsewhere = MNI_3MM.affine.copy()
    elsewhere[:3, 3] += 60
    with pytest.raises(FmrisynthError, match=r"reach .* of the cortex"):
        sampling_matrix(make_grid(MNI_3MM.shape, elsewhere, MNI_3MM.space))
    half = a_series(rng)
    half.reference_XYZ[:24] = 0
    with pytest.raises(FmrisynthError, match=r"hold signal at .* of the cortex"):
        map_series(half, MNI_3MM, 1.44, MapConfig(pixel_mm=4.8))

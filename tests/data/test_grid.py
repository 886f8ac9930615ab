"""The standard grid holds the MNI brain; native grids hold the subject's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmrisynth.data.grid import MNI_3MM, Grid, make_grid, mni_brain_mask, native_grid
from fmrisynth.errors import FmrisynthError


def test_standard_grid_holds_the_brain() -> None:
    from nilearn.datasets import load_mni152_brain_mask

    mask = load_mni152_brain_mask(resolution=1)
    ijk = np.argwhere(np.asarray(mask.dataobj) > 0)
    xyz = ijk @ mask.affine[:3, :3].T + mask.affine[:3, 3]
    inside = xyz @ np.linalg.inv(MNI_3MM.affine)[:3, :3].T + np.linalg.inv(MNI_3MM.affine)[:3, 3]
    assert (inside >= -0.5).all()
    assert (inside <= np.array(MNI_3MM.shape) - 0.5).all()
    ours = mni_brain_mask()
    assert ours.shape == MNI_3MM.shape
    assert ours.sum() * 27 == pytest.approx(len(ijk), rel=0.02)  # the same volume in mm3
    assert not ours.flags.writeable


def test_properties_of_the_standard_grid() -> None:
    assert MNI_3MM.voxel_mm == (3.0, 3.0, 3.0)
    assert MNI_3MM.resolution == "3"
    assert not MNI_3MM.is_native
    assert all(side % 16 == 0 for side in MNI_3MM.shape)
    assert Grid.from_json(MNI_3MM.to_json()) == MNI_3MM
    assert MNI_3MM.same_as(Grid.from_json(MNI_3MM.to_json()))
    moved = MNI_3MM.to_json()
    moved["affine"][0][3] += 0.5
    assert not MNI_3MM.same_as(Grid.from_json(moved))


@given(st.tuples(*[st.integers(3, 40)] * 3), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_native_grid_holds_the_mask(shape, seed) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < 0.05
    mask[tuple(side // 2 for side in shape)] = True
    affine = np.eye(4)
    affine[:3] = rng.standard_normal((3, 4)) + 3 * np.eye(3, 4)
    grid, box = native_grid(shape, affine, mask)
    assert grid.is_native
    assert grid.resolution is None
    assert all(side % 16 == 0 for side in grid.shape)
    ijk = np.argwhere(mask)
    for axis in range(3):
        assert box[axis].start <= ijk[:, axis].min()
        assert ijk[:, axis].max() < box[axis].stop
        assert box[axis].stop - box[axis].start == grid.shape[axis] < np.ptp(ijk[:, axis]) + 1 + 16
    # The same voxel lies at the same place in the world.
    start = np.array([b.start for b in box])
    world = ijk @ affine[:3, :3].T + affine[:3, 3]
    np.testing.assert_allclose((ijk - start) @ grid.affine[:3, :3].T + grid.affine[:3, 3], world, atol=1e-9)


def test_nonsense() -> None:
    with pytest.raises(FmrisynthError, match="brain mask is empty"):
        native_grid((4, 4, 4), np.eye(4), np.zeros((4, 4, 4), dtype=bool))
    with pytest.raises(FmrisynthError, match="a grid needs"):
        make_grid((4, 4, 4), np.eye(3), "scanner")

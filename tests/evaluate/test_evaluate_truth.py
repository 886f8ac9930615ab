"""Group effects against planted truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from fmrisynth.bids.naming import group_statmap
from fmrisynth.data.grid import make_grid
from fmrisynth.data.nifti import write_image
from fmrisynth.errors import FmrisynthError
from fmrisynth.evaluate.scoring import GroupMaps
from fmrisynth.evaluate.truth import read_truth, truth_correlations

GRID = make_grid((16, 16, 16), np.diag([3.0, 3, 3, 1]), "MNI152NLin6Asym")
CONDITIONS = ["motor_rh", "gambling_loss"]


@pytest.fixture
def truth_XYZ(rng):
    return gaussian_filter(rng.standard_normal(GRID.shape), 2.0).astype(np.float32)


@pytest.fixture
def cohort(tmp_path, truth_XYZ):
    name = group_statmap("motor", GRID.space, "motorRh", "effect")
    write_image(tmp_path / "ground_truth" / name, truth_XYZ, GRID.affine)
    return tmp_path


def maps(effect_KV: np.ndarray) -> GroupMaps:
    return GroupMaps(CONDITIONS, effect_KV, effect_KV, {}, {})


def test_a_perfect_and_an_unrelated_map(cohort, truth_XYZ, rng):
    mask = np.ones(GRID.shape, bool)
    perfect = np.stack([truth_XYZ[mask], truth_XYZ[mask]])
    noise = rng.standard_normal(perfect.shape)
    found = truth_correlations(cohort, GRID, mask, maps(3 * perfect + 1), maps(noise))
    assert set(found) == {"motor_rh"}  # no truth was written for the other one
    assert found["motor_rh"]["real"] == pytest.approx(1.0, abs=1e-6)
    assert abs(found["motor_rh"]["synthetic"]) < 0.1


def test_another_grid_is_resampled(cohort, truth_XYZ):
    shifted = make_grid((12, 12, 12), [[3, 0, 0, 6], [0, 3, 0, 6], [0, 0, 3, 6], [0, 0, 0, 1]], GRID.space)
    moved = read_truth(cohort / "ground_truth", "motor_rh", shifted)
    np.testing.assert_allclose(moved, truth_XYZ[2:14, 2:14, 2:14], atol=1e-5)


def test_a_folder_without_truth_is_refused(tmp_path):
    with pytest.raises(FmrisynthError, match="expected the ground truth"):
        read_truth(tmp_path, "motor_rh", GRID)

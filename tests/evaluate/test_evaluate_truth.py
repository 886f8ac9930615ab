"""Group effects against planted truth."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from fmrisynth.bids.naming import group_statmap
from fmrisynth.config.glm import GlmConfig
from fmrisynth.data.grid import make_grid
from fmrisynth.data.nifti import write_image
from fmrisynth.errors import FmrisynthError
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


def dataset(effect_V: np.ndarray):
    return SimpleNamespace(group=lambda condition: SimpleNamespace(effect=effect_V))


def test_a_perfect_and_an_unrelated_map(cohort, truth_XYZ, rng):
    mask = np.ones(GRID.shape, bool)
    perfect = truth_XYZ[mask]
    cohorts = SimpleNamespace(conditions=CONDITIONS, grid=GRID, mask_XYZ=mask, real=[])
    found = truth_correlations(
        cohort, cohorts, dataset(3 * perfect + 1), dataset(rng.standard_normal(perfect.shape)), GlmConfig()
    )
    assert set(found) == {"motor_rh"}  # no truth was written for the other one
    assert found["motor_rh"].real == pytest.approx(1.0, abs=1e-6)
    assert abs(found["motor_rh"].synthetic) < 0.1
    assert found["motor_rh"].ceiling is None  # no events of what came before


def test_another_grid_is_resampled(cohort, truth_XYZ):
    shifted = make_grid((12, 12, 12), [[3, 0, 0, 6], [0, 3, 0, 6], [0, 0, 3, 6], [0, 0, 0, 1]], GRID.space)
    moved = read_truth(cohort / "ground_truth", "motor_rh", shifted)
    np.testing.assert_allclose(moved, truth_XYZ[2:14, 2:14, 2:14], atol=1e-5)


def test_a_folder_without_truth_is_refused(tmp_path):
    with pytest.raises(FmrisynthError, match="expected the ground truth"):
        read_truth(tmp_path, "motor_rh", GRID)

"""The batched estimators against nilearn, scipy and arithmetic."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fmrisynth.errors import FmrisynthError
from fmrisynth.glm.design import Design, window_design
from fmrisynth.glm.statistics import RunningGroup, fit_windows, fixed_effects, random_effects, t_to_z

TR_S, N_FRAMES = 1.44, 12
SHAPE = (5, 6, 4)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)


def _image(array: np.ndarray):
    import nibabel as nib

    return nib.Nifti1Image(array, np.diag([3.0, 3.0, 3.0, 1.0]))


def _nilearn_block(window_TV: np.ndarray, onset_s: float, duration_s: float, drift: str):
    """Effect, t and z of one window by nilearn's own estimator, from events."""
    from nilearn.glm.first_level import FirstLevelModel

    bold = window_TV.T.reshape(*SHAPE, -1)
    model = FirstLevelModel(
        t_r=TR_S, hrf_model="spm", drift_model="polynomial" if drift == "linear" else None, drift_order=1,
        mask_img=_image(np.ones(SHAPE, np.int8)), signal_scaling=False, noise_model="ols",
    )  # fmt: skip
    events = pd.DataFrame({"onset": [onset_s], "duration": [duration_s], "trial_type": ["block"]})
    model.fit(_image(bold.astype(np.float64)), events=events)
    maps = model.compute_contrast("block", output_type="all")
    return {name: image.get_fdata().reshape(-1) for name, image in maps.items()}


@pytest.mark.parametrize("drift", ["none", "linear"])
def test_fifty_instances_agree_with_nilearn(rng, drift):
    for _ in range(25):
        onset_s, duration_s = float(rng.uniform(-1, 3)), float(rng.uniform(8, 28))
        window_TV = (100 * rng.standard_normal(120) + rng.standard_normal((N_FRAMES, 120))).astype(np.float32)
        reference = _nilearn_block(window_TV, onset_s, duration_s, drift)
        ours = fit_windows(window_TV[None], window_design(onset_s, duration_s, N_FRAMES, TR_S, "spm", drift))
        np.testing.assert_allclose(ours.effect[0], reference["effect_size"], atol=1e-4)
        np.testing.assert_allclose(ours.variance[0], reference["effect_variance"], rtol=1e-4)
        np.testing.assert_allclose(ours.t[0], reference["stat"], atol=1e-4)
        np.testing.assert_allclose(ours.z[0], reference["z_score"], atol=1e-4)


def test_several_regressors_agree_with_nilearn(rng):
    from nilearn.glm.contrasts import compute_contrast
    from nilearn.glm.first_level import run_glm

    matrix = np.column_stack([rng.standard_normal((30, 4)), np.ones(30)])
    contrast = np.array([1.0, -0.5, -0.5, 0.0, 0.0])
    window_TV = rng.standard_normal((30, 50)).astype(np.float32) + 10_000
    labels, results = run_glm(window_TV.astype(np.float64), matrix, noise_model="ols")
    reference = compute_contrast(labels, results, contrast)
    ours = fit_windows(window_TV[None], Design.from_matrix(matrix, tuple("abcde")), contrast)
    np.testing.assert_allclose(ours.effect[0], reference.effect_size(), atol=1e-4)
    np.testing.assert_allclose(ours.z[0], reference.z_score(), atol=1e-4)
    assert ours.dof == 25


def test_design_without_a_constant_is_fitted_as_it_is(rng):
    matrix = rng.standard_normal((10, 2))
    y = rng.standard_normal((10, 7)).astype(np.float32) + 5
    ours = fit_windows(y[None], Design.from_matrix(matrix, ("a", "b")))
    beta, rss, *_ = np.linalg.lstsq(matrix, y.astype(np.float64), rcond=None)
    np.testing.assert_allclose(ours.effect[0], beta[0], rtol=1e-5)
    np.testing.assert_allclose(ours.variance[0], rss / 8 * np.linalg.inv(matrix.T @ matrix)[0, 0], rtol=1e-5)


def test_fixed_effects_of_a_subject_agree_with_a_nilearn_model_of_several_runs(rng):
    from nilearn.glm.first_level import FirstLevelModel

    windows = rng.standard_normal((3, N_FRAMES, 120)).astype(np.float32)
    events = pd.DataFrame({"onset": [0.0], "duration": [18.0], "trial_type": ["block"]})
    model = FirstLevelModel(
        t_r=TR_S, hrf_model="spm", drift_model=None, mask_img=_image(np.ones(SHAPE, np.int8)),
        signal_scaling=False, noise_model="ols",
    )  # fmt: skip
    runs = [_image(w.T.reshape(*SHAPE, -1).astype(np.float64)) for w in windows]
    model.fit(runs, events=[events] * 3)
    reference = model.compute_contrast(["block"] * 3, output_type="all")
    single = fit_windows(windows, window_design(0.0, 18.0, N_FRAMES, TR_S))
    ours = fixed_effects(single.effect, single.variance, np.full(3, single.dof))
    np.testing.assert_allclose(ours.effect, reference["effect_size"].get_fdata().reshape(-1), atol=1e-4)
    np.testing.assert_allclose(ours.z, reference["z_score"].get_fdata().reshape(-1), atol=1e-4)


def test_group_map_agrees_with_second_level_model(rng):
    from nilearn.glm.second_level import SecondLevelModel

    effects_SV = (rng.standard_normal((14, 120)) + 0.5).astype(np.float32)
    model = SecondLevelModel(mask_img=_image(np.ones(SHAPE, np.int8)))
    model.fit([_image(e.reshape(SHAPE)) for e in effects_SV], design_matrix=pd.DataFrame({"intercept": np.ones(14)}))
    reference = model.compute_contrast("intercept", output_type="all")
    ours = random_effects(effects_SV)
    np.testing.assert_allclose(ours.effect, reference["effect_size"].get_fdata().reshape(-1), atol=1e-5)
    np.testing.assert_allclose(ours.t, reference["stat"].get_fdata().reshape(-1), atol=1e-4)
    np.testing.assert_allclose(ours.z, reference["z_score"].get_fdata().reshape(-1), atol=1e-4)

    running = RunningGroup(120)
    for effect in effects_SV:
        running.add(effect)
    np.testing.assert_allclose(running.estimate().z, ours.z, atol=1e-5)


def test_z_of_extreme_and_missing_t():
    t = np.array([0.0, 2.0, -2.0, 1e6, -1e6, np.nan])
    z = t_to_z(t, 11)
    expected = stats.norm.isf(stats.t.sf(2.0, 11))
    np.testing.assert_allclose(z[:3], [0.0, expected, -expected], atol=1e-6)
    assert np.isfinite(z[3:5]).all()
    assert z[3] == -z[4]
    assert z[3] > 8
    assert np.isnan(z[5])


@given(t=st.floats(-30, 30), dof=st.integers(1, 500))
@settings(max_examples=60, deadline=None)
def test_z_has_the_p_of_t(t, dof):
    np.testing.assert_allclose(
        stats.norm.sf(float(t_to_z(np.array([abs(t)]), dof)[0])), stats.t.sf(abs(t), dof), rtol=1e-3
    )


@pytest.mark.parametrize("dof", [1, 10, 53, 5000])
def test_the_table_equals_the_special_functions(rng, dof):
    t = np.concatenate([rng.standard_t(min(dof, 30), 20_000), [0.0, -0.0, np.nan, 1e5, -1e5, 300.0]])
    whole = t_to_z(t, dof)
    single = np.array([t_to_z(np.array([value]), dof)[0] for value in t[-2000:]])
    np.testing.assert_allclose(whole[-2000:], single, atol=1e-5)
    assert np.isnan(whole[-4])


def test_a_constant_voxel_has_no_statistic():
    windows = np.ones((1, N_FRAMES, 3), np.float32)
    estimate = fit_windows(windows, window_design(0.0, 18.0, N_FRAMES, TR_S))
    np.testing.assert_allclose(estimate.effect, 0, atol=1e-6)
    assert np.isnan(estimate.z).all()


def test_copies_have_no_between_subject_variance():
    copy = np.float32([0.1, -3.0, 7.7])
    estimate = random_effects(np.tile(copy, (9, 1)))
    assert (estimate.variance == 0).all()
    assert np.isnan(estimate.z).all()


def test_one_subject_is_refused():
    with pytest.raises(ValueError, match="two subjects"):
        random_effects(np.ones((1, 4)))


def test_block_plateau_is_in_the_unit_of_the_data():
    """A block far longer than the response reaches height one, so an effect is percent at the plateau."""
    design = window_design(0.0, 120.0, 60, TR_S)
    assert abs(design.matrix_TP[40:, 0].mean() - 1.0) < 0.01


@pytest.mark.parametrize(("onset_s", "duration_s", "n_frames"), [(0.0, 0.0, 12), (0.0, 18.0, 2), (60.0, 18.0, 12)])
def test_windows_that_cannot_carry_the_model_are_refused(onset_s, duration_s, n_frames):
    with pytest.raises(FmrisynthError):
        window_design(onset_s, duration_s, n_frames, TR_S)

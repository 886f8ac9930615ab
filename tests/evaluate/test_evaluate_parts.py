"""Parts of the evaluation against hand-worked or simulated truth: privacy, smoothness, baselines, regions, variance."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from fmrisynth.config.evaluate import EvaluateConfig
from fmrisynth.data.grid import MNI_3MM, make_grid
from fmrisynth.errors import FmrisynthError
from fmrisynth.evaluate.analysis import reliability
from fmrisynth.evaluate.cohorts import choose_cohorts
from fmrisynth.evaluate.courses import course_pairs, mean_agreement
from fmrisynth.evaluate.privacy import Gallery, distance_from_others, nearest_two
from fmrisynth.evaluate.probes import cell_matrix, neighbour_pairs
from fmrisynth.evaluate.properties import (
    BlockRows,
    Properties,
    Sums,
    autocorrelation,
    power_spectrum,
    smoothness_fwhm_mm,
)
from fmrisynth.evaluate.rois import Roi, peak_rois, read_atlas, read_spheres, sphere
from fmrisynth.evaluate.stage import run_stage, without_nan
from fmrisynth.evaluate.utility import classify
from fmrisynth.evaluate.variance import intraclass_correlation, principal_components, variance_shares
from tests.evaluate.conftest import CONDITIONS


def test_nearest_distances_by_hand():
    train = np.array([[0.0, 0], [3, 0], [0, 4]])
    first, second, row = nearest_two(np.array([[0.0, 1]]), train, np.array(["a", "b", "c"]))
    assert (first[0], second[0], row[0]) == (pytest.approx(1.0), pytest.approx(3.0), 0)
    first, second, row = nearest_two(train[:1], train, np.array(["a", "b", "c"]), np.array(["a"]))
    assert (first[0], second[0], row[0]) == (pytest.approx(3.0), pytest.approx(4.0), 1)


def _cohort(rng, n=60, d=200):
    return rng.standard_normal((n, d)), np.repeat([f"s{i:02d}" for i in range(n // 2)], 2)


def test_new_draws_pass_copies_fail_means_warn(rng):
    train, subjects = _cohort(rng)
    assert Gallery(train, subjects).audit(rng.standard_normal((40, 200))).outcome == "pass"
    copies = Gallery(train, subjects).audit(train[:20] + 0.3 * rng.standard_normal((20, 200)))
    assert copies.outcome == "fail"
    assert len(copies.copies) == 20
    mean = Gallery(train, subjects).audit(train.mean(axis=0) + 0.05 * rng.standard_normal((40, 200)))
    assert mean.outcome == "warn"
    assert mean.share_below == 1.0


def test_one_exact_copy_among_many_fails(rng):
    train, subjects = _cohort(rng)
    samples = np.vstack([rng.standard_normal((99, 200)), train[7]])
    found = Gallery(train, subjects).audit(samples)
    assert found.outcome == "fail"
    assert 99 in found.copies


def test_one_mean_that_all_samples_share_is_no_crowd_of_near_copies(rng):
    train, subjects = _cohort(rng)
    mean = np.repeat(train.mean(axis=0)[None], 500, axis=0)
    found = Gallery(train, subjects).audit(mean)
    assert found.outcome == "pass"
    assert found.share_below == 1.0
    one_person = np.repeat(train[:1] + 0.3 * rng.standard_normal((1, 200)), 500, axis=0)
    assert Gallery(train, subjects).audit(one_person).outcome == "fail"


def test_a_blend_is_no_copy_of_the_quietest_person(rng):
    """Means have one nearest block, the quietest person's, far nearer than the next: yet no nearer than the mean of the others is."""
    train, subjects = _cohort(rng)
    train *= np.repeat(np.r_[0.5, np.ones(29)], 2)[:, None]
    gallery = Gallery(train, subjects)
    blend = gallery.audit(train.mean(axis=0) + 0.1 * rng.standard_normal((40, 200)))
    assert (blend.outcome, blend.copies) == ("warn", [])
    assert gallery.audit(train[:1] + 0.1 * rng.standard_normal((40, 200))).outcome == "fail"


def test_distance_from_others_by_hand():
    train = np.array([[0.0], [2.0], [4.0], [10.0]])
    found = distance_from_others(train, np.array(["a", "a", "b", "c"]), np.array(["x", "y", "x", "x"]))
    np.testing.assert_allclose(found, [7.0, 5.0, 1.0, 8.0])  # y has nobody else: all others' mean is 7


def test_two_subjects_cannot_be_audited(rng):
    with pytest.raises(ValueError, match="three subjects"):
        Gallery(rng.standard_normal((6, 5)), np.repeat(["a", "b"], 3))


@pytest.mark.parametrize("sigma", [0.8, 1.2])
def test_smoothness_of_known_noise(rng, sigma):
    mask = np.ones((24, 24, 24), bool)
    noise = np.stack([gaussian_filter(rng.standard_normal(mask.shape), sigma, mode="wrap").ravel() for _ in range(4)])
    found = smoothness_fwhm_mm(noise, neighbour_pairs(mask), (3.0, 3.0, 3.0))
    assert found == pytest.approx(sigma * 2.3548 * 3.0, rel=0.06)


def test_smoothness_of_nothing_is_not_a_number():
    mask = np.ones((4, 4, 4), bool)
    assert np.isnan(smoothness_fwhm_mm(np.zeros((3, 64)), neighbour_pairs(mask), (3, 3, 3)))


def test_autocorrelation_and_spectrum_of_ar1(rng):
    noise = rng.standard_normal((400, 300))
    for t in range(1, 400):
        noise[t] += 0.6 * noise[t - 1]
    centred = noise - noise.mean(axis=0)
    gram = centred @ centred.T
    np.testing.assert_allclose(autocorrelation(gram, 3), [0.6, 0.36, 0.216], atol=0.02)
    spectrum = power_spectrum(gram, 300)
    assert spectrum[:5].mean() > 8 * spectrum[-5:].mean()
    # Parseval: the periodogram's two sides hold the variance.
    assert 2 * spectrum[:-1].sum() + spectrum[-1] == pytest.approx(centred.var(axis=0).mean() * 400, rel=0.01)


def test_cells_average_and_cover(rng):
    mask = np.zeros((8, 8, 8), bool)
    mask[:4] = True
    cells = cell_matrix(mask, 4)
    assert cells.shape == (4, 256)
    np.testing.assert_allclose(np.asarray(cells.sum(axis=1)).ravel(), 1.0, atol=1e-6)
    values = rng.standard_normal(256)
    volume = np.zeros(mask.shape)
    volume[mask] = values
    assert (cells @ values)[0] == pytest.approx(volume[:4, :4, :4].mean(), abs=1e-6)


def test_sphere_volume_and_place():
    grid = make_grid((40, 40, 40), [[2, 0, 0, -40], [0, 2, 0, -40], [0, 0, 2, -40], [0, 0, 0, 1]], "MNI152NLin6Asym")
    voxels = sphere(np.ones(grid.shape, bool), grid, (2, -4, 6), 10.0)
    assert voxels.sum() * 8 == pytest.approx(4 / 3 * np.pi * 1000, rel=0.03)
    where = np.argwhere(voxels.reshape(grid.shape)).mean(axis=0) * 2 - 40
    np.testing.assert_allclose(where, (2, -4, 6), atol=0.01)


def test_packaged_regions_lie_in_the_brain_three_per_task():
    from fmrisynth.data.grid import mni_brain_mask

    rois = read_spheres(mni_brain_mask(MNI_3MM), MNI_3MM)
    assert Counter(roi.task for roi in rois) == dict.fromkeys(
        ("wm", "emotion", "gambling", "language", "relational", "motor", "social"), 3
    )
    full = {6: 33, 8: 79}
    for roi in rois:
        radius = int(roi.origin.split()[2])
        assert roi.voxels_V.sum() > 0.6 * full[radius], roi.label
    assert rois[0].belongs_to("wm_2bk_places")
    assert not rois[0].belongs_to("motor_rh")


def test_bad_and_own_region_tables(tmp_path):
    mask = np.ones(MNI_3MM.shape, bool)
    path = tmp_path / "rois.tsv"
    path.write_text("label\ttask\tx\ty\tz\tradius_mm\nmine\t*\t0\t0\t0\t6\nfar\t*\t900\t0\t0\t6\n")
    rois = read_spheres(mask, MNI_3MM, path)
    assert [roi.label for roi in rois] == ["mine"]
    assert rois[0].belongs_to("anything_else")
    path.write_text("label\ttask\tx\ty\tz\tradius_mm\nmine\t*\tleft\t0\t0\t6\n")
    with pytest.raises(FmrisynthError, match="numbers in mm"):
        read_spheres(mask, MNI_3MM, path)


def test_atlas_is_read_on_its_own_grid(tmp_path):
    from fmrisynth.data.nifti import write_image

    affine = np.diag([6.0, 6, 6, 1])
    affine[:3, 3] = -60
    labels = np.zeros((20, 20, 20), np.float32)
    labels[10:, :, :] = 2  # right of x = -3
    write_image(tmp_path / "atlas.nii.gz", labels, affine)
    (tmp_path / "labels.tsv").write_text("index\tlabel\ttask\n1\tnone\t*\n2\tright\t*\n")
    grid = make_grid((16, 16, 16), [[3, 0, 0, -24], [0, 3, 0, -24], [0, 0, 3, -24], [0, 0, 0, 1]], "MNI152NLin6Asym")
    rois = read_atlas(np.ones(grid.shape, bool), grid, tmp_path / "atlas.nii.gz", tmp_path / "labels.tsv")
    assert [roi.label for roi in rois] == ["right"]
    x = np.argwhere(rois[0].voxels_V.reshape(grid.shape))[:, 0] * 3 - 24
    assert x.min() >= -3


def test_peaks_are_apart_and_of_either_sign():
    grid = make_grid((32, 32, 32), np.diag([3.0, 3, 3, 1]), "scanner")
    z = np.zeros(grid.shape)
    z[5, 5, 5], z[6, 5, 5], z[25, 25, 25], z[5, 25, 5] = 9, 8.5, -7, 3
    rois = peak_rois({"a_b": z.ravel()}, np.ones(grid.shape, bool), grid, "test data")
    assert [
        roi.voxels_V.reshape(grid.shape)[where]
        for roi, where in zip(rois, ((5, 5, 5), (25, 25, 25), (5, 25, 5)), strict=True)
    ] == [True] * 3
    assert all("test data" in roi.origin for roi in rois)


def test_variance_share_by_hand(rng):
    """Two groups at +-1 without noise explain everything; random labels explain nothing on average."""
    features = np.repeat([[1.0, 1], [-1, -1]], 4, axis=0)
    assert variance_shares(features, list("aaaabbbb")) == pytest.approx(1.0)
    assert variance_shares(features, list("aabbaabb")) == pytest.approx(0.0)
    noise = rng.standard_normal((200, 50))
    assert variance_shares(noise, [str(i) for i in rng.integers(0, 40, 200)]) < 0.02
    assert variance_shares(noise, ["a"] * 200) is None
    assert variance_shares(noise, [str(i) for i in range(200)]) is None


def test_components_are_those_of_the_svd(rng):
    features = rng.standard_normal((12, 40)) * np.linspace(3, 0.1, 40)
    scores, shares = principal_components(features)
    _, s, _ = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(shares, s[:2] ** 2 / (s**2).sum(), rtol=1e-6)
    np.testing.assert_allclose(np.square(scores).sum(axis=0), s[:2] ** 2, rtol=1e-6)


def test_classifier_learns_and_ignores_dead_features(rng):
    y = np.repeat(["a", "b", "c"], 30)
    x = rng.standard_normal((90, 300)) + 0.5 * (y[:, None] == np.array(["a", "b", "c"])[rng.integers(0, 3, 300)])
    x[:, 5] = 0.0
    order = rng.permutation(90)
    train, test = order[:60], order[60:]
    assert np.mean(classify("ridge", x[train], y[train], x[test]) == y[test]) > 0.7
    assert np.mean(classify("ridge", x[train], rng.permutation(y[train]), x[test]) == y[test]) < 0.65


def test_json_has_no_nan():
    found = without_nan({"a": [np.float32("nan"), np.int64(3), {"b": float("inf")}], "c": np.bool_(True)})
    assert found == {"a": [None, 3, {"b": None}], "c": True}


def test_training_cohort_in_a_dataset_of_its_own(maker, real_cohort, good_samples, quick, tmp_path):
    test_only = maker.cohort(tmp_path / "test-only", 4, test=6)
    training = tmp_path / "training"
    maker.cohort(training, 5, train=8)
    without = choose_cohorts(test_only, good_samples, quick)
    assert not without.train
    cohorts = choose_cohorts(test_only, good_samples, quick.model_copy(update={"training": training}))
    # subjects 001 to 006 are in both datasets: who is compared with takes no part in training
    assert sorted({block.subject for block in cohorts.train}) == ["007", "008"]
    assert {block.root for block in cohorts.train} == {training}


def test_a_condition_of_one_person_is_no_candidate(maker, good_samples, quick, tmp_path):
    maker.cohort(tmp_path / "real", 4, test=4, n_blocks=1)
    more = replace(maker, truth=maker.truth | {"wm_2bk": maker.truth["motor_rh"]})
    more.write(tmp_path / "real", "090", ("wm_2bk", *CONDITIONS), np.random.default_rng(9), split="test", n_blocks=1)
    cohorts = choose_cohorts(tmp_path / "real", good_samples, quick)
    assert cohorts.candidates == list(CONDITIONS)
    assert any("fewer than 3 subjects" in note and "wm_2bk" in note for note in cohorts.notes)


@pytest.fixture
def courses_of():
    """Draws cohorts from one population: subjects with means of their own, blocks around them, 30 regions."""
    rng = np.random.default_rng(3)
    truth_RT = rng.normal(size=(30, 12))

    def cohort(n_subjects, n_blocks, shift=0.0):
        subject = rng.normal(size=(n_subjects, 1, 30, 12)) * 0.5
        courses = truth_RT + shift + subject + rng.normal(size=(n_subjects, n_blocks, 30, 12))
        rows = SimpleNamespace(
            courses_NRT=courses.reshape(-1, 30, 12), people_N=np.repeat(np.arange(n_subjects), n_blocks).astype(str),
            conditions_N=np.full(n_subjects * n_blocks, "motor_rh"),
        )  # fmt: skip
        return SimpleNamespace(rows=rows)

    return cohort


@pytest.fixture
def regions():
    return [Roi(str(r), "*", np.ones(1, bool), "") for r in range(30)]


def test_mean_courses_of_one_population_agree_within_sampling_error(courses_of, regions):
    def agreement(shift):
        return mean_agreement(course_pairs(courses_of(40, 4), courses_of(100, 1, shift), ["motor_rh"], regions))

    # 360 frames, each inside with probability 0.95
    assert np.mean([agreement(0.0) for _ in range(20)]) == pytest.approx(0.95, abs=0.02)
    assert agreement(0.5) < 0.5


def test_one_subject_has_no_sampling_error(courses_of, regions):
    assert np.isnan(mean_agreement(course_pairs(courses_of(1, 4), courses_of(50, 1), ["motor_rh"], regions)))


RATINGS = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float)
"""Six targets by four judges: Shrout and Fleiss 1979, Table 2, whose ICC(1,1) is .17 (Table 4)."""


def test_the_intraclass_correlation_of_shrout_and_fleiss():
    values, people = RATINGS.reshape(-1, 1), np.repeat(list("abcdef"), 4)
    one = intraclass_correlation(values, people, np.repeat("x", 24))
    assert one == pytest.approx(0.17, abs=0.005)
    assert one == pytest.approx((11.242 - 6.264) / (11.242 + 3 * 6.264), abs=1e-3)  # mean squares of their Table 3
    both = np.concatenate([values, values + 100])  # what conditions have in common is nobody's
    labels = np.repeat(["x", "y"], 24)
    assert intraclass_correlation(both, np.tile(people, 2), labels) == pytest.approx(one)
    assert np.isnan(intraclass_correlation(values, np.arange(24).astype(str), np.repeat("x", 24)))
    assert np.isnan(intraclass_correlation(values, np.repeat("a", 24), np.repeat("x", 24)))


def people_with_blocks(rng, share, n_people=20, n_cells=30):
    """Effects whose variance is a person's to this share; one to four blocks of two conditions a person."""
    rows = []
    for person in range(n_people):
        for condition in ("x", "y"):
            own = np.sqrt(share) * rng.standard_normal(n_cells)
            rows += [
                (f"p{person}", condition, person, own + np.sqrt(1 - share) * rng.standard_normal(n_cells))
                for _ in range(rng.integers(1, 5))
            ]
    people, conditions, groups, effects = map(np.array, zip(*rows, strict=True))
    empty = {entry.name: np.zeros(len(people)) for entry in fields(BlockRows)}
    own = {"people_N": people, "conditions_N": conditions, "group_N": groups, "effect_NC": effects}
    return Properties(BlockRows(**(empty | own)), Sums(), [Sums() for _ in range(n_people)], np.arange(1), 1)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_reliability_is_unbiased_whatever_the_numbers_of_blocks_and_its_interval_covers(rng, share):
    found = [reliability(people_with_blocks(rng, share), ["x", "y"]) for _ in range(60)]
    values = np.array([score.value for score in found])
    assert abs(values.mean() - share) < 3.5 * values.std() / np.sqrt(len(values))
    assert np.mean([score.low < share < score.high for score in found]) > 0.85


def test_the_word_bundled_names_a_tokenizer(tmp_path):
    """What is missing is the dataset, not a folder called bundled."""
    with pytest.raises(FmrisynthError, match="nothing"):
        run_stage(
            tmp_path / "out", tmp_path / "nothing", tmp_path / "nothing", EvaluateConfig(tokenizer=Path("bundled"))
        )
    assert not (tmp_path / "out").exists()

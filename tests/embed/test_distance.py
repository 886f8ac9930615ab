"""Distances between features: closed forms, labels, floors, and a place in `evaluate`."""

import json
from itertools import pairwise

import numpy as np
import pytest

from fmrisynth.cli.main import run
from fmrisynth.embed.distance import Rows, Scale, frechet, kernel, measure
from tests.embed.conftest import write_blocks
from tests.embed.test_command import SMALL

CONDITIONS = ["a", "b", "c"]


def rows_of(rng, n_each=400, shift=0.0, scale=1.0, width=4, between=0.0, n_people=20):
    """Independent normal features; condition k is moved by ``between`` along axis k."""
    features = scale * rng.standard_normal((len(CONDITIONS) * n_each, width)) + shift
    labels = np.repeat(CONDITIONS, n_each)
    for k, condition in enumerate(CONDITIONS):
        features[labels == condition, k] += between
    return Rows(features, labels, np.tile([f"p{i}" for i in range(n_people)], len(labels) // n_people))


def test_the_frechet_distance_has_its_closed_form(rng):
    a, b = rows_of(rng, 4000), rows_of(rng, 4000, shift=0.5, scale=2.0)
    assert frechet(a, a, CONDITIONS) == pytest.approx(0, abs=1e-9)
    assert frechet(a, b, CONDITIONS) == pytest.approx(4 * 0.5**2 + 4 * (2 - 1) ** 2, rel=0.03)
    assert frechet(a, b, CONDITIONS) == pytest.approx(frechet(b, a, CONDITIONS))


def test_the_frechet_distance_agrees_with_a_matrix_square_root(rng):
    from scipy.linalg import sqrtm

    a, b = (
        Rows(r.features_ND @ rng.standard_normal((4, 4)), r.conditions_N, r.people_N)
        for r in (rows_of(rng), rows_of(rng))
    )
    found = frechet(a, b, CONDITIONS)
    means, covariances = [], []
    for r in (a, b):
        own = [r.features_ND[r.conditions_N == c] for c in CONDITIONS]
        means.append([o.mean(0) for o in own])
        covariances.append(np.mean([np.cov(o.T) for o in own], axis=0))  # equal counts: pooled is the mean
    gap = np.square(np.subtract(*means)).sum(1).mean()
    expected = gap + np.trace(covariances[0] + covariances[1] - 2 * sqrtm(covariances[0] @ covariances[1]).real)
    assert found == pytest.approx(expected, rel=1e-6)


def test_the_kernel_distance_is_unbiased_and_sees_labels(rng):
    values = [kernel(rows_of(rng, 40), rows_of(rng, 40), CONDITIONS) for _ in range(40)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))
    a, b = rows_of(rng, between=2.0), rows_of(rng, between=2.0)
    turned = Rows(b.features_ND, np.roll(b.conditions_N, 400), b.people_N)
    for distance in (kernel, frechet):
        assert distance(a, turned, CONDITIONS) > 20 * abs(distance(a, b, CONDITIONS))


def test_faults_are_ranked_with_intervals(rng):
    real, scale = rows_of(rng, between=2.0), Scale(rows_of(rng, between=2.0).features_ND)
    own = rows_of(rng, between=2.0)
    others = [
        own,
        rows_of(rng, between=1.6, scale=0.9),
        Rows(own.features_ND, np.roll(own.conditions_N, 400), own.people_N),
        rows_of(rng, shift=6.0, scale=3.0),
    ]
    found = [measure(real, other, CONDITIONS, scale, resamples=50) for other in others]
    for better, worse in pairwise(found):
        assert better.frechet_high < worse.frechet_low
        assert better.kernel < worse.kernel
    assert found[0].kernel_low < 0 < found[0].kernel_high
    assert found[0].n == 1200
    assert found[0].n_people == 40


def test_evaluate_prints_the_distance_with_its_floor(planted, tmp_path):
    assert run(["embed", str(planted), str(tmp_path / "embedded"), "--steps", "2", *SMALL]) == 0
    silent, out = write_blocks(tmp_path / "silent", 4, effect=0.0, seed=7), tmp_path / "report"
    quick = ["baselines=false", "split_half_repeats=2", "utility_grid=false", "glass_brain=false"]
    asked = ["evaluate", str(out), "--real", str(planted), "--synthetic", str(silent)]
    for setting in (f"encoder={tmp_path / 'embedded'}", *quick):
        asked += ["--set", setting]
    assert run(asked) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    line = next(line for line in metrics["summary"] if line["key"] == "embedding")
    assert line["answer"] == "info"
    assert not line["counted"]
    assert "as many real blocks of other people" in line["detail"]
    assert "Distances from the compared real people" in (out / "report.html").read_text()
    assert metrics["embedding"]["privacy"]["n_training"] == 16
    assert (out / "parts" / "features-synthetic.npz").is_file()
    found = metrics["embedding"]["distances"]
    assert found["as many real blocks of other people"]["n"] > 0
    assert found["as many real blocks of other people"]["kernel"] < found["samples"]["kernel"]

"""Slices of anatomies in the features of a network: what it is shown, and the order of the distances."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from fmrisynth.cli.main import run
from fmrisynth.data.blocks import read_blocks
from fmrisynth.embed.distance import Rows, measure
from fmrisynth.errors import FmrisynthError
from fmrisynth.evaluate import slices
from fmrisynth.evaluate.reconstruct import reconstructed_anatomy
from fmrisynth.evaluate.slices import FeatureNetwork, compare_slices, feature_network, middle_of, slices_of
from fmrisynth.models.tokenizers import load_tokenizer
from tests.evaluate.test_anatomies import CENTRE, GRID, write_people

BRAIN = np.linalg.norm(CENTRE, axis=0) < 7.2


@pytest.fixture(autouse=True)
def coarse_network(monkeypatch):
    """Sixteen means of a picture, and of its contrast: a network whose features are known."""
    pool = torch.nn.AdaptiveAvgPool2d(4)

    def features(x):
        return torch.cat([pool(x[:, :1]), pool(x[:, :1].diff().abs())], dim=1).flatten(1)

    network = FeatureNetwork("means", 16, features)
    monkeypatch.setattr(slices, "feature_network", lambda inception: network)


def read(block):
    data = block.load()
    return np.where(data.mask_XYZ, data.reference_XYZ / data.reference_XYZ[data.mask_XYZ].mean(), 0).astype(np.float32)


def compare(real, drawn, **settings):
    settings = {"tokenizer_folder": None, "inception": None, "seed": 0} | settings
    return compare_slices(read_blocks(real), read_blocks(drawn), read, BRAIN, GRID, **settings)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return write_people(tmp_path_factory.mktemp("real"), 90, 1, split="train")


def test_five_neighbouring_slices_of_each_view():
    volume = np.arange(16 * 12 * 10, dtype=float).reshape(16, 12, 10) / 500
    found = slices_of(volume, (8, 6, 5))
    assert [one.shape for one in found] == [(12, 10)] * 5 + [(16, 10)] * 5 + [(16, 12)] * 5
    np.testing.assert_array_equal(found[0], np.clip(volume[6] / 2, 0, 1))  # white is twice the brain's mean
    np.testing.assert_array_equal(found[9], np.clip(volume[:, 8] / 2, 0, 1))
    np.testing.assert_array_equal(found[12], np.clip(volume[:, :, 5] / 2, 0, 1))
    corner = np.zeros((16, 12, 10), bool)
    corner[0, 3:8, 9] = True
    assert middle_of(corner) == (2, 5, 7)  # all slices lie in the volume


def test_a_network_is_shown_squares_in_grey():
    network = FeatureNetwork("as it is", 8, lambda x: x.flatten(1))
    shown = network([np.full((8, 4), 0.75), np.zeros((4, 4))]).reshape(2, 3, 8, 8)
    np.testing.assert_allclose(shown[0, :, :, 2:6], 0.5)  # 0 to 1 becomes -1 to 1
    np.testing.assert_allclose(shown[0, :, :, [0, 1, 6, 7]], -1)
    np.testing.assert_allclose(shown[1], -1)


def test_people_of_the_same_kind_are_as_near_as_other_real_people_and_others_farther(real, tmp_path):
    good = compare(real, write_people(tmp_path / "good", 40, 2))
    coarse = compare(real, write_people(tmp_path / "coarse", 40, 3, spread=10.0))
    assert good.n_volumes == 27  # as many as are outside the training split
    assert good.distances.keys() == {slices.DRAWN_REAL, slices.OTHERS_REAL}
    assert {d.n for d in good.distances.values()} == {27 * 15}
    own, others = good.distances[slices.DRAWN_REAL], good.distances[slices.OTHERS_REAL]
    assert own.frechet_low < others.frechet_high
    assert others.frechet_low < own.frechet_high
    assert coarse.distances[slices.DRAWN_REAL].frechet_low > own.frechet_high
    assert coarse.distances[slices.DRAWN_REAL].kernel_low > own.kernel_high
    assert "--set tokenizer=" in " ".join(good.notes)


def test_without_people_outside_the_training_split_it_says_so(tmp_path):
    found = compare(write_people(tmp_path / "real", 20, 1), write_people(tmp_path / "drawn", 20, 2))
    assert not any("outside the training split" in note for note in found.notes)  # no splits: nobody was trained on
    (tmp_path / "few").mkdir()
    few = write_people(tmp_path / "few", 40, 1, split="train")  # 12 of them are outside
    found = compare(few, write_people(tmp_path / "other", 30, 2))
    assert found.n_volumes == 30
    assert any("may have seen" in note for note in found.notes)
    assert slices.OTHERS_REAL not in found.distances


def test_reconstructions_are_of_the_same_people_and_nearer_than_strangers(real, tmp_path):
    assert run(["tokenize", str(real), str(tmp_path / "latents"), "--preset", "anatomy"]) == 0
    drawn = write_people(tmp_path / "s", 40, 3, obey=False)
    ask = ["evaluate", str(tmp_path / "out"), "--unit", "anatomy", "--real", str(real), "--synthetic", str(drawn)]
    assert run([*ask, "--set", f"tokenizer={tmp_path / 'latents' / 'tokenizer'}"]) == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["slices"]
    assert list(found["distances"]) == [slices.DRAWN_REAL, slices.DRAWN_BACK, slices.BACK_REAL, slices.OTHERS_REAL]
    assert {(d["n"], d["people"]) for d in found["distances"].values()} == {(405, 54), (405, 27)}
    distance = {name: d["frechet"] for name, d in found["distances"].items()}
    assert distance[slices.BACK_REAL] < 0.5 * distance[slices.DRAWN_REAL]
    volume, tokenizer = read(read_blocks(real)[0]), load_tokenizer(tmp_path / "latents" / "tokenizer")
    clean, noisy, again = (reconstructed_anatomy(volume, tokenizer, seed) for seed in (None, 3, 3))
    np.testing.assert_array_equal(noisy, again)
    assert np.abs(clean - volume)[BRAIN].mean() < np.abs(noisy - volume)[BRAIN].mean() < 0.2
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(name in page for name in distance)


def test_a_tokenizer_of_changes_is_refused(real, tmp_path, monkeypatch):
    from types import SimpleNamespace

    changes = SimpleNamespace(info=SimpleNamespace(normalisation="dynamics"))
    monkeypatch.setattr(slices, "tokenizer_of", lambda folder, grid: changes)
    with pytest.raises(FmrisynthError, match="expected a tokenizer of anatomies"):
        compare(real, real, tokenizer_folder=tmp_path)


def test_pairs_are_drawn_together(rng):
    a = Rows(rng.standard_normal((200, 3)), np.full(200, ""), np.repeat([f"p{i}" for i in range(20)], 10))
    b = Rows(a.features_ND + 0.01 * rng.standard_normal((200, 3)), a.conditions_N, a.people_N)
    pairs, apart = (measure(a, b, [""], lambda same: same, paired=paired) for paired in (True, False))
    assert pairs.frechet == apart.frechet
    assert pairs.frechet_high - pairs.frechet < 0.1 * (apart.frechet_high - apart.frechet)
    assert (pairs.n_people, apart.n_people) == (20, 40)


def test_without_the_extra_there_are_no_rows_and_a_sentence(real, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(slices, "feature_network", feature_network)
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    ask = ["evaluate", str(tmp_path / "out"), "--unit", "anatomy", "--real", str(real), "--synthetic", str(real)]
    assert run(ask) == 0
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["slices"] is None
    assert "pip install efficientnet-lite-pytorch" in (tmp_path / "out" / "report.html").read_text()
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(FmrisynthError, match="Inception-V3 needs torchvision"):
        feature_network(tmp_path / "weights.pth")


def test_the_network_of_the_extra_has_its_weights():
    pytest.importorskip("efficientnet_lite_pytorch")
    network = feature_network(None)
    ramp = np.linspace(0, 1, 64)[None].repeat(64, axis=0)
    features = network([ramp, ramp, ramp.T])
    assert features.shape == (3, 1280)
    np.testing.assert_array_equal(features[0], features[1])
    assert np.abs(features[0] - features[2]).max() > 0.1
    assert (features >= 0).all()  # after the last rectifier
    assert features.max() > 1

"""The paper's parameter counts (Tables 1, 3 and 4) on the meta device."""

import pytest
import torch

from fmrisynth.config.load import load_config
from fmrisynth.config.train import HybridConfig, TrainConfig
from fmrisynth.models.build import build_denoiser, count_parameters

F = 36  # 3 latent channels x 12 frames
HYBRID = {"38m": 38.1, "85m": 85.4, "151m": 151.5, "236m": 236.5, "340m": 340.3, "463m": 462.9}
UNET = {
    "41m": (41.3, 41_309_508),
    "84m": (83.7, 83_737_604),
    "141m": (141.0, 141_015_748),
    "237m": (237.4, 237_441_284),
    "476m": (475.8, 475_846_180),
}


def count(preset):
    config = load_config(TrainConfig, "train", preset=preset)
    with torch.device("meta"):
        return count_parameters(build_denoiser(config.model, F, [7])), config.model


@pytest.mark.parametrize("size", HYBRID)
def test_hybrid_sizes_of_table_3(size):
    n, model = count(f"hybrid-{size}")
    w = model.base_ch
    assert round(n / 1e6, 1) == HYBRID[size]
    assert n == 2300 * w**2 + 2951 * w + 36
    assert model.heads == w // 16


@pytest.mark.parametrize("size", UNET)
def test_unet_sizes_of_table_4(size):
    n, _ = count(f"unet-{size}")
    assert n == UNET[size][1]
    assert round(n / 1e6, 1) == UNET[size][0]


def test_ablations_of_table_1():
    n, model = count("adaln-only")
    assert not model.cross_attention
    assert round(n / 1e6, 1) == 110.5
    assert count("all-cnn")[0] / 1e6 == pytest.approx(235.0, abs=0.5)
    assert count("all-transformer")[0] / 1e6 == pytest.approx(238.0, abs=0.5)


def test_presets_that_run_on_a_cpu_are_small():
    assert count("smoke")[0] < 300_000
    assert 0.8e6 < count("bundled")[0] < 2.6e6


def test_further_attributes_cost_one_table_each():
    with torch.device("meta"):
        one = count_parameters(build_denoiser(HybridConfig(base_ch=32), F, [7]))
        two = count_parameters(build_denoiser(HybridConfig(base_ch=32), F, [7, 2]))
    assert two - one == 3 * 4 * 32

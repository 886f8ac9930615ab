"""The plain diffusion transformer, and numbers among what a denoiser is told."""

from __future__ import annotations

import pytest
import torch
import yaml

from fmrisynth.config.load import load_config
from fmrisynth.config.train import DiTConfig, HybridConfig, TrainConfig
from fmrisynth.models.build import build_denoiser, count_parameters
from fmrisynth.models.conditions import NumberEmbedding

SMALL = DiTConfig(width=24, depth=2, heads=2)
HYBRID = HybridConfig(
    base_ch=8, width_multipliers=(1, 2), stages=("conv", "transformer"), encoder_blocks=(1,), bottleneck_blocks=1,
    decoder_blocks=(1,), num_heads=2,
)  # fmt: skip
NAN = float("nan")


def noisy_weights(network):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return network.eval()


def test_parameters_by_hand():
    """Time 2 layers, conditions, embedding, blocks of 6 modulations, attention and MLP, the last modulation and layer."""
    w, channels, ratio, depth = 1152, 32, 4, 12
    config = load_config(TrainConfig, "train", preset="dit-g3n").model
    with torch.device("meta"):
        network = build_denoiser(config, channels, [4, 8, 2, 19, 0, 2])
    linear = lambda i, o: i * o + o  # noqa: E731
    tables = sum((n + 1) * w for n in (4, 8, 2, 19, 2)) + 2 * linear(w, w) + w  # the number: two layers and a null
    block = linear(w, 6 * w) + 4 * linear(w, w) + 4 * w + linear(w, ratio * w) + linear(ratio * w, w)
    total = 2 * linear(w, w) + tables + linear(channels, w) + depth * block + linear(w, 2 * w) + linear(w, channels)
    assert count_parameters(network) == total


def test_it_begins_as_zero_and_answers_in_the_brain_alone():
    brain_XYZ = torch.rand(4, 3, 5, generator=torch.Generator().manual_seed(0)) > 0.4
    network = build_denoiser(SMALL, 6, [3, 0], brain_XYZ)
    stack = torch.randn(2, 6, 4, 3, 5)
    labels = torch.tensor([[0.0, 1.2], [3.0, NAN]])
    assert not network(stack, torch.tensor([10.0, 900.0]), labels).any()
    answer = noisy_weights(network)(stack, torch.tensor([10.0, 900.0]), labels)
    assert not answer[:, :, ~brain_XYZ].any()
    assert answer[:, :, brain_XYZ].std() > 0.01


def test_cells_without_brain_are_not_seen():
    brain_XYZ = torch.ones(4, 3, 5, dtype=torch.bool)
    brain_XYZ[0] = False
    network = noisy_weights(build_denoiser(SMALL, 6, [3], brain_XYZ))
    stack, labels, time = torch.randn(1, 6, 4, 3, 5), torch.tensor([[1]]), torch.tensor([300.0])
    other = stack.clone()
    other[:, :, 0] += 5
    torch.testing.assert_close(network(stack, time, labels), network(other, time, labels))


@pytest.mark.parametrize("config", [SMALL, HYBRID])
def test_a_number_is_used_and_can_be_left_open(config):
    network = noisy_weights(build_denoiser(config, 6, [3, 0]))
    stack, time = torch.randn(1, 6, 4, 4, 4).expand(4, -1, -1, -1, -1), torch.full((4,), 800.0)
    answer = network(stack, time, torch.tensor([[1, 0.5], [1, -0.5], [1, NAN], [1, NAN]]))
    assert answer.isfinite().all()
    torch.testing.assert_close(answer[2], answer[3])
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert (answer[i] - answer[j]).abs().max() > 1e-4


def test_gradients_of_numbers_stay_finite_where_some_are_unknown():
    embed = NumberEmbedding(8, 16)
    embed(torch.tensor([0.3, NAN, -2.0])).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in embed.parameters())


def test_presets_are_whole():
    for name in ("dit-g3n", "dit-small"):
        config = load_config(TrainConfig, "train", preset=name)
        assert isinstance(config.model, DiTConfig)
    with pytest.raises(ValueError, match="odd or does not divide"):
        DiTConfig(**yaml.safe_load("{width: 100, heads: 3}"))

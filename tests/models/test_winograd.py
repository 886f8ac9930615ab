"""The CPU's way to convolve against PyTorch's."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fmrisynth.models import winograd
from fmrisynth.models.blocks import Conv1x1, Conv3x3


@given(
    n=st.integers(1, 3), channels=st.integers(1, 5), out=st.integers(1, 5), x=st.integers(1, 6),
    y=st.sampled_from([4, 8, 12]), z=st.sampled_from([4, 8, 16]), seed=st.integers(0, 99), last=st.booleans(),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_values_and_gradients_equal_the_direct_convolution(n, channels, out, x, y, z, seed, last):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    form = torch.channels_last_3d if last else torch.contiguous_format
    stack = draw(n, channels, x, y, z).contiguous(memory_format=form).requires_grad_()
    weight, bias = draw(out, channels, 3, 3, 3).requires_grad_(), draw(out).requires_grad_()
    found, expected = winograd.conv3d(stack, weight, bias), F.conv3d(stack, weight, bias, padding=1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    gradient = draw(*expected.shape)
    for ours, theirs in zip(
        torch.autograd.grad(found, (stack, weight, bias), gradient),
        torch.autograd.grad(expected, (stack, weight, bias), gradient),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_rounding_in_float32_is_of_the_order_of_the_direct_sum():
    torch.manual_seed(0)
    layer = Conv3x3(128, 128).requires_grad_(False)
    x = torch.randn(2, 128, 2, 8, 8)
    exact = F.conv3d(x.double(), layer.weight.double(), layer.bias.double(), padding=1)
    direct = (nn.Conv3d.forward(layer, x) - exact).abs().max()
    assert winograd.pays(x, layer.weight)
    error = (layer(x) - exact).abs().max()
    assert 0 < float(error) < 30 * float(direct)
    assert float(error) < 1e-5 * float(exact.abs().max())


@pytest.mark.parametrize(
    ("width", "side", "dtype"), [(64, 8, torch.float32), (128, 6, torch.float32), (128, 8, torch.float64)]
)
def test_elsewhere_the_library_convolves(width, side, dtype):
    layer = Conv3x3(width, width).to(dtype)
    x = torch.randn(2, width, 4, 8, side, dtype=dtype)
    assert not winograd.pays(x, layer.weight)
    assert torch.equal(layer(x), F.conv3d(x, layer.weight, layer.bias, padding=1))


def test_a_frozen_input_or_weight():
    x, weight, bias = torch.randn(1, 2, 3, 4, 4), torch.randn(3, 2, 3, 3, 3), torch.zeros(3)
    for frozen in (x, weight):
        inputs = [t.clone().requires_grad_(t is not frozen) for t in (x, weight, bias)]
        winograd.conv3d(*inputs).square().sum().backward()
        assert [t.grad is None for t in inputs] == [t is frozen for t in (x, weight, bias)]
    with torch.inference_mode():
        assert winograd.conv3d(x, weight, bias).shape == (1, 3, 3, 4, 4)


def test_the_transforms_are_numbers_wherever_the_module_is_first_imported():
    with torch.device("meta"):
        again = importlib.reload(winograd)
    assert again.INPUT_36x36.device.type == again.WEIGHT_36x9.device.type == again.OUTPUT_16x36.device.type == "cpu"


def test_pointwise_convolution_is_a_matrix_product():
    layer = Conv1x1(6, 4)
    for form in (torch.contiguous_format, torch.channels_last_3d):
        x = torch.randn(2, 6, 4, 4, 4).contiguous(memory_format=form)
        torch.testing.assert_close(layer(x), F.conv3d(x, layer.weight, layer.bias), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_one_small_volume_is_convolved_as_any_other(training):
    torch.manual_seed(0)
    layer = Conv3x3(6, 16).requires_grad_(training)
    x = torch.randn(1, 6, 4, 8, 8, requires_grad=training)
    expected = F.conv3d(x.double(), layer.weight.double(), layer.bias.double(), padding=1)
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-6)
    if training:
        layer(x).square().sum().backward()
        found = [x.grad, layer.weight.grad, layer.bias.grad]
        wanted = torch.autograd.grad(expected.square().sum(), (x, layer.weight, layer.bias))
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs.float(), rtol=1e-4, atol=1e-4)

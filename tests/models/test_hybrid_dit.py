"""The hybrid denoiser: shapes, identity at the start, what each input reaches."""

import pytest
import torch

from fmrisynth.config.train import EventTelling, HybridConfig, UNetConfig
from fmrisynth.errors import FmrisynthError, UsageError
from fmrisynth.models.blocks import FilmConvBlock, LinearSkip, TransformerBlock
from fmrisynth.models.build import build_denoiser, check_grid
from fmrisynth.models.whitening import Whitening

TINY = HybridConfig(base_ch=8, num_heads=2, encoder_blocks=(1, 1), bottleneck_blocks=1, decoder_blocks=(1, 1))


def randomised(config, channels=6, n_labels=(3,), **events):
    torch.manual_seed(0)
    network = build_denoiser(config, channels, n_labels, **events)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


def test_every_block_starts_as_the_identity():
    torch.manual_seed(0)
    x, cond = torch.randn(2, 8, 4, 4, 4), torch.randn(2, 16)
    assert torch.equal(FilmConvBlock(8, 16)(x, cond), x)
    tokens, context = torch.randn(2, 10, 8), torch.randn(2, 3, 16)
    assert torch.equal(TransformerBlock(8, 16, 2)(tokens, cond, context), tokens)
    plain = TransformerBlock(8, 16, 2, cross_attention=False)
    assert torch.equal(plain(tokens, cond, None), tokens)
    fixed = TransformerBlock(8, 16, 2, adaln=False)
    assert torch.equal(fixed(tokens, cond, context), tokens)
    network = build_denoiser(TINY, 6, [3])
    answer = network(torch.randn(2, 6, 4, 4, 4), torch.zeros(2), torch.zeros(2, 1, dtype=torch.long))
    assert not answer.any()


@pytest.mark.parametrize("grid", [(4, 4, 4), (12, 16, 16), (8, 4, 12)])
@pytest.mark.parametrize("stages", [("conv", "transformer", "transformer"), ("conv",) * 3, ("transformer",) * 3])
def test_any_grid_that_divides_by_four(grid, stages):
    network = randomised(TINY.model_copy(update={"stages": stages}))
    with torch.no_grad():
        answer = network(torch.randn(2, 6, *grid), torch.tensor([3.0, 900.0]), torch.tensor([[0], [3]]))
    assert answer.shape == (2, 6, *grid)
    assert answer.isfinite().all()


@pytest.mark.parametrize(
    "change",
    [{}, {"cross_attention": False}, {"adaln": False}, {"cross_attention": False, "adaln": False}, {"skip": True}],
)
def test_every_input_reaches_the_output(change):
    network = randomised(TINY.model_copy(update=change), n_labels=(3, 2))
    x = torch.randn(1, 6, 4, 4, 4)

    def run(time=100.0, condition=0, phase=0):
        with torch.no_grad():
            return network(x, torch.tensor([time]), torch.tensor([[condition, phase]]))

    base = run()
    assert torch.equal(run(), base)
    for other in (run(time=500.0), run(condition=1), run(condition=3), run(phase=1), run(phase=2)):
        assert (other - base).abs().max() > 1e-4


def test_gradients_reach_every_parameter_once_the_gates_open():
    network = randomised(TINY, n_labels=(3, 2)).train()
    labels = torch.tensor([[0, 1], [3, 2], [1, 0], [2, 1]])
    network(torch.randn(4, 6, 4, 4, 4), torch.arange(4.0), labels).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_checkpointed_activations_give_the_same_gradients():
    plain, saving = (
        randomised(TINY).train(),
        randomised(TINY.model_copy(update={"checkpoint_activations": True})).train(),
    )
    x, time, labels = torch.randn(2, 6, 4, 4, 4), torch.tensor([1.0, 2.0]), torch.tensor([[0], [1]])
    for network in (plain, saving):
        network(x, time, labels).square().mean().backward()
    for p, q in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_unet_baseline_answers_through_the_same_interface():
    config = UNetConfig(
        num_channels=(8, 8), num_head_channels=(0, 8), attention_levels=(False, True), norm_num_groups=4
    )
    network = build_denoiser(config, 6, [3])
    answer = network(torch.randn(2, 6, 4, 4, 4), torch.tensor([3.0, 900.0]), torch.tensor([[0], [3]]))
    assert answer.shape == (2, 6, 4, 4, 4)
    with pytest.raises(UsageError, match="task condition only"):
        build_denoiser(config, 6, [3, 2])


def test_a_grid_that_cannot_be_halved_is_refused():
    check_grid(TINY, (12, 16, 16))
    with pytest.raises(FmrisynthError, match=r"12x18x16.*divide by 4"):
        check_grid(TINY, (12, 18, 16))


def test_without_adaln_transformer_blocks_do_not_see_the_conditioning_vector():
    block = TransformerBlock(8, 16, 2, adaln=False)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    tokens, context = torch.randn(2, 10, 8), torch.randn(2, 3, 16)
    answer = block(tokens, torch.randn(2, 16), context)
    assert torch.equal(answer, block(tokens, torch.randn(2, 16), context))
    assert not torch.equal(answer, block(tokens, torch.randn(2, 16), context + 1))
    with pytest.raises(ValueError, match="one of the stages has to be conv"):
        HybridConfig(stages=("transformer",) * 3, adaln=False)


def test_the_skip_passes_every_channel_on_its_own_at_first():
    network = build_denoiser(TINY.model_copy(update={"skip": True}), 6, [3])
    with torch.no_grad():
        network.skip.gain.bias[:6] = torch.arange(6.0)
        stack = torch.randn(2, 6, 4, 4, 4)
        answer = network(stack, torch.zeros(2), torch.zeros(2, 1, dtype=torch.long))
    torch.testing.assert_close(answer, stack * torch.arange(6.0)[:, None, None, None])


def test_the_brains_mean_has_gains_of_its_own():
    network = build_denoiser(TINY.model_copy(update={"skip": True}), 6, [3])
    with torch.no_grad():
        network.mean_skip.gain.bias[:6] = 2.0
        stack = torch.randn(2, 6, 4, 4, 4)
        answer = network(stack, torch.zeros(2), torch.zeros(2, 1, dtype=torch.long))
    torch.testing.assert_close(answer, 2 * stack.mean(dim=(2, 3, 4), keepdim=True).expand_as(stack))


def test_the_answer_to_an_ever_stronger_past_is_bounded():
    """A run is fed its own end: what answers in proportion can grow from window to window without end."""
    telling = EventTelling(window_frames=2, history_frames=1, past_frames=1, past_channels=4, grid=(4, 4, 4))
    config = TINY.model_copy(update={"skip": True, "cond_width": 16})
    network = randomised(config, events=telling, whitening=Whitening(torch.ones(3, 4, 4, 4), torch.eye(6)))
    stack, past, on = torch.randn(1, 6, 4, 4, 4), torch.randn(1, 4, 4, 4, 4), torch.rand(1, 3, 3)
    past[:, -1] = 1
    with torch.no_grad():
        labels = torch.zeros(1, 1, dtype=torch.long)
        answers = []
        for times in (0.0, 1e2, 1e4):
            told = torch.cat([times * past[:, :-1], past[:, -1:]], dim=1)
            answers.append(network(stack, torch.full((1,), 500.0), labels, on, told))
    none, strong, stronger = (float(answer.norm()) for answer in answers)
    assert not torch.allclose(answers[0], answers[1], rtol=0.05)
    assert stronger < 1.1 * strong < 10 * none


def test_the_skip_can_be_the_best_answer_for_gaussian_data():
    draws = torch.Generator().manual_seed(0)
    basis_FF = torch.linalg.qr(torch.randn(6, 6, generator=draws)).Q
    variance_F, alpha, sigma = torch.linspace(0.1, 2.0, 6), 0.6, 0.8
    gain_F = alpha * variance_F / (alpha**2 * variance_F + sigma**2)
    skip = LinearSkip(6, 4)
    with torch.no_grad():
        skip.inward.weight[:6, :, 0, 0, 0] = basis_FF.T
        skip.outward.weight[:, :6, 0, 0, 0] = basis_FF
        skip.gain.bias[:6] = gain_F
        x = torch.randn(2, 6, 2, 2, 2, generator=draws)
        answer = skip(x, torch.randn(2, 4, generator=draws))
    covariance_FF = basis_FF @ torch.diag(variance_F) @ basis_FF.T
    wiener_FF = alpha * covariance_FF @ torch.linalg.inv(alpha**2 * covariance_FF + sigma**2 * torch.eye(6))
    torch.testing.assert_close(answer, torch.einsum("fg,bgxyz->bfxyz", wiener_FF, x))

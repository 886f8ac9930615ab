"""Drawing samples and the weight average."""

from types import SimpleNamespace

import pytest
import torch

from fmrisynth.config.train import HybridConfig, ObjectiveConfig
from fmrisynth.data.attributes import Number
from fmrisynth.diffusion.generate import encode_labels, generate_latents
from fmrisynth.errors import UsageError
from fmrisynth.models.build import build_denoiser
from fmrisynth.train.ema import Ema

LABELS = {"condition": ["fear", "loss", "story"], "phase_encoding": ["LR", "RL"]}
SHAPE = (2, 3, 4, 4, 8)


def make_model(prediction="epsilon", network=None, **changes):
    if network is None:
        torch.manual_seed(0)
        config = HybridConfig(
            base_ch=16, num_heads=2, encoder_blocks=(1, 1), decoder_blocks=(1, 1), bottleneck_blocks=1
        )
        network = build_denoiser(config, 6, [3, 2]).eval()
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    values = {
        "network": network,
        "objective": ObjectiveConfig(prediction=prediction).model_dump(),
        "labels": LABELS,
        "latent_shape": SHAPE,
        "latent_mean_C": torch.tensor([10.0, -3.0]),
        "latent_std_C": torch.tensor([2.0, 0.5]),
        "whitening": None,
        "always": (),
    }
    return SimpleNamespace(**values | changes)


class Quiet(torch.nn.Module):
    """Predicts no velocity: the flow leaves the noise as it is."""

    brain_XYZ = None

    def forward(self, x, time_B, labels_BA):
        return torch.zeros_like(x)


@pytest.mark.parametrize(
    ("prediction", "sampler"), [("epsilon", "ddpm"), ("v", "ab2"), ("flow", "euler"), ("epsilon", "ddim")]
)
@pytest.mark.parametrize("guidance", [1.0, {"condition": 3.0}])
def test_a_sample_depends_on_its_seed_alone(prediction, sampler, guidance):
    model = make_model(prediction)
    settings = {"sampler": sampler, "n_steps": 4, "guidance": guidance, "eta": 0.5}
    together = generate_latents(model, "loss", {"phase_encoding": "RL"}, seeds=[3, 4, 5, 6, 7], **settings)
    assert together.shape == (5, *SHAPE)
    for position, seed in ((0, 3), (2, 5), (4, 7)):
        alone = generate_latents(model, "loss", {"phase_encoding": "RL"}, seeds=[seed], **settings)
        assert torch.equal(alone[0], together[position])
    assert not torch.equal(together[0], together[1])
    other = generate_latents(model, "fear", {"phase_encoding": "RL"}, seeds=[3], **settings)
    assert not torch.equal(other[0], together[0])


def test_guidance_one_is_conditional_and_zero_unconditional():
    model = make_model("flow")
    plain = generate_latents(model, "loss", seeds=[1], sampler="euler", n_steps=3)
    one = generate_latents(model, "loss", seeds=[1], sampler="euler", n_steps=3, guidance={"condition": 1.0})
    none = [generate_latents(model, c, seeds=[1], sampler="euler", n_steps=3, guidance=0.0) for c in ("loss", "story")]
    assert torch.equal(plain, one)
    assert torch.equal(*none)
    assert not torch.equal(plain, none[0])


def test_latents_come_in_the_units_of_the_tokenizer():
    latents = generate_latents(make_model("flow", Quiet()), "loss", seeds=range(40), sampler="euler", n_steps=2)
    for channel, (mean, std) in enumerate([(10, 2), (-3, 0.5)]):
        assert float(latents[:, channel].mean()) == pytest.approx(mean, abs=0.05)
        assert float(latents[:, channel].std()) == pytest.approx(std, rel=0.03)


@pytest.mark.parametrize(("prediction", "sampler"), [("epsilon", "ddpm"), ("v", "ab2"), ("flow", "euler")])
def test_cells_without_brain_hold_the_mean_and_change_nothing(prediction, sampler):
    """Whatever noise lies in cells without brain, the others come out the same."""
    brain_XYZ = torch.ones(4, 4, 8, dtype=torch.bool)
    brain_XYZ[3], brain_XYZ[:, :, 6:] = False, False
    network = make_model().network
    masked = build_denoiser(network.config, 6, [3, 2], brain_XYZ).eval()
    masked.load_state_dict(network.state_dict() | {"brain_XYZ": brain_XYZ})
    latents = generate_latents(make_model(prediction, masked), "loss", seeds=[1, 2], sampler=sampler, n_steps=3)
    for channel, mean in enumerate([10.0, -3.0]):
        assert (latents[:, channel][..., ~brain_XYZ] == mean).all()
        assert float(latents[:, channel][..., brain_XYZ].std()) > 0.01


def test_unknown_labels_are_answered_with_the_nearest():
    assert encode_labels(LABELS, "story", {"phase_encoding": "LR"}).tolist() == [2, 0]
    assert encode_labels(LABELS, "story").tolist() == [2, 2]
    with pytest.raises(UsageError, match="did you mean loss"):
        encode_labels(LABELS, "los")
    with pytest.raises(UsageError, match="no attribute 'sex'"):
        encode_labels(LABELS, "loss", {"sex": "F"})
    with pytest.raises(UsageError, match="attributes are condition, phase_encoding"):
        generate_latents(make_model(), "loss", seeds=[1], guidance={"sex": 2.0})


def test_average_of_weights():
    network = torch.nn.Linear(2, 2)
    ema = Ema(network, 0.9, warmup=False)
    expected = network.weight.detach().clone()
    for step in range(5):
        with torch.no_grad():
            network.weight.fill_(float(step))
        ema.update(network)
        expected = 0.9 * expected + 0.1 * step
    torch.testing.assert_close(ema.shadow["weight"], expected)
    with ema.swap(network):
        torch.testing.assert_close(network.weight.detach(), expected)
    assert float(network.weight.detach().max()) == 4.0
    torch.testing.assert_close(ema.shadow["weight"], expected)
    warm = Ema(network, 0.9999)
    assert warm.current_decay() == pytest.approx(0.1)
    warm.n_updates = 1000
    assert warm.current_decay() == pytest.approx(1001 / 1010)


def test_what_training_never_withheld_is_told_in_every_branch():
    """With guidance 0 the other attributes are withheld, this one is not; and it has to be named."""
    seen = []

    class Network(torch.nn.Module):
        brain_XYZ = None

        def forward(self, noisy, time_B, labels_BA):
            seen.append(labels_BA.clone())
            return torch.zeros_like(noisy)

    labels = {"condition": ["a", "b"], "sex": ["F", "M"], "age": Number(mean=40.0, std=10.0)}
    model = make_model("flow", Network(), labels=labels, always=("condition", "age"))
    generate_latents(model, "b", {"age": "60", "sex": "M"}, seeds=[1], n_steps=1, guidance=0.0)
    torch.testing.assert_close(seen[0], torch.tensor([[1, 2, 2.0]]))  # sex is withheld (2), the age two deviations up
    with pytest.raises(UsageError, match="always told the age"):
        generate_latents(model, "b", {"sex": "M"}, seeds=[1], n_steps=1)

"""The vision transformer of any dimensions and the masked autoencoder."""

import pytest
import torch

from fmrisynth.config.embed import EmbedConfig, MaeConfig
from fmrisynth.config.load import load_config
from fmrisynth.embed.encoder import build_autoencoder
from fmrisynth.models.build import count_parameters
from fmrisynth.models.masked_autoencoder import MaskedAutoencoder
from fmrisynth.models.vit import Patches, Positions, draw_seen


@pytest.mark.parametrize(("shape", "patch"), [((8, 6), (2, 3)), ((4, 8, 6), (2, 4, 3)), ((2, 4, 4, 6), (1, 2, 2, 3))])
def test_patches_are_cut_and_joined_in_any_number_of_dimensions(shape, patch):
    x = torch.randn(3, *shape)
    cutter = Patches(shape, patch)
    pieces = cutter.cut(x)
    assert pieces.shape == (3, torch.Size(cutter.grid).numel(), torch.Size(patch).numel())
    assert torch.equal(pieces[:, 0], x[(slice(None), *(slice(0, side) for side in patch))].flatten(1))
    assert torch.equal(cutter.join(pieces), x)
    with pytest.raises(ValueError, match="cannot be cut"):
        Patches(shape, tuple(side + 1 for side in shape))


def test_masks_hide_the_stated_share_and_never_show_what_holds_nothing():
    used = torch.ones(4, 6, 4, dtype=torch.bool)
    used[:, 0] = False
    for tube in (False, True):
        seen = draw_seen(used, 0.8, torch.Generator().manual_seed(1), tube=tube)
        assert len(seen) == 4 * 4  # a fifth of 80
        assert used.flatten()[seen].all()
        assert len(set(seen.tolist())) == len(seen)
        same_places = (seen.reshape(4, -1) % 24 == seen[:4] % 24).all() if tube else torch.tensor(True)
        assert same_places
    uniform = draw_seen(used, 0.8, torch.Generator().manual_seed(1))
    assert not (uniform.reshape(4, -1) % 24 == uniform[:4] % 24).all()


def test_positions_are_separable():
    positions = Positions((3, 4, 5), ((0,), (1, 2)), 8)
    table = positions(torch.arange(60)[None])[0].reshape(3, 20, 8)
    difference = table[1:] - table[:-1]
    torch.testing.assert_close(difference, difference[:, :1].expand_as(difference))


def small(masking="tube", predict_every=1):
    valid = torch.zeros(16, 24, dtype=torch.bool)
    valid[2:11, 3:20] = True
    config = MaeConfig(
        patch=(2, 4, 4), width=16, depth=2, heads=2, decoder_width=32, decoder_depth=1, decoder_heads=2, masking=masking,
        mask_ratio=0.75, predict_every=predict_every,
    )  # fmt: skip
    torch.manual_seed(0)
    return MaskedAutoencoder(config, (4, 16, 24), valid)


@pytest.mark.parametrize("predict_every", [1, 2])
def test_the_loss_counts_valid_elements_of_hidden_patches_alone(predict_every):
    network = small(predict_every=predict_every)
    x = torch.randn(2, 4, 16, 24) * network.valid
    seen = torch.stack([network.draw_seen(torch.Generator().manual_seed(i)) for i in range(2)])
    answer = torch.zeros(2, len(network.used_M), network.weight_MQ.shape[1])
    hidden = torch.ones(2, torch.Size(network.patches.grid).numel())
    hidden.scatter_(1, seen, 0)
    counts = network.patches.join(hidden[..., None].expand(-1, -1, 32)).bool() & network.valid
    frame = torch.arange(4) % 2 % predict_every == 0
    counts &= frame[None, :, None, None]
    expected = torch.stack([x[i][counts[i]].square().mean() for i in range(2)])
    torch.testing.assert_close(network.loss(answer, x, seen), expected)


def test_the_encoder_sees_no_hidden_patch():
    network = small().eval()
    x = torch.randn(1, 4, 16, 24) * network.valid
    seen = network.draw_seen(torch.Generator().manual_seed(0))[None]
    torch.nn.init.normal_(network.head.weight)
    hidden = torch.ones(1, torch.Size(network.patches.grid).numel(), 1)
    hidden[0, seen[0]] = 0
    other = torch.where(network.patches.join(hidden.expand(-1, -1, 32)).bool(), torch.randn_like(x), x)
    assert not torch.equal(other, x)
    with torch.inference_mode():
        torch.testing.assert_close(network(x, seen), network(other, seen))
        assert not torch.allclose(network(x, seen), network(x.roll(1, 1), seen))


def test_parameters_of_the_papers_model():
    config = load_config(EmbedConfig, "embed", preset="mae-vitb")
    with torch.device("meta"):
        network = build_autoencoder(config.model, config.maps)
        first = build_autoencoder(config.model.model_copy(update={"patch": (16, 16, 16)}), config.maps)
    assert count_parameters(network.encoder) == pytest.approx(86.2e6, rel=0.01)
    assert count_parameters(first.encoder) == pytest.approx(
        89e6, rel=0.01
    )  # the paper's count, of patches of 16 frames
    assert count_parameters(network) == pytest.approx(99.8e6, rel=0.01)


def test_positions_of_a_volume_share_one_table_and_every_axis_may_have_holes():
    valid = torch.zeros(4, 8, 4, dtype=torch.bool)
    valid[:2, 2:7, :] = True  # nothing in the second half of the first axis
    config = MaeConfig(
        patch=(2, 2, 2), width=12, depth=1, heads=2, decoder_width=12, decoder_depth=1, decoder_heads=2, masking="uniform",
        mask_ratio=0.5, predict_every=1,
    )  # fmt: skip
    network = MaskedAutoencoder(config, (4, 8, 4), valid, ((0, 1, 2),))
    for part in (network.encoder, network.decoder):
        assert [tuple(table.shape) for table in part.positions.tables] == [(2 * 4 * 2, 12)]
    assert network.used.nonzero().tolist() == [[0, y, z] for y in (1, 2, 3) for z in (0, 1)]
    assert network.weight_MQ.sum() == valid.sum()


def test_a_few_steps_learn_a_repeated_pattern():
    network = small()
    pattern = torch.randn(4, 16, 24)
    optimiser = torch.optim.Adam(network.parameters(), lr=5e-3)
    losses = []
    for step in range(150):
        sign = torch.randn(8, 1, 1, 1, generator=torch.Generator().manual_seed(step)).sign()
        x = sign * pattern * network.valid
        seen = torch.stack([network.draw_seen(torch.Generator().manual_seed(8 * step + i)) for i in range(8)])
        loss = network.loss(network(x, seen), x, seen).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(float(pattern[:, network.valid].square().mean()), rel=0.1)
    assert losses[-1] < 0.3 * losses[0]

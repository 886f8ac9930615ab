"""Every kind of tokenizer through the one interface, and each kind against an independent reference."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch.nn import functional

from fmrisynth.config.tokenize import KlConfig, MaeTokenizerConfig, PatchConfig, PoolingConfig, VqganConfig
from fmrisynth.data.grid import make_grid
from fmrisynth.errors import FmrisynthError
from fmrisynth.models.tokenizers import TokenizerInfo, build_tokenizer, load_tokenizer
from fmrisynth.models.tokenizers.base import perplexity, read_latent_mask
from fmrisynth.models.tokenizers.patch import frame_pairs, local_basis
from fmrisynth.models.tokenizers.vqgan import RevivingQuantizer

SHAPE = (16, 32, 16)
TINY_VQGAN = VqganConfig(base_ch=4, ch_mult=(1, 1, 2), norm_groups=2, codebook_size=32)
TINY_MAE = MaeTokenizerConfig(
    latent_channels=5, channels=(4, 4, 8), norm_groups=4, width=16, depth=2, heads=2, masked_depth=1
)  # fmt: skip
TINY_KL = KlConfig(latent_channels=2, channels=(4, 4, 4, 8), norm_groups=4, num_res_blocks=1)
CONFIGS = [
    PatchConfig(),
    PatchConfig(covariance="frame", prior_blocks=None, synthesis="patch"),
    PatchConfig(synthesis="local"),
    PoolingConfig(),
    TINY_VQGAN,
    TINY_MAE,
    TINY_KL,
]


def ball_mask(shape=SHAPE):
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    return sum(axis**2 for axis in axes) < 0.9


def smooth_frames(n_blocks, n_frames, seed=0, noise=1.0, fwhm=6.0, shape=SHAPE):
    """Blocks (T, 1, X, Y, Z) of a smooth signal that is constant over frames plus white noise."""
    rng = np.random.default_rng(seed)
    mask = ball_mask(shape)
    blocks = []
    for _ in range(n_blocks):
        signal = ndimage.gaussian_filter(rng.standard_normal(shape), fwhm / 2.355)
        signal /= signal.std()
        frames = signal + noise * rng.standard_normal((n_frames, *shape))
        blocks.append(torch.from_numpy((frames * mask).astype(np.float32))[:, None])
    return blocks


def make_info(kind, channels, shape=SHAPE, normalisation="dynamics", **more):
    mask = ball_mask(shape)
    return TokenizerInfo(
        kind=kind, normalisation=normalisation, grid=make_grid(shape, np.diag([3, 3, 3, 1]), "scanner"), tr_s=1.44,
        n_frames=6, latent_channels=channels, mask_XYZ=mask,
        reference_XYZ=np.where(mask, 10_000.0, 0.0).astype(np.float32), **more,
    )  # fmt: skip


def make_tokenizer(config, blocks=None, **more):
    channels = config.latent_channels
    torch.manual_seed(0)
    info = make_info(config.kind, channels, downsampling=config.downsampling, **more)
    tokenizer = build_tokenizer(config, info)
    if config.kind == "patch":
        blocks = smooth_frames(8, 6) if blocks is None else blocks
        tokenizer.fit_blocks(lambda: iter(blocks))
    tokenizer.set_latent_statistics(torch.zeros(channels), torch.ones(channels))
    return tokenizer.eval()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.kind)
def test_shapes_mask_and_batching(config):
    tokenizer = make_tokenizer(config)
    frames = smooth_frames(1, 5, seed=3)[0]
    latents = tokenizer.encode(frames)
    grid = tuple(side // config.downsampling for side in SHAPE)
    assert latents.shape == (5, tokenizer.info.latent_channels, *grid)
    assert tokenizer.info.latent_mask_xyz.shape == grid
    decoded = tokenizer.decode(latents)
    assert decoded.shape == frames.shape
    assert not decoded[:, 0, ~torch.from_numpy(tokenizer.info.mask_XYZ)].any()
    torch.testing.assert_close(tokenizer.encode(frames, batch_size=2), latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tokenizer.decode(latents, batch_size=3), decoded, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.kind)
def test_saved_and_loaded_gives_the_same_numbers(config, tmp_path):
    tokenizer = make_tokenizer(config)
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    frames = smooth_frames(1, 2, seed=3)[0]
    assert torch.equal(loaded.encode(frames), tokenizer.encode(frames))
    latents = tokenizer.encode(frames)
    assert torch.equal(loaded.decode(latents), tokenizer.decode(latents))
    assert loaded.info.sha256 == tokenizer.info.sha256 != ""
    assert loaded.info.grid == tokenizer.info.grid
    assert loaded.info.downsampling == config.downsampling
    assert torch.equal(read_latent_mask(tmp_path), tokenizer.info.latent_mask_xyz)
    assert ("downsampling" in json.loads((tmp_path / "tokenizer.json").read_text())) == (config.downsampling != 4)
    assert loaded.info.normalisation == "dynamics"
    np.testing.assert_array_equal(loaded.info.mask_XYZ, tokenizer.info.mask_XYZ)


def test_decode_blocks_gives_bold_on_the_reference():
    tokenizer = make_tokenizer(PoolingConfig())
    latent = torch.full((2, 1, 6, 4, 8, 4), 2.0)  # two percent everywhere
    blocks = list(tokenizer.decode_blocks(latent))
    mask = tokenizer.info.mask_XYZ
    assert [b.shape for b in blocks] == [(*SHAPE, 6)] * 2
    np.testing.assert_allclose(blocks[0][mask], 10_200.0, rtol=1e-5)
    assert not blocks[0][~mask].any()


def test_plain_patch_transform_is_scikit_style_pca():
    """One basis, single frames: the projector is that of an SVD of all full patches."""
    config = PatchConfig(covariance="frame", prior_blocks=None, synthesis="patch")
    shape = (16, 16, 16)
    blocks = [b for b in smooth_frames(6, 6, shape=shape)]
    info = make_info("patch", 3, shape=shape)
    full = TokenizerInfo(**{**info.__dict__, "mask_XYZ": np.ones(shape, bool)})
    tokenizer = build_tokenizer(config, full)
    tokenizer.fit_blocks(lambda: iter(blocks))
    patches = torch.cat(blocks)[:, 0].unfold(1, 4, 4).unfold(2, 4, 4).unfold(3, 4, 4).reshape(-1, 64).double()
    basis = torch.linalg.svd(patches, full_matrices=False).Vh[:3].T
    expected = patches[:64] @ basis @ basis.T
    found = tokenizer.decode(tokenizer.encode(blocks[0]))[:1, 0]
    found = found.unfold(1, 4, 4).unfold(2, 4, 4).unfold(3, 4, 4).reshape(-1, 64).double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_default_transform_keeps_a_planted_signal_better_than_plain_pca_and_pooling():
    """Held-out smooth signal under noise of four times its variance: the mean over many frames decides."""
    blocks = smooth_frames(60, 6, seed=1, noise=2.0)
    held_out = smooth_frames(3, 200, seed=2, noise=2.0)
    mask = ball_mask()

    def score(config):
        tokenizer = make_tokenizer(config, blocks)
        found = []
        for frames in held_out:
            mean = frames.mean(dim=0, keepdim=True)
            back = tokenizer.decode(tokenizer.encode(mean))
            found.append(np.corrcoef(mean[0, 0][mask], back[0, 0][mask])[0, 1])
        return np.mean(found)

    default = score(PatchConfig())
    assert default > score(PatchConfig(covariance="frame", prior_blocks=None, synthesis="patch"))
    assert default > score(PoolingConfig())


def test_pooling_matches_a_masked_mean():
    tokenizer = make_tokenizer(PoolingConfig())
    frames = smooth_frames(1, 1, seed=5)[0]
    values, mask = frames[0, 0].numpy(), tokenizer.info.mask_XYZ
    cell = (slice(4, 8), slice(0, 4), slice(4, 8))
    expected = values[cell][mask[cell]].mean() if mask[cell].any() else 0.0
    assert tokenizer.encode(frames)[0, 0, 1, 0, 1] == pytest.approx(expected, abs=1e-5)


@given(st.sampled_from(["frame", "lagged", "halves"]), st.integers(2, 7))
@settings(max_examples=20, deadline=None)
def test_frame_pairs_match_the_double_sum(kind, n_frames):
    torch.manual_seed(n_frames)
    patches = torch.randn(n_frames, 2, 3, dtype=torch.float64)
    even, odd = np.arange(n_frames) % 2 == 0, np.arange(n_frames) % 2 == 1
    halves = np.outer(even / even.sum(), odd / odd.sum())
    weights = {
        "frame": np.eye(n_frames),
        "lagged": (np.eye(n_frames, k=1) + np.eye(n_frames, k=-1)) * n_frames / (2 * (n_frames - 1)),
        "halves": (halves + halves.T) * n_frames / 2,
    }[kind]
    expected = torch.einsum("tki,ts,skj->kij", patches, torch.from_numpy(weights), patches)
    first, second = frame_pairs(patches, kind)
    torch.testing.assert_close(torch.einsum("rki,rkj->kij", first, second), expected)


def test_local_basis_is_orthonormal_and_aligned():
    rng = torch.Generator().manual_seed(0)
    data = torch.randn(5, 200, 64, generator=rng, dtype=torch.float64).cumsum(dim=2)
    covariance = data.transpose(1, 2) @ data / 200
    inside = torch.ones(5, 64, dtype=torch.float64)
    basis = local_basis(covariance, inside, 200, PatchConfig(prior_blocks=100))
    torch.testing.assert_close(basis.transpose(1, 2) @ basis, torch.eye(3, dtype=torch.float64).expand(5, 3, 3))
    shared = local_basis(covariance, inside, 200, PatchConfig(prior_blocks=None))
    turned = basis.transpose(1, 2) @ shared  # the best rotation leaves a symmetric positive matrix
    torch.testing.assert_close(turned, turned.transpose(1, 2), rtol=1e-6, atol=1e-8)
    assert (torch.linalg.eigvalsh(turned) >= -1e-9).all()


def test_quantiser_finds_the_nearest_code_and_revives_dead_ones():
    torch.manual_seed(0)
    quantiser = RevivingQuantizer(TINY_VQGAN)
    inputs = torch.randn(2, 3, 2, 2, 2)
    flat = inputs.movedim(1, -1).reshape(-1, 3)
    expected = torch.cdist(flat, quantiser.embedding.weight).argmin(dim=1).view(2, 2, 2, 2)
    assert torch.equal(quantiser.nearest(inputs), expected)
    far = torch.randn(2, 3, 4, 4, 4) * 0.1 + 50.0
    quantiser.train()
    for _ in range(400):
        quantiser(far)
    distance = torch.cdist(far.movedim(1, -1).reshape(-1, 3), quantiser.embedding.weight).min(dim=1).values
    assert distance.max() < 1.0  # codes started around 0 and were revived at the data
    quantiser.eval()
    before = quantiser.embedding.weight.clone()
    quantiser(far)
    assert torch.equal(before, quantiser.embedding.weight)


def test_quantiser_agrees_with_monai_on_lookup_and_loss():
    from monai.networks.layers.vector_quantizer import EMAQuantizer

    torch.manual_seed(1)
    ours = RevivingQuantizer(TINY_VQGAN).eval()
    theirs = EMAQuantizer(3, 32, 3, commitment_cost=0.25, ddp_sync=False).eval()
    theirs.embedding.weight.data.copy_(ours.embedding.weight)
    inputs = torch.randn(2, 3, 3, 3, 3)
    for mine, reference in zip(ours(inputs), theirs(inputs), strict=True):
        torch.testing.assert_close(mine, reference)


def test_perplexity_by_hand():
    assert perplexity(torch.tensor([0, 1, 2, 3])) == pytest.approx(4.0)
    assert perplexity(torch.tensor([5, 5, 5])) == pytest.approx(1.0)


def test_paper_layout_has_the_papers_parameters():
    """19.52 M in encoder, decoder and the two 1 x 1 x 1 convolutions, counted without allocating them."""
    from fmrisynth.config.load import load_config
    from fmrisynth.config.tokenize import TokenizeConfig

    config = load_config(TokenizeConfig, "tokenize", preset="vqgan-paper").model
    with torch.device("meta"):
        from fmrisynth.models.tokenizers.vqgan import Decoder, Encoder, conv3

        parts = [Encoder(config), Decoder(config), conv3(3, 3, 1), conv3(3, 3, 1)]
    assert sum(p.numel() for part in parts for p in part.parameters()) == 19_523_612


def test_vqgan_gradients_reach_every_weight():
    tokenizer = make_tokenizer(TINY_VQGAN).train()
    frames = smooth_frames(1, 2)[0]
    output, loss, indices = tokenizer(frames)
    (functional.l1_loss(output, frames) + loss).backward()
    assert indices.shape == (2, 4, 8, 4)
    for name, parameter in tokenizer.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name


@pytest.mark.parametrize("config", CONFIGS[:2], ids=["local", "plain"])
def test_half_precision_storage_changes_little(config, tmp_path):
    blocks = smooth_frames(8, 6)
    full = make_tokenizer(config, blocks)
    half = make_tokenizer(config.model_copy(update={"storage": "float16"}), blocks)
    frames = blocks[0]
    torch.testing.assert_close(half.decode(half.encode(frames)), full.decode(full.encode(frames)), rtol=1e-2, atol=1e-2)
    half.save(tmp_path / "half")
    full.save(tmp_path / "full")
    size = [(tmp_path / name / "weights.safetensors").stat().st_size for name in ("half", "full")]
    assert size[0] < 0.55 * size[1]


def test_wrong_shapes_are_refused():
    tokenizer = make_tokenizer(PoolingConfig())
    with pytest.raises(FmrisynthError, match="fitted on this grid"):
        tokenizer.encode(torch.zeros(1, 1, 16, 16, 16))
    with pytest.raises(FmrisynthError, match="latents of shape"):
        tokenizer.decode(torch.zeros(1, 3, 4, 8, 4))
    with pytest.raises(FmrisynthError, match="divide by 16"):
        build_tokenizer(PoolingConfig(), make_info("pooling", 1, shape=(16, 20, 16)))
    deep = TINY_MAE.model_copy(update={"channels": (4,) * 6})
    with pytest.raises(FmrisynthError, match="divide by 32; choose a tokenizer of at most 16 voxels"):
        build_tokenizer(deep, make_info("mae", 5, downsampling=deep.downsampling))


@pytest.mark.parametrize("config", [PoolingConfig(), TINY_MAE], ids=lambda c: c.kind)
def test_a_mask_without_brain_is_refused(config):
    info = make_info(config.kind, config.latent_channels)
    empty = TokenizerInfo(**{**info.__dict__, "mask_XYZ": np.zeros(SHAPE, bool)})
    with pytest.raises(FmrisynthError, match="holds no brain"):
        build_tokenizer(config, empty)


def test_a_tokenizer_without_statistics_is_not_saved(tmp_path):
    tokenizer = build_tokenizer(PoolingConfig(), make_info("pooling", 1))
    with pytest.raises(FmrisynthError, match="no latent statistics"):
        tokenizer.save(tmp_path)


def damage(folder, how):
    path = folder / "tokenizer.json"
    if how == "empty folder":
        for file in folder.iterdir():
            file.unlink()
    elif how == "not json":
        path.write_text("weights")
    elif how == "other weights":
        (folder / "weights.safetensors").write_bytes(b"\x00" * 64)
    elif how == "missing weights":
        (folder / "weights.safetensors").unlink()
    elif how == "edited":
        content = json.loads(path.read_text())
        content["normalisation"] = "global"
        path.write_text(json.dumps(content))


@pytest.mark.parametrize("how", ["empty folder", "not json", "other weights", "missing weights", "edited"])
def test_damaged_folders_end_in_one_sentence(how, tmp_path):
    make_tokenizer(PatchConfig()).save(tmp_path)
    damage(tmp_path, how)
    with pytest.raises(FmrisynthError) as error:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_of_another_size_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    from fmrisynth.models.tokenizers.base import digest

    make_tokenizer(PatchConfig()).save(tmp_path)
    weights = load_file(tmp_path / "weights.safetensors")
    weights["basis_KPC"] = weights["basis_KPC"][:-1].contiguous()
    save_file(weights, tmp_path / "weights.safetensors")
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    parts = [(tmp_path / n).read_bytes() for n in ("weights.safetensors", "reference.safetensors")]
    content["sha256"] = digest(content, *parts)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(FmrisynthError, match="basis_KPC should have shape"):
        load_tokenizer(tmp_path)


def test_a_description_that_contradicts_its_settings_is_refused(tmp_path):
    from fmrisynth.models.tokenizers.base import digest

    make_tokenizer(TINY_KL).save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["downsampling"] = 2
    parts = [(tmp_path / n).read_bytes() for n in ("weights.safetensors", "reference.safetensors")]
    content["sha256"] = digest(content, *parts)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(FmrisynthError, match="contradict"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("config", [TINY_MAE, TINY_KL], ids=lambda c: c.kind)
def test_cells_without_brain_count_as_zero(config):
    tokenizer = make_tokenizer(config)
    corner = ~tokenizer.info.latent_mask_xyz
    if config is TINY_KL:  # cells of 8 voxels all hold brain here
        mask_XYZ = tokenizer.info.mask_XYZ.copy()
        mask_XYZ[:8, :8, :8] = False
        info = TokenizerInfo(**{**tokenizer.info.__dict__, "mask_XYZ": mask_XYZ})
        tokenizer = build_tokenizer(config, info).eval()
        corner = ~info.latent_mask_xyz
    assert 0 < corner.sum() < corner.numel() / 2
    latents = tokenizer.encode(smooth_frames(1, 2)[0])
    assert not latents[:, :, corner].any()
    assert latents[:, :, ~corner].abs().min() > 0
    other = latents.clone()
    other[:, :, corner] = 3.0  # as a generator leaves them
    assert torch.equal(tokenizer.decode(other), tokenizer.decode(latents))


def vit_parameters(n_in, n_patches, width, depth, mlp_ratio=4):
    """By hand: embedding, positions, class token, blocks (two norms, queries to values, output, two layers), last norm."""
    linear = lambda a, b: a * b + b  # noqa: E731
    block = 4 * width + linear(width, 3 * width) + linear(width, width)
    block += linear(width, mlp_ratio * width) + linear(mlp_ratio * width, width)
    return linear(n_in, width) + n_patches * width + width + depth * block + 2 * width


def test_parameters_of_the_papers_masked_autoencoder():
    """160 x 192 x 160 voxels in patches of 16 are 1200 tokens; the paper prints 43.7 M for the CNN decoder."""
    from fmrisynth.config.load import load_config
    from fmrisynth.config.tokenize import TokenizeConfig
    from fmrisynth.models.build import count_parameters
    from fmrisynth.models.tokenizers.mae import masked_autoencoder

    config = load_config(TokenizeConfig, "tokenize", preset="mae-paper").model
    grid = make_grid((160, 192, 160), np.eye(4), "scanner")
    brain = np.ones(grid.shape, bool)
    info = TokenizerInfo("mae", "relative", grid, 1.0, 1, 32, brain, brain.astype(np.float32), config.downsampling)
    with torch.device("meta"):
        tokenizer = build_tokenizer(config, info)
        masked = masked_autoencoder(tokenizer)
    assert info.latent_shape == (32, 10, 12, 10)
    assert len(tokenizer.used_M) == 1200
    assert count_parameters(tokenizer.encoder) == vit_parameters(16**3, 1200, 1152, 12)
    assert count_parameters(masked.decoder) == vit_parameters(1152, 1200, 1152, 8)
    assert count_parameters(tokenizer.project) == 1152 * 32 + 32
    assert count_parameters(tokenizer.decoder) == pytest.approx(43.7e6, rel=0.02)
    assert len(masked.draw_seen(torch.Generator().manual_seed(0))) == 360


def test_the_masked_autoencoder_learns_with_the_tokenizers_own_encoder():
    from fmrisynth.models.tokenizers.mae import masked_autoencoder

    tokenizer = make_tokenizer(TINY_MAE)
    masked = masked_autoencoder(tokenizer)
    assert masked.encoder is tokenizer.encoder
    torch.testing.assert_close(masked.used_M, tokenizer.used_M)
    frames = smooth_frames(1, 2)[0]
    torch.testing.assert_close(masked.tokens(frames[:, 0])[:, 1:], tokenizer.tokens(frames))
    seen = torch.stack([masked.draw_seen(torch.Generator().manual_seed(i)) for i in range(2)])
    assert seen.shape[1] == round(0.3 * len(tokenizer.used_M))
    # The loss is that of brain voxels in hidden patches: with the first answer, 0, their mean square.
    hidden = torch.ones(2, 4 * 8 * 4).scatter_(1, seen, 0)
    counts = masked.patches.join(hidden[..., None].expand(-1, -1, 64)).bool() & torch.from_numpy(ball_mask())
    expected = torch.stack([frames[i, 0][counts[i]].square().mean() for i in range(2)])
    torch.testing.assert_close(masked.loss(masked(frames[:, 0], seen), frames[:, 0], seen), expected)


def test_the_second_phase_has_no_gradient_for_the_encoder():
    tokenizer = make_tokenizer(TINY_MAE).train()
    tokenizer(smooth_frames(1, 2)[0]).square().mean().backward()
    assert all(p.grad is None for p in tokenizer.encoder.parameters())
    for part in (tokenizer.project, tokenizer.decoder):
        assert all(p.grad is not None for p in part.parameters())


def test_the_divergence_is_that_of_two_gaussians():
    """Against PyTorch's own, and every weight gets a gradient."""
    from torch.distributions import Normal, kl_divergence

    tokenizer = make_tokenizer(TINY_KL).train()
    frames = smooth_frames(1, 2)[0]
    torch.manual_seed(1)
    output, loss, indices = tokenizer(frames)
    mean, std = tokenizer.network.encode(frames)
    expected = kl_divergence(Normal(mean, std), Normal(0.0, 1.0)).sum() / 2
    torch.testing.assert_close(loss, TINY_KL.kl_weight * expected)
    assert indices is None
    torch.manual_seed(2)
    assert not torch.equal(tokenizer(frames)[0], output)  # a draw
    torch.testing.assert_close(tokenizer.encode(frames), mean.detach())  # no draw
    (functional.l1_loss(output, frames) + loss).backward()
    assert all(p.grad is not None for p in tokenizer.parameters())


@pytest.mark.parametrize("config", [TINY_MAE, TINY_KL], ids=lambda c: c.kind)
def test_a_centred_network_sees_differences_from_the_mean_volume(config, tmp_path):
    blocks = smooth_frames(3, 4, seed=7)
    mean = torch.cat(blocks).mean(dim=0, keepdim=True)
    plain, centred = make_tokenizer(config), make_tokenizer(config.model_copy(update={"centre": True}))
    centred.fit_centre(blocks)
    frames = smooth_frames(1, 2)[0]
    latents = plain.encode(frames)
    torch.testing.assert_close(centred.encode(frames + mean), latents, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(centred.decode(latents), plain.decode(latents) + mean, rtol=1e-4, atol=1e-5)
    if config is TINY_MAE:
        torch.testing.assert_close(centred(frames + mean), plain(frames) + mean, rtol=1e-4, atol=1e-5)
    centred.save(tmp_path)
    assert torch.equal(load_tokenizer(tmp_path).decode(latents), centred.decode(latents))

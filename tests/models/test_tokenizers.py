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

from fmrisynth.config.tokenize import PatchConfig, PoolingConfig, VqganConfig
from fmrisynth.data.grid import make_grid
from fmrisynth.errors import FmrisynthError
from fmrisynth.models.tokenizers import TokenizerInfo, build_tokenizer, load_tokenizer
from fmrisynth.models.tokenizers.base import perplexity
from fmrisynth.models.tokenizers.patch import frame_pairs, local_basis
from fmrisynth.models.tokenizers.vqgan import RevivingQuantizer

SHAPE = (16, 32, 16)
TINY_VQGAN = VqganConfig(base_ch=4, ch_mult=(1, 1, 2), norm_groups=2, codebook_size=32)
CONFIGS = [
    PatchConfig(),
    PatchConfig(covariance="frame", prior_blocks=None, synthesis="patch"),
    PatchConfig(synthesis="local"),
    PoolingConfig(),
    TINY_VQGAN,
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
    channels = {"patch": 3, "pooling": 1, "vqgan": 3}[config.kind]
    torch.manual_seed(0)
    tokenizer = build_tokenizer(config, make_info(config.kind, channels, **more))
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
    assert latents.shape == (5, tokenizer.info.latent_channels, 4, 8, 4)
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

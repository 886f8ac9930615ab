"""The held-out measures, against scipy and hand-made cases; report and decoding."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fmrisynth.config.tokenize import PatchConfig, PoolingConfig, TokenizeConfig
from fmrisynth.data.blocks import read_blocks, read_subject
from fmrisynth.models.tokenizers import load_tokenizer
from fmrisynth.tokenize import decode_latents, tokenize_dataset
from fmrisynth.tokenize.heldout import _Spectrum, measure_held_out, split_half
from fmrisynth.tokenize.report import METRICS_JSON, REPORT_HTML, iterate_data


def test_split_half_matches_theory():
    """Signal and noise of equal variance, halves of 8: r = 1 / (1 + 1/8)."""
    rng = np.random.default_rng(2)
    signal = rng.standard_normal(20_000)
    effects = {"a": [signal + rng.standard_normal(20_000) for _ in range(16)]}
    assert split_half(effects, ["a"])[0] == pytest.approx(8 / 9, abs=0.01)
    assert split_half({"a": effects["a"][:3]}, ["a"]) is None


def test_spectrum_knows_what_a_low_pass_keeps():
    spectrum = _Spectrum((3.0, 3.0, 3.0))
    volume = np.random.default_rng(3).standard_normal((1, 16, 16, 16))
    transform = np.fft.fftn(volume, axes=(1, 2, 3))
    axes = np.meshgrid(*[np.fft.fftfreq(16, 3.0)] * 3, indexing="ij")
    transform[:, np.sqrt(sum(a**2 for a in axes)) > 0.08] = 0
    spectrum.add(volume, np.fft.ifftn(transform, axes=(1, 2, 3)).real)
    kept, centres = spectrum.kept(), spectrum.centres()
    np.testing.assert_allclose(kept[centres < 0.07], 1.0, atol=1e-9)
    np.testing.assert_allclose(kept[centres > 0.09], 0.0, atol=1e-9)


class Lossless(torch.nn.Module):
    """A tokenizer that loses nothing: the measures must say so."""

    def __init__(self, info):
        super().__init__()
        self.info = info

    def encode(self, frames, *, batch_size=12):
        return frames

    def codes(self, frames):
        return None

    def decode(self, latents, *, batch_size=12):
        return latents * torch.from_numpy(self.info.mask_XYZ)


@pytest.mark.parametrize("normalisation", ["dynamics", "global"])
def test_a_lossless_tokenizer_scores_one(prepared, tmp_path, normalisation):
    tokenize_dataset(prepared, tmp_path, TokenizeConfig(report=False, normalisation=normalisation))
    tokenizer = Lossless(load_tokenizer(tmp_path / "tokenizer").info)
    found = measure_held_out(iterate_data(prepared, ["04", "05", "06"], tokenizer), tokenizer)
    np.testing.assert_allclose(found.map_r_K, 1.0, atol=1e-6)
    np.testing.assert_allclose(found.course_r_K, 1.0, atol=1e-6)
    assert found.top1 == 1.0
    assert found.kept_variance == pytest.approx(1.0, abs=1e-5)
    assert found.ssim == pytest.approx(1.0, abs=1e-4)
    assert (found.n_subjects, found.n_blocks) == (3, 12)
    np.testing.assert_allclose(found.kept_effects[:8], 1.0, atol=1e-4)


def test_voxels_without_data_do_not_spoil_the_z_maps(prepared, tmp_path):
    """Subjects' masks may be smaller than the tokenizer's."""
    tokenize_dataset(prepared, tmp_path, TokenizeConfig(report=False))
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    hole = (slice(6, 9), slice(6, 9), slice(6, 9))

    def smaller():
        for subject, blocks in iterate_data(prepared, ["04", "05", "06"], tokenizer):
            pairs = list(blocks)
            for _, data in pairs:
                data.mask_XYZ[hole] = False
            yield subject, pairs

    found = measure_held_out(smaller(), tokenizer)
    assert np.isfinite(found.z_map_r_K).all()
    assert np.isfinite(found.voxel_r)


def test_effects_are_the_glms(prepared, tmp_path):
    """Original group effects equal those of the GLM stage on the same blocks."""
    from fmrisynth.glm.effects import subject_effects

    tokenize_dataset(prepared, tmp_path, TokenizeConfig(report=False))
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    found = measure_held_out(iterate_data(prepared, ["05", "06"], tokenizer), tokenizer)
    table = subject_effects([b for b in read_blocks(prepared) if b.subject in ("05", "06")])
    for k, condition in enumerate(found.conditions):
        volume = np.zeros(table.mask_XYZ.shape)
        volume[found.mask_XYZ] = found.original_KV[k]
        expected = table.effects_RV[table.where(condition)].mean(axis=0)
        np.testing.assert_allclose(volume[table.mask_XYZ], expected, atol=2e-3)


def test_report_is_written_once(prepared, tmp_path):
    summary = tokenize_dataset(prepared, tmp_path, TokenizeConfig())
    assert any("GLM ceiling on 2 held-out subjects" in line for line in summary.lines)
    metrics = json.loads((tmp_path / METRICS_JSON).read_text())["metrics"]
    assert metrics["n_blocks"] == 8
    assert 0.5 < np.mean(metrics["map_r_K"]) <= 1
    page = (tmp_path / REPORT_HTML).read_text()
    assert "gambling_loss" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    stamp = (tmp_path / METRICS_JSON).stat().st_mtime_ns
    again = tokenize_dataset(prepared, tmp_path, TokenizeConfig())
    assert (tmp_path / METRICS_JSON).stat().st_mtime_ns == stamp
    assert again.lines[-len(summary.lines) + 2 :] == summary.lines[2:]


def test_no_held_out_subject(dataset_maker, tmp_path):
    data = dataset_maker(tmp_path / "data", splits=("train", "train"))
    summary = tokenize_dataset(data, tmp_path / "out", TokenizeConfig())
    assert any("No tokenizer report" in line for line in summary.lines)


def test_codebook_use_of_a_network(prepared, tmp_path):
    from fmrisynth.config.load import load_config

    config = load_config(
        TokenizeConfig,
        "tokenize",
        preset="vqgan-smoke",
        overrides=["fit.steps=1", "model.codebook_size=16", "report_split=val"],
    )
    summary = tokenize_dataset(prepared, tmp_path, config)
    metrics = json.loads((tmp_path / METRICS_JSON).read_text())["metrics"]
    assert 1 <= metrics["perplexity"] <= 16
    assert any("Codebook" in line for line in summary.lines)


def test_decoding_rebuilds_the_blocks(prepared, tmp_path):
    config = TokenizeConfig(report=False, reconstruct=True, model=PatchConfig(channels=64, synthesis="patch"))
    tokenize_dataset(prepared, tmp_path, config)
    back = read_subject(tmp_path / "reconstructed", "05")
    truth = read_subject(prepared, "05")
    assert [b.condition for b in back] == [b.condition for b in truth]
    assert [b.bold for b in back] == [b.bold for b in truth]
    data, expected = back[0].load(), truth[0].load()
    np.testing.assert_array_equal(data.mask_XYZ, expected.mask_XYZ)
    # 64 components of 64 voxels lose nothing but the rounding of int16
    np.testing.assert_allclose(data.bold_XYZT[data.mask_XYZ], expected.bold_XYZT[data.mask_XYZ], rtol=2e-3)


def test_decoding_without_the_originals_uses_the_mean_reference(prepared, tmp_path):
    tokenize_dataset(prepared, tmp_path / "latents", TokenizeConfig(report=False, model=PoolingConfig()))
    decode_latents(tmp_path / "latents", tmp_path / "decoded")
    block = read_subject(tmp_path / "decoded", "01")[0].load()
    info = load_tokenizer(tmp_path / "latents" / "tokenizer").info
    np.testing.assert_allclose(block.reference_XYZ[info.mask_XYZ], info.reference_XYZ[info.mask_XYZ], rtol=1e-3)

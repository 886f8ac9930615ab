"""Starting a VQ-GAN from other weights."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fmrisynth.config.tokenize import VqganConfig
from fmrisynth.data.grid import make_grid
from fmrisynth.errors import FmrisynthError
from fmrisynth.models.tokenizers import TokenizerInfo, build_tokenizer
from fmrisynth.models.tokenizers.init import aldm_name, initialise

CONFIG = VqganConfig(base_ch=4, ch_mult=(1, 1, 2), norm_groups=2, codebook_size=16, residual=False, num_res_blocks=2)

# Names in the public code: encoder and decoder of two blocks per level (decoder three), no attention.
ALDM_SAMPLE = [
    "encoder.conv_in.weight", "encoder.down.0.block.1.norm1.weight", "encoder.down.2.block.0.conv1.bias",
    "encoder.down.1.downsample.conv.weight", "encoder.mid.block_1.conv1.weight", "encoder.norm_out.bias",
    "encoder.conv_out.weight", "decoder.conv_in.weight", "decoder.mid.block_1.norm1.weight",
    "decoder.up.2.upsample.conv.weight", "decoder.up.0.block.2.conv1.weight", "decoder.conv_out.bias",
    "quantize.embedding.weight", "quant_conv.weight", "post_quant_conv.bias",
]  # fmt: skip


def make(seed, config=CONFIG):
    torch.manual_seed(seed)
    mask = np.ones((16, 16, 16), bool)
    grid = make_grid((16, 16, 16), np.eye(4), "scanner")
    return build_tokenizer(config, TokenizerInfo("vqgan", "global", grid, 1.44, 4, 3, mask, mask.astype(np.float32)))


def aldm_state(tokenizer):
    state = {aldm_name(n): t.clone() for n, t in tokenizer.state_dict().items() if not n.startswith("quantizer.ema_")}
    return state | {"loss.discriminator.main.0.weight": torch.zeros(3), "spade.x": torch.zeros(1)}


def test_names_are_those_of_the_public_code():
    names = set(aldm_state(make(0)))
    assert set(ALDM_SAMPLE) <= names
    assert not any("temb" in n or ".conv.conv" in n for n in names)


@pytest.mark.parametrize("form", ["safetensors", "state dict", "lightning checkpoint", "folder"])
def test_weights_arrive(form, tmp_path):
    source, target = make(1), make(2)
    if form == "folder":
        source.set_latent_statistics(torch.zeros(3), torch.ones(3))
        source.save(tmp_path)
        path = tmp_path
    elif form == "safetensors":
        path = tmp_path / "w.safetensors"
        save_file(aldm_state(source), path)
    else:
        path = tmp_path / "w.ckpt"
        state = aldm_state(source)
        torch.save({"state_dict": state, "epoch": 3} if form == "lightning checkpoint" else state, path)
    initialise(target, path)
    frames = torch.randn(1, 1, 16, 16, 16)
    assert torch.equal(source.eval().encode(frames), target.eval().encode(frames))
    latents = torch.randn(1, 3, 4, 4, 4)
    assert torch.equal(source.decode(latents), target.decode(latents))


class Hostile:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        import os

        return os.mkdir, (self.marker,)


def test_a_pickle_with_code_is_refused(tmp_path):
    path = tmp_path / "w.ckpt"
    marker = tmp_path / "code-ran"
    torch.save({"state_dict": Hostile(marker)}, path)
    with pytest.raises(FmrisynthError, match="could run code"):
        initialise(make(0), path)
    plain = tmp_path / "w.pkl"
    plain.write_bytes(pickle.dumps(Hostile(marker)))
    with pytest.raises(FmrisynthError, match=r"w\.pkl"):
        initialise(make(0), plain)
    assert not marker.exists()


def test_weights_of_another_size_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(aldm_state(make(0)), path)
    wider = make(0, CONFIG.model_copy(update={"base_ch": 8}))
    with pytest.raises(FmrisynthError, match="the model needs"):
        initialise(wider, path)
    deeper = make(0, CONFIG.model_copy(update={"num_res_blocks": 3}))
    with pytest.raises(FmrisynthError, match="expected a weight named"):
        initialise(deeper, path)


def test_missing_file(tmp_path):
    with pytest.raises(FmrisynthError, match="no such file"):
        initialise(make(0), tmp_path / "nothing.safetensors")

"""The model inside the package is the one that was released, and small."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from fmrisynth.conditions import load_table
from fmrisynth.models.bundled import BUNDLED, bundled_model_dir, tokenizer_dir
from fmrisynth.models.checkpoint import load_denoiser
from fmrisynth.models.tokenizers import load_tokenizer

MAX_BYTES = 40e6


def test_checksums():
    folder = bundled_model_dir()
    listed = dict(reversed(line.split()) for line in (folder / "SHA256SUMS").read_text().splitlines())
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix in (".json", ".safetensors")}
    assert found == set(listed)
    for name, digest in listed.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name


def test_size_and_card():
    folder = bundled_model_dir()
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < MAX_BYTES
    assert "phantom" in (folder / "README.md").read_text()


def test_it_knows_the_seven_conditions_and_fits_its_tokenizer():
    model, tokenizer = load_denoiser(bundled_model_dir()), load_tokenizer(tokenizer_dir(Path(BUNDLED)))
    assert sorted(model.conditions) == sorted(load_table().default_labels)
    channels, n_frames, *cells = model.latent_shape
    assert (channels, *cells) == tokenizer.info.latent_shape
    assert n_frames == tokenizer.info.n_frames == 12
    assert all(torch.isfinite(p).all() and p.dtype == torch.float32 for p in model.network.parameters())

"""GLM ceiling of tokenizer variants on held-out phantom subjects: the table of docs/tokenizer.md.

    fmrisynth simulate TRAIN --set layout=blocks --set n_subjects=24 --set split.all=train
    fmrisynth simulate TEST --set layout=blocks --set n_subjects=16 --set first_subject=1000 --set split.all=test
    python benchmarks/tokenizer_variants.py TRAIN TEST OUT [variant ...]

Every variant is fitted to TRAIN and measured on TEST with the code of `fmrisynth tokenize`; results go to
OUT/<variant>/ (tokenizer, metrics, report) and one line each to standard output. A finished variant is read,
not run again. With --truth the noise-free group maps that `simulate` writes beside TRAIN are passed through
each tokenizer too: the ceiling that an endless cohort would have.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from fmrisynth.config.load import load_config
from fmrisynth.config.tokenize import TokenizeConfig
from fmrisynth.data.blocks import read_blocks, subjects_of
from fmrisynth.data.nifti import read_image
from fmrisynth.glm.map_scores import pearson
from fmrisynth.models.tokenizers import Tokenizer, load_tokenizer
from fmrisynth.tokenize.fit import fit_tokenizer
from fmrisynth.tokenize.report import make_report
from fmrisynth.tokenize.source import BlockSource

SHORT = [
    "fit.steps=120", "fit.batch_size=2", "fit.adversarial_start=80", "model.base_ch=8", "fit.learning_rate=0.001",
    "statistics_blocks=24",
]  # fmt: skip
"""What two CPU cores can do with a network in a quarter of an hour."""

VARIANTS: dict[str, tuple[str, list[str]]] = {
    "pooling": ("pooling", []),
    "block PCA": ("patch-pca", []),
    "block PCA C=1": ("patch-pca", ["model.channels=1"]),
    "block PCA C=8": ("patch-pca", ["model.channels=8"]),
    "block PCA, global": ("patch-pca", ["normalisation=global"]),
    "block PCA + overlap": ("patch-pca", ["model.synthesis=overlap"]),
    "halves covariance, one basis": ("patch-overlap", ["model.prior_blocks=null", "model.synthesis=patch"]),
    "position-wise basis": ("patch-overlap", ["model.synthesis=patch"]),
    "position-wise, lagged": ("patch-overlap", ["model.synthesis=patch", "model.covariance=lagged"]),
    "position-wise, frame": ("patch-overlap", ["model.synthesis=patch", "model.covariance=frame"]),
    "default": ("patch-overlap", []),
    "default, global": ("patch-overlap", ["normalisation=global"]),
    "local synthesis": ("patch-local", []),
    "default C=8": ("patch-overlap", ["model.channels=8"]),
    "vqgan small, global": ("vqgan-small", SHORT),
    "vqgan small, dynamics": (
        "vqgan-small",
        [*SHORT, "normalisation=dynamics"],
    ),
    "autoencoder (no VQ), global": (
        "vqgan-small",
        [*SHORT, "model.quantise=false", "fit.adversarial_weight=0", "fit.loss=mse"],
    ),
}  # fmt: skip


def truth_r(tokenizer: Tokenizer, truth: Path) -> float | None:
    """Mean r of noise-free group maps before and after; for percent-signal tokenizers only."""
    files = sorted(truth.glob("**/group/*stat-effect_statmap.nii.gz"))
    if not files or tokenizer.info.normalisation != "dynamics":
        return None
    maps = np.stack([read_image(f, ndim=3).scaled() for f in files]) * tokenizer.info.mask_XYZ
    back = tokenizer.decode(tokenizer.encode(torch.from_numpy(maps)[:, None])).numpy()[:, 0]
    inside = tokenizer.info.mask_XYZ
    return float(np.mean(pearson(maps[:, inside], back[:, inside])))


def main() -> None:
    """Fit, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("variants", nargs="*", default=list(VARIANTS))
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--max-subjects", type=int, default=None, help="Training subjects used.")
    parser.add_argument("--max-test-subjects", type=int, default=None, help="Held-out subjects used.")
    arguments = parser.parse_args()
    print("| variant | map r | lowest | z map r | less mean | RSA | Top-1 | noise-free r | fit s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in arguments.variants:
        preset, overrides = VARIANTS[name]
        config = load_config(TokenizeConfig, "tokenize", preset=preset, overrides=overrides)
        folder = arguments.out / "".join(c if c.isalnum() else "-" for c in name)
        seconds = float("nan")
        if not (folder / "tokenizer" / "tokenizer.json").is_file():
            start = time.monotonic()
            subjects = subjects_of(arguments.train)[: arguments.max_subjects]
            tokenizer = fit_tokenizer(
                BlockSource(read_blocks(arguments.train, subjects=subjects)), config, folder=folder / "fit"
            )
            seconds = time.monotonic() - start
            tokenizer.save(folder / "tokenizer")
        tokenizer = load_tokenizer(folder / "tokenizer")
        held_out = subjects_of(arguments.test)[: arguments.max_test_subjects]
        make_report(arguments.test, folder, held_out, tokenizer, config)
        found = json.loads((folder / "tokenizer_metrics.json").read_text())["metrics"]
        truth = truth_r(tokenizer, arguments.truth) if arguments.truth else None
        z_map_r = None if found["z_map_r_K"] is None else np.mean(found["z_map_r_K"])
        cells = [
            np.mean(found["map_r_K"]), np.min(found["map_r_K"]), z_map_r, np.mean(found["contrast_r_K"]),
            found["rsa"], found["top1"],
        ]  # fmt: skip
        text = " | ".join("–" if value is None else f"{value:.3f}" for value in cells)
        print(f"| {name} | {text} | {'–' if truth is None else f'{truth:.3f}'} | {seconds:.0f} |", flush=True)
    halves = found["split_half_K"]
    if halves is not None:
        print(
            f"\nsplit-half r of the originals: mean {np.mean(halves):.3f}, per condition {np.round(halves, 3).tolist()}"
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

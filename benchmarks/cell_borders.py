"""Are draws from a model's prior as smooth as training latents, once decoded: within the tokenizer's cells and across their borders?

    python benchmarks/cell_borders.py LATENTS MODEL [--n 120]

Decodes training latents and as many draws of the same conditions (no network, no observation noise) and prints, per temporal frequency
of the block, the mean square difference of neighbouring voxels in draws over that in training latents; and that of as many other
training latents, which says how far chance goes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from scipy.fft import dct
from torch import Tensor

from fmrisynth.diffusion.prior import Prior
from fmrisynth.models.checkpoint import load_denoiser
from fmrisynth.models.tokenizers import load_tokenizer
from fmrisynth.models.tokenizers.base import DOWNSAMPLING, Tokenizer
from fmrisynth.train.dataset import TrainingLatents


def differences(stacks: Iterable[Tensor], tokenizer: Tokenizer, n_frames: int) -> np.ndarray:
    """Mean square differences per frequency: rows are voxels of one cell, and of two."""
    mean_C1111, std_C1111 = (s.reshape(-1, 1, 1, 1, 1) for s in tokenizer.latents_for_diffusion())
    brain = tokenizer.info.mask_XYZ
    sums = np.zeros((2, n_frames))
    for stack_FXYZ in stacks:
        latent_CTXYZ = stack_FXYZ.unflatten(0, (-1, n_frames)) * std_C1111 + mean_C1111
        frames_TXYZ = tokenizer.decode(latent_CTXYZ.transpose(0, 1))[:, 0].numpy()
        values_HXYZ = dct(frames_TXYZ, axis=0, norm="ortho")
        for axis in range(3):
            both = np.diff(brain.astype(np.int8), axis=axis) == 0
            both &= np.take(brain, range(1, brain.shape[axis]), axis=axis)
            position = np.arange(both.shape[axis]).reshape([-1 if a == axis else 1 for a in range(3)])
            border = np.broadcast_to(position % DOWNSAMPLING == DOWNSAMPLING - 1, both.shape)
            squares = np.square(np.diff(values_HXYZ, axis=1 + axis))
            for row, chosen in enumerate((both & ~border, both & border)):
                sums[row] += squares[:, chosen].mean(axis=1)
    return sums


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("latents", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--n", type=int, default=120)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    latents, model = TrainingLatents(arguments.latents), load_denoiser(arguments.model)
    prior = Prior.from_tensors(model.prior_kind, model.prior_tensors)
    tokenizer = load_tokenizer(latents.dataset.tokenizer_dir)
    n_frames = latents.latent_shape[1]
    numbers = latents.select("train")
    vocabulary = latents.vocabulary(numbers, ["condition"])
    every = max(2, len(numbers) // arguments.n)
    others = numbers[every // 2 :: every][: arguments.n]
    numbers = numbers[::every][: arguments.n]

    def draws() -> Iterable[Tensor]:
        for seed, number in enumerate(numbers):
            noise = torch.randn(1, *latents.read(number).shape, generator=torch.Generator().manual_seed(seed))
            yield prior.unwhiten(noise, torch.tensor([latents.labels(number, vocabulary)[0]]))[0]

    def read(chosen: list[int]) -> Iterable[Tensor]:
        return (latents.read(number).float() for number in chosen)

    real, ratios = differences(read(numbers), tokenizer, n_frames), {}
    for name, stacks in (("draws", draws()), ("other training latents", read(others))):
        within, across = differences(stacks, tokenizer, n_frames) / real
        ratios |= {f"{name}, within cells": within, f"{name}, across borders": across}
    print(f"| frequency, slow to fast | {' | '.join(map(str, range(1, n_frames)))} |\n|{' --- |' * n_frames}")
    for name, row in ratios.items():
        print(f"| {name} | {' | '.join(f'{value:.2f}' for value in row[1:])} |")


if __name__ == "__main__":
    main()

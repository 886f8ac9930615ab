"""Samplers and steps against each other: scores on a real test split, variance, and seconds per finished sample.

    python benchmarks/sampling_table.py --real COHORT [--checkpoint MODEL] [--n 25] [--keep FOLDER]
    python benchmarks/sampling_table.py --real COHORT --n 2 --conditions gambling_loss --settings dpmpp2m:20 ddpm:1000

Every setting samples the conditions into a dataset with `fmrisynth sample`'s own function, from the same seeds, and its
group maps are scored against those of the test subjects. With ``--keep`` the datasets stay and a later call continues them, so a
row of many steps can grow overnight. Prints a Markdown table:

- evaluations: forward passes of the network per sample
- Corr, RSA, Top-1 of group maps; `n` samples per condition, the same for all rows, because a group map's noise falls with n.
  RSA needs three conditions, Top-1 ranks among the conditions sampled
- SD: temporal standard deviation of the samples in units of the real blocks', median over voxels
- seconds: processor time and wall time of the whole call (denoise, decode, write) per sample made; "–" if all were there already
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from fmrisynth.config.glm import GlmConfig
from fmrisynth.config.sample import SampleConfig
from fmrisynth.data.blocks import common_grid, read_blocks
from fmrisynth.evaluate.scoring import group_maps
from fmrisynth.glm.effects import subject_effects
from fmrisynth.glm.map_scores import score_maps
from fmrisynth.glm.windows import common_mask, iterate_windows
from fmrisynth.sample.run import load_model, sample_dataset

SETTINGS = [
    ("dpmpp2m", 5), ("dpmpp2m", 10), ("dpmpp2m", 20), ("dpmpp2m", 50),
    ("heun", 5), ("heun", 10), ("heun", 20),
    ("euler", 10), ("euler", 20), ("ddim", 20), ("ddim", 50),
]  # fmt: skip
SD_BLOCKS = 60
"""Blocks per dataset whose temporal standard deviation is taken."""


def temporal_sd(blocks, mask_XYZ, grid, config: GlmConfig) -> np.ndarray:
    """Mean over blocks, spread over the dataset, of the temporal standard deviation per voxel, (V,)."""
    chosen = blocks[:: max(1, len(blocks) // SD_BLOCKS)]
    total = sum(window.percent_TV.std(axis=0, ddof=1) for window in iterate_windows(chosen, mask_XYZ, grid, config))
    return np.asarray(total) / len(chosen)


def main() -> None:
    """Parse, sample, score, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--n", type=int, default=25, help="samples per condition")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--conditions", nargs="*", help="default: all that the model knows")
    parser.add_argument("--settings", nargs="*", help="such as dpmpp2m:20 heun:10 ddpm:1000")
    parser.add_argument("--mean-image", action="store_true", help="without the tokenizer's observation noise")
    parser.add_argument("--keep", type=Path, help="keep the datasets here, and continue those that are there")
    arguments = parser.parse_args()
    chosen = [(s, int(n)) for s, n in (x.split(":") for x in arguments.settings)] if arguments.settings else SETTINGS

    config = GlmConfig()
    model, tokenizer = load_model(arguments.checkpoint)
    conditions = arguments.conditions or list(model.conditions)
    real = [b for b in read_blocks(arguments.real, split="test") if b.condition in conditions]
    grid = common_grid(real)
    mask = common_mask(real, grid, config.min_reference_fraction) & tokenizer.info.mask_XYZ
    real_maps = group_maps(subject_effects(real, config, grid=grid, mask_XYZ=mask), conditions).z_KV
    real_sd = temporal_sd(real, mask, grid, config)

    print("| sampler | steps | evaluations | n | Corr | RSA | Top-1 | SD | processor (wall) s per sample |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        for sampler, steps in chosen:
            out = (arguments.keep or Path(temporary)) / f"{sampler}-{steps}"
            ask = SampleConfig(
                conditions=tuple(conditions),
                n=arguments.n,
                seed=arguments.seed,
                sampler=sampler,
                steps=steps,
                observation_noise=not arguments.mean_image,
                preview=False,
            )
            n_before = len(list(out.glob("sub-*/sub-*_scans.tsv")))
            wall, processor = time.perf_counter(), time.process_time()
            sample_dataset(out, ask, checkpoint=arguments.checkpoint)
            wall, processor = time.perf_counter() - wall, time.process_time() - processor
            every = read_blocks(out)
            n_made = len(every) - n_before
            seconds = f"{processor / n_made:.2f} ({wall / n_made:.2f})" if n_made else "–"
            first = {f"{i + 1:04d}" for i in range(arguments.n)}  # a kept dataset may hold more
            made = [b for b in every if b.condition in conditions and b.subject[-4:] in first]
            maps = group_maps(subject_effects(made, config, grid=grid, mask_XYZ=mask), conditions).z_KV
            finite = np.isfinite(real_maps).all(axis=0) & np.isfinite(maps).all(axis=0)
            scores = score_maps(real_maps[:, finite], maps[:, finite])
            sd = float(np.median(temporal_sd(made, mask, grid, config) / real_sd))
            evaluations = 2 * steps - 1 if sampler == "heun" else steps
            rsa = f"{float(scores.rsa_pearson):.3f}" if len(conditions) > 2 else "–"
            top1 = f"{float(scores.top1):.2f}" if len(conditions) > 1 else "–"
            print(
                f"| {sampler} | {steps} | {evaluations} | {arguments.n} | {float(scores.corr):.3f} | {rsa} | {top1} | "
                f"{sd:.3f} | {seconds} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

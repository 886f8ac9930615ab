"""Samplers and steps against each other: scores on a real test split, and seconds per finished sample.

    python benchmarks/sampling_table.py --real COHORT [--checkpoint MODEL] [--n 25]

Every setting samples all conditions into a temporary dataset with `fmrisynth sample`'s own function, and its group maps
are scored against those of the test subjects. Prints a Markdown table. Seconds are wall time of the whole call (denoise,
decode, write) per sample, with all cores; evaluations are forward passes of the network per sample.
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
from fmrisynth.glm.windows import common_mask
from fmrisynth.sample.run import load_model, sample_dataset

SETTINGS = [
    ("dpmpp2m", 5), ("dpmpp2m", 10), ("dpmpp2m", 20), ("dpmpp2m", 50),
    ("heun", 5), ("heun", 10), ("heun", 20),
    ("euler", 10), ("euler", 20), ("ddim", 20), ("ddim", 50),
]  # fmt: skip


def main() -> None:
    """Parse, sample, score, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--n", type=int, default=25)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--settings", nargs="*", help="such as dpmpp2m:20 heun:10")
    arguments = parser.parse_args()
    chosen = [(s, int(n)) for s, n in (x.split(":") for x in arguments.settings)] if arguments.settings else SETTINGS

    config = GlmConfig()
    model, tokenizer = load_model(arguments.checkpoint)
    conditions = list(model.conditions)
    real = [b for b in read_blocks(arguments.real, split="test") if b.condition in conditions]
    grid = common_grid(real)
    mask = common_mask(real, grid, config.min_reference_fraction) & tokenizer.info.mask_XYZ
    real_maps = group_maps(subject_effects(real, config, grid=grid, mask_XYZ=mask), conditions).z_KV

    print("| sampler | steps | evaluations | Corr | RSA | Top-1 | s per sample |\n|---|---|---|---|---|---|---|")
    for sampler, steps in chosen:
        with tempfile.TemporaryDirectory() as folder:
            ask = SampleConfig(
                conditions=tuple(conditions),
                n=arguments.n,
                seed=arguments.seed,
                sampler=sampler,
                steps=steps,
                preview=False,
            )
            start = time.perf_counter()
            sample_dataset(Path(folder) / "out", ask, checkpoint=arguments.checkpoint)
            seconds = (time.perf_counter() - start) / (arguments.n * len(conditions))
            made = read_blocks(Path(folder) / "out")
            maps = group_maps(subject_effects(made, config, grid=grid, mask_XYZ=mask), conditions).z_KV
        finite = np.isfinite(real_maps).all(axis=0) & np.isfinite(maps).all(axis=0)
        scores = score_maps(real_maps[:, finite], maps[:, finite])
        evaluations = 2 * steps - 1 if sampler == "heun" else steps
        print(
            f"| {sampler} | {steps} | {evaluations} | {float(scores.corr):.3f} | {float(scores.rsa_pearson):.3f} | "
            f"{float(scores.top1):.2f} | {seconds:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

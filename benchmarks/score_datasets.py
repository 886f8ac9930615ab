"""Scores of block datasets in a minute each: Corr, RSA and Top-1 of group maps, Top-1 and variance of single blocks.

    python benchmarks/score_datasets.py REAL [--training COHORT --n 100] SAMPLES [SAMPLES ...]

Window-GLM effects against the group maps of all subjects of REAL, as in the study; `fmrisynth evaluate` is the whole report. With
`--training`, as many blocks of the training split of another real dataset in the samples' place, mean of five draws.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "study"))
from score import SCORES, RealMaps, block_effects, draws_of, score

from fmrisynth.config.glm import GlmConfig
from fmrisynth.data.blocks import common_grid, read_blocks
from fmrisynth.glm.statistics import random_effects
from fmrisynth.glm.windows import common_mask


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", type=Path)
    parser.add_argument("samples", type=Path, nargs="+")
    parser.add_argument("--training", type=Path)
    parser.add_argument("--n", type=int, default=100)
    arguments = parser.parse_args()
    datasets = {str(folder): read_blocks(folder) for folder in arguments.samples}
    real = read_blocks(arguments.real)
    conditions = sorted({block.condition for block in next(iter(datasets.values()))})
    training = read_blocks(arguments.training, split="train") if arguments.training else []
    every = [*real, *training, *(block for blocks in datasets.values() for block in blocks)]
    mask_XYZ = common_mask(every, common_grid(every), GlmConfig().min_reference_fraction)

    by_block = block_effects([b for b in real if b.condition in conditions], mask_XYZ)
    by_subject: dict[str, dict[str, list[np.ndarray]]] = {c: {} for c in conditions}
    for condition, found in by_block.items():
        for subject, effect_V in found:
            by_subject[condition].setdefault(subject, []).append(effect_V)
    z_KV = [random_effects(np.stack([np.mean(e, axis=0) for e in by_subject[c].values()])).z for c in conditions]
    variance_K = [np.median(np.stack([e for _, e in by_block[c]]).var(axis=0, ddof=1)) for c in conditions]
    maps = RealMaps(conditions, mask_XYZ, np.stack(z_KV), np.array(variance_K))

    print(f"| dataset | {' | '.join(SCORES.values())} |\n|" + " --- |" * (len(SCORES) + 1), flush=True)
    for name, blocks in datasets.items():
        effects = {c: np.stack([e for _, e in found]) for c, found in block_effects(blocks, mask_XYZ).items()}
        scores = score(effects, maps)
        print(f"| {name} | {' | '.join(f'{scores[key]:.3f}' for key in SCORES)} |", flush=True)
    if training:
        effects = {c: np.stack([e for _, e in found]) for c, found in block_effects(training, mask_XYZ).items()}
        draws = draws_of(effects, maps, arguments.n, draws=5, seed=0)
        print(f"| {arguments.n} training blocks | {' | '.join(f'{np.mean(draws[key]):.3f}' for key in SCORES)} |")


if __name__ == "__main__":
    main()

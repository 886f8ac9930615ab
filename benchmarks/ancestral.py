"""The default sampler against ancestral sampling over 1000: does it change the group maps?

    python benchmarks/ancestral.py COHORT FOLDER [--checkpoint MODEL] [--n 8] [--also heun:10 dpmpp2m:20]

Both draw samples from the same seeds, and the same observation noise; window-GLM effects as in benchmarks/study/score.py. Samples
advance eight at a time, which is faster on a CPU. Prints Corr of both with the test subjects' group maps, and a bootstrap interval over
samples of the difference. Effects are kept in FOLDER; a condition that is there is not drawn again.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent / "study"))
from score import RealMaps, brain, real_maps, sample_effects, score

from fmrisynth.sample.run import load_model

SETTINGS = (("ab2", 10), ("ddpm", 1000))
REPEATS = 100


def corr(effects: dict[str, np.ndarray], real: RealMaps, index: np.ndarray) -> float:
    """Corr of a resample."""
    return score({c: e[index] for c, e in effects.items()}, real)["corr"]


def main() -> None:
    """Draw, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--n", type=int, default=8)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--also", nargs="*", default=[], help="further rows, such as heun:10")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model, tokenizer = load_model(arguments.checkpoint)
    mask_XYZ, conditions = brain(arguments.cohort, tokenizer), list(model.conditions)
    real = real_maps(arguments.cohort, "test", conditions, mask_XYZ, arguments.folder / "real.npz")
    found: dict[tuple[str, int], dict[str, np.ndarray]] = {}
    print(
        "| sampler | steps | Corr | RSA | Top-1 | variance | processor s per sample |\n| --- | --- | --- | --- | --- | --- | --- |"
    )
    more = [(name, int(n)) for name, n in (text.split(":") for text in arguments.also)]
    for sampler, steps in [*SETTINGS, *more]:
        own, seconds = {}, []
        for condition in conditions:
            cache = arguments.folder / f"{sampler}-{steps}-{condition}-{arguments.n}-seed{arguments.seed}.npz"
            if not cache.exists():
                started = time.process_time()
                effects = sample_effects(
                    model, tokenizer, condition, mask_XYZ, n=arguments.n, seed=arguments.seed, sampler=sampler, steps=steps,
                    guidance=1.0, group=8,
                )  # fmt: skip
                part = cache.with_suffix(".part.npz")
                np.savez(part, effects=effects, seconds=(time.process_time() - started) / arguments.n)
                part.rename(cache)
            with np.load(cache) as stored:
                own[condition] = stored["effects"]
                seconds.append(float(stored["seconds"]))
        found[sampler, steps] = own
        row = score(own, real)
        cells = " | ".join(f"{row[key]:.3f}" for key in ("corr", "rsa", "top1", "effect_variance_ratio"))
        print(f"| {sampler} | {steps} | {cells} | {np.mean(seconds):.2f} |", flush=True)
    rng = np.random.default_rng(0)
    differences = []
    for _ in range(REPEATS):
        index = rng.integers(arguments.n, size=arguments.n)
        if len(set(index.tolist())) > 2:
            differences.append(corr(found[SETTINGS[0]], real, index) - corr(found[SETTINGS[1]], real, index))
    low, high = np.percentile(differences, [2.5, 97.5])
    first, second = (score(found[key], real)["corr"] for key in SETTINGS)
    print(
        f"\ndifference of Corr {first - second:+.3f} [{low:+.3f}, {high:+.3f}] (95 %, bootstrap of samples), n = {arguments.n} per condition"
    )


if __name__ == "__main__":
    main()

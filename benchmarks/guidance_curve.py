"""What guidance does to Corr, to the Top-1 of single samples and to variance.

    python benchmarks/guidance_curve.py MODEL COHORT docs/figures/guidance.png [--split val] [--n 40] [--scales 0 1 1.5 2 3]

Samples of every condition against the group maps of one split of a block dataset, scored as in the study (study/score.py), beside as many
real training blocks. Choose the scale on a split that is not the test split.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent / "study"))
from score import SCORES, brain, equal_number_ceiling, real_maps, sample_effects, score

from fmrisynth.sample.drawer import DEFAULT_STEPS, load_model

DRAWN = ("corr", "top1_samples", "effect_variance_ratio")


def main() -> None:
    """Print a Markdown table and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("figure", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--n", type=int, default=40)
    parser.add_argument("--scales", type=float, nargs="*", default=[0.0, 1.0, 1.25, 1.5, 2.0, 3.0])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = load_model(arguments.model)
    mask_XYZ = brain(arguments.cohort, tokenizer, ("train", arguments.split))
    cache = arguments.figure.with_suffix(f".{arguments.split}.npz")
    real = real_maps(arguments.cohort, arguments.split, list(model.conditions), mask_XYZ, cache)
    print(f"| guidance | {' | '.join(SCORES.values())} |\n|" + " --- |" * (len(SCORES) + 1), flush=True)
    rows = []
    for scale in arguments.scales:
        effects = {
            c: sample_effects(
                model, tokenizer, c, mask_XYZ, n=arguments.n, seed=3, sampler="ab2", steps=DEFAULT_STEPS, guidance=scale
            )
            for c in real.conditions
        }
        rows.append(score(effects, real))
        print(f"| {scale:g} | {' | '.join(f'{rows[-1][key]:.2f}' for key in SCORES)} |", flush=True)
    ceiling = {
        key: float(np.mean(draws))
        for key, draws in equal_number_ceiling(arguments.cohort, "train", real, arguments.n).items()
    }
    print(f"| as many real training blocks | {' | '.join(f'{ceiling[key]:.2f}' for key in SCORES)} |")
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, key in enumerate(DRAWN):
        axes.plot(arguments.scales, [row[key] for row in rows], "o-", color=f"C{number}", label=SCORES[key])
        axes.axhline(ceiling[key], color=f"C{number}", linestyle="--", linewidth=1)
    axes.set_xlabel("guidance scale (dashed: as many real training blocks)")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(arguments.figure, dpi=130, metadata={"Software": None})


if __name__ == "__main__":
    main()

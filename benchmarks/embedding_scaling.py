"""Masked loss on held-out people against the amount of training data, with a power law; and against the frames of a patch.

    python benchmarks/embedding_scaling.py EMBEDDED OUT [--people 4 8 16 32] [--seeds 0 1] [--patch-frames 4] [--steps 300]

EMBEDDED is an output of `fmrisynth embed`, whose flat maps are used again; the encoders are fitted with the settings of its run. For HCP:
`fmrisynth prepare` and `fmrisynth embed --preset mae-vitb` first, then this with `--people 16 64 256 1024` under torchrun.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.stats import t as student

from fmrisynth.bids.origin import read_origin
from fmrisynth.config.embed import EmbedConfig
from fmrisynth.config.load import load_config
from fmrisynth.embed.learning import MaskedLearning
from fmrisynth.embed.maps import FlatMaps
from fmrisynth.models.distributed import join_world
from fmrisynth.train.loop import Trainer
from fmrisynth.train.runlog import LOG_NAME, read_log


def fit(embedded: Path, out: Path, config: EmbedConfig, n_people: int) -> tuple[int, float]:
    """Fit to the first so many training people; returns training frames and the lowest masked loss on the validation people."""
    people = {
        split: sorted({r.subject for r in FlatMaps(embedded / "maps", config.maps).rows if r.split == split})
        for split in ("train", "val")
    }
    maps = FlatMaps(embedded / "maps", config.maps, people["train"][:n_people] + people["val"])
    with join_world(config.device) as world:
        learning = MaskedLearning(maps, read_origin(embedded), config, world)
        Trainer(learning, out, config, world).run()
    losses = [record["loss"] for record in read_log(out / LOG_NAME) if record["kind"] == "val"]
    return sum(maps.rows[i].n_frames for i in learning.train_set), min(losses)


def power_law(frames: np.ndarray, losses: np.ndarray) -> tuple[float, float]:
    """Exponent b of ``loss ~ frames^-b`` by least squares on logarithms, and half the width of its 95 % interval."""
    x, y = np.log(frames), np.log(losses)
    slope, level = np.polyfit(x, y, 1)
    dof = len(x) - 2
    error = np.sqrt(np.square(y - slope * x - level).sum() / max(dof, 1) / np.square(x - x.mean()).sum())
    return -float(slope), float(student.ppf(0.975, dof) * error) if dof > 0 else float("inf")


def main() -> None:
    """Print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embedded", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--people", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--patch-frames", type=int, nargs="+", default=None)
    parser.add_argument("--steps", type=int, default=None)
    arguments = parser.parse_args()
    base = load_config(
        EmbedConfig, "embed", file=arguments.embedded / "encoder" / "config.yaml", flags={"steps": arguments.steps}
    )
    print("| patch frames | people | frames | masked loss, lowest of the run |\n| --- | --- | --- | --- |")
    for patch_frames in arguments.patch_frames or [base.model.patch[0]]:
        model = base.model.model_copy(update={"patch": (patch_frames, *base.model.patch[1:])})
        found = []
        for n in arguments.people:
            for seed in arguments.seeds:
                config = base.model_copy(update={"model": model, "seed": seed})
                frames, loss = fit(
                    arguments.embedded, arguments.out / f"patch{patch_frames}-people{n}-seed{seed}", config, n
                )
                found.append((frames, loss))
                print(f"| {patch_frames} | {n} | {frames} | {loss:.4f} |", flush=True)
        if len(set(arguments.people)) > 1:
            exponent, reach = power_law(*map(np.array, zip(*found, strict=True)))
            print(f"\npatch of {patch_frames} frames: loss ~ frames^-b with b = {exponent:.4f} ± {reach:.4f}\n")


if __name__ == "__main__":
    main()

"""Overfit eight instances: a denoiser that cannot learn eight blocks by heart would be broken.

    fmrisynth simulate COHORT --layout blocks --n-subjects 2
    fmrisynth tokenize COHORT LATENTS --tokenizer bundled
    python benchmarks/overfit.py LATENTS docs/figures/training_overfit.png

Takes the first eight training instances of a latents folder, cut to a cube in the middle of the latent grid so that minutes of
one CPU core are enough, and trains a small hybrid on them with `fmrisynth train`'s own function: epsilon prediction, no prior,
no dropout. A network that answers "no noise" scores a loss of 1. Prints the curve, and draws it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch
from plot_training import draw
from safetensors.torch import load_file, save_file

from fmrisynth.config.load import load_config
from fmrisynth.config.train import TrainConfig
from fmrisynth.train import train_denoiser

N = 8


def take_eight(latents: Path, out: Path, side: int) -> None:
    """A latents folder of eight training instances, and one of them for validation, cut to `side`^3 cells."""
    out.mkdir(parents=True)
    shutil.copytree(latents / "tokenizer", out / "tokenizer")
    left = N
    for index in sorted(latents.glob("sub-*_latents.tsv")):
        header, *lines = index.read_text().splitlines()
        split, row = (header.split("\t").index(name) for name in ("split", "row"))
        chosen = [cells for cells in (line.split("\t") for line in lines) if cells[split] == "train"][:left]
        if not chosen:
            continue
        left -= len(chosen)
        stack = load_file(index.with_suffix(".safetensors"))["latents"]
        middle = [slice((n - side) // 2, (n - side) // 2 + side) for n in stack.shape[-3:]]
        rows = [stack[int(cells[row])][..., *middle] for cells in chosen]
        if left == 0:  # the trainer wants a validation split: the last instance again
            chosen.append(["val" if i == split else cell for i, cell in enumerate(chosen[-1])])
            rows.append(rows[-1])
        for number, cells in enumerate(chosen):
            cells[row] = str(number)
        save_file({"latents": torch.stack(rows).contiguous()}, out / index.with_suffix(".safetensors").name)
        (out / index.name).write_text("\n".join(["\t".join(c) for c in [header.split("\t"), *chosen]]) + "\n")
        if left == 0:
            return
    raise SystemExit(f"{latents}: expected at least {N} training instances, found {N - left}.")


def main() -> None:
    """Parse, train, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("latents", type=Path)
    parser.add_argument("figure", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--side", type=int, default=4, help="cells per side of the cube")
    parser.add_argument(
        "--base-ch", type=int, default=48, help="no narrower than the 36 channels, or noise cannot pass"
    )
    arguments = parser.parse_args()
    overrides = [
        "prior=none", "objective.prediction=epsilon", f"model.base_ch={arguments.base_ch}", "model.num_heads=4",
        "optimiser.learning_rate=2e-3", "optimiser.decay=cosine", "conditioning.dropout=0",
    ]  # fmt: skip
    every = max(1, arguments.steps // 12)
    flags = {
        "steps": arguments.steps, "batch_size": 16, "log_every": every, "val_every": arguments.steps,
        "checkpoint_every": arguments.steps, "device": "cpu",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        latents, run = Path(folder) / "latents", Path(folder) / "run"
        take_eight(arguments.latents, latents, arguments.side)
        config = load_config(TrainConfig, "train", preset="smoke", overrides=overrides, flags=flags)
        train_denoiser(latents, run, config)
        entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    draw(entries, arguments.figure, log_scale=True, validation=False)
    print("| step | training loss, mean since the row before |\n|---|---|")
    for entry in entries:
        if entry["kind"] == "train":
            print(f"| {entry['step']} | {entry['loss_mean']:.4f} |")


if __name__ == "__main__":
    main()

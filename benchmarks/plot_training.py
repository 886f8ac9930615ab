"""Draw the loss curves of a training run.

    python benchmarks/plot_training.py MODEL docs/figures/training_bundled.png [LATENTS]

With the latents that a preconditioned run was trained on, a first row says what the prior alone reaches: a network that answers 0.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fmrisynth.config.train import TrainConfig
from fmrisynth.diffusion.objectives import Objective
from fmrisynth.diffusion.prior import Prior
from fmrisynth.models.checkpoint import load_denoiser
from fmrisynth.models.distributed import World
from fmrisynth.train.dataset import TrainingLatents
from fmrisynth.train.validate import Validation


def draw(entries: Sequence[dict[str, Any]], out: Path, *, log_scale: bool = False, validation: bool = True) -> None:
    """Training and validation loss of a log's entries as a picture."""
    train = [(e["step"], e["loss_mean"]) for e in entries if e["kind"] == "train"]
    val = [(e["step"], e["loss"]) for e in entries if e["kind"] == "val"]
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(
        *zip(*train, strict=True), color="0.6" if validation else "tab:blue", label="training (mean of the last steps)"
    )
    if validation:
        axes.plot(*zip(*val, strict=True), "o-", color="tab:orange", label="validation")
    if log_scale:
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130, metadata={"Software": None})


def loss_of_prior(run: Path, latents: Path) -> float:
    """Validation loss of a run whose network answers 0: what a preconditioned run starts from."""
    config = TrainConfig(**yaml.safe_load((run / "config.yaml").read_text()))
    source, model = TrainingLatents(latents), load_denoiser(run / "best")
    vocabulary = source.vocabulary(source.select("train"), ["condition", *config.conditioning.attributes])
    validation = Validation(
        source, source.select("val"), vocabulary, Objective(**config.objective.model_dump()),
        Prior.from_tensors(model.prior_kind, model.prior_tensors),
        n=config.val_instances, seed=config.seed, batch_size=config.batch_size,
    )  # fmt: skip

    class Silent(torch.nn.Module):
        def forward(self, noisy: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(noisy)

    return float(validation.run(Silent(), World(0, 1, torch.device("cpu")), nullcontext())["loss"])


def main(run: Path, out: Path, latents: Path | None = None) -> None:
    """Read log.jsonl, draw training and validation loss, print the validation table."""
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    draw(entries, out)
    print("| step | validation loss | rise with a wrong label |\n|---|---|---|")
    if latents is not None:
        print(f"| prior alone | {loss_of_prior(run, latents):.4f} | |")
    for entry in entries:
        if entry["kind"] == "val":
            print(f"| {entry['step']} | {entry['loss']:.4f} | {entry['condition_gain']:.5f} |")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

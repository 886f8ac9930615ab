"""``fmrisynth train``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from fmrisynth.cli import options, plans
from fmrisynth.cli.options import ConfigFile, Device, DryRun, Out, Seed, Verbose, overriding, setting
from fmrisynth.config.load import preset_names
from fmrisynth.config.train import TrainConfig

EXAMPLE = "fmrisynth train latents/ model/ --preset hybrid-38m"


def train(
    latents: Annotated[Path, typer.Argument(metavar="LATENTS", help="Latents, as `fmrisynth tokenize` writes them.")],
    out: Out,
    preset: Annotated[
        str,
        typer.Option(
            help=f"Model and recipe: {', '.join(preset_names('train'))}.",
            autocompletion=options.complete_presets("train"),
        ),
    ] = "hybrid-38m",
    steps: Annotated[
        int | None, setting(TrainConfig, "steps", min=1, help="Optimiser steps.", default="of the preset")
    ] = None,
    batch_size: Annotated[
        int | None,
        setting(TrainConfig, "batch_size", min=1, help="Instances per step, over all ranks.", default="of the preset"),
    ] = None,
    max_hours: Annotated[
        float | None,
        setting(TrainConfig, "max_hours", help="Stop with a checkpoint after this many hours.", default="no limit"),
    ] = None,
    device: Device = None,
    config: ConfigFile = None,
    set_: Annotated[list[str] | None, overriding("optimiser.learning_rate=2e-4")] = None,
    seed: Seed = None,
    dry_run: DryRun = False,
    verbose: Verbose = 0,
) -> int:
    """Train the denoiser; the same command resumes. Start with torchrun or srun for many GPUs."""

    options.set_verbosity(verbose)
    resolved = options.resolve(
        TrainConfig, "train", preset=preset, file=config, overrides=set_, seed=seed, steps=steps,
        batch_size=batch_size, max_hours=max_hours, device=device,
    )  # fmt: skip
    options.check_in(latents, "latents, as `fmrisynth tokenize` writes them")
    options.check_out(out)
    from fmrisynth.train import train_denoiser

    call = partial(train_denoiser, latents, out, resolved)
    if dry_run:
        return options.show_plan(resolved, plans.training(latents, out, resolved), call)
    return options.finish(call(), out)

"""``fmrisynth embed``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from fmrisynth.cli import options, plans
from fmrisynth.cli.options import (
    ConfigFile,
    Device,
    DryRun,
    Force,
    Out,
    ParticipantLabels,
    Seed,
    Verbose,
    overriding,
    setting,
)
from fmrisynth.config.embed import EmbedConfig

EXAMPLE = "fmrisynth embed blocks/ embedded/ --preset mae-small --probe condition --probe age"


def embed(
    dataset: Annotated[
        Path,
        typer.Argument(
            metavar="DATASET", help="A block or run dataset in MNI space, or one of CIFTI series (*.dtseries.nii)."
        ),
    ],
    out: Out,
    encoder: Annotated[
        Path | None,
        typer.Option(
            help="Use this encoder (a folder that embed made) instead of fitting one.", show_default="fit one"
        ),
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            help="Encoder to fit: mae-small (CPU) or mae-vitb (the paper's).",
            autocompletion=options.complete_presets("embed"),
        ),
    ] = "mae-small",
    probe: Annotated[
        list[str] | None,
        typer.Option(
            help="Tell this from the features: condition, subject, or a column of participants.tsv (repeat).",
            show_default="none",
        ),
    ] = None,
    steps: Annotated[
        int | None, setting(EmbedConfig, "steps", min=1, help="Optimiser steps.", default="of the preset")
    ] = None,
    max_hours: Annotated[
        float | None,
        setting(EmbedConfig, "max_hours", help="Stop with a checkpoint after this many hours.", default="no limit"),
    ] = None,
    participant_label: ParticipantLabels = None,
    device: Device = None,
    config: ConfigFile = None,
    set_: Annotated[list[str] | None, overriding("maps.pixel_mm=2")] = None,
    seed: Seed = None,
    force: Force = False,
    dry_run: DryRun = False,
    verbose: Verbose = 0,
) -> int:
    """Flat maps, a masked autoencoder of them (unless one is given), features, and what they tell of states and traits."""

    options.set_verbosity(verbose)
    resolved = options.resolve(
        EmbedConfig, "embed", preset=preset, file=config, overrides=set_, seed=seed, steps=steps, max_hours=max_hours,
        device=device,
    )  # fmt: skip
    options.check_in(dataset, "a block dataset, as `fmrisynth prepare` writes it, or one of CIFTI series")
    options.check_out(out)
    from fmrisynth.embed import embed_dataset

    call = partial(
        embed_dataset, dataset, out, resolved, encoder=encoder, probes=probe or (), participant_labels=participant_label,
        force=force,
    )  # fmt: skip
    if dry_run:
        return options.show_plan(resolved, plans.embedding(dataset, out, resolved, encoder, participant_label), call)
    return options.finish(call(), out)

"""``fmrisynth tokenize``."""

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
from fmrisynth.config.load import preset_names
from fmrisynth.config.tokenize import TokenizeConfig

EXAMPLE = "fmrisynth tokenize blocks/ latents/"


def tokenize(
    prepared: Annotated[Path, typer.Argument(metavar="PREPARED", help="A block dataset.")],
    out: Out,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="Use this tokenizer (a folder, or the word bundled) instead of fitting one.", show_default="fit one"
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help=f"Kind and size of tokenizer to fit: {', '.join(preset_names('tokenize'))}.",
            show_default="patch-overlap",
            autocompletion=options.complete_presets("tokenize"),
        ),
    ] = None,
    init: Annotated[
        Path | None, setting(TokenizeConfig, "init", help="Start the fit from this tokenizer or ALDM state dict.")
    ] = None,
    normalisation: Annotated[str | None, setting(TokenizeConfig, "normalisation", help="Of the intensities")] = None,
    participant_label: ParticipantLabels = None,
    device: Device = None,
    config: ConfigFile = None,
    set_: Annotated[list[str] | None, overriding("model.channels=4")] = None,
    seed: Seed = None,
    force: Force = False,
    dry_run: DryRun = False,
    verbose: Verbose = 0,
) -> int:
    """Fit a tokenizer unless one is given, and encode every block to latents."""

    options.set_verbosity(verbose)
    resolved = options.resolve(
        TokenizeConfig, "tokenize", preset=preset, file=config, overrides=set_, seed=seed, init=init,
        normalisation=normalisation, device=device,
    )  # fmt: skip
    options.check_in(prepared, "a block dataset, as `fmrisynth prepare` writes it")
    options.check_out(out)
    from fmrisynth.tokenize import tokenize_dataset

    call = partial(
        tokenize_dataset,
        prepared,
        out,
        resolved,
        tokenizer=tokenizer,
        participant_labels=participant_label,
        force=force,
    )
    if dry_run:
        return options.show_plan(resolved, plans.encoding(prepared, out, resolved, tokenizer, participant_label), call)
    return options.finish(call(), out)

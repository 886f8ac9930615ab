"""``fmrisynth glm``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from fmrisynth.cli import options, plans
from fmrisynth.cli.options import ConfigFile, DryRun, Force, Out, ParticipantLabels, Seed, Verbose, overriding, setting
from fmrisynth.config.glm import GlmConfig

EXAMPLE = "fmrisynth glm blocks/ maps/ --contrast 'motor_rh - motor_lh'"


def glm(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="A block dataset, or BIDS with --unit run.")],
    out: Out,
    unit: Annotated[str | None, setting(GlmConfig, "unit", help="One window per block, or whole runs")] = None,
    contrast: Annotated[
        list[str] | None,
        setting(
            GlmConfig,
            "contrasts",
            help="Formula, for example 'motor_rh - motor_lh' (repeat).",
            default="each condition",
        ),
    ] = None,
    task: Annotated[
        str | None, setting(GlmConfig, "task", help="Only this BIDS task (unit run).", default="all")
    ] = None,
    split: Annotated[str | None, setting(GlmConfig, "split", help="Only this split", default="all")] = None,
    participant_label: ParticipantLabels = None,
    group: Annotated[
        bool, typer.Option("--group/--no-group", help="Leave the group maps to a later call (job arrays).")
    ] = True,
    config: ConfigFile = None,
    set_: Annotated[list[str] | None, overriding("drift=linear")] = None,
    seed: Seed = None,
    force: Force = False,
    dry_run: DryRun = False,
    verbose: Verbose = 0,
) -> int:
    """Subject and group activation maps, of real or synthetic data alike."""

    options.set_verbosity(verbose)
    resolved = options.resolve(
        GlmConfig,
        "glm",
        file=config,
        overrides=set_,
        seed=seed,
        unit=unit,
        contrasts=contrast,
        task=task,
        split=split,
    )
    options.check_in(dataset, "a block dataset (or a BIDS dataset with --unit run)")
    options.check_out(out)
    from fmrisynth.glm import run_glm

    call = partial(
        run_glm, dataset, out, resolved, participant_labels=participant_label or None, group=group, force=force
    )
    if dry_run:
        return options.show_plan(resolved, plans.maps(dataset, out, resolved, participant_label), call)
    return options.finish(call(), out)

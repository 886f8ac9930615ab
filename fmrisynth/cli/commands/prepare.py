"""``fmrisynth prepare``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from fmrisynth.cli import options
from fmrisynth.cli.options import ConfigFile, DryRun, Force, Out, ParticipantLabels, Seed, Verbose, overriding, setting
from fmrisynth.config.prepare import PrepareConfig

EXAMPLE = "fmrisynth prepare /data/HCP1200 blocks/"


def prepare(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="HCP tree, BIDS dataset or fMRIPrep derivatives.")],
    out: Out,
    layout: Annotated[str | None, setting(PrepareConfig, "layout", help="Layout of INPUT.")] = None,
    unit: Annotated[
        str | None,
        setting(PrepareConfig, "unit", help="A window from every block's onset, whole runs, or each session's T1w"),
    ] = None,
    native: Annotated[
        bool | None, setting(PrepareConfig, "native", "--native", help="Keep each subject's own space (no MNI needed).")
    ] = None,
    condition: Annotated[
        list[str] | None,
        setting(
            PrepareConfig,
            "conditions",
            help="Only these conditions (repeat).",
            default="the paper's seven, or all found",
            autocompletion=options.complete_conditions,
        ),
    ] = None,
    condition_table: Annotated[
        Path | None,
        setting(PrepareConfig, "condition_table", help="Your own condition table (YAML), merged over ours."),
    ] = None,
    bids_database_dir: Annotated[
        Path | None, setting(PrepareConfig, "bids_database_dir", help="A pybids index, built once and read-only.")
    ] = None,
    participant_label: ParticipantLabels = None,
    config: ConfigFile = None,
    set_: Annotated[list[str] | None, overriding("window.delay_s=2")] = None,
    seed: Seed = None,
    force: Force = False,
    dry_run: DryRun = False,
    verbose: Verbose = 0,
) -> int:
    """Cut runs into a block dataset (3 mm, 1.44 s, 12 frames from every block onset); --unit run takes them whole, anatomy the T1w."""

    options.set_verbosity(verbose)
    resolved = options.resolve(
        PrepareConfig, "prepare", file=config, overrides=set_, seed=seed, layout=layout, unit=unit, native=native,
        conditions=condition, condition_table=condition_table, bids_database_dir=bids_database_dir,
    )  # fmt: skip
    options.check_in(source, "an HCP release, a BIDS dataset or fMRIPrep derivatives")
    options.check_out(out)
    from fmrisynth.prepare import plan_prepare, prepare_dataset

    call = partial(prepare_dataset, source, out, resolved, participant_labels=participant_label, force=force)
    if dry_run:
        return options.show_plan(resolved, plan_prepare(source, resolved, participant_labels=participant_label), call)
    return options.finish(call(), out)

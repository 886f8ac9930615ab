"""``fmrisynth bids-app``."""

from __future__ import annotations

from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from fmrisynth.cli import LEVELS, options, plans
from fmrisynth.cli.options import Device, DryRun, Force, ParticipantLabels, Seed, Verbose, overriding, setting
from fmrisynth.config.app import AppConfig
from fmrisynth.config.prepare import PrepareConfig
from fmrisynth.errors import UsageError

EXAMPLE = "fmrisynth /data/bids out/ participant --participant-label 01 02"


def bids_app(
    bids_dir: Annotated[Path, typer.Argument(help="BIDS dataset, fMRIPrep derivatives or HCP tree.")],
    output_dir: Annotated[Path, typer.Argument(help="Folder for the result.")],
    level: Annotated[str, typer.Argument(help="participant or group.")],
    participant_label: ParticipantLabels = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Tokenizer folder.", show_default="the bundled one")] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Model for the synthetic cohort.", show_default="the bundled one, trained on phantom data"),
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Synthetic samples per condition (group).")] = 20,
    native: Annotated[bool, typer.Option("--native", help="Keep each subject's own space.")] = False,
    bids_database_dir: Annotated[
        Path | None, setting(PrepareConfig, "bids_database_dir", help="A pybids index, built once and read-only.")
    ] = None,
    set_: Annotated[list[str] | None, overriding("layout=bids")] = None,
    seed: Seed = 0,
    device: Device = None,
    n_processes: Annotated[
        int, typer.Option("--nprocs", "--n-cpus", min=1, help="Participants worked on at a time (participant).")
    ] = 1,
    work_dir: Annotated[
        Path | None,
        typer.Option(
            "-w",
            "--work-dir",
            help="Folder for the index of the input and temporary files.",
            show_default="none, and the system's",
        ),
    ] = None,
    skip_bids_validation: Annotated[bool, typer.Option("--skip-bids-validation", hidden=True)] = False,
    force: Force = False,
    dry_run: DryRun = False,
    verbose: Verbose = 0,
) -> int:
    """BIDS App: participant (prepare, encode, GLM, report) and group (maps, synthetic cohort, evaluation)."""

    options.set_verbosity(verbose)
    if level not in LEVELS:
        near = get_close_matches(level, LEVELS, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UsageError(f"{level!r} is not an analysis level: expected participant or group{hint}")
    resolved = options.resolve(
        AppConfig, "app", overrides=set_, seed=seed, n=n, native=native or None, device=device,
        bids_database_dir=bids_database_dir,
    )  # fmt: skip
    options.check_in(bids_dir, "a BIDS dataset, fMRIPrep derivatives or an HCP release")
    options.check_out(output_dir)
    if work_dir is not None and not dry_run:
        resolved = options.use_work_dir(work_dir, resolved)
    from fmrisynth.app import run_group, run_participants

    if level == "participant":
        lines = plans.participants(bids_dir, output_dir, resolved, tokenizer, participant_label)
        call = partial(
            run_participants, bids_dir, output_dir, resolved, tokenizer=tokenizer, participant_labels=participant_label,
            force=force, n_processes=1 if dry_run else n_processes,
        )  # fmt: skip
    else:
        lines = plans.group(output_dir, resolved, checkpoint)
        call = partial(run_group, bids_dir, output_dir, resolved, checkpoint=checkpoint, force=force)
    return options.show_plan(resolved, lines, call) if dry_run else options.finish(call(), output_dir)

"""``fmrisynth conditions``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fmrisynth.cli import options, plans
from fmrisynth.cli.options import Verbose, setting
from fmrisynth.config.prepare import PrepareConfig

EXAMPLE = "fmrisynth conditions --checkpoint model/"


def conditions(
    checkpoint: Annotated[
        Path | None, typer.Option(help="Mark the conditions that this model knows.", show_default="the bundled model")
    ] = None,
    condition_table: Annotated[
        Path | None,
        setting(PrepareConfig, "condition_table", help="Your own condition table (YAML), merged over ours."),
    ] = None,
    verbose: Verbose = 0,
) -> int:
    """List the task conditions: label, task and trial type, and which of them a model can draw."""
    options.set_verbosity(verbose)
    options.show_table(plans.CONDITION_COLUMNS, plans.condition_rows(checkpoint, condition_table))
    return 0

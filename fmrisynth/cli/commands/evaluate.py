"""``fmrisynth evaluate``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from fmrisynth.cli import options, plans
from fmrisynth.cli.options import ConfigFile, DryRun, Force, Out, Seed, Verbose, overriding, setting
from fmrisynth.config.evaluate import EvaluateConfig

EXAMPLE = "fmrisynth evaluate report/ --real blocks/ --synthetic synthetic/"


def evaluate(
    out: Out,
    real: Annotated[Path, typer.Option(help="Block dataset of real (or phantom) blocks, or of runs with --unit run.")],
    synthetic: Annotated[Path, typer.Option(help="Block dataset of synthetic blocks or runs.")],
    unit: Annotated[
        str | None,
        setting(EvaluateConfig, "unit", help="What is compared: windows of blocks, whole runs, or anatomies"),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        setting(EvaluateConfig, "tokenizer", help="Tokenizer folder (or bundled), for the ceiling it sets."),
    ] = None,
    truth: Annotated[
        Path | None, setting(EvaluateConfig, "truth", help="Phantom cohort, to compare with its planted truth.")
    ] = None,
    config: ConfigFile = None,
    set_: Annotated[list[str] | None, overriding("test_split=all")] = None,
    seed: Seed = None,
    force: Force = False,
    dry_run: DryRun = False,
    verbose: Verbose = 0,
) -> int:
    """Compare synthetic with real: metrics.json, figures and one HTML report."""

    options.set_verbosity(verbose)
    resolved = options.resolve(
        EvaluateConfig, "evaluate", file=config, overrides=set_, seed=seed, unit=unit, tokenizer=tokenizer, truth=truth
    )
    options.check_in(real, "a block dataset")
    options.check_in(synthetic, "a block dataset")
    options.check_out(out)
    from fmrisynth.evaluate import evaluate_datasets

    call = partial(evaluate_datasets, out, real=real, synthetic=synthetic, config=resolved, force=force)
    if dry_run:
        return options.show_plan(resolved, plans.comparison(real, synthetic, resolved), call)
    return options.finish(call(), out)

"""``fmrisynth check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fmrisynth.cli import options
from fmrisynth.cli.options import Checkpoint, Verbose

EXAMPLE = "fmrisynth check blocks/ --checkpoint model/"


def check(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A block dataset.")],
    checkpoint: Checkpoint = None,
    n_blocks: Annotated[int, typer.Option(min=1, help="Blocks to read, evenly spread.")] = 40,
    verbose: Verbose = 0,
) -> int:
    """Is a dataset like the one that a model was trained on? Exit status 1 where a difference matters."""
    options.set_verbosity(verbose)
    options.check_in(data, "a block dataset, as `fmrisynth prepare` writes it")
    from fmrisynth.check import check_dataset

    rows = check_dataset(data, checkpoint=checkpoint, n_blocks=n_blocks)
    options.show_table(
        ("", "model", "data", "matters"),
        [(row.what, row.model, row.data, "yes" if row.differs else "no") for row in rows],
    )
    differing = [row for row in rows if row.differs]
    for row in differing:
        typer.echo(f"{row.what}: {row.advice}.")
    if not differing:
        typer.echo("There is nothing that matters between the dataset and the model's training data.")
    return 1 if differing else 0

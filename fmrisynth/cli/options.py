"""Options that several commands share, and how flags become a configuration."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from fmrisynth.config.base import StageConfig
from fmrisynth.config.load import dump_yaml, load_config
from fmrisynth.errors import FmrisynthError
from fmrisynth.progress import StageSummary, log

C = TypeVar("C", bound=StageConfig)

PANEL = "Settings"

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="YAML", help="Settings file; flags win over it.", rich_help_panel=PANEL),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="One setting, dots go down: window.delay_s=2.",
        rich_help_panel=PANEL,
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of every random number.", rich_help_panel=PANEL)]
Verbose = Annotated[
    int,
    typer.Option("-v", "--verbose", count=True, help="More to read; tracebacks too.", rich_help_panel=PANEL),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.", rich_help_panel=PANEL)]
Force = Annotated[
    bool,
    typer.Option("--force", help="Make finished work anew, also with other settings.", rich_help_panel=PANEL),
]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N.", rich_help_panel=PANEL)]
ParticipantLabels = Annotated[
    list[str] | None,
    typer.Option(
        "--participant-label",
        metavar="LABEL",
        help="Only these participants (a list, or repeated; sub- optional).",
    ),
]


def resolve(
    model: type[C],
    stage: str,
    *,
    preset: str | None = None,
    file: Path | None = None,
    overrides: list[str] | None = None,
    **flags: Any,
) -> C:
    """Build a stage's configuration from what the user gave; empty lists count as not given."""
    given = {key.replace("__", "."): value for key, value in flags.items() if value not in (None, [], ())}
    return load_config(model, stage, preset=preset, file=file, overrides=overrides or (), flags=given)


def set_verbosity(verbose: int) -> None:
    """Warnings always; progress and information by default; details with ``-v``."""
    from rich.console import Console
    from rich.logging import RichHandler

    level = logging.DEBUG if verbose else logging.INFO
    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=verbose > 0, markup=False)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(level)
    log.propagate = False


def show_config(config: StageConfig) -> None:
    """Print the resolved configuration (for ``--dry-run``)."""
    typer.echo(dump_yaml(config).rstrip())


def show_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table that wraps to the width of the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*header, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    Console(soft_wrap=False).print(table)


def finish(summary: StageSummary) -> int:
    """Print a stage's summary; the exit status is 1 if a participant failed."""
    for line in summary.lines:
        typer.echo(line)
    for name, reason in summary.failed.items():
        typer.echo(f"FAILED {name}: {reason}", err=True)
    if summary.failed:
        typer.echo(f"{len(summary.failed)} failed; the others were written. Mend and run again.", err=True)
    return 1 if summary.failed else 0


def check_out(out: Path) -> None:
    """Refuse an output path that is a file."""
    if out.exists() and not out.is_dir():
        raise FmrisynthError(f"{out}: expected a folder for the output, found a file; name another folder.")


def check_in(path: Path, what: str) -> None:
    """Refuse an input folder that does not exist."""
    if not path.is_dir():
        raise FmrisynthError(f"{path}: expected a folder with {what}, there is none; check the path.")

"""Options that several commands share, and how flags become a configuration."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer

from fmrisynth.conditions import load_table
from fmrisynth.config.app import AppConfig
from fmrisynth.config.base import StageConfig
from fmrisynth.config.load import dump_yaml, load_config, preset_names
from fmrisynth.errors import UsageError
from fmrisynth.progress import StageSummary, console, log

C = TypeVar("C", bound=StageConfig)

PANEL = "Settings"


def setting(
    model: type[StageConfig], name: str, *declarations: str, help: str, default: str | None = None, **more: Any
) -> Any:
    """An option that is a setting of a stage; help shows the setting's default, the shell completes its values.

    Parameters
    ----------
    model, name
        The stage's configuration, and the setting in it.
    *declarations : str
        Spellings; default: the parameter's name.
    help : str
        What it is; the values of a closed choice are added.
    default : str, optional
        In words, where the setting's own default says nothing.
    **more
        For `typer.Option`.
    """
    field = model.model_fields[name]
    choices = _choices(field.annotation)
    if choices:
        help = f"{help.rstrip('.')}: {', '.join(choices)}."
        more = {"autocompletion": complete(choices)} | more
    return typer.Option(
        *declarations, help=help, show_default=default or in_words(field.get_default(call_default_factory=True)), **more
    )


def in_words(value: Any) -> str | bool:
    """A default for people; False where there is none to show."""
    if value is None or value in ((), "", {}):
        return False
    if isinstance(value, bool):
        return "on" if value else "off"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    return [choice for part in get_args(annotation) for choice in _choices(part)]


def complete(values: Iterable[str] | Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Completion of an option's value in the shell."""

    def begin_with(incomplete: str) -> list[str]:
        known = values() if callable(values) else values
        return [value for value in known if value.startswith(incomplete)]

    return begin_with


complete_conditions = complete(lambda: load_table().labels)


def complete_presets(stage: str) -> Callable[[str], list[str]]:
    """Completion of the presets of a stage."""
    return complete(lambda: preset_names(stage))


def overriding(example: str) -> Any:
    """The option ``--set``, with an example of the command's own settings."""
    return typer.Option(
        "--set", metavar="KEY=VALUE", help=f"One setting, for example {example}; dots go down.", rich_help_panel=PANEL
    )


Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the result; created, and continued if it exists.")]
Checkpoint = Annotated[
    Path | None, typer.Option(help="Your own model.", show_default="the bundled one, trained on phantom data")
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="YAML", help="Settings file; flags win over it.", rich_help_panel=PANEL),
]
Seed = Annotated[
    int | None,
    setting(StageConfig, "seed", "--seed", help="Seed of every random number.", min=0, rich_help_panel=PANEL),
]
Verbose = Annotated[
    int,
    typer.Option("-v", "--verbose", count=True, help="More to read; tracebacks too.", rich_help_panel=PANEL),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.", rich_help_panel=PANEL)]
Force = Annotated[
    bool,
    typer.Option("--force", help="Make finished work anew, also with other settings.", rich_help_panel=PANEL),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device", help="auto, cpu, cuda or cuda:N.", show_default="auto", rich_help_panel=PANEL,
        autocompletion=complete(("auto", "cpu", "cuda")),
    ),
]  # fmt: skip
ParticipantLabels = Annotated[
    list[str] | None,
    typer.Option(
        "--participant-label",
        metavar="LABEL",
        help="Only these participants (a list, or repeated; sub- optional).",
        show_default="all",
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
    """Warnings always; progress and information by default; details with ``-v``.

    On a terminal log lines go through the console of the progress bar; elsewhere they are plain and never wrapped.
    """
    from rich.logging import RichHandler

    level = logging.DEBUG if verbose else logging.INFO
    handler: logging.Handler
    if sys.stderr.isatty():
        handler = RichHandler(console=console(), show_path=False, show_time=verbose > 0, markup=False)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    log.handlers[:] = [handler]
    log.setLevel(level)
    log.propagate = False


def show_plan(config: StageConfig, lines: Iterable[str], call: Callable[[], object]) -> int:
    """For ``--dry-run``: the first line of the plan, the resolved settings as YAML, the rest of the plan; lines are comments.

    What `call`, the command itself, would refuse before it writes is refused here.
    """
    from fmrisynth.stage import rehearsal

    with rehearsal():
        call()
    first, *rest = [line if line.startswith("#") else f"# {line}" for line in lines]
    typer.echo("\n".join([first, dump_yaml(config).rstrip(), *rest]))
    return 0


def show_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table that wraps to the width of the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*header, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    Console(soft_wrap=False).print(table)


def finish(summary: StageSummary, out: Path) -> int:
    """Write the folder's landing page and print a stage's summary; the exit status is 1 if a participant failed."""
    if summary.lines:  # of several ranks the first one tells
        from fmrisynth.report.landing import page_to_open, write_index

        write_index(out)
        if (page := page_to_open(out)) is not None:
            summary.lines.append(f"Open {page}")
    for line in summary.lines:
        typer.echo(line)
    for name, reason in summary.failed.items():
        typer.echo(f"FAILED {name}: {reason}", err=True)
    if summary.failed:
        typer.echo(
            f"{len(summary.failed)} failed; the others were written. Correct what is wrong and run again.", err=True
        )
    return 1 if summary.failed else 0


def use_work_dir(folder: Path, config: AppConfig) -> AppConfig:
    """Keep the pybids index and temporary files in a folder, as other BIDS Apps do with ``--work-dir``."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
    if config.bids_database_dir is not None:
        return config
    return config.model_copy(update={"bids_database_dir": folder / "bids-index"})


def check_out(out: Path) -> None:
    """Refuse an output path that is a file."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: expected a folder for the output, found a file; name another folder.")


def check_in(path: Path, what: str) -> None:
    """Refuse an input folder that does not exist."""
    if not path.is_dir():
        raise UsageError(f"{path}: expected a folder with {what}, there is none; check the path.")

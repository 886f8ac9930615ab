"""The command line: every command under its panel of ``fmrisynth --help``, in this order."""

from __future__ import annotations

from typing import Annotated

import typer

from fmrisynth import __version__
from fmrisynth.cli.commands import (
    bids_app,
    check,
    conditions,
    embed,
    evaluate,
    glm,
    prepare,
    sample,
    simulate,
    tokenize,
    train,
)  # fmt: skip

PANELS = {
    "Data": (simulate, prepare, conditions),
    "Model": (tokenize, train, sample),
    "Proof": (glm, evaluate, embed, check),
}

app = typer.Typer(
    name="fmrisynth",
    help="Synthesise whole-brain 4D task-fMRI on request, and prove it with GLM maps.",
    epilog="As a BIDS App: fmrisynth BIDS_DIR OUT_DIR {participant|group} [--participant-label 01 02 ...]",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"fmrisynth {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Synthesise whole-brain 4D task-fMRI on request, and prove it with GLM maps."""


for _panel, _modules in PANELS.items():
    for _module in _modules:
        _name = _module.__name__.rpartition(".")[2]
        app.command(_name, rich_help_panel=_panel, epilog=f"Example: {_module.EXAMPLE}")(getattr(_module, _name))
app.command("bids-app", hidden=True, epilog=f"Example: {bids_app.EXAMPLE}")(bids_app.bids_app)

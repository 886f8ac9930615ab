"""The Boutiques descriptor of the BIDS-App call, written from the options themselves (Nipoppy and CBRAIN read it).

python -m fmrisynth.cli.boutiques > fmrisynth.json
"""

from __future__ import annotations

import inspect
import json
import typing
from pathlib import Path
from typing import Any

import typer.models

from fmrisynth import __version__
from fmrisynth.bids.provenance import CODE_URL
from fmrisynth.cli import LEVELS
from fmrisynth.cli.commands.bids_app import bids_app

IMAGE = f"fmrisynth:{__version__}"
_NUMBERS = (int, float)


def descriptor() -> dict[str, Any]:
    """A descriptor of Boutiques schema 0.5."""
    hints = typing.get_type_hints(bids_app, include_extras=True)
    inputs = []
    for parameter in inspect.signature(bids_app).parameters.values():
        kind, info = typing.get_args(hints[parameter.name])
        if not info.hidden:
            inputs.append(_input(parameter, kind, info))
    return {
        "name": "fmrisynth",
        "tool-version": __version__,
        "schema-version": "0.5",
        "description": " ".join((bids_app.__doc__ or "").split()),
        "author": "The fmrisynth developers",
        "url": CODE_URL,
        "command-line": " ".join(["fmrisynth", *(entry["value-key"] for entry in inputs)]),
        "container-image": {"type": "docker", "image": IMAGE},
        "inputs": inputs,
        "output-files": [
            {
                "id": "output", "name": "Output folder", "description": "BIDS derivative with blocks, maps and reports.",
                "path-template": "[OUTPUT_DIR]", "optional": False,
            }
        ],
        "tags": {"domain": ["fmri", "bids-app", "synthetic-data"]},
    }  # fmt: skip


def _input(parameter: inspect.Parameter, annotation: Any, info: typer.models.ParameterInfo) -> dict[str, Any]:
    parts = [part for part in (typing.get_args(annotation) or (annotation,)) if part is not type(None)]
    is_list = typing.get_origin(parts[0]) is list
    kind = typing.get_args(parts[0])[0] if is_list else parts[0]
    name = parameter.name.strip("_")
    content: dict[str, Any] = {
        "id": name, "name": name.replace("_", " "), "value-key": f"[{name.upper()}]",
        "optional": parameter.default is not inspect.Parameter.empty, "description": " ".join((info.help or "").split()),
        "type": _type(name, kind, info),
    }  # fmt: skip
    if isinstance(info, typer.models.OptionInfo):
        # In `Annotated[..., typer.Option("--n", "-n")]` the first spelling lands in `default`.
        spelt = [text for text in (info.default, *(info.param_decls or ())) if str(text).startswith("--")]
        content["command-line-flag"] = str(spelt[0]) if spelt else f"--{name.replace('_', '-')}"
    if name == "level":
        content["value-choices"] = list(LEVELS)
    if is_list:
        content["list"] = True
    if content["type"] == "Number":
        content["integer"] = kind is int
        if info.min is not None:
            content["minimum"] = info.min
        if isinstance(parameter.default, _NUMBERS):
            content["default-value"] = parameter.default
    return content


def _type(name: str, kind: Any, info: typer.models.ParameterInfo) -> str:
    if kind is bool or getattr(info, "count", False):
        return "Flag"
    if kind in _NUMBERS:
        return "Number"
    # A folder that is yet to be made is no File for Boutiques.
    return "File" if kind is Path and name not in ("output_dir", "work_dir", "bids_database_dir") else "String"


if __name__ == "__main__":
    print(json.dumps(descriptor(), indent=2))

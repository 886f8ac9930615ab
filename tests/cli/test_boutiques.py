"""The Boutiques descriptor has every option, and the calls that it makes are ours."""

from __future__ import annotations

import re

import pytest
import typer.main

from fmrisynth import __version__
from fmrisynth.cli.app import app
from fmrisynth.cli.boutiques import descriptor
from fmrisynth.cli.main import rewrite_argv

COMMAND = typer.main.get_command(app).commands["bids-app"]
REQUIRED = {"name", "description", "tool-version", "schema-version", "command-line", "inputs"}


def test_it_has_what_the_schema_requires():
    found = descriptor()
    assert found.keys() >= REQUIRED
    assert found["tool-version"] == __version__
    assert found["container-image"]["image"].endswith(__version__)
    ids = [entry["id"] for entry in found["inputs"]]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[0-9_a-zA-Z]+", name) for name in ids)
    assert {entry["type"] for entry in found["inputs"]} == {"File", "String", "Number", "Flag"}
    assert sorted(re.findall(r"\[[A-Z_]+\]", found["command-line"])) == sorted(
        entry["value-key"] for entry in found["inputs"]
    )


def test_it_has_every_option_that_help_shows():
    shown = {p.name.strip("_") for p in COMMAND.params if not getattr(p, "hidden", False)} - {"help"}
    assert {entry["id"] for entry in descriptor()["inputs"]} == shown


@pytest.mark.parametrize("level", ["participant", "group"])
def test_the_calls_that_it_makes_are_understood(level):
    values = {"bids_dir": "bids", "output_dir": "out", "level": level, "n": "3", "seed": "1", "n_processes": "2", "device": "cpu",
              "participant_label": "01 02"}  # fmt: skip
    found = descriptor()
    line = found["command-line"]
    for entry in found["inputs"]:
        value = values.get(entry["id"], "x" if entry["type"] in ("File", "String") else None)
        flag = entry.get("command-line-flag", "")
        text = (
            "" if entry["type"] != "Flag" and value is None else flag if entry["type"] == "Flag" else f"{flag} {value}"
        )
        line = line.replace(entry["value-key"], text)
    words = rewrite_argv([word for word in line.split()[1:] if word not in ("--help", "-h")])
    assert words[0] == "bids-app"
    parsed = COMMAND.make_context("bids-app", words[1:]).params
    assert parsed["level"] == level
    assert list(parsed["participant_label"]) == ["01", "02"]
    assert (parsed["n"], parsed["n_processes"], parsed["seed"]) == (3, 2, 1)

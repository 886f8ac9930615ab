"""argv dispatch, exit statuses and start-up cost of the command line."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmrisynth.cli.main import COMMANDS, LEVELS, rewrite_argv, run


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("bids out participant", "bids-app bids out participant"),
        (
            "bids out participant --participant-label 01 sub-02",
            "bids-app bids out participant --participant-label 01 --participant-label sub-02",
        ),
        (
            "bids out participant --participant-label 01 --participant-label 02 -v",
            "bids-app bids out participant --participant-label 01 --participant-label 02 -v",
        ),
        (
            "--participant_label 01 02 -- bids out group",
            "bids-app --participant-label 01 --participant-label 02 bids out group",
        ),
        (
            "bids out --participant-label 01 participant",
            "bids-app bids out --participant-label 01 participant",
        ),
        ("sample --condition gambling_loss out", "sample --condition gambling_loss out"),
        ("simulate out --tasks WM gambling --seed 3", "simulate out --tasks WM --tasks gambling --seed 3"),
        ("prepare in out --bids_database_dir db", "prepare in out --bids-database-dir db"),
        ("sampel out", "sampel out"),
    ],
)
def test_rewrite_argv(typed, expected):
    assert " ".join(rewrite_argv(typed.split())) == expected


@given(st.lists(st.sampled_from([*COMMANDS, *LEVELS, "--n", "4", "a_b", "-v", "--seed", "out/"]), max_size=8))
def test_rewrite_keeps_every_word_without_lists(words):
    rewritten = rewrite_argv(words)
    assert rewritten[-len(words) :] == words if words else rewritten == []


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["sample", "--help"]])
def test_help_and_version_succeed(arguments, capsys):
    assert run(arguments) == 0
    assert "fmrisynth" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["sampel", "out"], "Did you mean 'sample'"),
        (["sample"], "Missing argument"),
        (["sample", "out", "--nn", "4"], "No such option"),
        (["sample", "out"], "at least one condition"),
        (["sample", "out", "--condition", "gambling_loss", "--n", "0"], "--n"),
        (["sample", "out", "--condition", "gambling_win"], "it knows emotion_fear"),
        (["sample", "out", "--condition", "gambling_loss", "--shard", "3"], "expected K/N"),
        (["sample", "out", "--condition", "gambling_loss", "--shard", "3/2"], "shard must be k/n"),
        (["train", "x", "y", "--preset", "hybrid-38"], "did you mean hybrid-38m"),
        (["sample", "out", "--condition", "gambling_loss", "--set", "gidance=2"], "did you mean guidance"),
        (["bids-app", "x", "y", "session"], "expected participant or group"),
        (["./x", "y", "particpant"], "did you mean participant"),
        (["train", "x", "y", "--set", "steps=many"], "expected a whole number"),
    ],
)
def test_usage_errors_exit_with_2(arguments, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(rewrite_argv(arguments)) == 2
    error = " ".join(capsys.readouterr().err.split()).replace("│", "")
    assert text in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(find_spec("typer._coercion") is None, reason="older versions have plain words of their own")
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("sample out --n 0", "expected at least 1, found 0."),
        ("sample out --n many", "expected a whole number, found many."),
        ("simulate out --resolution abc", "expected a number, found abc."),
        ("simulate out --n-subjects -1", "expected at least 1, found -1."),
    ],
)
def test_typed_options_are_refused_in_plain_words(arguments, text, capsys):
    assert run(arguments.split()) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["prepare", "nowhere", "out"],
        ["tokenize", "nowhere", "out"],
        ["train", "nowhere", "out"],
        ["glm", "nowhere", "out"],
        ["evaluate", "out", "--real", "nowhere", "--synthetic", "nowhere"],
        ["embed", "nowhere", "out"],
        ["bids-app", "nowhere", "out", "participant"],
    ],
)
def test_missing_input_folder_exits_with_2_and_names_it(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    assert "nowhere: expected a folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_output_that_is_a_file_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").write_text("mine")
    assert run(["sample", "out", "--condition", "gambling_loss"]) == 2
    assert "found a file" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


def test_help_does_not_import_heavy_libraries():
    code = (
        "import sys; from fmrisynth.cli.main import run; run(['--help']);"
        "bad = {'torch', 'monai', 'nilearn', 'nibabel', 'scipy', 'pandas', 'matplotlib'} & set(sys.modules);"
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

"""What a user is told: defaults, examples, completions, plans, and settings that are not usable, in words of ours."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any, get_args

import pytest
import typer.main
import yaml
from pydantic import BaseModel

from fmrisynth.cli import options
from fmrisynth.cli.app import app
from fmrisynth.cli.main import rewrite_argv, run
from fmrisynth.config.load import load_config, preset_names
from fmrisynth.config.simulate import SimulateConfig
from fmrisynth.config.train import TrainConfig
from fmrisynth.errors import UsageError

COMMANDS = typer.main.get_command(app).commands
WITHOUT_DEFAULT = {
    "config", "set_", "activations", "atlas", "condition_table", "bids_database_dir", "init", "tokenizer",
    "truth", "condition", "real", "synthetic", "events",
}  # fmt: skip
"""Options that nothing stands in for: a file, or what the user has to say."""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_shows_its_default_and_every_command_an_example(name):
    command = COMMANDS[name]
    silent = {
        p.name for p in command.params
        if p.param_type_name == "option" and not p.is_flag and not p.count and not p.show_default and p.name not in WITHOUT_DEFAULT
    }  # fmt: skip
    assert silent <= {"help", "install_completion", "show_completion"}
    assert command.epilog.startswith("Example: fmrisynth ")


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_calls_that_parse(name):
    words = rewrite_argv(shlex.split(COMMANDS[name].epilog.removeprefix("Example: fmrisynth ")))
    assert words.pop(0) == name
    COMMANDS[name].make_context(name, words)


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"check", "conditions"}))
def test_the_example_of_set_is_a_setting_of_the_command(name):
    stage = "app" if name == "bids-app" else name
    help_of_set = next(param.help for param in COMMANDS[name].params if param.name == "set_")
    example = re.search(r"for example (\S+);", help_of_set)[1]
    model = getattr(__import__(f"fmrisynth.config.{stage}", fromlist=["x"]), f"{stage.capitalize()}Config")
    flags = {"all_conditions": True} if name == "sample" else {}
    assert load_config(model, stage, overrides=[example], flags=flags) != load_config(model, stage, flags=flags)


@pytest.mark.parametrize("name", ["train", "tokenize"])
def test_help_lists_every_preset(name):
    help_of_preset = next(param.help for param in COMMANDS[name].params if param.name == "preset")
    assert set(preset_names(name)) <= set(re.findall(r"[\w-]+", help_of_preset))


def test_defaults_are_those_of_the_settings(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert run(["sample", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for text in ("[default: (ab2)]", "[default: (8)]", "[default: (nii.gz)]", "[default: (off)]", "20; 1000 for ddpm"):
        assert text in shown


def test_the_shell_completes_values():
    assert options.complete_conditions("gamb") == ["gambling_loss", "gambling_win"]
    assert "hybrid-38m" in options.complete_presets("train")("hybrid-")
    sampler = next(p for p in COMMANDS["sample"].params if p.name == "sampler")
    import click

    found = sampler.shell_complete(click.Context(COMMANDS["sample"]), "e") if hasattr(click, "Context") else []
    assert [item.value for item in found] == ["euler"]


def test_conditions_are_listed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert run(["conditions"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert run(["conditions", "--checkpoint", "bundled"]) == 0
    assert capsys.readouterr().out.splitlines() == lines
    assert run(["conditions", "--checkpoint", "nowhere"]) == 2
    assert len(lines) == 24
    (line,) = (line for line in lines if "gambling_loss" in line)
    assert line.split() == ["gambling_loss", "gambling", "loss", "yes", "yes"]


def test_another_kind_of_model_takes_nothing_from_the_preset(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "model: {kind: unet, num_channels: [32, 64], num_head_channels: [0, 64], attention_levels: [false, true]}\n"
    )
    config = load_config(TrainConfig, "train", preset="hybrid-38m", file=file)
    assert config.model.kind == "unet"
    assert config.model.num_channels == (32, 64)
    one_by_one = [
        "model.num_channels=[32, 64]",
        "model.num_head_channels=[0, 64]",
        "model.attention_levels=[false, true]",
        "model.kind=unet",
    ]
    assert load_config(TrainConfig, "train", preset="hybrid-38m", overrides=one_by_one) == config
    same_kind = load_config(TrainConfig, "train", preset="hybrid-85m", overrides=["model.mlp_ratio=2"]).model
    assert same_kind.base_ch == load_config(TrainConfig, "train", preset="hybrid-85m").model.base_ch
    assert same_kind.mlp_ratio == 2


def _settings(model: type[BaseModel], prefix: str = ""):
    for name, field in model.model_fields.items():
        inner = [
            part
            for part in (field.annotation, *get_args(field.annotation))
            if isinstance(part, type) and issubclass(part, BaseModel)
        ]
        if inner:
            yield from _settings(inner[0], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


STAGES = ("simulate", "prepare", "tokenize", "train", "sample", "glm", "evaluate", "embed")


@pytest.mark.parametrize("stage", STAGES)
def test_no_unusable_setting_is_answered_in_the_words_of_a_library(stage):
    model = getattr(__import__(f"fmrisynth.config.{stage}", fromlist=["x"]), f"{stage.capitalize()}Config")
    bad: list[Any] = [-1e9, 1e12, "no such thing", ["a", "b", "c", "d", "e"], {"a": 1}, 0.5, float("nan"), True]
    n_refused = 0
    for name in _settings(model):
        for value in bad:
            try:
                load_config(model, stage, flags={name: value} | ({} if stage != "sample" else {"all_conditions": True}))
            except UsageError as error:
                n_refused += 1
                text = str(error)
                assert not re.search(r"Input|Value error|pydantic|should|valid ", text), text
                assert "\n" not in text
    assert n_refused > 10


def test_a_refused_setting_of_a_choice_is_named_as_the_user_writes_it():
    with pytest.raises(UsageError, match=r"setting 'model.base_ch' = 1 is not usable: expected at least 4"):
        load_config(TrainConfig, "train", overrides=["model.base_ch=1"])
    with pytest.raises(UsageError, match=r"no setting named 'model.bas_ch'; did you mean base_ch\?"):
        load_config(TrainConfig, "train", overrides=["model.bas_ch=1"])
    with pytest.raises(UsageError, match="kind to be one of 'hybrid', 'unet'"):
        load_config(TrainConfig, "train", overrides=["model.kind=resnet"])


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("kind: unet, num_channels: [32, 64]", "need the same length, found 2, 3 and 3."),
        ("kind: hybrid, num_channels: [32, 64]", "'model.num_channels'; num_channels belongs to kind unet."),
        (
            "kind: unet, base_chanels: 8",
            "named 'model.base_chanels'; did you mean num_channels?",
        ),
        ("kind: unet, foo: 8, num_chanels: [8]", "named 'model.foo'; there are kind"),
        ("kind: unet, foo: 8, num_chanels: [8]", "named 'model.num_chanels'; did you mean num_channels?"),
    ],
)
def test_settings_of_another_kind_of_model_are_told_apart(model, told, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(f"model: {{{model}}}")
    with pytest.raises(UsageError, match=re.escape(told)) as error:
        load_config(TrainConfig, "train", preset="hybrid-38m", file=file)
    assert "base_ch," not in str(error.value)
    assert "more)" not in str(error.value)


def test_all_problems_are_told_and_each_once():
    with pytest.raises(UsageError) as error:
        load_config(SimulateConfig, "simulate", flags={"tasks": ["FOO"], "n_subjects": 0})
    text = str(error.value)
    assert text.startswith(
        "simulate: setting 'n_subjects' = 0 is not usable: expected at least 1; setting 'tasks.0' = 'FOO'"
    )
    assert text.count("is not usable") == 2


@pytest.fixture(scope="module")
def blocks(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("blocks") / "blocks"
    ask = [
        "simulate",
        str(out),
        "--layout",
        "blocks",
        "--n-subjects",
        "2",
        "--set",
        "conditions=[motor_rh]",
        "--set",
        "split.all=train",
    ]
    assert run(ask) == 0
    return out


def plan(words: list[str], capsys) -> tuple[dict[str, Any], list[str]]:
    capsys.readouterr()
    assert run(rewrite_argv([*words, "--dry-run"])) == 0
    text = capsys.readouterr().out
    return yaml.safe_load(text), [line for line in text.splitlines() if line.startswith("#")]


def test_every_command_says_what_it_would_do_and_writes_nothing(blocks, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = str(blocks)
    settings, lines = plan(["simulate", "a", "--layout", "hcp", "--n-subjects", "3", "--tasks", "MOTOR"], capsys)
    assert settings["layout"] == "hcp"
    assert "3 phantom subjects to a, 0 done: hcp tree, 2 runs per subject" in lines[0]
    _, lines = plan(["tokenize", given, "b"], capsys)
    assert lines[0] == "# 8 blocks of 2 subjects to b, 0 subjects done"
    assert "fit a patch tokenizer to 8 blocks of split train" in lines[1]
    assert any(re.search("encode sub-900001: 4 blocks, to do", line) for line in lines)
    _, lines = plan(["glm", given, "c"], capsys)
    assert lines[:2] == ["# maps of 2 subjects to c, 0 done", "# contrasts: motor_rh"]
    assert any("sub-900002: 4 blocks, to do" in line for line in lines)
    _, lines = plan(["evaluate", "d", "--real", given, "--synthetic", given], capsys)
    assert any("conditions compared: motor_rh" in line for line in lines)
    assert any("Phantom data" in line for line in lines)
    _, lines = plan(["sample", "e", "--condition", "motor_rh", "--n", "21"], capsys)
    assert lines[0] == "# 21 samples to e, 0 done"
    assert sum("to do" in line for line in lines) == 10
    assert lines[-1] == "# ... and 11 more"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (
            "glm BLOCKS others",
            2,
            "others: expected an empty folder or one that `fmrisynth glm` began, found other files",
        ),
        ("glm BLOCKS begun --set drift=linear", 2, "drift was None, is linear"),
        ("glm BLOCKS out --contrast motor_lh", 2, "did you mean motor_rh"),
        ("evaluate out --real BLOCKS --synthetic others", 1, "others: expected a block dataset"),
        ("evaluate out --real BLOCKS --synthetic BLOCKS --unit run", 2, "holds blocks, not whole runs"),
        (
            "evaluate out --real BLOCKS --synthetic BLOCKS --tokenizer nowhere",
            2,
            "nowhere: expected what tokenizer names",
        ),
        ("tokenize BLOCKS out --tokenizer nowhere", 2, "nowhere: expected a tokenizer"),
        ("tokenize BLOCKS out --device gpu", 2, "device gpu: expected auto, cpu"),
        ("sample out --condition motor_rh --device gpu", 2, "device gpu: expected auto, cpu"),
        ("sample out --condition motor_rh --checkpoint nowhere", 2, "nowhere: expected a model"),
        ("sample out --condition motor_rh --checkpoint others", 1, "others: expected a model directory"),
        ("sample out --events nofile.tsv", 2, "nofile.tsv: expected an events.tsv"),
        ("embed BLOCKS out --probe agee", 1, "expected 5 subjects or more"),
        ("BLOCKS others group", 1, "no participant is done; run"),
        ("BLOCKS out participant --device gpu", 2, "device gpu: expected auto, cpu"),
    ],
)
def test_what_is_refused_is_refused_by_a_dry_run_too_and_leaves_nothing(
    words, status, text, blocks, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("others").mkdir()
    Path("others", "mine.txt").touch()
    if "begun" in words:
        assert run(["glm", str(blocks), "begun", "--set", "reports=false"]) == 0
    call = rewrite_argv(words.replace("BLOCKS", str(blocks)).split())
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("[!.]*") if path.is_file()}
    for how in (["--dry-run"], []):
        capsys.readouterr()
        assert run([*call, *how]) == status
        assert text in capsys.readouterr().err
        assert not Path("out").exists()
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("[!.]*") if path.is_file()} == before


def test_another_seed_in_a_used_folder_is_refused_by_a_dry_run(tmp_path, capsys):
    ask = ["sample", str(tmp_path / "out"), "--condition", "motor_rh", "--steps", "1", "--set", "preview=false"]
    assert run(ask) == 0
    assert "1 sample in" in capsys.readouterr().out
    _, lines = plan(ask, capsys)
    assert lines[0].endswith("out, 1 done")
    for how in (["--dry-run"], []):
        assert run([*ask, "--seed", "1", *how]) == 2
        assert "begun with other settings (Seed was 0, is 1)" in capsys.readouterr().err
    assert plan([*ask, "--seed", "1", "--force"], capsys)[1][0].endswith("0 done")
    assert plan(ask, capsys)[1][0].endswith("1 done")  # nothing was forgotten


def test_the_group_level_says_what_it_would_do(blocks, capsys):
    before = sorted(blocks.rglob("*"))
    _, lines = plan([str(blocks), str(blocks), "group", "--n", "5"], capsys)
    assert any("5 samples of each of motor_rh" in line for line in lines)
    assert any("2 participants" in line for line in lines)
    assert sorted(blocks.rglob("*")) == before


def test_training_says_what_it_would_do_and_a_refusal_leaves_no_folder(blocks, tmp_path, capsys):
    latents = tmp_path / "latents"
    assert run(["tokenize", str(blocks), str(latents), "--tokenizer", "bundled", "--set", "report=false"]) == 0
    _, lines = plan(["train", str(latents), str(tmp_path / "model"), "--preset", "smoke"], capsys)
    assert any("M parameters" in line for line in lines)
    assert any("8 training instances" in line for line in lines)
    assert run(["train", str(blocks), str(tmp_path / "model"), "--preset", "smoke"]) == 1
    assert not (tmp_path / "model").exists()
    assert preset_names("train")

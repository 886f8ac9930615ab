"""The documentation says what the code does: reference pages are complete, quoted errors exist, versions agree."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

import fmrisynth
from fmrisynth.config.load import preset_names
from tests.docs.messages import error_messages
from tests.docs.shell_blocks import REPOSITORY, blocks_of

DOCS = REPOSITORY / "docs"


@pytest.fixture(scope="module")
def reference():
    sys.path.insert(0, str(DOCS / "_extensions"))
    try:
        import reference_pages
    finally:
        sys.path.remove(str(DOCS / "_extensions"))
    return reference_pages


def section(text: str, title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}$(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert found, title
    return found[1]


def test_command_line_page_has_every_option(reference, capsys):
    from fmrisynth.cli.main import run

    text = reference.command_line()
    for command in reference.STAGES:
        assert run([command, "--help"]) == 0
        shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", capsys.readouterr().out)) - {"--help"}
        # Options that a help text only mentions, and names that a narrow terminal cuts off, do no harm here.
        own = section(text, command)
        assert {option for option in shown if f"`{option}`" not in own} == set(), command
        assert own.count("| `--") > 5


def test_settings_page_has_every_setting_with_its_default(reference):
    from fmrisynth.config.sample import SampleConfig
    from fmrisynth.config.train import TrainConfig

    text = reference.settings()
    for stage, model in (("sample", SampleConfig), ("train", TrainConfig)):
        own = section(text, stage)
        for name in model.model_fields:
            assert f"`{name}`" in own, (stage, name)
    assert (
        "| `guidance` | number, ≥ 0 and ≤ 50, or mapping of text to number, ≥ 0 and ≤ 50 (`1.0`) | Classifier-free"
        in text
    )
    assert "`optimiser.learning_rate` | number, > 0 (`0.0001`)" in text
    assert "`model.kind: unet`" in text
    for stage in ("tokenize", "train"):
        for name in preset_names(stage):
            assert f"| `{name}` |" in section(text, stage)


def test_quoted_errors_are_those_of_the_code():
    known = error_messages()
    quoted = [" ".join(block.split()) for block in blocks_of("docs/troubleshooting.md", "text")]
    assert len(quoted) > 30
    assert [message for message in quoted if message not in known] == []


def test_one_version():
    version = fmrisynth.__version__
    assert f"## {version}" in (REPOSITORY / "CHANGES.md").read_text()
    assert yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())["version"] == version
    assert 'dynamic = ["version"]' in (REPOSITORY / "pyproject.toml").read_text()
    written = [
        path.relative_to(REPOSITORY).as_posix()
        for path in (REPOSITORY / "fmrisynth").rglob("*.py")
        if f'"{version}"' in path.read_text()
    ]
    assert written == ["fmrisynth/__init__.py"]


def test_the_package_is_typed():
    assert (Path(fmrisynth.__file__).parent / "py.typed").is_file()


PAGES = ["README.md", "containers/README.md", *(path.relative_to(REPOSITORY).as_posix() for path in DOCS.glob("*.md"))]


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_exist(page):
    """Sphinx checks the links between its pages; this also those that GitHub shows."""
    text = re.sub(r"^```.*?^```", "", (REPOSITORY / page).read_text(), flags=re.M | re.S)
    links = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", text)
    generated = (
        "reference/cli.md", "reference/configuration.md", "reference/first-samples.md", "reference/train-on-your-data.md",
    )  # fmt: skip
    missing = [
        link for link in links if link not in generated and not (REPOSITORY / page).parent.joinpath(link).exists()
    ]
    assert missing == []


def test_pictures_of_the_pages_exist_and_are_used():
    used = {name for page in DOCS.glob("*.md") for name in re.findall(r"\]\(figures/([^)]+)\)", page.read_text())}
    there = {path.name for path in (DOCS / "figures").glob("*.png")}
    assert used - there == set()
    assert there - used == set()

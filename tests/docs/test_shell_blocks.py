"""Every shell block of the README, the quickstart and the tutorial is executed: on small numbers here, as it stands in
the slow test. The two commands that install the package are executed by ``.ci/run``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fmrisynth.cli.main import COMMANDS, main
from tests.docs.shell_blocks import REPOSITORY, blocks_of, commands_of

INSTALL = ["python3", "-m", "pip", "install", "-c", "constraints.txt"]

SMALL = {
    "tour/phantom": {"--n-subjects": "3", "--seed": "5"},
    "tour/model": {"--steps": "4"},
    "tour/synthetic": {"--n": "2"},
    "model/": {"--preset": "smoke"},
    "synthetic/": {"--n": "2"},
    "out/": {"--n": "2"},
}
"""For each command (by a path in it), other values of its options."""

MORE = {
    "tour/model": ["--set", "checkpoint_every=4"],
    "model/": ["--steps", "4"],
    "tour/synthetic": ["--steps", "2"],
    "synthetic/": ["--steps", "2"],
    "out/": ["--steps", "2"],
    "tour/report": ["--set", "split_half_repeats=5", "--set", "baseline_samples=3"],
    "report/": ["--set", "split_half_repeats=5", "--set", "baseline_samples=3"],
}


def small(words: list[str], replaced: dict[str, str]) -> list[str]:
    """A command with fewer subjects, samples and steps, and other inputs."""
    words = [replaced.get(word, word) for word in words]
    if "--tasks" in words:  # one task instead of three
        start = words.index("--tasks") + 1
        while start < len(words) and not words[start].startswith("-"):
            del words[start]
        words.insert(start, "MOTOR")
    # The folder that a command writes comes before those that its options name.
    named = [word for word in words[:7] if word in {**SMALL, **MORE}]
    if not named or words[1] in ("glm", "tokenize", "prepare"):
        return words
    for option, value in SMALL.get(named[0], {}).items():
        if option in words:
            words[words.index(option) + 1] = value
    return words + MORE.get(named[0], [])


def call(words: list[str]) -> int:
    """A command in this process: starting Python anew for each would take most of the time."""
    assert words[0] == "fmrisynth", words
    with pytest.raises(SystemExit) as stop:
        main(words[1:])
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """One folder for the tutorial and the README, which goes on from the tutorial's phantom."""
    folder = tmp_path_factory.mktemp("pages")
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


def test_installation_is_what_ci_runs():
    script = (REPOSITORY / ".ci" / "run").read_text()
    first, second = blocks_of("README.md")[:2]
    assert commands_of(first)[0] == [*INSTALL, "."]
    assert commands_of(second)[0][:6] == INSTALL
    assert "README.md" in script
    assert commands_of(blocks_of("docs/quickstart.md")[0]) == [[*INSTALL, "."]]


def test_every_command_of_the_pages_is_known():
    pages = ("README.md", "docs/quickstart.md", "docs/tutorial.md", "docs/hcp.md", "docs/bids.md", "docs/index.md")
    n = 0
    for page in pages:
        for block in blocks_of(page):
            for words in commands_of(block):
                if words[0] == "fmrisynth":
                    assert words[1] in COMMANDS or words[3] in ("participant", "group"), (page, words)
                    n += 1
    assert n > 30


def test_tutorial(place):
    commands = [words for block in blocks_of("docs/tutorial.md") for words in commands_of(block)]
    assert len(commands) == 9
    for words in commands:
        assert call(small(words, {})) == 0, words
    assert (place / "tour/report/report.html").is_file()
    assert list((place / "tour/synthetic/figures").glob("*.png"))
    assert list((place / "tour/maps-real").glob("sub-*.html"))


def test_readme_from_data_to_report(place):
    commands = commands_of(blocks_of("README.md")[2])
    assert [words[1] for words in commands] == ["prepare", "tokenize", "train", "sample", "glm", "evaluate"]
    for words in commands:
        words = small(words, {"/data/HCP1200": "tour/phantom", "hybrid-38m": "smoke"})
        if words[1] == "prepare":
            words += ["--set", "split.train=0.5", "--set", "split.val=0.1", "--set", "split.test=0.4"]
        assert call(words) == 0, words
    assert (place / "report/report.html").is_file()


def test_readme_as_a_bids_app(place):
    simulate = ["fmrisynth", "simulate", "bids_dir", "--layout", "bids", "--resolution", "3", "--n-subjects", "2",
                "--tasks", "MOTOR", "--set", "directions=[LR]", "--set", "write_truth=false"]  # fmt: skip
    assert call(simulate) == 0
    found = sorted(path.name.removeprefix("sub-") for path in Path("bids_dir").glob("sub-*") if path.is_dir())
    participant, group = commands_of(blocks_of("README.md")[3])
    assert call([{"01": found[0], "02": found[1]}.get(word, word) for word in participant]) == 0
    assert call([*group, "--n", "2"]) == 0
    assert (place / "out_dir/evaluation/report.html").is_file()


def test_first_command_of_the_readme_and_quickstart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = commands_of(blocks_of("README.md")[0])[1:]
    commands += [words for block in blocks_of("docs/quickstart.md")[1:] for words in commands_of(block)]
    statuses = [call(small(words, {})) for words in commands]
    assert statuses == [0, 0, 2, 0]  # the third is the misspelt condition
    assert len(list(Path("out").glob("sub-*/sub-*_scans.tsv"))) == 2
    for page in ("docs/quickstart.md", "docs/python.md"):
        for code in blocks_of(page, "python"):
            exec(compile(code, page, "exec"), {})


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/tutorial.md", "docs/quickstart.md"])
def test_pages_as_they_stand(page, tmp_path):
    """In a shell, with the numbers of the page; only the installation is left to ``.ci/run``."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    assert shutil.which("fmrisynth", path=path)
    for block in blocks_of(page):
        if "pip install" not in block:
            subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block], cwd=tmp_path, check=True, env=os.environ | {"PATH": path}
            )

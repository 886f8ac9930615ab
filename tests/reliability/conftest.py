"""A small world in which every command runs in about a second: inputs, arguments, expected output."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fmrisynth.cli.main import run
from tests.embed.conftest import write_blocks
from tests.embed.test_command import SMALL
from tests.evaluate.conftest import Maker, smooth_map
from tests.prepare.conftest import GAMBLING, MOTOR, make_hcp_run
from tests.reliability.processes import Fault, Starter, permissions_hold

LEVELS = ("participant", "group")
"""Of the BIDS App; the second goes on from the output of the first."""
LABELS = ("motor_rh", "gambling_loss")


def digests(root: Path, command: str = "") -> dict[str, str]:
    """Every file that tells nothing about the call itself: logs have identifiers, TensorBoard and state.json have times.

    Of a training run, what counts is the last checkpoint and the best; which others are kept depends on interruptions.
    """
    found = {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not {"logs", "tensorboard"} & set(path.relative_to(root).parts)
        and path.name not in ("log.jsonl", "state.json")
    }  # fmt: skip
    if command in ("train", "embed"):
        return {name: d for name, d in found.items() if "checkpoints" not in name or "step-00000006" in name}
    return found


GROWING = ("participants.tsv", "families.csv", "best/", "index.html")
"""Files that are written again as work goes on; before the end they are whole, but other ones."""


def damaged(root: Path, expected: dict[str, str]) -> list[str]:
    """Files that stand under their final names and are not what they should be."""
    return [
        name for name, digest in digests(root).items()
        if not name.startswith(GROWING) and digest != expected.get(name, digest)
    ]  # fmt: skip


def strays(root: Path) -> list[str]:
    """Temporary files and locks."""
    return [path.name for path in root.rglob(".*") if path.name != ".bidsignore"]


@dataclass(frozen=True)
class World:
    """Inputs of all commands in one folder, made by the commands themselves where they can."""

    root: Path

    def arguments(self, command: str, out: Path, root: Path | None = None, *, n_subjects: int = 1) -> list[str]:
        """The command line that writes `out`, with inputs in `root`."""
        root = root or self.root
        given: dict[str, list[object]] = {
            "simulate": [out, "--layout", "blocks", "--n-subjects", n_subjects, "--tasks", "GAMBLING",
                         "--set", "conditions=[gambling_loss]", "--set", "directions=[LR]"],
            "prepare": [root / "hcp", out],
            "tokenize": [root / "blocks", out, "--preset", "patch-pca", "--set", "report=false"],
            # Two runs are compared: without a named precision a busy machine may choose another one.
            "train": [root / "latents", out, "--preset", "smoke", "--set", "precision=fp32", "--set", "steps=6",
                      "--set", "checkpoint_every=2", "--set", "val_every=3", "--set", "batch_size=4", "--set", "log_every=1"],
            "sample": [out, "--condition", "motor_rh", "--n", 3, "--steps", 2, "--checkpoint", root / "model",
                       "--set", "preview=false"],
            "glm": [root / "blocks", out, "--set", "reports=false"],
            "evaluate": [out, "--real", root / "blocks", "--synthetic", root / "synthetic",
                         "--set", "split_half_repeats=8", "--set", "glass_brain=false",
                         "--set", "baselines=false", "--tokenizer", root / "latents" / "tokenizer"],
            "embed": [root / "planted", out, "--steps", 6, *SMALL, "--probe", "sex", "--set", "probe.folds=2"],
            "check": [root / "blocks", "--checkpoint", root / "model"],
            "participant": [root / "hcp", out, "participant"],
            "group": [root / "hcp", out, "group", "--n", 2],
        }  # fmt: skip
        name = "bids-app" if command in LEVELS else command
        return [name, *map(str, given[command])]


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    """Two HCP subjects, five subjects' blocks, their latents, a model of six steps, four synthetic subjects."""
    world = World(tmp_path_factory.mktemp("world"))
    rng = np.random.default_rng(4)
    maker = Maker({label: smooth_map(rng) for label in LABELS})
    for number, split in enumerate(("train", "train", "val", "test", "test"), start=1):
        maker.write(world.root / "blocks", f"{number:02d}", LABELS, rng, split=split)
    maker.samples(world.root / "synthetic", 2, 2, conditions=LABELS)
    write_blocks(world.root / "planted", n_people=4, n_each=1)
    make_hcp_run(world.root / "hcp", "100307", "GAMBLING_LR", GAMBLING, seed=1)
    make_hcp_run(world.root / "hcp", "100408", "MOTOR_LR", MOTOR, seed=2)
    assert run(world.arguments("tokenize", world.root / "latents")) == 0
    assert run(world.arguments("train", world.root / "model")) == 0
    return world


@pytest.fixture(scope="session")
def whole(world: World, tmp_path_factory):
    """What a command writes when nothing goes wrong: `digests` of its output, made when first asked for."""
    made: dict[str, dict[str, str]] = {}

    def of(command: str) -> dict[str, str]:
        if command not in made:
            folder = tmp_path_factory.mktemp("whole")
            done = Starter().run(world.arguments(command, folder / "out"))
            assert done.status == 0, done.said
            made[command] = digests(folder / "out", command)
            assert len(made[command]) > 3
        return made[command]

    return of


@pytest.fixture
def start():
    """A `Starter`; nothing that it started outlives the test."""
    starter = Starter()
    yield starter
    starter.end()


@pytest.fixture
def unprivileged(tmp_path: Path) -> Fault:
    """File permissions that hold."""
    if not permissions_hold(tmp_path):
        pytest.skip("the process may not give up root's right to read and write everything")
    return Fault(unprivileged=True)

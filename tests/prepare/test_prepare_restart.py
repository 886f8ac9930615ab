"""Killed at any moment and called again, `prepare` ends with the same bytes as without interruption."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fmrisynth.config.prepare import PrepareConfig
from fmrisynth.prepare import prepare_dataset
from tests.prepare.conftest import GAMBLING, MOTOR, make_hcp_run

DRIVER = """
import os, random, signal, sys, time
from pathlib import Path
from fmrisynth.config.prepare import PrepareConfig
import fmrisynth.prepare.stage as stage

root, out, n_kills, seed, seconds = Path(sys.argv[1]), Path(sys.argv[2]), *map(float, sys.argv[3:6])
draw = random.Random(int(seed))
killed = 0
for attempt in range(int(n_kills) * 4):
    child = os.fork()
    if child == 0:
        if attempt % 2 == 0:  # at a random file, just before or just after it gets its final name
            countdown, replace, before = draw.randrange(30), os.replace, draw.random() < 0.5
            def fatal(*names):
                global countdown
                countdown -= 1
                if countdown < 0 and before:
                    os.kill(os.getpid(), signal.SIGKILL)
                replace(*names)
                if countdown < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            os.replace = fatal
        stage.prepare_dataset(root, out, PrepareConfig())
        os._exit(0)
    if attempt % 2:  # at a random time
        time.sleep(draw.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
    draw.random(), draw.random()
    killed += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    if killed == n_kills or (out / "sub-100408" / "sub-100408_scans.tsv").exists():
        break
print(killed)
"""


def digests(root: Path) -> dict[str, str]:
    """Every file but the logs, whose names hold a random identifier and a date."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "logs" not in path.relative_to(root).parts
    }


def make_tree(root: Path) -> Path:
    make_hcp_run(root, "100307", "GAMBLING_LR", GAMBLING, seed=1)
    make_hcp_run(root, "100307", "MOTOR_LR", MOTOR, seed=2)
    make_hcp_run(root, "100408", "GAMBLING_RL", GAMBLING, seed=3)
    return root


def kill_and_compare(tmp_path: Path, n_kills: int, seed: int, seconds: float) -> int:
    root = make_tree(tmp_path / "hcp")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    prepare_dataset(root, whole, PrepareConfig())
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    arguments = [root, broken, n_kills, seed, seconds]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, *map(str, arguments)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert prepare_dataset(root, broken, PrepareConfig()).failed == {}
    assert digests(broken) == digests(whole)
    report = "logs/prepare_report.json"
    assert (broken / report).read_bytes() == (whole / report).read_bytes()
    return int(done.stdout.split()[-1])


def test_killed_a_few_times(tmp_path: Path) -> None:
    assert kill_and_compare(tmp_path, n_kills=4, seed=0, seconds=0.3) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 13))
def test_killed_many_times(tmp_path: Path, seed: int) -> None:
    assert kill_and_compare(tmp_path, n_kills=10, seed=seed, seconds=0.2 + 0.1 * seed) >= 1


def test_finished_blocks_are_not_made_again(tmp_path: Path) -> None:
    """Of a participant that was cut short, the runs that are whole stay as they are."""
    root, out = make_tree(tmp_path / "hcp"), tmp_path / "out"
    prepare_dataset(root, out, PrepareConfig())
    expected = digests(out)
    scans = out / "sub-100307" / "sub-100307_scans.tsv"
    scans.unlink()  # as if killed at the very end
    lost = next((out / "sub-100307").rglob("*task-motor*desc-rh_bold.json"))
    lost.unlink()  # and as if the second run had not been finished
    stray = lost.with_name(".4242.half_bold.nii.gz")
    stray.write_bytes(b"half")
    first_run = sorted((out / "sub-100307").rglob("*task-gambling*_bold.nii.gz"))
    before = [path.stat().st_ino for path in first_run]
    summary = prepare_dataset(root, out, PrepareConfig())
    assert summary.failed == {}
    assert [path.stat().st_ino for path in first_run] == before
    assert digests(out) == expected

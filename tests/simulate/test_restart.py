"""A killed call goes on where it stopped, and the cohort is the same as an uninterrupted one."""

import hashlib
import os
import signal
import subprocess
import sys
import time

import pytest

from fmrisynth.config.simulate import SimulateConfig
from fmrisynth.simulate import simulate_cohort

SCRIPT = """
import sys
from pathlib import Path
from fmrisynth.config.simulate import SimulateConfig
from fmrisynth.simulate import simulate_cohort
simulate_cohort(Path(sys.argv[1]), SimulateConfig(**eval(sys.argv[2])))
"""
SETTINGS = {"layout": "blocks", "n_subjects": 2, "tasks": ("MOTOR",), "directions": ("LR",), "seed": 3}


def content(root):
    return {
        p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in root.rglob("*")
        if p.is_file() and "logs" not in p.parts and "simulate_" not in p.name
    }


@pytest.mark.slow
def test_killed_and_called_again_gives_the_same_cohort(tmp_path):
    simulate_cohort(tmp_path / "whole", SimulateConfig(**SETTINGS))
    broken = tmp_path / "broken"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(broken), repr(SETTINGS)])
    while not list(broken.glob("sub-*/func/*_bold.nii.gz")) and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(broken.glob("sub-900002/*_scans.tsv"))
    simulate_cohort(broken, SimulateConfig(**SETTINGS))
    assert content(broken) == content(tmp_path / "whole")


def test_pieces_make_the_same_cohort(tmp_path):
    """`first_subject` for array jobs."""
    small = SETTINGS | {"conditions": ("motor_rh",)}
    simulate_cohort(tmp_path / "whole", SimulateConfig(**small))
    for first in (1, 0):
        simulate_cohort(tmp_path / "pieces", SimulateConfig(**(small | {"n_subjects": 1, "first_subject": first})))
    whole, pieces = content(tmp_path / "whole"), content(tmp_path / "pieces")
    for name in whole:
        if name != "ground_truth/simulate.json":
            assert pieces[name] == whole[name], name

"""Every command and both levels of the BIDS App, stopped by every signal at random moments: nothing is lost.

``pytest -n 0 -m slow tests/reliability/test_kills.py`` sends at least 108 signals to running commands, 12 to each.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.reliability.conftest import LEVELS, digests, strays
from tests.reliability.faults import WRITERS

N_KILLS = 12
SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
PROMISED = {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130, signal.SIGTERM: 143}
PATIENCE_S = 60.0
"""A signal that can be answered is answered within this time."""


def files(root: Path, target: str) -> dict[str, str]:
    """`digests`, without the times that reports of the BIDS App hold."""
    found = digests(root, target)
    return {name: digest for name, digest in found.items() if not (target in LEVELS and name.endswith(".html"))}


@pytest.mark.slow
@pytest.mark.parametrize("target", [*WRITERS, *LEVELS])
def test_stopped_at_random_moments(target, world, start, tmp_path):
    draw = random.Random(f"moments {target}")
    first, out = tmp_path / "first", tmp_path / "out"  # always in one place: datasets name those they were made from
    if target == "group":
        assert start.run(world.arguments("participant", out)).status == 0
        shutil.copytree(out, first)

    def afresh() -> None:
        shutil.rmtree(out, ignore_errors=True)
        if first.exists():
            shutil.copytree(first, out)

    began = time.monotonic()
    done = start.run(world.arguments(target, out))
    assert done.status == 0, done.said
    longest_s = time.monotonic() - began
    expected = files(out, target)

    afresh()
    n_sent = n_calls = 0
    while n_sent < N_KILLS:
        what = SIGNALS[n_sent % len(SIGNALS)]
        n_calls += 1
        assert n_calls < 20 * N_KILLS
        running = start(world.arguments(target, out))
        running.process.join(draw.uniform(0, longest_s))
        if not running.process.is_alive():
            done = running.wait()
            assert done.status == 0, done.said
            assert files(out, target) == expected
            afresh()
            continue
        os.kill(running.pid, what)
        done = running.wait(PATIENCE_S)
        assert "Traceback" not in done.said, done.said
        assert done.status in (PROMISED[what], 0), (what, done)
        n_sent += 1
    done = start.run(world.arguments(target, out))
    assert done.status == 0, done.said
    assert files(out, target) == expected
    assert strays(out) == []

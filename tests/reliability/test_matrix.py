"""The page of the reliability matrix is what the tests say, and it has no empty cell."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.reliability.faults import COMMANDS, FAULTS
from tests.reliability.matrix import NOT_APPLICABLE, REPOSITORY, page


def test_the_page_is_what_the_tests_say():
    done = subprocess.run([sys.executable, "-m", "tests.reliability.matrix", "--check"], cwd=REPOSITORY, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_an_empty_cell_is_refused():
    cells = {(c, f): {"fine": ["tests/x.py::t"]} for c in COMMANDS for f in FAULTS if (c, f) not in NOT_APPLICABLE}
    assert "| `train` | fine | `x::t` |" in page(cells)
    del cells["train", "SIGKILL"]
    with pytest.raises(ValueError, match=r"empty \[\('train', 'SIGKILL'\)\]"):
        page(cells)

"""The rows and columns of the reliability matrix, and how a test says which cell it proves."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

COMMANDS = ("simulate", "prepare", "tokenize", "train", "sample", "glm", "evaluate")
FAULTS = (
    "changed input", "changed setting", "deleted output", "truncated output", "somebody's folder",
    "SIGKILL", "SIGTERM", "SIGINT", "disk full", "read-only output", "corrupt input", "corrupt checkpoint", "clock change",
    "two processes", "missing permissions", "out of memory",
)  # fmt: skip


def each(fault: str, outcome: str | Mapping[str, str], commands=COMMANDS):
    """Parametrise a test by command; one outcome for all, or one for each."""
    values = []
    for command in commands:
        text = outcome if isinstance(outcome, str) else outcome.get(command, outcome.get("else", ""))
        mark = pytest.mark.fault(command=command, fault=fault, outcome=text)
        values.append(pytest.param(command, marks=mark, id=command))
    return pytest.mark.parametrize("command", values)

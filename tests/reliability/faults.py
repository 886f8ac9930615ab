"""The rows and columns of the reliability matrix, and how a test says which cell it proves."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

WRITERS = ("simulate", "prepare", "tokenize", "train", "sample", "glm", "evaluate")
COMMANDS = (*WRITERS, "embed", "check")
"""The rows: commands that write a folder, and the one that reads two and prints."""

FAULTS = (
    "changed input", "changed setting", "deleted output", "truncated output", "somebody's folder",
    "SIGKILL", "SIGTERM", "SIGINT", "disk full", "read-only output", "corrupt input", "corrupt checkpoint", "clock change",
    "two processes", "missing permissions", "out of memory",
)  # fmt: skip


def each(fault: str, outcome: str | Mapping[str, str], commands=WRITERS):
    """Parametrise a test by command; one outcome for all, or one for each."""
    values = []
    for command in commands:
        text = outcome if isinstance(outcome, str) else outcome.get(command, outcome.get("else", ""))
        mark = pytest.mark.fault(command=command, fault=fault, outcome=text)
        values.append(pytest.param(command, marks=mark, id=command))
    return pytest.mark.parametrize("command", values)

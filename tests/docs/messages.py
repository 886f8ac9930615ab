"""The error messages of the package, read from its source: what varies stands as an ellipsis."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "fmrisynth"
ERRORS = {"FmrisynthError", "UsageError", "WrongFolder", "ValueError", "_say", "_tell", "one_line", "warning"}


def template(node: ast.expr) -> str | None:
    """The text of a string expression with an ellipsis for each value in it; None for other expressions."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (template(node.left) or "…") + (template(node.right) or "…")
    if (
        isinstance(node, ast.Call)
        and getattr(node.func, "attr", "") == "join"
        and isinstance(node.args[0], ast.GeneratorExp)
    ):
        return template(node.args[0].elt)  # several such sentences
    return None


def error_messages() -> set[str]:
    """Templates of all messages."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args:
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                text = template(node.args[0]) if name in ERRORS else None
                if text:
                    found.add(" ".join(text.split()))
            elif isinstance(node, ast.Return) and node.value is not None:
                text = template(node.value)
                if text and "…" in text:
                    found.add(" ".join(text.split()))
    return found

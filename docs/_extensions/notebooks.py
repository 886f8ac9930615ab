"""Run the notebooks under ``docs/notebooks`` when the documentation is built, and show what their cells give.

They are pages in jupytext's Markdown format: Jupyter with jupytext opens them as notebooks. A cell that fails fails the
build. The pages with outputs go to ``docs/reference/`` (not kept in git).
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

CELL = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
HEADER = re.compile(r"\A---\n.*?^---\n", re.M | re.S)


def run_notebook(text: str, pictures: Path, name: str) -> str:
    """A page with the output of each cell below it.

    Parameters
    ----------
    text : str
        The notebook.
    pictures : Path
        Folder for PNG outputs.
    name : str
        Their names begin with it.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    parts, end = [], 0
    text = HEADER.sub("", text)
    with TemporaryDirectory() as folder, contextlib.chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, cell in enumerate(CELL.finditer(text), start=1):
            parts.append(text[end : cell.end()])
            end = cell.end()
            parts += _outputs(cell[1], namespace, pictures / f"{name}-{number}.png")
    return "".join([*parts, text[end:]])


def _outputs(code: str, namespace: dict[str, Any], picture: Path) -> Iterator[str]:
    body = ast.parse(code)
    last = body.body.pop() if isinstance(body.body[-1], ast.Expr) else None
    printed = io.StringIO()
    value = None
    with contextlib.redirect_stdout(printed):
        exec(compile(body, "<cell>", "exec"), namespace)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), namespace)
    if printed.getvalue():
        yield f"\n\n```text\n{printed.getvalue().rstrip()}\n```"
    if hasattr(value, "_repr_png_"):
        picture.write_bytes(value._repr_png_())
        yield f"\n\n![output of the cell]({picture.name})"
    elif value is not None:
        yield f"\n\n```text\n{value if hasattr(value, 'to_string') else _plain(value)}\n```"


def _plain(value: Any) -> str:
    lines = getattr(value, "lines", None)
    text = "\n".join(lines) if isinstance(lines, list) else str(value)
    return "\n".join(textwrap.fill(line, 100) if len(line) > 100 else line for line in text.splitlines())


def _write_pages(app: Any) -> None:
    os.environ.setdefault("MPLBACKEND", "Agg")
    folder = Path(app.srcdir) / "reference"
    folder.mkdir(exist_ok=True)
    for source in sorted((Path(app.srcdir) / "notebooks").glob("*.md")):
        page = run_notebook(source.read_text(encoding="utf-8"), folder, source.stem)
        (folder / source.name).write_text(page, encoding="utf-8")


def setup(app: Any) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("builder-inited", _write_pages)
    return {"parallel_read_safe": True}

"""No module of the package imports, by whatever way round, one that imports it: not even inside a function."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fmrisynth

ROOT = Path(fmrisynth.__file__).parent


def module_name(path: Path, root: Path) -> str:
    parts = [root.name, *path.relative_to(root).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(root: Path) -> dict[str, set[str]]:
    """Module -> modules of the package that its file names in an import, wherever in the file.

    What a package's ``__init__`` imports is left out: it is a table of contents, and Python loads it first.
    """
    files = {module_name(path, root): path for path in sorted(root.rglob("*.py"))}
    found: dict[str, set[str]] = {}
    for name, path in files.items():
        if path.name == "__init__.py":
            continue
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            found[name] |= {other for other in names if other in files and other != name}
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(graph.get(start, ()))
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += graph.get(name, ())
        return seen

    reach = {name: reached(name) for name in graph}
    groups = {
        tuple(sorted(o for o in graph if o in reach[name] and name in reach[o]))
        for name in graph
        if name in reach[name]
    }
    return [list(group) for group in sorted(groups)]


def test_no_import_circles():
    assert circles(imports(ROOT)) == []


@pytest.mark.parametrize("line", ["from pack.a import x", "    from pack import a", "import pack.a"])
def test_a_circle_is_found(line, tmp_path):
    root = tmp_path / "pack"
    root.mkdir()
    (root / "__init__.py").write_text("")
    (root / "a.py").write_text("from pack.b import y\n")
    (root / "b.py").write_text(f"def y():\n    pass\n\n\nif True:\n    {line.strip()}\n")
    assert circles(imports(root)) == [["pack.a", "pack.b"]]

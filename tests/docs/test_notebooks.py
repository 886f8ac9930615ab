"""The runner of the notebooks; the notebooks themselves run whenever the documentation is built."""

from __future__ import annotations

import sys

import pytest

from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def notebooks():
    sys.path.insert(0, str(REPOSITORY / "docs" / "_extensions"))
    try:
        import notebooks
    finally:
        sys.path.pop(0)
    return notebooks


PAGE = """---
jupytext:
  formats: md
---
# Title

```python
import pandas as pd
x = 3
```

Words.

```python
print("said", x)
pd.DataFrame({"a": [1, x]})
```

```bash
not run
```

```python
class Picture:
    def _repr_png_(self):
        return b"png"
Picture()
```
"""


def test_outputs_stand_below_their_cells(notebooks, tmp_path):
    page = notebooks.run_notebook(PAGE, tmp_path, "name")
    assert page.startswith("# Title\n")
    assert "```text\nsaid 3\n```" in page
    assert "   a\n0  1\n1  3" in page
    assert (
        page.index("Words.")
        < page.index("said 3")
        < page.index("not run")
        < page.index("![output of the cell](name-3.png)")
    )
    assert (tmp_path / "name-3.png").read_bytes() == b"png"


def test_a_cell_that_fails_fails_the_page(notebooks, tmp_path):
    with pytest.raises(ZeroDivisionError):
        notebooks.run_notebook("```python\n1 / 0\n```\n", tmp_path, "name")


@pytest.mark.parametrize("path", sorted((REPOSITORY / "docs" / "notebooks").glob("*.md")), ids=lambda path: path.stem)
def test_notebooks_have_cells_and_a_jupytext_header(notebooks, path):
    text = path.read_text()
    assert text.startswith("---\njupytext:\n")
    cells = notebooks.CELL.findall(text)
    assert len(cells) >= 7
    for cell in cells:
        compile(cell, path.name, "exec")

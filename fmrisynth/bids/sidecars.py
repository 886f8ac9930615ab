"""JSON sidecars and TSV tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmrisynth.bids.atomic import write_json, write_text
from fmrisynth.errors import FmrisynthError


def bold_sidecar(
    task: str, tr_s: float, *, resolution: str | None = None, extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Sidecar of a derivative BOLD image, with the keys that the BIDS schema requires.

    Parameters
    ----------
    task : str
        Task name.
    tr_s : float
        Repetition time, seconds.
    resolution : str, optional
        What the ``res`` entity of the name means, where it has one (`Grid.resolution_text`).
    extra : mapping, optional
        Further keys.
    """
    content: dict[str, Any] = {"TaskName": task, "RepetitionTime": tr_s, "SkullStripped": True}
    if resolution is not None:
        content["Resolution"] = resolution
    return content | dict(extra or {})


def write_sidecar(path: Path, content: Mapping[str, Any]) -> None:
    """Write a sidecar atomically."""
    write_json(path, dict(content))


def write_tsv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]], *, last: bool = False) -> None:
    """Write a BIDS table atomically: tabs, ``n/a`` for missing values, numbers in shortest exact form.

    `last` as in `fmrisynth.bids.atomic.atomic_path`: the table says that other files are complete.
    """
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row.get(column)) for column in columns])
    write_text(path, text.getvalue(), last=last)


def read_tsv(path: Path, required: Sequence[str] = ()) -> list[dict[str, str]]:
    """Read a BIDS table as a list of rows of text.

    Raises
    ------
    FmrisynthError
        Missing or unreadable file, commas instead of tabs, missing required columns, ragged rows.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise FmrisynthError(f"{path}: there is no such table; check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise FmrisynthError(f"{path}: expected a UTF-8 table, it cannot be read ({error}).") from None
    lines = [line for line in content.splitlines() if line.strip()]
    if not lines:
        raise FmrisynthError(f"{path}: the table is empty; expected a header line with {', '.join(required)}.")
    header = lines[0].split("\t")
    missing = [name for name in required if name not in header]
    if missing:
        comma = " (its columns are separated by commas, BIDS wants tabs)" if "," in lines[0] else ""
        raise FmrisynthError(
            f"{path}: expected a column named {missing[0]}, found {', '.join(header)}{comma}; rename or add the column."
        )
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        if len(cells) != len(header):
            raise FmrisynthError(
                f"{path}: line {number} has {len(cells)} cells, the header has {len(header)}; correct the table."
            )
        rows.append(dict(zip(header, cells, strict=True)))
    return rows


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "n/a"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.10g}"
    return str(value)

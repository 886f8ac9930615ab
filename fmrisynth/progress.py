"""Logging, progress bars and the summary that every stage returns."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from fmrisynth.errors import FmrisynthError, is_out_of_memory, one_line

log = logging.getLogger("fmrisynth")

T = TypeVar("T")

SHOWN = 3
"""So many reasons or labels are named in a sentence, and the rest counted."""


def reason_of(who: str, error: Exception) -> str:
    """One sentence for `StageSummary.failed`; an error that is not ours is logged, with its traceback under ``-v``."""
    if isinstance(error, FmrisynthError):
        return str(error)
    if is_out_of_memory(error):
        what = str(error).splitlines()[0] if str(error) else "an allocation failed"
        return one_line(f"not enough memory ({what}); ask the scheduler for more, then run the same command again.")
    log.error("%s failed with an unexpected error; run with -v to see where", who)
    log.debug("%s", who, exc_info=error)
    return one_line(f"unexpected {type(error).__name__}: {error}")


def count(n: int, noun: str) -> str:
    """``1 block``, ``2 blocks``."""
    return f"{n} {noun}{'s' if n != 1 else ''}"


def some(names: Sequence[str]) -> str:
    """The first `SHOWN` names, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


@dataclass
class StageSummary:
    """What a stage did, for the person who called it.

    Attributes
    ----------
    lines : list of str
        Plain sentences and small tables, printed in order at the end of the command.
    failed : dict of str to str
        Participant (or run) -> reason. The others were still written; the exit status becomes 1.
    """

    lines: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


class ProgressBar(Protocol):
    """The handle that `progress_bar` yields."""

    def update(self, advance: float = 1, note: str | None = None) -> None:
        """Advance by so many units, and show a short note (a loss, a file) beside the bar."""


class _SilentBar:
    def update(self, advance: float = 1, note: str | None = None) -> None:
        return None


class _RichBar:
    def __init__(self, progress, task) -> None:
        self._progress, self._task = progress, task

    def update(self, advance: float = 1, note: str | None = None) -> None:
        self._progress.update(self._task, advance=advance, **({} if note is None else {"note": note}))


@contextmanager
def progress_bar(description: str, total: float | None, completed: int = 0) -> Iterator[ProgressBar]:
    """Show a bar with the rate and the time left on a terminal; stay silent elsewhere."""
    if not sys.stderr.isatty() or log.getEffectiveLevel() > logging.INFO:
        yield _SilentBar()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=False) as progress:
        yield _RichBar(progress, progress.add_task(description, total=total, completed=completed, note=""))


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate with a progress bar (see `progress_bar`)."""
    if total is None:
        total = len(iterable) if hasattr(iterable, "__len__") else None  # type: ignore[arg-type]
    with progress_bar(description, total) as bar:
        for item in iterable:
            yield item
            bar.update()

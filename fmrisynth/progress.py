"""Logging, progress and the summary that every stage returns.

Progress is a bar on a terminal and in a notebook, and lines elsewhere (batch logs, scripts): one a minute, or at every
twentieth of the work if that comes first. ``logging.getLogger("fmrisynth").setLevel("WARNING")`` silences it.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from fmrisynth.errors import FmrisynthError, is_out_of_memory, one_line

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger("fmrisynth")

LINE_S, SHORTEST_LINE_S, LINE_SHARE = 60.0, 10.0, 0.05
"""Off a terminal a line comes after so many seconds, or after this share of the work, but not faster than the second number."""

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


def listed(lines: Sequence[str], most: int = 20, shown: int = 10) -> list[str]:
    """The lines; of more than `most` the first `shown`, and how many more there are."""
    return list(lines) if len(lines) <= most else [*lines[:shown], f"... and {len(lines) - shown} more"]


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


class Pace:
    """How far work is, how fast it goes, and how long it will take.

    The rate is that of the last minute, or of the last five moments at which something was finished if they reach
    further back: units may take hours, come in batches, or be there from an earlier call.

    Parameters
    ----------
    total : float or None
        Units of work; None where it is not known.
    completed : float
        Units done before.
    clock : callable
        Seconds; of `time.monotonic`.
    """

    WINDOW_S, MOMENTS, ONE_MOMENT_S = 60.0, 5, 0.5

    def __init__(self, total: float | None, completed: float = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.done, self.note = total, completed, ""
        self._clock = clock
        self.started_s = clock()
        # Of each moment: when it began and ended (s), and what was done then.
        self._moments: deque[tuple[float, float, float]] = deque([(self.started_s, self.started_s, completed)])

    def advance(self, units: float) -> None:
        """Count finished units."""
        self.done += units
        now = self._clock()
        if len(self._moments) > 1 and now - self._moments[-1][0] < self.ONE_MOMENT_S:
            self._moments[-1] = (self._moments[-1][0], now, self.done)
            return
        self._moments.append((now, now, self.done))
        while len(self._moments) > self.MOMENTS + 1 and now - self._moments[1][0] > self.WINDOW_S:
            self._moments.popleft()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return self._clock() - self.started_s

    @property
    def rate(self) -> float | None:
        """Units per second; None before the first is finished."""
        (_, first_s, first), (_, last_s, last) = self._moments[0], self._moments[-1]
        return (last - first) / max(last_s - first_s, 1e-9) if last > first else None

    @property
    def left_s(self) -> float | None:
        """Seconds to the end; falls between updates, and rises where one is overdue."""
        if self.total is None or self.rate is None:
            return None
        (_, first_s, first), (_, last_s, last) = self._moments[0], self._moments[-1]
        now, remaining = self._clock(), self.total - self.done
        at_once = (last - first) / (len(self._moments) - 1)  # units that a moment brings
        if now - last_s <= at_once / self.rate:
            return max(0.0, remaining / self.rate - (now - last_s))
        return max(0.0, remaining - at_once) * (now - first_s) / (last - first + at_once)  # as if they came now

    @property
    def share(self) -> float:
        """Part of the work that is done, 0 to 1."""
        return self.done / self.total if self.total else 0.0

    def speed_and_time(self) -> str:
        """``3.2 a minute, 4 min left``."""
        parts = [] if self.rate is None else [_rate(self.rate)]
        if self.left_s is not None and self.done < (self.total or 0):
            parts.append(f"{duration(self.left_s)} left")
        return ", ".join(parts)

    def line(self, description: str) -> str:
        """Everything in one line, for a log."""
        done = f"{self.done:g}" if self.total is None else f"{self.done:g}/{self.total:g} ({100 * self.share:.0f} %)"
        parts = [f"after {duration(self.elapsed_s)}", self.speed_and_time(), self.note]
        return f"{description}: {done}, {', '.join(part for part in parts if part)}"


def duration(seconds: float) -> str:
    """``45 s``, ``4 min``, ``2 h 10 min``, ``3 d 4 h``."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def _rate(per_s: float) -> str:
    seconds, name = (1, "second") if per_s >= 1 else (60, "minute") if 60 * per_s >= 1 else (3600, "hour")
    return f"{per_s * seconds:.3g} {'an' if name == 'hour' else 'a'} {name}"


@cache
def console() -> Console:
    """The one console of standard error: log lines that go through it stand above the bar and do not tear it."""
    from rich.console import Console

    return Console(stderr=True)


class _Bar:
    def __init__(self, pace: Pace, show: Callable[[], None]) -> None:
        self._pace, self._show = pace, show

    def update(self, advance: float = 1, note: str | None = None) -> None:
        self._pace.advance(advance)
        if note is not None:
            self._pace.note = note
        self._show()


_shown = threading.Lock()
"""Held while a bar is shown; work inside of work shows none of its own."""


@contextmanager
def progress_bar(description: str, total: float | None, completed: float = 0) -> Iterator[ProgressBar]:
    """Show how far work is, its rate and the time left: a bar on a terminal and in a notebook, lines elsewhere."""
    pace = Pace(total, completed)
    if log.level > logging.INFO or not _shown.acquire(blocking=False):
        yield _Bar(pace, lambda: None)
        return
    try:
        with _view()(description, pace) as show:
            yield _Bar(pace, show)
    finally:
        _shown.release()


def _view() -> Callable[[str, Pace], AbstractContextManager[Callable[[], None]]]:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if type(shell).__name__ == "ZMQInteractiveShell":
        return _in_notebook
    return _on_terminal if sys.stderr.isatty() else _as_lines


@contextmanager
def _on_terminal(description: str, pace: Pace) -> Iterator[Callable[[], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
    from rich.text import Text

    class PaceColumn(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(", ".join(part for part in (pace.speed_and_time(), pace.note) if part))

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), PaceColumn())
    with Progress(*columns, console=console(), transient=False) as progress:
        task = progress.add_task(description, total=pace.total)
        progress.update(task, completed=pace.done)
        yield lambda: progress.update(task, completed=pace.done)


@contextmanager
def _in_notebook(description: str, pace: Pace) -> Iterator[Callable[[], None]]:
    from html import escape

    from IPython.display import HTML, display

    def page() -> HTML:
        value = f'value="{pace.share:.4f}"' if pace.total else ""
        return HTML(f'<progress max="1" {value}></progress> {escape(pace.line(description))}')

    handle = display(page(), display_id=True)
    said_s = [time.monotonic()]

    def show() -> None:
        if time.monotonic() - said_s[0] > 0.5:
            said_s[0] = time.monotonic()
            handle.update(page())

    try:
        yield show
    finally:
        handle.update(page())


@contextmanager
def _as_lines(description: str, pace: Pace) -> Iterator[Callable[[], None]]:
    """A line on standard error after a minute or a twentieth of the work; also while nothing is finished."""
    said_s, said_share = [pace.started_s], [pace.share]
    stop, writing = threading.Event(), threading.Lock()

    def say(*, due: bool = False) -> None:
        with writing:
            since_s = time.monotonic() - said_s[0]
            much = pace.share - said_share[0] >= LINE_SHARE
            if due or since_s >= LINE_S or (much and since_s >= SHORTEST_LINE_S):
                said_s[0], said_share[0] = time.monotonic(), pace.share
                print(f"{time.strftime('%H:%M:%S')} {pace.line(description)}", file=sys.stderr, flush=True)

    def keep_saying() -> None:
        while not stop.wait(min(5.0, LINE_S)):
            say()

    thread = threading.Thread(target=keep_saying, daemon=True)
    thread.start()
    try:
        yield say
    finally:
        stop.set()
        thread.join()
        if said_s[0] != pace.started_s:  # who has read how it goes wants to read how it ended
            say(due=True)


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate with a progress bar (see `progress_bar`)."""
    if total is None:
        total = len(iterable) if hasattr(iterable, "__len__") else None  # type: ignore[arg-type]
    with progress_bar(description, total) as bar:
        for item in iterable:
            yield item
            bar.update()

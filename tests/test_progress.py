"""Pace (rate and time left) with a clock of its own, and what a terminal, a log and a notebook get to see."""

from __future__ import annotations

import io
import logging
import re
import sys
import time
import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmrisynth import progress
from fmrisynth.progress import Pace, duration, log, progress_bar


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize("unit_s", [0.01, 1.0, 45.0, 7200.0])
def test_steady_work_is_foreseen_however_long_a_unit_takes(unit_s):
    clock = Clock()
    pace = Pace(50, clock=clock)
    assert pace.left_s is None
    for _ in range(10):
        clock.now += unit_s
        pace.advance(1)
    assert pace.rate == pytest.approx(1 / unit_s, rel=0.1)
    assert pace.left_s == pytest.approx(40 * unit_s, rel=0.1)
    clock.now += 0.9 * unit_s
    assert pace.left_s == pytest.approx(39.1 * unit_s, rel=0.1)
    clock.now += 10.1 * unit_s  # overdue: eleven units' time went by without one
    assert pace.left_s > 29 * unit_s  # what a moment brings may come now, the rest not sooner than before


def test_units_that_were_there_already_do_not_promise_too_much_for_long():
    clock = Clock()
    pace = Pace(1000, clock=clock)
    for _ in range(500):
        clock.now += 0.001
        pace.advance(1)
    for _ in range(8):
        clock.now += 30
        pace.advance(1)
    assert pace.left_s == pytest.approx((1000 - 508) * 30, rel=0.01)


def test_units_that_come_in_batches():
    clock = Clock()
    pace = Pace(160, clock=clock)
    for _ in range(5):
        clock.now += 300
        for _ in range(16):
            clock.now += 0.001
            pace.advance(1)
    assert pace.left_s == pytest.approx(1500, rel=0.01)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1e4), st.integers(0, 5)), max_size=40), st.integers(1, 100))
def test_no_order_of_events_breaks_it(steps, total):
    clock = Clock()
    pace = Pace(total, clock=clock)
    for wait, units in steps:
        clock.now += wait
        pace.advance(units)
        assert pace.left_s is None or pace.left_s >= 0
        assert "\n" not in pace.line("work")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59, "59 s"), (60, "1 min"), (3599, "1 h 0 min"), (7800, "2 h 10 min"), (273_600, "3 d 4 h")],
)
def test_durations_in_words(seconds, text):
    assert duration(seconds) == text


def test_a_log_gets_lines_with_done_rate_and_time_left(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_S", 0.2)
    with progress_bar("sampling", 4) as bar:
        time.sleep(0.5)  # also while nothing is finished
        bar.update(1, note="loss 3")
        time.sleep(0.3)
        bar.update(3)
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d sampling: 0/4 \(0 %\), after 0 s", lines[0])
    assert any(
        re.search(r"sampling: 1/4 \(25 %\), after 1 s, [\d.]+ a second, \d s left, loss 3", line) for line in lines
    )
    assert "sampling: 4/4 (100 %)" in lines[-1]


def test_short_work_says_nothing(capsys):
    with progress_bar("sampling", 100) as bar:
        for _ in range(100):
            bar.update()
    assert capsys.readouterr().err == ""


def test_log_lines_do_not_tear_the_bar(monkeypatch):
    from rich.console import Console

    from fmrisynth.cli import options

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    one = Console(stderr=True, force_terminal=True, width=120)
    monkeypatch.setattr(options, "console", lambda: one)
    monkeypatch.setattr(progress, "console", lambda: one)
    before = log.handlers[:], log.level, log.propagate
    try:
        options.set_verbosity(0)
        with progress_bar("sampling", 3) as bar:
            for number in range(3):
                log.info("message %d", number)
                bar.update()
    finally:
        log.handlers[:], log.level, log.propagate = before
    left = re.sub(r"[^\n]*\r\x1b\[2K", "", screen.getvalue())  # what the terminal erases is gone
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", left)
    for number in range(3):
        assert re.search(rf"(?m)^INFO +message {number} *$", shown), shown
    assert "3/3" in shown


def test_work_inside_of_work_shows_one_bar(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_S", 0.05)
    with progress_bar("outer", 1) as outer, progress_bar("inner", 1) as inner:
        time.sleep(0.2)
        inner.update()
        outer.update()
    said = capsys.readouterr().err
    assert "outer" in said
    assert "inner" not in said


def test_a_notebook_gets_a_bar(monkeypatch):
    pages = []
    handle = types.SimpleNamespace(update=pages.append)
    shell = type("ZMQInteractiveShell", (), {})()
    display = types.SimpleNamespace(HTML=str, display=lambda page, display_id: pages.append(page) or handle)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell, display=display))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    with progress_bar("a < b", 2) as bar:
        bar.update(2)
    assert '<progress max="1" value="0.0000">' in pages[0]
    assert 'value="1.0000"' in pages[-1]
    assert "a &lt; b: 2/2 (100 %)" in pages[-1]


def test_it_can_be_silenced(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_S", 0.01)
    monkeypatch.setattr(log, "level", logging.WARNING)
    with progress_bar("sampling", 1) as bar:
        time.sleep(0.1)
        bar.update()
    assert capsys.readouterr().err == ""

"""Participants side by side: the same call in several processes, each with a share of the participants.

A share is what a job of an array would do, so the locks and records of `fmrisynth.stage` keep the processes apart. Whoever
shares work out calls the stage once more for all participants: it finds what is finished, tries what failed again, and tells.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager

from fmrisynth.errors import FmrisynthError
from fmrisynth.progress import log, progress_bar

SHARES_PER_PROCESS = 4
"""Small shares keep all processes busy to the end; each opens the input anew."""

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def side_by_side(
    work: Callable[[list[str]], object], participants: Sequence[str], n_processes: int, description: str
) -> None:
    """Call `work` with shares of the participants, in so many processes of one arithmetic thread each.

    Parameters
    ----------
    work : callable
        Takes labels; can be pickled. What it returns, and errors about the input, are left to the call that follows.
    participants : sequence of str
        Labels.
    n_processes : int
        With one process, or one participant, nothing is done: the call that follows does the work.
    """
    n_processes = min(n_processes, len(participants))
    if n_processes < 2:
        return
    n_shares = min(len(participants), SHARES_PER_PROCESS * n_processes)
    shares = [list(participants[number::n_shares]) for number in range(n_shares)]
    with _one_thread_each(), progress_bar(description, len(participants)) as bar:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(n_processes, mp_context=context, initializer=_quiet, initargs=(log.level,)) as pool:
            running = {pool.submit(_share, work, share): share for share in shares}
            for done in as_completed(running):
                done.result()
                bar.update(len(running[done]))


def _share(work: Callable[[list[str]], object], share: list[str]) -> None:
    try:
        work(share)
    except FmrisynthError as error:
        log.debug("left to the main process: %s", error)


def _quiet(level: int) -> None:
    log.addHandler(logging.StreamHandler())
    log.setLevel(max(level, logging.ERROR))


@contextmanager
def _one_thread_each() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

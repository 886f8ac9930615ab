"""Run commands as real processes, quickly: forked from a server that has imported everything, each with its faults."""

from __future__ import annotations

import ctypes
import errno
import itertools
import multiprocessing
import multiprocessing.connection
import os
import resource
import signal
import sys
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

TIMEOUT_S = 600.0

_PRELOAD = [
    "fmrisynth.cli.app", "fmrisynth.prepare.stage", "fmrisynth.simulate.cohort", "fmrisynth.tokenize.stage",
    "fmrisynth.train.denoiser", "fmrisynth.sample.run", "fmrisynth.glm.runs", "fmrisynth.evaluate.page", "fmrisynth.embed.stage",
    "fmrisynth.embed.probes", "fmrisynth.embed.pictures", "fmrisynth.embed.learning",
    "torch._dynamo", "torch.distributed.tensor", "nilearn.image", "nilearn.datasets", "nilearn.glm.first_level",
    "torch.utils.tensorboard", "sklearn.linear_model",
    "matplotlib.pyplot", "bids.layout",
]  # fmt: skip
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([*_PRELOAD, __name__])


@dataclass(frozen=True)
class Fault:
    """What is wrong with a process from its start.

    Attributes
    ----------
    max_file_bytes : int, optional
        Writing beyond fails, as on a full disk.
    memory_bytes : int, optional
        How much more it may allocate than it had when it started, whatever its allocator had left over.
    unprivileged : bool
        File permissions hold, even for root.
    clock_shift_s : float
        ``time.time`` is off by so much.
    at_rename : int, optional
        It sends `signal` to itself before file number so many gets its final name.
    at_image : int, optional
        It sends `signal` to itself as it opens image number so many.
    signal : int
        SIGKILL, if not another one.
    no_flock : bool
        The file system has no ``flock``.
    """

    max_file_bytes: int | None = None
    memory_bytes: int | None = None
    unprivileged: bool = False
    clock_shift_s: float = 0.0
    at_rename: int | None = None
    at_image: int | None = None
    signal: int = signal.SIGKILL
    no_flock: bool = False

    def arrange(self) -> None:
        """Make it so, in this process."""
        if self.unprivileged:
            drop_file_privileges()
        if self.clock_shift_s:
            true_time = time.time
            time.time = lambda: true_time() + self.clock_shift_s
        if self.no_flock:
            import fcntl

            def flock(_file, _operation):
                raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

            fcntl.flock = flock
        if self.at_rename is not None:
            _send_at_rename(self.at_rename, self.signal)
        if self.at_image is not None:
            _send_at_image(self.at_image, self.signal)
        if self.max_file_bytes is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.max_file_bytes, resource.RLIM_INFINITY))
        if self.memory_bytes is not None:
            _limit_memory(self.memory_bytes)


@dataclass
class Running:
    """A started command."""

    process: BaseProcess
    output: Connection

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def wait(self, timeout_s: float = TIMEOUT_S) -> Done:
        """Wait for its end; a command that hangs fails the test."""
        said = b""
        deadline = time.monotonic() + timeout_s
        while multiprocessing.connection.wait([self.output], max(0.0, deadline - time.monotonic())):
            part = os.read(self.output.fileno(), 1 << 16)
            if not part:
                self.process.join()
                assert self.process.exitcode is not None
                return Done(self.process.exitcode, said.decode(errors="replace"))
            said += part
        self.process.kill()
        self.process.join()
        pytest.fail(f"still running after {timeout_s} s: {said.decode(errors='replace')}")


@dataclass(frozen=True)
class Done:
    """How a command ended: its status (minus the signal's number), and all that it printed."""

    status: int
    said: str

    @property
    def errors(self) -> list[str]:
        """What it said was wrong, a sentence each."""
        return [line for line in self.said.splitlines() if line.startswith(("Error: ", "FAILED "))]


@dataclass
class Starter:
    """Starts commands; what they print comes back through a pipe, which no limit on files touches."""

    started: list[Running] = field(default_factory=list)

    def __call__(self, arguments: list[str], fault: Fault | None = None) -> Running:
        reader, writer = multiprocessing.Pipe(duplex=False)
        process = _context.Process(target=_child, args=(list(map(str, arguments)), writer, fault or Fault()))
        process.start()
        writer.close()
        self.started.append(Running(process, reader))
        return self.started[-1]

    def run(self, arguments: list[str], fault: Fault | None = None) -> Done:
        """Start and wait."""
        return self(arguments, fault).wait()

    def end(self) -> None:
        """Leave nothing running."""
        for running in self.started:
            if running.process.is_alive():
                running.process.kill()
                running.process.join()


def _child(arguments: list[str], output: Connection, fault: Fault) -> None:
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    output.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server of forks ignores it
    sys.argv = ["fmrisynth", *arguments]
    import fmrisynth.embed.pictures
    import fmrisynth.evaluate.page
    from fmrisynth.bids.atomic import write_text
    from fmrisynth.cli.main import run

    # The pictures cost ten times more than the evaluation; they are drawn in memory and written as one file.
    fmrisynth.evaluate.page.write_report = lambda path, *_: write_text(path, "<p>report</p>")
    fmrisynth.embed.pictures.draw_pictures = lambda _maps, _encoder, folder, _run: [
        write_text(folder / "flatmap.png", "a map") or "Map"
    ]
    fault.arrange()
    status = run(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _limit_memory(more_bytes: int) -> None:
    size_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size_bytes, resource.RLIM_INFINITY))
    # What the server of forks had freed while it imported would serve a small command whole: use it up.
    malloc = ctypes.CDLL(None).malloc
    malloc.argtypes, malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    for block_bytes in (1 << power for power in range(28, 14, -1)):
        while malloc(block_bytes):
            pass
    resource.setrlimit(resource.RLIMIT_AS, (size_bytes + more_bytes, resource.RLIM_INFINITY))


def _send_at_rename(number: int, what: int) -> None:
    replace = os.replace
    renames = itertools.count()  # counts once, whichever threads rename

    def fatal(*names, **keywords):
        if next(renames) == number:
            os.kill(os.getpid(), what)
        replace(*names, **keywords)

    os.replace = fatal


def _send_at_image(number: int, what: int) -> None:
    images = itertools.count()

    def watch(event: str, details: tuple) -> None:
        if event == "open" and "_bold.nii" in str(details[0]) and next(images) == number:
            os.kill(os.getpid(), what)

    sys.addaudithook(watch)


def drop_file_privileges() -> None:
    """Give up root's right to read and write everything (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH) in this process."""
    if os.geteuid() != 0:
        return
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capget(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    for word in range(3):  # effective, permitted, inheritable
        data[word] &= ~0b110
    if libc.capset(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def permissions_hold(folder: Path) -> bool:
    """Whether an unprivileged process of ours is kept out by file permissions."""
    closed = folder / "closed"
    closed.mkdir()
    closed.chmod(0o500)
    pid = os.fork()
    if pid == 0:
        try:
            drop_file_privileges()
            (closed / "x").touch()
            os._exit(1)
        except OSError:
            os._exit(0)
    held = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    closed.chmod(0o700)
    return held

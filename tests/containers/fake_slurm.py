"""A Slurm of one machine: `sbatch`, `srun`, `scontrol`, `squeue` and `scancel` that keep their jobs in a folder, and a
scheduler that really runs them, in the order of their dependencies, with the environment and the copy of the script
that Slurm gives them. Options that Slurm does not have are refused as `sbatch` refuses them.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

COMMANDS = ("sbatch", "srun", "scontrol", "squeue", "scancel")
FLAGS = {"parsable", "requeue"}
OPTIONS = {
    "account", "array", "cpus-per-task", "dependency", "gpus-per-node", "job-name", "kill-on-invalid-dep", "mem", "nodes",
    "ntasks-per-node", "open-mode", "output", "partition", "signal", "time",
}  # fmt: skip


def install(folder: Path) -> Path:
    """Write the five commands into a folder, to be put in front of PATH; returns the folder."""
    folder.mkdir(parents=True)
    for name in COMMANDS:
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" {name} "$@"\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return folder


def parse_options(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Split ``--name=value`` words from the script and its arguments."""
    options: dict[str, str] = {}
    for position, word in enumerate(words):
        if not word.startswith("--"):
            return options, words[position:]
        name, _, value = word[2:].partition("=")
        if name not in FLAGS | OPTIONS or (name in OPTIONS and not value):
            sys.exit(f"sbatch: unrecognized option or missing value '{word}'")
        options[name] = value
    return options, []


def script_options(text: str) -> dict[str, str]:
    """The ``#SBATCH`` lines before the first command; Slurm does not read later ones."""
    words: list[str] = []
    for line in text.splitlines():
        if line.startswith("#SBATCH"):
            words += line.removeprefix("#SBATCH").split()
        elif line.strip() and not line.startswith("#"):
            break
    return parse_options(words)[0]


@dataclass
class Job:
    """One submitted job, or array of jobs."""

    number: int
    script: str
    arguments: list[str]
    options: dict[str, str]
    state: str = "PENDING"

    @property
    def name(self) -> str:
        return self.options["job-name"]

    @property
    def needs(self) -> list[tuple[str, int]]:
        """(relation, number) of each job this one waits for."""
        words = [word for word in self.options.get("dependency", "").split(",") if word]
        return [(word.partition(":")[0], int(word.partition(":")[2])) for word in words]

    @property
    def tasks(self) -> list[int | None]:
        if "array" not in self.options:
            return [None]
        first, _, last = self.options["array"].partition("-")
        return list(range(int(first), int(last) + 1))


def read_jobs(root: Path) -> list[Job]:
    return [Job(**json.loads(path.read_text())) for path in sorted(root.glob("job-*.json"))]


def write_job(root: Path, job: Job) -> None:
    (root / f"job-{job.number:06d}.json").write_text(json.dumps(job.__dict__))


@dataclass
class Scheduler:
    """Runs the jobs of a folder until none can run.

    Attributes
    ----------
    root : Path
        Folder of the jobs (the variable FAKE_SLURM).
    environment : dict
        Environment of the jobs.
    accidents : list of (job name, condition, action)
        While a task of that job runs and the condition holds, the action is called, once, with the task's process
        number; it may return "requeue" to say that Slurm queues the task again (as after a node failure).
    history : list of (job name, array task, exit status)
    """

    root: Path
    environment: dict[str, str]
    accidents: list[tuple[str, Callable[[], bool], Callable[[int], str | None]]] = field(default_factory=list)
    history: list[tuple[str, int | None, int | str]] = field(default_factory=list)

    def run(self) -> None:
        """Run every job whose dependencies are met, in order of submission, until nothing is left."""
        while True:
            jobs = {job.number: job for job in read_jobs(self.root)}
            for job in jobs.values():
                if job.state != "PENDING":
                    continue
                states = [(relation, jobs[number].state) for relation, number in job.needs]
                if any(state in ("PENDING", "RUNNING") for _, state in states):
                    continue
                if any(relation == "afterok" and state != "COMPLETED" for relation, state in states):
                    job.state = "CANCELLED"  # --kill-on-invalid-dep=yes
                    write_job(self.root, job)
                    continue
                job.state = "RUNNING"
                write_job(self.root, job)
                ok = [self._run_task(job, task) for task in job.tasks]
                job.state = "COMPLETED" if all(ok) else "FAILED"
                write_job(self.root, job)
                break
            else:
                return

    def _run_task(self, job: Job, task: int | None) -> bool:
        number = job.number * 1000 + (task or 0)
        requeue_file = self.root / f"requeue-{number}"
        for restart in range(10):
            requeue_file.unlink(missing_ok=True)
            environment = self.environment | {
                "FAKE_SLURM": str(self.root),
                "SLURM_JOB_ID": str(number),
                "SLURM_JOB_NUM_NODES": job.options.get("nodes", "1"),
                "SLURM_JOB_NODELIST": "node[1-9]",
                "SLURM_RESTART_COUNT": str(restart),
            }
            if task is not None:
                environment |= {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": str(len(job.tasks))}
            log = job.options["output"].replace("%A", str(job.number)).replace("%a", str(task or 0))
            with open(log, "a" if job.options.get("open-mode") == "append" else "w") as stream:
                process = subprocess.Popen(
                    ["bash", job.script, *job.arguments], env=environment, stdout=stream, stderr=subprocess.STDOUT
                )
                fate = self._watch(job, process)
            if fate is None and requeue_file.exists():
                fate = "requeue"
            self.history.append((job.name, task, fate or process.returncode))
            if fate != "requeue":
                return process.returncode == 0
            assert "requeue" in job.options, f"{job.name} may not be queued again: no --requeue"
        raise AssertionError(f"{job.name} was queued again ten times")

    def _watch(self, job: Job, process: subprocess.Popen[bytes]) -> str | None:
        fate = None
        while process.poll() is None:
            for accident in list(self.accidents):
                name, condition, action = accident
                if name == job.name and condition():
                    self.accidents.remove(accident)
                    fate = action(process.pid) or fate
            time.sleep(0.02)
        return fate


def descendants(root: int) -> Iterator[tuple[int, str]]:
    """(process number, command line) of all processes below one."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    waiting = list(children.get(root, []))
    while waiting:
        number = waiting.pop()
        try:
            yield number, Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        waiting += children.get(number, [])


def kill_tree(root: int) -> str:
    """What a node failure does: every process of the task is gone at once, and Slurm queues the task again."""
    numbers = [root, *(number for number, _ in descendants(root))]
    for number in numbers:
        try:
            os.kill(number, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return "requeue"


def warn_steps(root: int) -> None:
    """What ``--signal=USR1@seconds`` does: the signal goes to every process of the job's steps, not to the script."""
    inside = [number for number, line in descendants(root) if "fake_slurm.py srun" in line]
    for step in inside:
        for number, _ in descendants(step):
            os.kill(number, signal.SIGUSR1)


def sbatch(root: Path, words: list[str]) -> None:
    options, rest = parse_options(words)
    if not rest or not Path(rest[0]).is_file():
        sys.exit("sbatch: error: no batch script")
    text = Path(rest[0]).read_text()
    number = len(read_jobs(root)) + 101
    spooled = root / f"script-{number}"
    shutil.copy(rest[0], spooled)
    write_job(root, Job(number, str(spooled), rest[1:], script_options(text) | options))
    print(number)


def srun(_root: Path, words: list[str]) -> None:
    _, command = parse_options(words)
    nodes = int(os.environ["SLURM_JOB_NUM_NODES"])
    processes = [
        subprocess.Popen(command, env=os.environ | {"SLURM_NODEID": str(node), "SLURM_PROCID": str(node)})
        for node in range(nodes)
    ]
    sys.exit(max(abs(process.wait()) for process in processes))


def scontrol(root: Path, words: list[str]) -> None:
    if words[:2] == ["show", "hostnames"]:
        print("\n".join(["localhost"] * int(os.environ["SLURM_JOB_NUM_NODES"])))
    elif words[0] == "requeue":
        (root / f"requeue-{words[1]}").touch()
    else:
        sys.exit(f"scontrol: not known here: {words}")


def squeue(root: Path, words: list[str]) -> None:
    if "%L" in words:
        print(os.environ.get("FAKE_TIME_LEFT", "UNLIMITED"))
        return
    asked = words[words.index("--jobs") + 1].split(",")
    for job in read_jobs(root):
        if str(job.number) in asked and job.state in ("PENDING", "RUNNING"):
            print(job.number)


def scancel(root: Path, words: list[str]) -> None:
    for job in read_jobs(root):
        if str(job.number) in words and job.state in ("PENDING", "RUNNING"):
            job.state = "CANCELLED"
            write_job(root, job)


if __name__ == "__main__":
    {"sbatch": sbatch, "srun": srun, "scontrol": scontrol, "squeue": squeue, "scancel": scancel}[sys.argv[1]](
        Path(os.environ["FAKE_SLURM"]), sys.argv[2:]
    )

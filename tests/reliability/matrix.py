"""Write docs/reliability.md from the tests: `python -m tests.reliability.matrix` (with ``--check``, only compare).

A test proves a cell by the marker ``fault(command=..., fault=..., outcome=...)``; see `tests.reliability.faults`.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.reliability.faults import COMMANDS, FAULTS
from tests.reliability.planted_cases import table

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "reliability.md"

WRITES_NOTHING = "It reads and prints; it writes nothing and keeps nothing between calls."
NOT_APPLICABLE = {
    ("simulate", "changed input"): "It reads none, but for a table and an atlas of activations where they are given.",
    ("sample", "corrupt input"): "Its only input is the checkpoint.",
    ("simulate", "corrupt checkpoint"): "It reads none.",
    ("prepare", "corrupt checkpoint"): "It reads none.",
    ("glm", "corrupt checkpoint"): "It reads none.",
    **{
        ("check", fault): WRITES_NOTHING
        for fault in (
            "changed setting",
            "deleted output",
            "truncated output",
            "somebody's folder",
            "disk full",
            "read-only output",
            "clock change",
            "two processes",
        )
    },
}

INTRODUCTION = """# What happens when things go wrong

Every command can be stopped at any moment and called again. This page is written by
`python -m tests.reliability.matrix` from the tests that prove it; a test fails when the page and the tests differ.

## The rules behind the table

- **A file stands under its final name only when it is whole.** It is written beside, under a hidden name that carries the
  machine and the process (`.tmp-...`), and renamed. What killed processes leave is removed by the next call, and only
  what belongs to a process that has certainly ended.
- **A unit of work is finished when its record says so** (`logs/units/<label>.json`; a participant, a run, a sample, a fit, a
  group map): the SHA-256 of everything that it was made from is the same, and every file that it wrote is there with the
  SHA-256 it had. Otherwise it is done again, with what hangs on it, and the summary says which and why. What readers take for
  the mark of completeness (`scans.tsv`, the latents' index, the table of maps) is removed before and written again after.
- **No decision depends on a clock.** Size, times and inode of a file only say whether its digest must be computed again; a
  file that was copied, touched or moved is read once more, and found the same.
- **What counts is on the disk.** The files of a unit and the folders that name them are put there (`fsync`) before its index and
  its record get their names, so that the death of the machine leaves no record of files that are empty.
- **A folder belongs to the command that began it** (`logs/begun.json`), with its settings and its input. Another command, another
  dataset or other settings are refused before anything is touched; an input that only moved is known by its content.
  `--force` makes everything that is asked for anew, also with other settings; it does not open other people's folders.
- **One writer at a time for a unit of work.** A participant, a sample, the fit of a tokenizer: a second process waits until
  the first is done with it, and finds it done. A training run or an evaluation: a second process is refused. Jobs of an array
  work on different participants or shards and never wait for each other.
- **A lock ends with its process.** It is the kernel's `flock`, in a hidden file `.<unit>.lock` of the output folder. On shared
  file systems without `flock` the file holds its owner's name and a beat: on the owner's machine the kernel is asked
  whether the owner lives, elsewhere an owner that has not renewed its file for 30 s counts as dead. On NFS, the lock of a node that
  crashed may last until the server gives it up (about 90 s): `train` and `evaluate` wait up to two minutes for an owner on
  another machine before they refuse. A file system that keeps `flock` to each node (Lustre mounted with `localflock`)
  protects processes of one node only.
- **Exit status**: 0 done; 1 something failed, with one sentence each (the others are written); 2 the request is wrong;
  70 a mistake in fmrisynth; 130 interrupted (Ctrl-C); 143 terminated (SIGTERM). A traceback is printed with `-v` only.

## Faults and commands
"""

CLOSING = """
## Random moments, and the death of a machine

`pytest -n 0 -m slow tests/reliability/test_kills.py` stops every command and both levels of the BIDS App with SIGKILL, SIGINT and SIGTERM
at random moments, at least 108 times in all; at the end every file is the one of an uninterrupted call.
`pytest -n 0 -m slow tests/reliability/test_durable.py` copies the file system under every command, in the middle and five
seconds after its end, without flushing it, mounts the copy and calls the command again (it takes root and loop devices).
That `fsync` comes in the right order is tested everywhere.

`pytest -n 0 -m slow tests/reliability/test_environments.py` calls every command as a user without rights, name or home, with
umask 077 and `LANG=C`, and with warnings as errors; reads events and participants of a million lines; and compares the
memory of 20 and of 200 samples.

| slow tests, 28 November 2026, two cores | seen |
| --- | --- |
| signals at random moments | 108 sent, 36 of each kind; every output is the one of an uninterrupted call |
| death of the machine | 7 of 7 commands, copied once in the middle and once 5 s after the end: continued to the same files |
| odd input with a known answer | 41 inputs: the planted effects or the refusal that the table lists |
| warnings as errors | 7 of 7 commands end with status 0 |
| user without rights, name or home | 7 of 7 commands, called twice; every file has mode 0600 |
| a million lines | events: 1,000,000 rows read, found to be as many blocks, and listed by `glm --dry-run`; people: read by `prepare` |
| memory of `sample` | the peak with 200 samples is less than 5 % above that with 20 |

## Damaged or false files

Events, EVs, confounds, indices, condition tables, settings, NIfTI headers, latents, tokenizers and checkpoints are fuzzed
(`tests/reliability/test_fuzz_text.py`, `tests/reliability/test_fuzz_binary.py`): whatever is in them, the answer is a value or one
printable sentence, and no memory is taken for what a header merely claims. The cases are the same in every run;
`pytest tests/reliability --hypothesis-profile=default` tries new ones.
"""


class _Collector:
    def __init__(self) -> None:
        self.cells: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Note which cells each test proves."""
        for item in items:
            test = re.sub(r"\[.*", "", item.nodeid)
            for mark in item.iter_markers("fault"):
                cell = self.cells[mark.kwargs["command"], mark.kwargs["fault"]]
                if test not in cell[mark.kwargs["outcome"]]:
                    cell[mark.kwargs["outcome"]].append(test)


def collect() -> dict[tuple[str, str], dict[str, list[str]]]:
    """(command, fault) -> outcome -> tests, from all tests that have the marker."""
    files = sorted(
        str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "tests").rglob("test_*.py")
        if re.search(r"mark\.fault\(|from tests\.reliability\.faults import each", path.read_text(encoding="utf-8"))
    )  # fmt: skip
    collector = _Collector()
    options = ["--collect-only", "-qq", "--rootdir", str(REPOSITORY), "-o", "addopts=", "-p", "no:cacheprovider"]
    status = pytest.main([*options, *files], plugins=[collector])
    if status != 0:
        raise SystemExit(f"the tests could not be collected (status {status})")
    return collector.cells


def page(cells: dict[tuple[str, str], dict[str, list[str]]]) -> str:
    """The page.

    Raises
    ------
    ValueError
        A cell is empty, or proved by a test with no outcome, or for a command or fault that is not in the table.
    """
    unknown = [cell for cell in cells if cell[0] not in COMMANDS or cell[1] not in FAULTS]
    empty = [(c, f) for f in FAULTS for c in COMMANDS if (c, f) not in cells and (c, f) not in NOT_APPLICABLE]
    silent = [cell for cell, outcomes in cells.items() if not all(outcomes)]
    both = [cell for cell in NOT_APPLICABLE if cell in cells]
    if unknown or empty or silent or both:
        raise ValueError(
            f"unknown {unknown}, empty {empty}, without outcome {silent}, proved though not applicable {both}"
        )
    lines = [INTRODUCTION]
    for fault in FAULTS:
        lines += [
            f"### {fault[0].upper()}{fault[1:]}",
            "",
            "| command | what happens | proved by |",
            "| --- | --- | --- |",
        ]
        for command in COMMANDS:
            if (command, fault) in NOT_APPLICABLE:
                lines.append(f"| `{command}` | Not applicable: {NOT_APPLICABLE[command, fault]} | |")
                continue
            outcomes = cells[command, fault]
            what = " ".join(outcomes)
            tests = list(dict.fromkeys(test for found in outcomes.values() for test in found))
            lines.append(f"| `{command}` | {what} | {', '.join(f'`{_short(test)}`' for test in tests)} |")
        lines.append("")
    return "\n".join([*lines, table()]).rstrip() + "\n" + CLOSING


def _short(test: str) -> str:
    return test.removeprefix("tests/").replace(".py::", "::")


def main() -> None:
    """Write or check the page."""
    text = page(collect())
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        raise SystemExit(f"{PAGE.name} is not what the tests say; run `python -m tests.reliability.matrix`")


if __name__ == "__main__":
    main()

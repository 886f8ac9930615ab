"""The shell blocks of a Markdown page: what a reader would type.

python -m tests.docs.shell_blocks docs/tutorial.md FOLDER      runs a page's blocks in a folder, as they stand
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def blocks_of(page: str, language: str = "bash") -> list[str]:
    """Code blocks of a page of the repository, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", (REPOSITORY / page).read_text(), re.M | re.S)


def commands_of(block: str) -> list[list[str]]:
    """The commands of a block as words; only plain calls, ``&&`` and ``|| true`` are understood."""
    commands: list[list[str]] = []
    for line in re.sub(r"\\\n\s*", " ", block).splitlines():
        words = shlex.split(line, comments=True)
        if words[-2:] == ["||", "true"]:
            words = words[:-2]
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            commands.append(words[:end])
            words = words[end + 1 :]
    return commands


def main() -> None:
    """Run a page's blocks and show what they print."""
    page, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for block in blocks_of(page):
        print("+ " + block, end="", flush=True)
        subprocess.run(["bash", "-euo", "pipefail", "-c", block], cwd=folder, check=True)


if __name__ == "__main__":
    main()

"""Read a Dockerfile: its stages and their instructions. `containers/build.sh` is what builds it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
DOCKERFILE = REPOSITORY / "containers" / "Dockerfile"


@dataclass
class Stage:
    """One FROM and what follows it."""

    base: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def values(self, keyword: str) -> list[str]:
        """Arguments of all instructions of one kind."""
        return [argument for name, argument in self.steps if name == keyword]


def parse(text: str) -> list[Stage]:
    """The stages of a Dockerfile; comments are dropped, continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    stages: list[Stage] = []
    for line in filter(str.strip, joined.splitlines()):
        keyword, _, argument = line.strip().partition(" ")
        if keyword == "FROM":
            words = argument.split()
            stages.append(Stage(words[0], words[2] if len(words) == 3 else str(len(stages))))
        else:
            stages[-1].steps.append((keyword, argument.strip()))
    return stages


def expand(text: str, values: dict[str, str]) -> str:
    """Replace ``$NAME`` and ``${NAME}``; an unknown name is empty, as for Docker."""
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda match: values.get(match[1] or match[2], ""), text)

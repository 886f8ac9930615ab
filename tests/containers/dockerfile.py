"""Read a Dockerfile, and carry out its steps in a clean root folder where there is no container engine.

    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm BASE
    ln -s python3 BASE/usr/bin/python
    python tests/containers/dockerfile.py BASE WORK TORCH_VERSION=2.13.0

Every stage starts from a copy of BASE (whatever its FROM says); RUN goes through `chroot` with the stage's ARG and ENV
only, COPY copies, and the last stage's program is then called as its USER on a read-only root with an empty /tmp. Needs
root. Variables of pip and of certificates, and the folders of BIND, are passed through: they are the machine's way to
the network.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
DOCKERFILE = REPOSITORY / "containers" / "Dockerfile"
PASSED = ("PIP_", "SSL_", "REQUESTS_", "CURL_")


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


@dataclass
class Image:
    """A stage carried out: its root folder and what Docker would remember of it."""

    root: Path
    environment: dict[str, str] = field(
        default_factory=lambda: {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
    )
    workdir: str = "/"
    user: str = "0:0"
    labels: dict[str, str] = field(default_factory=dict)
    entrypoint: list[str] = field(default_factory=list)

    def call(self, command: list[str], extra: dict[str, str], binds: list[str], *, finished: bool = False) -> None:
        """Run in the root; `finished` is as a container runs: read-only, own user, only /tmp writable."""
        uid, gid = self.user.split(":")
        mounts = [f"mkdir -p {self.root}/proc {self.root}/dev", f"mount -t proc proc {self.root}/proc",
                  f"mount --rbind /dev {self.root}/dev"]  # fmt: skip
        for bind in [*binds, "/etc/resolv.conf"]:
            target = f"{self.root}{bind}"
            make = f"mkdir -p {target}" if Path(bind).is_dir() else f"touch {target}"
            mounts += [make, f"mount --bind {bind} {target}"] if not finished else []
        if finished:
            mounts += [f"mount -t tmpfs tmpfs {self.root}/tmp", f"mount -o remount,bind,ro {self.root}"]
        become = f"setpriv --reuid {uid} --regid {gid} --clear-groups " if finished else ""
        inner = f"cd {shlex.quote(self.workdir)} && exec {become}{shlex.join(command)}"
        script = "\n".join(
            ["set -e", f"mount --bind {self.root} {self.root}", *mounts, f"exec chroot {self.root} /bin/bash -c {shlex.quote(inner)}"]
        )  # fmt: skip
        subprocess.run(["unshare", "-m", "bash", "-c", script], env=self.environment | extra, check=True)


def build(base: Path, work: Path, arguments: dict[str, str], binds: list[str]) -> Image:
    """Carry out all stages; returns the last one."""
    network = {name: value for name, value in os.environ.items() if name.startswith(PASSED)}
    done: dict[str, Image] = {}
    for stage in parse(DOCKERFILE.read_text()):
        image = Image(work / stage.name)
        shutil.rmtree(image.root, ignore_errors=True)
        work.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", str(base), str(image.root)], check=True)
        shell, values = ["/bin/sh", "-c"], {}
        for keyword, argument in stage.steps:
            print(f"[{stage.name}] {keyword} {argument[:100]}", flush=True)
            known = values | image.environment
            if keyword == "ARG":
                name, _, default = argument.partition("=")
                values[name] = arguments.get(name, default.strip('"'))
            elif keyword in ("ENV", "LABEL"):
                for word in shlex.split(argument):
                    name, _, value = word.partition("=")
                    (image.environment if keyword == "ENV" else image.labels)[name] = expand(value, known)
            elif keyword == "WORKDIR":
                image.workdir = argument
                (image.root / argument.lstrip("/")).mkdir(parents=True, exist_ok=True)
            elif keyword == "COPY":
                _copy(argument, image, done)
            elif keyword == "SHELL":
                shell = json.loads(argument)
            elif keyword == "RUN":
                image.call([*shell, argument], values | network, binds)
            elif keyword == "USER":
                image.user = argument
            elif keyword == "ENTRYPOINT":
                image.entrypoint = json.loads(argument)
            elif keyword != "CMD":
                raise ValueError(f"an instruction that is not known here: {keyword}")
        done[stage.name] = image
    return image


def _copy(argument: str, image: Image, done: dict[str, Image]) -> None:
    *sources, target = argument.split()
    root = REPOSITORY
    if sources[0].startswith("--from="):
        root = done[sources.pop(0).removeprefix("--from=")].root
    place = image.root / (target if target.startswith("/") else f"{image.workdir}/{target}").lstrip("/")
    for source in sources:
        path = root / source.lstrip("/")
        into = place / path.name if target.endswith("/") else place
        into.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-aT", "--no-preserve=ownership", str(path), str(into)], check=True)


def main() -> None:
    """Build, then call the entry point and the smoke test as a container would."""
    base, work, *words = sys.argv[1:]
    binds = [word.removeprefix("BIND=") for word in words if word.startswith("BIND=")]
    arguments = dict(word.split("=", 1) for word in words if not word.startswith("BIND="))
    image = build(Path(base).resolve(), Path(work).resolve(), arguments, binds)
    print("labels", image.labels)
    for command in ([*image.entrypoint, "--version"], ["fmrisynth-smoke"]):
        print("[container]", shlex.join(command), flush=True)
        image.call(command, {}, [], finished=True)


if __name__ == "__main__":
    main()

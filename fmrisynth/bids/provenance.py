"""Who made a dataset, from what, and how: ``dataset_description.json``, logs and hashes."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import sys
import uuid
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fmrisynth import __version__
from fmrisynth.bids.atomic import write_json, write_text
from fmrisynth.bids.naming import IGNORED_PATTERNS
from fmrisynth.bids.origin import Origin
from fmrisynth.config.base import StageConfig
from fmrisynth.config.load import dump_yaml

BIDS_VERSION = "1.10.0"
CODE_URL = "https://github.com/fmrisynth/fmrisynth"
CONTAINER_VARIABLE = "FMRISYNTH_CONTAINER"
"""Set in the container image to its tag; recorded in `GeneratedBy`."""

_PACKAGES = ("torch", "monai", "nilearn", "nibabel", "numpy", "scipy", "pandas", "pybids")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def generated_by(origin: Origin | None = None) -> list[dict[str, Any]]:
    """The BIDS ``GeneratedBy`` list."""
    entry: dict[str, Any] = {"Name": "fmrisynth", "Version": __version__, "CodeURL": CODE_URL}
    if origin is not None:
        entry["Description"] = origin.statement
    container = os.environ.get(CONTAINER_VARIABLE)
    if container:
        entry["Container"] = {"Type": "docker", "Tag": container}
    return [entry]


DESCRIPTION_FILES = ("dataset_description.json", ".bidsignore", "README.md")
"""What `write_dataset_description` writes."""


def write_dataset_description(
    root: Path, name: str, *, sources: Sequence[Path] = (), origin: Origin | None = None, readme: str = ""
) -> None:
    """Write ``dataset_description.json``, ``.bidsignore`` and ``README.md`` of a derivative dataset."""
    description: dict[str, Any] = {
        "Name": name,
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": generated_by(origin),
        "HowToAcknowledge": "Please cite fmrisynth (CITATION.cff) and the source data.",
    }
    if sources:
        description["SourceDatasets"] = [{"URL": source.resolve().as_uri()} for source in sources]
    if origin is not None:
        description |= origin.sidecar()
        readme = f"**{origin.statement}**\n\n{readme.strip()}"
        if origin.kind != "measured":
            description["Keywords"] = ["synthetic", "phantom"] if origin.is_phantom else ["synthetic"]
    write_json(root / "dataset_description.json", description)
    write_text(root / ".bidsignore", "\n".join(IGNORED_PATTERNS) + "\n")
    write_text(root / "README.md", f"# {name}\n\n{readme.strip()}\n")


def write_run_log(root: Path, command: str, config: StageConfig, argv: Sequence[str] | None = None) -> Path:
    """Write ``logs/<command>_<uuid>.json`` and the resolved configuration beside it.

    Returns
    -------
    Path
        The YAML file of the resolved configuration.
    """
    run_id = uuid.uuid4().hex[:12]
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    resolved = root / "logs" / f"{command}_{run_id}.yaml"
    write_text(resolved, dump_yaml(config))
    write_json(
        root / "logs" / f"{command}_{run_id}.json",
        {
            "Command": shlex.join(sys.argv if argv is None else argv),
            "Version": __version__,
            "ConfigHash": config.digest(),
            "Python": platform.python_version(),
            "Platform": platform.platform(),
            "Packages": versions,
        },
    )
    return resolved

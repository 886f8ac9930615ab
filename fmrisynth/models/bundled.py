"""Where the model that ships inside the package lies."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from fmrisynth.errors import FmrisynthError

BUNDLED = "bundled"
"""The word that stands for the bundled model or tokenizer."""


def bundled_model_dir() -> Path:
    """Folder of the bundled model: ``checkpoint.json``, weights and ``tokenizer/``.

    Raises
    ------
    FmrisynthError
        If the package was installed without its data files.
    """
    folder = Path(str(resources.files("fmrisynth") / "bundled"))
    if not (folder / "checkpoint.json").is_file():
        raise FmrisynthError(
            f"{folder}: the bundled model is missing from this installation; install the package again, or name a model (or "
            "tokenizer) of your own."
        )
    return folder


def model_dir(given: Path | None) -> Path:
    """Where a model lies that somebody asked for; the word `BUNDLED` is the bundled one, unless a folder is called so."""
    return bundled_model_dir() if given is None or (str(given) == BUNDLED and not given.exists()) else given


def tokenizer_dir(given: Path) -> Path:
    """Where a tokenizer lies that somebody asked for, by a folder or by the same word."""
    return bundled_model_dir() / "tokenizer" if str(given) == BUNDLED and not given.exists() else given

"""Files appear under their final name only when they are whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fmrisynth.errors import FmrisynthError

_UMASK = os.umask(0)
os.umask(_UMASK)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it to `path` on success, delete it on failure.

    The temporary name starts with a dot and ends with `path`'s own suffixes, so that writers that look
    at the extension work, and directory scans that skip hidden files never see half a file.

    Raises
    ------
    FmrisynthError
        If the folder cannot be written or the disk is full.
    """
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        apply_umask(temporary)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise FmrisynthError(
            f"{path}: could not be written ({error.strerror or error}); free space or fix the permissions, "
            "then run the same command again: it continues where it stopped."
        ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files that killed processes of this machine left in a folder (not below it)."""
    for path in folder.glob(".[0-9]*.*"):
        owner = path.name.split(".")[1]
        if owner.isdigit() and not _is_running(int(owner)):
            path.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def apply_umask(path: Path) -> None:
    """Make a file as readable as the user's umask allows; some writers (safetensors) make private ones."""
    path.chmod(0o666 & ~_UMASK)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write a UTF-8 text file atomically."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write an indented JSON file atomically; NaN and infinity are refused, not written."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")

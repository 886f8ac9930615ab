"""Digests of what work is made from: bytes of files, records, arrays, numbers and texts.

A file's digest is computed again only where its size, times or inode differ from those that were recorded with it, so
that a repeated call reads no image.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from fmrisynth.bids.provenance import sha256_of
from fmrisynth.errors import FmrisynthError


class Look:
    """Digests of content, each computed once, or not at all where `known` stamps have the very file.

    Attributes
    ----------
    stamps : dict of str to str
        State of each file looked at -> its digest.
    n_computed : int
        How many files were read.
    """

    def __init__(self, known: Mapping[str, str] | None = None) -> None:
        self._known = dict(known or {})
        self.stamps: dict[str, str] = {}
        self.n_computed = 0

    def digest(self, path: Path) -> str | None:
        """SHA-256 of a file, hexadecimal; None where there is none."""
        try:
            state = path.stat()
            stamp = f"{state.st_size} {state.st_mtime_ns} {state.st_ctime_ns} {state.st_ino}"
            digest = self._known.get(stamp) or _shared_digests.get((str(path), stamp))
            if digest is None:
                digest = sha256_of(path)
                self.n_computed += 1
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise FmrisynthError(
                f"{path}: expected a readable file, found {error.strerror}; fix its permissions."
            ) from None
        with _shared_lock:
            if len(_shared_digests) > 100_000:
                _shared_digests.clear()
            _shared_digests[str(path), stamp] = digest
        self.stamps[stamp] = digest
        return digest

    def flat(self, about: Mapping[str, Any]) -> dict[str, str]:
        """Name -> digest: every file under its own name, everything else under its key."""
        found: dict[str, str] = {}
        times: Counter[str] = Counter()
        for key, value in about.items():
            for name, digest in self._entries(key, value):
                times[name] += 1
                found[f"{name} ({times[name]})" if times[name] > 1 else name] = digest
        return found

    def _entries(self, key: str, value: Any) -> Iterable[tuple[str, str]]:
        if isinstance(value, Path):
            yield value.name, self.digest(value) or "none"
        elif isinstance(value, list | tuple) and any(isinstance(item, Path) for item in value):
            for item in value:
                yield from self._entries(key, item)
        else:
            yield key, digest_of(plain(value))


_shared_digests: dict[tuple[str, str], str] = {}
_shared_lock = threading.Lock()


def files_of(value: Any) -> list[Path]:
    """Every path in a record, once, in order."""
    return list(dict.fromkeys(_paths(value)))


def _paths(value: Any) -> Iterable[Path]:
    if isinstance(value, Path):
        yield value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for entry in dataclasses.fields(value):
            yield from _paths(getattr(value, entry.name))
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _paths(item)


def plain(value: Any) -> Any:
    """A record as JSON: of a path its name, of an array its digest; without fields that do not compare."""
    if isinstance(value, Path):
        return value.name
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {entry.name: plain(getattr(value, entry.name)) for entry in dataclasses.fields(value) if entry.compare}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(plain, value))
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return [str(value.dtype), list(value.shape), hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.dtype):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no digest")


def digest_of(content: Any) -> str:
    """SHA-256 of plain JSON, hexadecimal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

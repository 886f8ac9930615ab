"""Errors that a user can act on.

Every message is one sentence: the file, what was expected, what was found and the remedy. The command
line prints it without a traceback (``-v`` adds one) and ends with ``exit_code``.
"""

from __future__ import annotations

from pathlib import Path


class FmrisynthError(Exception):
    """The work asked for cannot be done with the input as it is (exit status 1)."""

    exit_code = 1

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(message))


class UsageError(FmrisynthError):
    """The request itself is wrong: an unknown name, option or combination (exit status 2)."""

    exit_code = 2


def must_exist(path: Path, what: str) -> Path:
    """A path that a person gave; one that leads nowhere is a `UsageError`."""
    if not path.exists():
        raise UsageError(f"{path}: expected {what}, there is nothing; check the path.")
    return path


def one_line(message: object, longest: int = 1_500) -> str:
    """A message as one printable line: names in it come from files, and could hold anything."""
    text = " ".join(str(message).split())
    text = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    return text if len(text) <= longest else f"{text[: longest - 400]} ... {text[-400:]}"


_NO_MEMORY = ("out of memory", "can't allocate", "cannot allocate", "bad_alloc", "can't start new thread")
_NO_MEMORY_OF_ONEDNN = (
    "could not create a primitive"  # whole; "... descriptor for ..." is an operation it does not have
)
_NO_MEMORY_OF_EXTENSIONS = ("error return without exception set", "without setting an exception")
"""What Python says when a compiled library fails and gives no reason, as some do when an allocation fails."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; PyTorch says it in words, on the CPU with a plain RuntimeError."""
    said = str(error).lower()
    if isinstance(error, SystemError):
        return any(words in said for words in _NO_MEMORY_OF_EXTENSIONS)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | OSError)
        and (said == _NO_MEMORY_OF_ONEDNN or any(words in said for words in _NO_MEMORY))
    )

"""Errors that a user can act on.

Every message is one sentence: the file, what was expected, what was found and the remedy. The command
line prints it without a traceback (``-v`` adds one) and ends with ``exit_code``.
"""

from __future__ import annotations


class FmrisynthError(Exception):
    """The work asked for cannot be done with the input as it is (exit status 1)."""

    exit_code = 1


class UsageError(FmrisynthError):
    """The request itself is wrong: an unknown name, option or combination (exit status 2)."""

    exit_code = 2

"""Entry point: decide between a subcommand and the BIDS-App call, and turn errors into exit statuses.

``fmrisynth bids_dir out_dir participant`` has no subcommand, and click has no option that takes a list, so
argv is rewritten before Typer sees it: the hidden ``bids-app`` command is put in front, and
``--participant-label 01 02`` becomes ``--participant-label 01 --participant-label 02``.

Nothing heavy is imported here; ``fmrisynth --help`` answers without torch.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import fmrisynth
from fmrisynth.cli import LEVELS

COMMANDS = (*fmrisynth.COMMANDS, "conditions")
BIDS_APP = "bids-app"
LIST_OPTIONS = ("--participant-label", "--session-label", "--task-id", "--tasks")
"""Options that take one or more words, as argparse's ``nargs="+"`` would; underscores are accepted too."""

HCP_TASKS = ("WM", "EMOTION", "GAMBLING", "LANGUAGE", "RELATIONAL", "MOTOR", "SOCIAL")

EXIT_FAILED, EXIT_USAGE, EXIT_SOFTWARE, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 2, 70, 130, 143


def rewrite_argv(argv: Sequence[str]) -> list[str]:
    """Bring an argument list into the form that Typer understands.

    Examples
    --------
    >>> rewrite_argv(["bids", "out", "participant", "--participant-label", "01", "sub-02"])
    ['bids-app', 'bids', 'out', 'participant', '--participant-label', '01', '--participant-label', '02']
    >>> rewrite_argv(["sample", "out", "--condition", "gambling_loss"])
    ['sample', 'out', '--condition', 'gambling_loss']
    """
    words = _expand_lists(argv)
    first = next((word for word in words if not word.startswith("-")), None)
    if first is not None and first not in (*COMMANDS, BIDS_APP):
        has_level = any(level in words for level in LEVELS)
        if has_level or "/" in first or os.path.isdir(first):  # a folder is no mistyped command: the level is
            words.insert(0, BIDS_APP)
    return words


def _expand_lists(argv: Sequence[str]) -> list[str]:
    words: list[str] = []
    option: str | None = None
    n_values = 0
    rest_is_literal = False
    for word in argv:
        if rest_is_literal:
            words.append(word)
        elif word == "--":
            # argparse users end a list that stands before the positionals with --
            rest_is_literal = option is None
            if rest_is_literal:
                words.append(word)
            option = None
        elif _hyphens(word) in LIST_OPTIONS:
            option, n_values = _hyphens(word), 0
        elif option is not None and _continues_list(option, word, n_values):
            words += [option, word]
            n_values += 1
        else:
            if option is not None and not n_values:
                words.append(option)
            option = None
            words.append(_hyphens(word))
    if option is not None and not n_values:
        words.append(option)
    return words


def _continues_list(option: str, word: str, n_values: int) -> bool:
    """Whether a word is one more value of a list option."""
    if word.startswith("-"):
        return False
    if n_values == 0:
        return True
    return word.upper() in HCP_TASKS if option == "--tasks" else word not in LEVELS


def _hyphens(word: str) -> str:
    """Accept ``--bids_database_dir`` for ``--bids-database-dir``, as BIDS apps do."""
    if not word.startswith("--"):
        return word
    name, separator, value = word.partition("=")
    return name.replace("_", "-") + separator + value


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; exit with 0 (ok), 1 (something failed), 2 (usage), 70 (a bug), 130 or 143 (stopped)."""
    arguments = rewrite_argv(sys.argv[1:] if argv is None else argv)
    sys.exit(run(arguments))


def run(arguments: Sequence[str]) -> int:
    """Run rewritten arguments and return the exit status; every failure is one sentence, with ``-v`` a traceback too."""
    import typer

    from fmrisynth.cli.app import app
    from fmrisynth.errors import FmrisynthError, is_out_of_memory

    try:
        with _terminated_by_signal():
            status = app(list(arguments), standalone_mode=False, prog_name="fmrisynth")
        sys.stdout.flush()  # a reader that went away is told here, not by the interpreter at exit
        if status == EXIT_INTERRUPTED:  # newer versions of click answer Ctrl-C with a status
            raise KeyboardInterrupt
        return int(status) if isinstance(status, int) else 0
    except (typer.Abort, KeyboardInterrupt):
        return _tell("Interrupted. The same command continues where this one stopped.", EXIT_INTERRUPTED)
    except SystemExit as error:  # click's answer to a broken pipe
        return error.code if isinstance(error.code, int) else EXIT_FAILED
    except Terminated:
        return _tell("Terminated. The same command continues where this one stopped.", EXIT_TERMINATED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as error:
        # Typer brings click under a private name or depends on it, by version; its usage errors can show themselves.
        if hasattr(error, "show") and hasattr(error, "format_message"):
            cause = error.__cause__
            if cause is not None and hasattr(cause, "errors"):  # newer versions of Typer hand on the words of pydantic
                from fmrisynth.config.load import explain_value

                problem = cause.errors()[0]
                error.message = f"{explain_value(problem)}, found {problem['input']}."  # type: ignore[attr-defined]
            error.show()
            return EXIT_USAGE
        if any(word in ("-v", "-vv", "--verbose") for word in arguments):
            import traceback

            traceback.print_exc()
        if isinstance(error, FmrisynthError):
            return _tell(f"Error: {error}", error.exit_code)
        if is_out_of_memory(error):
            what = str(error).splitlines()[0] if str(error) else "an allocation failed"
            return _tell(
                f"Error: not enough memory ({what}); ask the scheduler for more or work on fewer things at a time (a "
                "smaller batch size), then run the same command again: it continues where it stopped.",
                EXIT_FAILED,
            )
        if isinstance(error, OSError) and error.errno is not None:
            where = f"{error.filename}: " if error.filename else ""
            return _tell(
                f"Error: {where}{error.strerror}; free space or fix the path and its permissions, then run the same "
                "command again: it continues where it stopped.",
                EXIT_FAILED,
            )
        return _tell(
            f"Error: {type(error).__name__}: {error} (this is a bug in fmrisynth; run again with -v for the "
            "traceback and report it, please).",
            EXIT_SOFTWARE,
        )


class Terminated(BaseException):
    """SIGTERM came: a scheduler or a person wants the process to end."""


@contextmanager
def _terminated_by_signal() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that half files are removed and locks given up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough; tidying up is not to be cut short
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _tell(text: str, status: int) -> int:
    with suppress(BrokenPipeError):
        print(text, file=sys.stderr)
    return status

"""Entry point: decide between a subcommand and the BIDS-App call, and turn errors into exit statuses.

``fmrisynth bids_dir out_dir participant`` has no subcommand, and click has no option that takes a list, so
argv is rewritten before Typer sees it: the hidden ``bids-app`` command is put in front, and
``--participant-label 01 02`` becomes ``--participant-label 01 --participant-label 02``.

Nothing heavy is imported here; ``fmrisynth --help`` answers without torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

COMMANDS = ("simulate", "prepare", "tokenize", "train", "sample", "glm", "evaluate")
LEVELS = ("participant", "group")
BIDS_APP = "bids-app"
LIST_OPTIONS = ("--participant-label", "--session-label", "--task-id", "--tasks")
"""Options that take one or more words, as argparse's ``nargs="+"`` would; underscores are accepted too."""

HCP_TASKS = ("WM", "EMOTION", "GAMBLING", "LANGUAGE", "RELATIONAL", "MOTOR", "SOCIAL")

EXIT_FAILED, EXIT_USAGE, EXIT_SOFTWARE, EXIT_INTERRUPTED = 1, 2, 70, 130


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
    if first is not None and first not in (*COMMANDS, BIDS_APP) and any(level in words for level in LEVELS):
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
            value = word.removeprefix("sub-") if option == "--participant-label" else word
            words += [option, value]
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
    """Run the command line and exit with 0 (ok), 1 (something failed), 2 (usage) or 70 (a bug)."""
    arguments = rewrite_argv(sys.argv[1:] if argv is None else argv)
    sys.exit(run(arguments))


def run(arguments: Sequence[str]) -> int:
    """Run rewritten arguments and return the exit status."""
    import typer

    from fmrisynth.cli.app import app
    from fmrisynth.errors import FmrisynthError

    verbose = any(word in ("-v", "-vv", "--verbose") for word in arguments)
    try:
        status = app(list(arguments), standalone_mode=False, prog_name="fmrisynth")
        return int(status) if isinstance(status, int) else 0
    except typer.Abort:
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        _say("Interrupted. The same command continues where this one stopped.")
        return EXIT_INTERRUPTED
    except FmrisynthError as error:
        if verbose:
            raise
        _say(f"Error: {error}")
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as error:
        # Typer brings click under a private name or depends on it, by version; its usage errors can show themselves.
        if hasattr(error, "show") and hasattr(error, "format_message"):
            error.show()
            return EXIT_USAGE
        if verbose:
            raise
        _say(
            f"Error: {type(error).__name__}: {error} (this is a bug in fmrisynth; run again with -v for the "
            "traceback and report it, please)."
        )
        return EXIT_SOFTWARE


def _say(text: str) -> None:
    print(text, file=sys.stderr)

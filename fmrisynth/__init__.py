"""fmrisynth: task-conditioned synthesis of whole-brain 4D fMRI, proved with GLM maps.

In Python::

    import fmrisynth as fs

    model = fs.load()
    samples = model.sample("gambling_loss", n=4, seed=7)

`fs.simulate`, `fs.prepare`, `fs.tokenize`, `fs.train`, `fs.sample`, `fs.glm`, `fs.evaluate`, `fs.check` and `fs.embed` are the packages of
the commands; called, they run the command (`fmrisynth.api`). Nothing is loaded before it is used.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

COMMANDS = ("simulate", "prepare", "tokenize", "train", "sample", "glm", "evaluate", "check", "embed")
"""Each a package of that name, a command of the command line and a function of `fmrisynth.api`."""

_FROM_API = ("load", "Model", "Samples")


class _Command(ModuleType):
    """The package of a command, which is also the command."""

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        return getattr(import_module("fmrisynth.api"), self.__name__.rpartition(".")[2])(*arguments, **settings)


class _Fmrisynth(ModuleType):
    """The package itself; whoever imports the package of a command gets one that can be called."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in COMMANDS and type(value) is ModuleType:
            value.__class__ = _Command
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Fmrisynth


def __getattr__(name: str) -> Any:
    if name in COMMANDS:
        return import_module(f"fmrisynth.{name}")
    if name in _FROM_API:
        return getattr(import_module("fmrisynth.api"), name)
    raise AttributeError(f"module 'fmrisynth' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *COMMANDS, *_FROM_API])

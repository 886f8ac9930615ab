"""``fmrisynth check``: is a dataset like the one that a model was trained on?"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fmrisynth.check.compare import Row, check_dataset

__all__ = ["Row", "check_dataset"]


def __getattr__(name: str):
    if name in __all__:
        from fmrisynth.check import compare

        return getattr(compare, name)
    raise AttributeError(name)

"""``fmrisynth sample``: seeds -> latents -> volumes -> a BIDS derivative of synthetic subjects."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fmrisynth.sample.run import plan_samples, sample_dataset

__all__ = ["plan_samples", "sample_dataset"]


def __getattr__(name: str):
    if name in __all__:
        from fmrisynth.sample import run

        return getattr(run, name)
    raise AttributeError(name)

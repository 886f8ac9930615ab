"""The phantom cohort: task-fMRI whose truth is known and whose difficulty is measured.

Light to import: numpy and nilearn work is loaded when something is simulated.

Examples
--------
>>> from fmrisynth.config.simulate import SimulateConfig
>>> from fmrisynth.simulate import Phantom
>>> subject = Phantom(SimulateConfig()).subject(0)          # doctest: +SKIP
>>> block = next(subject.blocks(condition="gambling_loss"))  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmrisynth.config.simulate import SimulateConfig
from fmrisynth.progress import StageSummary


def simulate_cohort(out: Path, config: SimulateConfig, *, force: bool = False) -> StageSummary:
    """Write a phantom cohort in the layout of `config`, continuing where an earlier call stopped.

    Parameters
    ----------
    out : Path
        Output folder.
    config : SimulateConfig
        Layout, subjects, tasks, resolution, noise and seed.
    force : bool
        Make the subjects anew, also with other settings than the folder was begun with.

    Returns
    -------
    StageSummary
        Counts; subjects that failed with the reason.
    """
    from fmrisynth.simulate.cohort import write_cohort

    return write_cohort(out, config, force=force)


def simulate_blocks(out: Path, config: SimulateConfig, conditions: Sequence[str] | None = None) -> StageSummary:
    """Write a block dataset straight from the phantom: `simulate_cohort` with the layout ``blocks``."""
    update: dict[str, Any] = {"layout": "blocks"}
    if conditions is not None:
        update["conditions"] = tuple(conditions)
    return simulate_cohort(out, config.model_copy(update=update))


def __getattr__(name: str) -> Any:
    if name in ("Phantom", "PhantomSubject", "PhantomBlock", "PhantomRun"):
        from fmrisynth.simulate import phantom

        return getattr(phantom, name)
    raise AttributeError(name)


__all__ = ["Phantom", "PhantomBlock", "PhantomRun", "PhantomSubject", "simulate_blocks", "simulate_cohort"]

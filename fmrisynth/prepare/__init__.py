"""From HCP, BIDS or phantom data to a block dataset (light to import)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fmrisynth.config.prepare import PrepareConfig
from fmrisynth.progress import StageSummary


def prepare_dataset(
    source: Path,
    out: Path,
    config: PrepareConfig,
    *,
    participant_labels: Sequence[str] | None = None,
    force: bool = False,
) -> StageSummary:
    """Cut the blocks of every run, or take the T1w of every session, into a block dataset (see `fmrisynth.data.blocks`).

    Parameters
    ----------
    source : Path
        HCP tree, BIDS root or fMRIPrep folder; the layout is recognised.
    out : Path
        The block dataset. Called again, the function continues where it was stopped.
    config : PrepareConfig
        Conditions, windows, grid and splits.
    participant_labels : sequence of str, optional
        Only these participants, with or without ``sub-``.
    force : bool
        Make them anew, also with other settings than the dataset was begun with.

    Returns
    -------
    StageSummary
        Blocks found, kept and dropped per condition; participants that failed with the reason.

    Raises
    ------
    FmrisynthError
        The input as a whole cannot be used; a single bad participant is reported in the summary instead.
    """
    from fmrisynth.prepare.stage import prepare_dataset as run

    return run(source, out, config, participant_labels=participant_labels, force=force)


def plan_prepare(source: Path, config: PrepareConfig, *, participant_labels: Sequence[str] | None = None) -> list[str]:
    """List the files that `prepare_dataset` would read and the blocks or anatomies it would write; writes nothing."""
    from fmrisynth.prepare.stage import plan_prepare as run

    return run(source, config, participant_labels=participant_labels)


__all__ = ["plan_prepare", "prepare_dataset"]

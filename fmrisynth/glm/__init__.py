"""GLM maps of real and synthetic data: the block-window GLM and the whole-run GLM.

Light to import: nilearn is loaded when a model is fitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fmrisynth.config.glm import GlmConfig
from fmrisynth.progress import StageSummary


def run_glm(
    dataset: Path,
    out: Path,
    config: GlmConfig,
    *,
    participant_labels: Sequence[str] | None = None,
    group: bool = True,
    force: bool = False,
) -> StageSummary:
    """Write subject and group stat maps of a block dataset, or of whole BIDS runs.

    Parameters
    ----------
    dataset : Path
        Block dataset (``unit: block``), or BIDS / fMRIPrep dataset (``unit: run``).
    out : Path
        Output folder, a BIDS derivative.
    config : GlmConfig
        Model, contrasts and unit.
    participant_labels : sequence of str, optional
        Only these subjects, with or without ``sub-``; default all.
    group : bool, default True
        Whether to make group maps, of all subjects that are finished in `out`; array jobs over participants leave them
        to a last call.
    force : bool
        Make everything anew, also with other settings than `out` was begun with.

    Returns
    -------
    StageSummary
        Counts and peaks; subjects that failed with the reason.
    """
    from fmrisynth.glm.stage import run_stage

    return run_stage(dataset, out, config, participant_labels=participant_labels, group=group, force=force)


__all__ = ["run_glm"]

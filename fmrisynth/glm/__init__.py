"""GLM maps of real and synthetic data: the block-window GLM and the whole-run GLM.

Light to import: nilearn is loaded when a model is fitted.
"""

from __future__ import annotations

from pathlib import Path

from fmrisynth.config.glm import GlmConfig
from fmrisynth.progress import StageSummary


def run_glm(dataset: Path, out: Path, config: GlmConfig) -> StageSummary:
    """Write subject and group stat maps of a block dataset, or of whole BIDS runs.

    Parameters
    ----------
    dataset : Path
        Block dataset (``unit: block``), or BIDS / fMRIPrep dataset (``unit: run``).
    out : Path
        Output folder, a BIDS derivative.
    config : GlmConfig
        Model, contrasts and unit.

    Returns
    -------
    StageSummary
        Counts and peaks; subjects that failed with the reason.
    """
    from fmrisynth.glm.stage import run_stage

    return run_stage(dataset, out, config)


__all__ = ["run_glm"]

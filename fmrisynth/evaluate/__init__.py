"""Real against synthetic: scores with ceilings, intervals and baselines, realism, privacy, utility, report.

Light to import: nothing heavy is loaded before the function is called.
"""

from __future__ import annotations

from pathlib import Path

from fmrisynth.config.evaluate import EvaluateConfig
from fmrisynth.progress import StageSummary


def evaluate_datasets(
    out: Path, *, real: Path, synthetic: Path, config: EvaluateConfig, force: bool = False
) -> StageSummary:
    """Compare a synthetic with a real block dataset; write ``metrics.json`` and one HTML report.

    Parameters
    ----------
    out : Path
        Output folder.
    real, synthetic : Path
        Block datasets on one grid.
    config : EvaluateConfig
        What is computed, and how.
    force : bool
        Evaluate anew, also with other settings than `out` was begun with.

    Returns
    -------
    StageSummary
        The scores and verdicts in plain sentences.
    """
    from fmrisynth.evaluate.stage import run_stage

    return run_stage(out, real, synthetic, config, force=force)


__all__ = ["evaluate_datasets"]

"""Configuration of the BIDS-App call."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from fmrisynth.config.base import StageConfig


class AppConfig(StageConfig):
    """What ``fmrisynth bids_dir out_dir level`` needs; everything else has the stages' defaults."""

    n: int = Field(20, ge=1, description="Synthetic samples per condition at group level.")
    native: bool = Field(False, description="Keep each subject's own space.")
    layout: str = Field("auto", description="auto, hcp or bids.")
    bids_database_dir: Path | None = Field(None, description="A pybids index, built once and read-only.")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")

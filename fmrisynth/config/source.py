"""Settings of the reader of runs, shared by the stages that read images with their events."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from fmrisynth.config.base import StageConfig


class SourceConfig(StageConfig):
    """Where a run's files are, and what its headers and sidecars do not say."""

    layout: Literal["auto", "hcp", "bids"] = Field("auto", description="Layout of the input.")
    sessions: tuple[str, ...] = Field((), description="Only these sessions (BIDS); empty means all.")
    derivatives: tuple[Path, ...] = Field(
        (), description="fMRIPrep folders (BIDS); default: INPUT itself, or those under INPUT/derivatives."
    )
    raw: Path | None = Field(
        None, description="Raw BIDS root that holds the events, where INPUT is a derivative folder."
    )
    bids_database_dir: Path | None = Field(
        None, description="Keep the pybids index here: built once, then only read (array jobs)."
    )
    source_tr_s: float | None = Field(
        None, gt=0.05, le=20, description="Repetition time of the input where header and sidecar are wrong, in s."
    )
    slice_time_ref: float | None = Field(
        None, ge=0, le=1,
        description="Moment within the repetition time that a frame of a run stands for (0 its start, 0.5 its middle), where no "
        "StartTime of a sidecar says it. Default: the middle; the whole-run GLM then warns of effects that hang on it, or refuses.",
    )  # fmt: skip

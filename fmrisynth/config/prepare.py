"""Configuration of ``fmrisynth prepare``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from fmrisynth.config.base import Config
from fmrisynth.config.source import SourceConfig

ALL_CONDITIONS = "all"


class WindowConfig(Config):
    """The frames that are cut for each block."""

    n_frames: int = Field(12, ge=2, le=200, description="Frames per window.")
    delay_s: float = Field(0.0, ge=-30, le=30, description="Start of the window after the block onset, in s.")
    align: Literal["onset", "frame"] = Field(
        "onset",
        description="onset: the window starts exactly at the onset (plus delay); frame: at the nearest acquired frame.",
    )


class BlocksConfig(Config):
    """How rows of an events file become blocks."""

    merge_gap_s: float = Field(
        2.0, ge=0, le=60, description="Trials of one condition with a shorter gap between them are one block, in s."
    )
    min_duration_s: float = Field(8.0, ge=0, description="Shorter blocks are dropped, in s.")
    overlap_s: float = Field(
        2.0, ge=0, description="Blocks of two conditions may overlap by so much (cues, rounding), in s."
    )


class SplitConfig(Config):
    """Shares of the training, validation and test subjects."""

    train: float = Field(0.90, ge=0, le=1, description="Share of the participants (or families) for training.")
    val: float = Field(0.05, ge=0, le=1, description="Share for validation during training.")
    test: float = Field(0.05, ge=0, le=1, description="Share held out for the evaluation.")
    all: Literal["train", "val", "test"] | None = Field(
        None, description="Put every subject into this split (a cohort kept for testing, or one single subject)."
    )
    families: Path | None = Field(
        None, description="Table with a subject and a family column; members of one family share a split."
    )

    @model_validator(mode="after")
    def _check(self) -> SplitConfig:
        if abs(self.train + self.val + self.test - 1.0) > 1e-6:
            raise ValueError(f"the shares must add up to 1, not {self.train + self.val + self.test:g}")
        return self


class PrepareConfig(SourceConfig):
    """From HCP, BIDS or phantom data to a block dataset.

    An empty `conditions` asks for the seven of the reference paper where the dataset has any HCP task, and
    for every block-like condition where it has none; ``all`` asks for everything.
    """

    unit: Literal["block", "run"] = Field(
        "block",
        description="block: a window from every block's onset; run: each run whole, with everything that happens in it.",
    )
    conditions: tuple[str, ...] = Field(
        (),
        description="Condition labels, or 'all'. Unit run: of which tasks runs are taken; their events are kept all.",
    )
    condition_table: Path | None = Field(None, description="YAML with further conditions and spellings.")
    native: bool = Field(
        False,
        description="Keep each subject's own grid in scanner space (no MNI space needed); for trials of one subject.",
    )
    mask: Path | None = Field(None, description="Brain mask, on the grid of the images, for runs that have none.")
    tr_s: float = Field(1.44, gt=0.05, le=10, description="Time between the frames of a window, in s.")
    window: WindowConfig = WindowConfig()
    blocks: BlocksConfig = BlocksConfig()
    split: SplitConfig = SplitConfig()
    on_bad_run: Literal["fail", "skip"] = Field(
        "fail", description="fail: a damaged run makes its participant fail; skip: leave the run out and say so."
    )

    @model_validator(mode="after")
    def _check(self) -> PrepareConfig:
        if ALL_CONDITIONS in self.conditions and len(self.conditions) > 1:
            raise ValueError("'all' stands alone")
        if len(set(self.conditions)) < len(self.conditions):
            raise ValueError("a condition is named twice")
        return self

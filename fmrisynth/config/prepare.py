"""Configuration of ``fmrisynth prepare``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from fmrisynth.config.base import Config
from fmrisynth.config.source import SourceConfig

ALL_CONDITIONS = "all"

RESERVED = {
    "filename", "condition", "split", "row", "onset_s", "duration_s", "tr_s", "n_frames", "first_frame", "source",
    "source_onset_s", "n_blocks", "participant_id", "session_id",
}  # fmt: skip
"""Columns of our own tables that are no attributes."""


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


class PreparedAnatomyConfig(Config):
    """Unit anatomy: the grid of the volumes, and what is kept of who the people are."""

    resolution_mm: float = Field(
        3.0, description="Voxel side: 3 (48 x 64 x 64 voxels, as the blocks), 2 (80 x 96 x 80) or 1 (160 x 192 x 160)."
    )
    attributes: tuple[str, ...] = Field(
        ("sex", "age"),
        description="Columns of sessions.tsv, participants.tsv or `tables` to keep, labels or numbers; what is not known is n/a.",
    )
    tables: tuple[Path, ...] = Field(
        (),
        description="Further tables with a row for each person, TSV or CSV (HCP's unrestricted and restricted ones).",
    )

    @field_validator("resolution_mm")
    @classmethod
    def _known_resolution(cls, value: float) -> float:
        if value not in (1.0, 2.0, 3.0):
            raise ValueError("anatomies are written at 1, 2 or 3 mm")
        return value

    @field_validator("attributes")
    @classmethod
    def _are_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not re.fullmatch(r"[A-Za-z]\w*", name) or name.lower() in RESERVED:
                raise ValueError(f"{name!r} cannot be the name of an attribute")
        if len(set(value)) < len(value):
            raise ValueError("an attribute is named twice")
        return value


class PrepareConfig(SourceConfig):
    """From HCP, BIDS or phantom data to a block dataset.

    An empty `conditions` asks for the seven of the reference paper where the dataset has any HCP task, and
    for every block-like condition where it has none; ``all`` asks for everything.
    """

    unit: Literal["block", "run", "anatomy"] = Field(
        "block",
        description="block: a window from every block's onset; run: each run whole, with everything that happens in it; anatomy: "
        "the T1w of each session.",
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
    anatomy: PreparedAnatomyConfig = PreparedAnatomyConfig()
    split: SplitConfig = SplitConfig()
    on_bad_run: Literal["fail", "skip"] = Field(
        "fail", description="fail: a damaged run (or T1w) makes its participant fail; skip: leave it out and say so."
    )

    @model_validator(mode="after")
    def _check(self) -> PrepareConfig:
        if ALL_CONDITIONS in self.conditions and len(self.conditions) > 1:
            raise ValueError("'all' stands alone")
        if len(set(self.conditions)) < len(self.conditions):
            raise ValueError("a condition is named twice")
        if self.unit == "anatomy" and (self.conditions or self.native or self.mask):
            raise ValueError("conditions, native and mask are for blocks and runs, not for anatomies")
        return self

"""Configuration of ``fmrisynth sample``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from fmrisynth.config.base import StageConfig
from fmrisynth.config.train import DELTA_T

SamplerName = Literal["ab2", "ddpm", "ddim", "euler"]
Scale = Annotated[float, Field(ge=0.0, le=50.0)]


def guidance_in_words(guidance: float | Mapping[str, float]) -> str:
    """``2``, or ``age 4, sex 2``."""
    if isinstance(guidance, Mapping):
        return ", ".join(f"{name} {scale:g}" for name, scale in guidance.items())
    return f"{guidance:g}"


class SampleConfig(StageConfig):
    """What to sample, and how."""

    conditions: tuple[str, ...] = Field((), description="Condition labels, for example gambling_loss.")
    all_conditions: bool = Field(False, description="Sample every condition that the model knows.")
    events: tuple[Path, ...] = Field(
        (),
        description="In place of conditions, for a model of runs: events.tsv files (or a folder of them) of the runs "
        "that each synthetic person does.",
    )
    duration_s: float | None = Field(
        None, gt=0, description="Length of those runs, s; default: 16 s after the last event."
    )
    descriptors: Path | None = Field(
        None,
        description="Descriptors of conditions, for a model that was trained on them; those it never saw can be asked for, too.",
    )
    n: int = Field(1, ge=1, le=1_000_000, description="Samples per condition; with events, people.")
    subjects: int | None = Field(
        None, ge=1, le=1_000_000, description="In place of n: people, each of whom does every condition asked for."
    )
    blocks: int = Field(1, ge=1, le=1000, description="Blocks of each condition that a person does; with subjects.")
    anatomy: Path | None = Field(
        None,
        description="How people look. A block or run dataset: synthetic person k gets the reference volume and mask of its k-th "
        "participant; a model of anatomies draws new ones; the word mean gives all the mean anatomy. Default: drawn by the model that "
        "the functional model brings along, else the mean.",
    )
    participants: Path | None = Field(
        None,
        description="participants.tsv: the k-th synthetic person is asked for with what the model knows (age, sex, ...) of its k-th row.",
    )
    baselines: Path | None = Field(
        None,
        description="In place of conditions, for a model of forecasts: dataset of people whose later anatomy is forecast from each of "
        "their sessions, attributes.delta_t years on; without delta_t at the times of the person's later sessions.",
    )
    baseline_split: Literal["train", "val", "test"] | None = Field(
        None, description="With baselines: people of this split only; default everybody."
    )
    same_noise: bool = Field(
        False,
        description="All samples of a condition are made from the noise of the first, so that they differ by what is asked for alone; the "
        "picture of anatomies then shows the differences to the first.",
    )
    start_index: int = Field(0, ge=0, description="Number of the first sample (0 is sample 1).")
    shard: tuple[int, int] = Field(
        (1, 1), description="(k, n): of all samples, make the k-th of n interleaved shares; for job arrays."
    )
    sampler: SamplerName = Field(
        "ab2",
        description="ab2 (Adams-Bashforth in the angle), ddpm (ancestral), ddim, euler; "
        "with baselines the default is euler.",
    )
    steps: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="Solver steps; default 20 (every step of the schedule for ddpm, 100 with baselines).",
    )
    eta: float = Field(0.0, ge=0.0, le=1.0, description="DDIM stochasticity: 0 deterministic, 1 ancestral.")
    guidance: Scale | dict[str, Scale] = Field(
        1.0,
        description="Classifier-free guidance: 0 unconditional, 1 conditional, above 1 sharper; or by attribute, as {age: 4, sex: 2}, "
        "the others at 1.",
    )
    guidance_interval: tuple[float, float] | None = Field(
        None, description="Guide only between these noise levels, in diffusion steps (0 clean to 1000 noise)."
    )
    attributes: dict[str, str] = Field(
        default_factory=dict,
        description="Attribute values, for example phase_encoding: LR or age: 60; others stay open.",
    )
    observation_noise: bool = Field(
        True, description="Add what the tokenizer cannot say about a volume, as noise; false: its mean image alone."
    )
    batch_size: int = Field(
        8, ge=1, description="Samples in the making at a time (on a CPU at most one per core); never changes a sample."
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:0.")
    preview: bool = Field(True, description="Write pictures of one sample per condition under figures/: PNG and GIF.")
    report: bool = Field(False, description="Write report.html: maps, time courses, settings and provenance.")
    format: Literal["nii.gz", "nii"] = Field("nii.gz", description="Compressed images, or plain ones (no gzip).")
    save_latents: bool = Field(False, description="Keep the latents beside the images.")

    @model_validator(mode="before")
    @classmethod
    def _follow_a_bridge(cls, values: Any) -> Any:
        """Forecasts are integrated as in BrainG3N, unless something else is asked for."""
        if isinstance(values, dict) and values.get("baselines") is not None:
            return {"sampler": "euler", "steps": 100} | values
        return values

    @field_validator("attributes", mode="before")
    @classmethod
    def _numbers_as_text(cls, value: Any) -> Any:
        """An age is written without quotes."""
        if not isinstance(value, dict):
            return value
        return {
            name: f"{v:g}" if isinstance(v, int | float) and not isinstance(v, bool) else v for name, v in value.items()
        }

    @model_validator(mode="after")
    def _consistent(self) -> SampleConfig:
        k, n = self.shard
        if not 1 <= k <= n:
            raise ValueError(f"shard must be k/n with 1 <= k <= n, found {k}/{n}")
        if self.events and (self.conditions or self.all_conditions):
            raise ValueError("events say what happens in a run; leave conditions out")
        if self.events and (self.report or self.save_latents):
            raise ValueError("report and save_latents are for blocks; look at runs with `fmrisynth glm --unit run`")
        if self.subjects is not None and (self.events or self.n > 1):
            raise ValueError("subjects takes the place of n; with events, n is the number of people")
        if self.same_noise and (self.subjects is not None or self.events or self.baselines is not None):
            raise ValueError("same_noise goes with n samples of conditions; leave subjects, events and baselines out")
        if self.participants is not None and self.events:
            raise ValueError(
                "participants says who does blocks; of people who do whole runs give attributes with --set"
            )
        if self.blocks > 1 and self.subjects is None:
            raise ValueError("blocks are counted per person; say with subjects how many people there are")
        if not self.events and (self.duration_s is not None or self.descriptors is not None):
            raise ValueError("duration_s and descriptors go with events")
        if self.baselines is not None:
            others = (
                "conditions", "all_conditions", "events", "subjects", "start_index", "anatomy", "participants", "report", "save_latents",
            )  # fmt: skip
            given = [name for name in others if getattr(self, name)] + (["n"] if self.n > 1 else [])
            if given:
                raise ValueError(f"baselines says of whom forecasts are made; leave {', '.join(given)} out")
            if self.attributes.keys() - {DELTA_T}:
                raise ValueError(f"of a forecast only {DELTA_T} is asked for; age and sex are those of the dataset")
            return self
        if self.baseline_split is not None:
            raise ValueError("baseline_split goes with baselines")
        if not self.events and not self.conditions and not self.all_conditions:
            raise ValueError(
                "name at least one condition of those that `fmrisynth conditions` lists, or ask for all conditions, or give events "
                "to a model of runs"
            )
        return self

"""Settings of the `simulate` stage: the phantom cohort."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from fmrisynth.config.base import Config, StageConfig
from fmrisynth.config.prepare import SplitConfig

Task = Literal["WM", "EMOTION", "GAMBLING", "LANGUAGE", "RELATIONAL", "MOTOR", "SOCIAL"]
Direction = Literal["LR", "RL"]


class AnatomyConfig(Config):
    """What makes the brains of two subjects, and two phase encodings of one subject, look different."""

    deformation_mm: float = Field(2.5, ge=0, le=8, description="SD of what registration to MNI left over, broad part.")
    fine_deformation_mm: float = Field(1.2, ge=0, le=4, description="SD of its fine part (sulci).")
    contrast_sd: float = Field(0.08, ge=0, le=0.3, description="SD of the tissue intensities over subjects, relative.")
    gain_sd: float = Field(0.12, ge=0, le=0.4, description="SD of the receive gain field, relative.")
    texture_sd: float = Field(0.07, ge=0, le=0.3, description="SD of local intensity (vessels, iron), relative.")
    distortion_mm: float = Field(1.2, ge=0, le=5, description="Residual LR/RL displacement at the sinuses, mm.")
    phase_encoding_gain: float = Field(0.04, ge=0, le=0.2, description="SD of the LR/RL gain difference, relative.")
    patients: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of people with a disorder: less grey matter at the hippocampi. 0 names no diagnosis.",
    )


class ResponseConfig(Config):
    """How the responses of two subjects, or two blocks, to one condition differ."""

    amplitude: float = Field(1.0, ge=0, description="Scales every activation; 0 gives runs without task signal.")
    subject_sd: float = Field(0.20, ge=0, description="SD of the log of a subject's overall responsiveness.")
    peak_sd: float = Field(0.4, ge=0, description="SD of the log amplitude of a peak, shared by conditions.")
    condition_peak_sd: float = Field(0.3, ge=0, description="SD of the log amplitude of a peak in one condition.")
    idiosyncratic_percent: float = Field(
        0.12, ge=0, description="SD of a subject's own response at peaks that the group does not share, percent signal."
    )
    location_sd_mm: float = Field(4.0, ge=0, le=10, description="SD of a peak's position per axis.")
    missing_share: float = Field(0.12, ge=0, lt=1, description="Share of peaks that a subject does not have.")
    split_share: float = Field(0.25, ge=0, le=1, description="Share of peaks that are two in a subject.")
    block_sd: float = Field(0.15, ge=0, description="SD of the amplitude from block to block, relative.")
    hrf_delay_sd_s: float = Field(0.5, ge=0, le=1.5, description="SD over subjects of the time to the HRF's peak.")
    region_delay_sd_s: float = Field(0.5, ge=0, le=1.5, description="SD over peaks of a subject of that time.")
    width_sd: float = Field(
        0.15, ge=0, le=0.4, description="SD of the log width of the HRF, over subjects and over peaks of a subject."
    )


class NoiseConfig(Config):
    """Noise in percent signal change: standard deviations in the brain's median voxel, thermal noise at 3 mm."""

    thermal_percent: float = Field(0.75, ge=0, description="White noise of the receiver, strongest where it is dark.")
    fwhm_mm: float = Field(2.5, ge=0, le=12, description="Its spatial smoothness, from interpolation.")
    vascular_percent: float = Field(0.36, ge=0, description="Slow local fluctuation of blood, strongest at vessels.")
    network_percent: float = Field(0.25, ge=0, description="Spontaneous activity of functional networks.")
    global_percent: float = Field(0.07, ge=0, description="Slow fluctuation of the whole brain.")
    cardiac_percent: float = Field(0.25, ge=0, description="Pulsation: CSF, vessels, base of the brain.")
    respiration_percent: float = Field(0.2, ge=0, description="Breathing: edges along x, dropout, CSF.")
    drift_percent: float = Field(0.4, ge=0, description="Slow scanner drift over a run.")
    motion_mm: float = Field(0.2, ge=0, le=3, description="SD of head motion within a run; rotations go with it.")
    motion_residual: float = Field(0.25, ge=0, le=1, description="Share of motion that realignment left in the data.")
    spikes_per_minute: float = Field(0.4, ge=0, le=20, description="Sudden movements of the median subject.")


class FamilyConfig(Config):
    """Families share part of anatomy and response; half of the first-born pairs are identical twins."""

    size: int = Field(1, ge=1, le=6, description="Subjects per family; 1 is unrelated subjects, 3 twins and a sibling.")
    heritability: float = Field(0.6, ge=0, le=1, description="Share of the variance that is genetic.")


class SimulateConfig(StageConfig):
    """Everything about a phantom cohort."""

    layout: Literal["hcp", "bids", "blocks", "runs", "anatomy"] = Field(
        "hcp",
        description="hcp: HCP tree; bids: fMRIPrep-style derivatives; blocks: a block dataset; runs: whole runs in that format, as "
        "`prepare --unit run` would make them; anatomy: how everybody looks in each session, one frame.",
    )
    n_subjects: int = Field(20, ge=1, le=99_999, description="Size of the cohort.")
    first_subject: int = Field(
        0, ge=0, le=99_998, description="Index of the first subject, for array jobs on one cohort."
    )
    tasks: tuple[Task, ...] = Field(
        ("WM", "EMOTION", "GAMBLING", "LANGUAGE", "RELATIONAL", "MOTOR", "SOCIAL"),
        min_length=1,
        description="HCP tasks: one run each and phase encoding.",
    )
    directions: tuple[Direction, ...] = Field(("LR", "RL"), min_length=1, description="Phase encodings: one run each.")
    conditions: tuple[str, ...] | None = Field(
        None, description="Layout blocks and mixed runs: which conditions; default the paper's seven among the tasks."
    )
    mixed: bool = Field(
        False,
        description="In place of HCP's runs: runs in which blocks and trials of all conditions come in random order and length.",
    )
    events: tuple[Path, ...] = Field(
        (),
        description="In place of HCP's runs: what every subject does, events.tsv files with the phantom's conditions as trial types.",
    )
    run_s: float | None = Field(
        None, gt=30, le=3600, description="Length of mixed or given runs, s; default 360, or 16 s after the last event."
    )
    resolution_mm: float = Field(2.0, description="2 (91 x 109 x 91, as HCP) or 3 (61 x 73 x 61).")
    tr_s: float = Field(0.72, gt=0.2, le=4, description="Repetition time of the runs.")
    modality: Literal["epi", "T1w"] = Field(
        "epi", description="Layout anatomy: the EPI's reference volume, or a T1-weighted image."
    )
    sessions: int = Field(1, ge=1, le=20, description="Layout anatomy: how often everybody is scanned.")
    years_between: float = Field(3.0, gt=0, le=20, description="From one session to the next; people age.")
    split: SplitConfig = Field(SplitConfig(), description="Layout blocks: as in prepare; families stay together.")
    activations: Path | None = Field(None, description="TSV, rows parcels, columns conditions, percent signal change.")
    atlas: Path | None = Field(None, description="Label image of those parcels, on any MNI grid.")
    write_truth: bool = Field(True, description="Write ground_truth/ beside the data.")
    anatomy: AnatomyConfig = AnatomyConfig()
    response: ResponseConfig = ResponseConfig()
    noise: NoiseConfig = NoiseConfig()
    families: FamilyConfig = FamilyConfig()

    @field_validator("resolution_mm")
    @classmethod
    def _known_resolution(cls, value: float) -> float:
        if value not in (2.0, 3.0):
            raise ValueError("runs are written at 2 or 3 mm")
        return value

    @model_validator(mode="after")
    def _check(self) -> SimulateConfig:
        if (self.activations is None) != (self.atlas is None):
            raise ValueError("activations and atlas belong together: give both or neither")
        if self.mixed and self.events:
            raise ValueError("mixed and events exclude each other")
        if (self.mixed or self.events) and self.layout != "runs":
            raise ValueError("mixed and events are for the layout runs")
        if self.sessions > 1 and self.layout != "anatomy":
            raise ValueError("sessions are for the layout anatomy")
        if self.modality != "epi" and self.layout != "anatomy":
            raise ValueError("modality is for the layout anatomy; trees hold T1w beside the runs")
        if self.anatomy.patients and self.layout == "hcp":
            raise ValueError("anatomy.patients is not for the layout hcp, whose table of people has no diagnosis")
        if len(set(self.tasks)) < len(self.tasks) or len(set(self.directions)) < len(self.directions):
            raise ValueError("a task or direction is named twice")
        return self

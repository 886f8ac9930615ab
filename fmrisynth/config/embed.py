"""Settings of the `embed` stage: flat maps, the masked autoencoder, its training, and the probes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fmrisynth.config.base import Config
from fmrisynth.config.run import RunConfig

Side = Annotated[int, Field(ge=1, le=64)]


class MapConfig(Config):
    """How a series of volumes becomes frames of the flattened cortex."""

    surfaces: Path | None = Field(
        None,
        description="Folder with GIFTI surfaces (flat, and for volumes pial and white) in place of fsaverage5, which nilearn brings along; "
        "CIFTI series need those of fs_LR.",
    )
    pixel_mm: float = Field(1.2, ge=0.5, le=20, description="Side of a pixel of the flat map.")
    rate_hz: float = Field(1.0, gt=0, le=10, description="Frames per second.")
    n_frames: int = Field(16, ge=1, le=1024, description="Frames of a clip.")
    baseline: Literal["run", "series"] = Field(
        "run",
        description="What is subtracted from each vertex: the mean of the source run, or that of the series itself, which takes away what "
        "lasts as long as the series.",
    )
    scale: Literal["series", "none"] = Field(
        "series",
        description="What each vertex is divided by: its standard deviation over the series; none: by its baseline (percent change).",
    )
    clip: float | None = Field(3.0, gt=0, description="Largest absolute value after scaling; null is none.")
    per_frame: bool = Field(True, description="Give every frame mean 0 and variance 1 over the valid pixels.")


class MaeConfig(Config):
    """The spatiotemporal masked autoencoder; the defaults are the paper's ViT-B."""

    patch: tuple[Side, Side, Side] = Field((4, 16, 16), description="Frames, rows and columns of a patch.")
    width: int = Field(768, ge=8, le=16_384, description="Of the encoder.")
    depth: int = Field(12, ge=1, le=64, description="Blocks of the encoder.")
    heads: int = Field(12, ge=1, le=256, description="Attention heads of the encoder.")
    decoder_width: int = Field(512, ge=8, le=16_384, description="Of the decoder.")
    decoder_depth: int = Field(4, ge=1, le=64, description="Blocks of the decoder.")
    decoder_heads: int = Field(16, ge=1, le=256, description="Attention heads of the decoder.")
    mlp_ratio: int = Field(4, ge=1, le=64, description="Width of the feed-forward layers in units of the block's.")
    masking: Literal["tube", "uniform"] = Field(
        "tube", description="tube: the same places are hidden in all frames; uniform: any patches."
    )
    mask_ratio: float = Field(0.9, gt=0, lt=1, description="Share of the patches that is hidden.")
    predict_every: int = Field(2, ge=1, le=64, description="Within a patch every so many-th frame is predicted.")

    @model_validator(mode="after")
    def _check(self) -> MaeConfig:
        for width, heads in ((self.width, self.heads), (self.decoder_width, self.decoder_heads)):
            if width % heads:
                raise ValueError(f"width {width} does not divide by {heads} heads")
        return self


class ProbeConfig(Config):
    """Probes of frozen features."""

    folds: int = Field(5, ge=2, le=50, description="Folds; each holds whole subjects.")
    parcels: int = Field(200, ge=10, le=2000, description="Parcels of the baselines, equal parts of the flat map.")
    attentive: bool = Field(True, description="Also a probe that learns where to look.")
    resamples: int = Field(1000, ge=100, le=100_000, description="Bootstrap samples of subjects for the intervals.")


class EmbedConfig(RunConfig):
    """Everything about flat maps, encoder and probes."""

    maps: MapConfig = Field(default_factory=MapConfig)
    model: MaeConfig = Field(default_factory=MaeConfig)
    probe: ProbeConfig = Field(default_factory=ProbeConfig)

    @model_validator(mode="after")
    def _check_frames(self) -> EmbedConfig:
        if self.maps.n_frames % self.model.patch[0]:
            raise ValueError(
                f"maps.n_frames {self.maps.n_frames} does not divide by the {self.model.patch[0]} frames of model.patch"
            )
        return self

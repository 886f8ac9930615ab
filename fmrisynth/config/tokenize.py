"""Settings of the `tokenize` stage: the tokenizer, its normalisation, its fit and the encoding."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from fmrisynth.config.base import Config, StageConfig


class PatchConfig(Config):
    """Linear patch transform: every 4 x 4 x 4 patch becomes its `channels` leading components.

    With the defaults the components are fitted per position to the covariance between different frames of a
    block, which thermal noise does not enter. ``prior_blocks: null``, ``covariance: frame`` and ``synthesis: patch``
    together are plain PCA of all patches.
    """

    kind: Literal["patch"] = "patch"
    channels: int = Field(3, ge=1, le=64, description="Latent channels C.")
    covariance: Literal["frame", "lagged", "halves"] = Field(
        "halves",
        description="frame: of single frames; lagged: between successive frames; halves: between the means of a "
        "block's even and odd frames.",
    )  # fmt: skip
    prior_blocks: float | None = Field(
        300.0, gt=0,
        description="Weight, in blocks, of the covariance shared by all positions against a position's own; "
        "null: one basis for all positions.",
    )  # fmt: skip
    synthesis: Literal["patch", "overlap", "local"] = Field(
        "overlap",
        description="patch: decode a cell alone; overlap: add a correction from its 3 x 3 x 3 cells, one for all "
        "positions; local: one for each position (large).",
    )  # fmt: skip
    ridge: float = Field(0.1, gt=0, description="Ridge of the correction, in units of the mean latent variance.")
    storage: Literal["float32", "float16"] = Field("float32", description="Type of the stored weights.")

    @property
    def latent_channels(self) -> int:
        """C."""
        return self.channels

    @property
    def downsampling(self) -> int:
        """Voxels per latent cell and side."""
        return 4


class PoolingConfig(Config):
    """The trivial tokenizer: 4x mean pooling within the mask, trilinear upsampling; one channel."""

    kind: Literal["pooling"] = "pooling"

    @property
    def latent_channels(self) -> int:
        """C."""
        return 1

    @property
    def downsampling(self) -> int:
        """Voxels per latent cell and side."""
        return 4


Multiplier = Annotated[int, Field(ge=1, le=64)]


class VqganConfig(Config):
    """3D VQ-GAN of volumes (one volume in, one volume out), 4x per side.

    The defaults are the small one; `vqgan-paper` is the layout of the public ALDM configuration.
    """

    kind: Literal["vqgan"] = "vqgan"
    latent_channels: int = Field(3, ge=1, le=256)
    base_ch: int = Field(16, ge=4, le=4096, description="Width of the finest level.")
    ch_mult: tuple[Multiplier, Multiplier, Multiplier] = Field(
        (1, 2, 4), description="Widths of the three levels in units of base_ch."
    )
    num_res_blocks: int = Field(1, ge=1, le=64, description="Blocks per level; the decoder has one more.")
    residual: bool = Field(
        True, description="Usual residual block of two convolutions; false: one convolution, no shortcut (ALDM)."
    )
    norm_groups: int = Field(8, ge=1, le=4096, description="Groups of the group normalisation.")
    codebook_size: int = Field(8192, ge=2, le=1_048_576, description="Codes.")
    codebook_decay: float = Field(0.99, gt=0, lt=1, description="EMA of the codebook.")
    commitment: float = Field(0.25, gt=0, description="Weight of the commitment loss.")
    revive_below: float = Field(
        0.03, ge=0, description="A code whose running count is below this is set to a random latent of the batch."
    )
    quantise: bool = Field(True, description="False: a plain autoencoder, for the study of what quantising costs.")

    @model_validator(mode="after")
    def _check(self) -> VqganConfig:
        for multiplier in self.ch_mult:
            if (multiplier * self.base_ch) % self.norm_groups:
                raise ValueError(f"width {multiplier * self.base_ch} does not divide by {self.norm_groups} norm groups")
        return self

    @property
    def downsampling(self) -> int:
        """Voxels per latent cell and side."""
        return 4


Width = Annotated[int, Field(ge=4, le=4096)]


class LevelsConfig(Config):
    """Convolutional levels with residual blocks, attention at the coarsest; each doubles or halves the sides of the next."""

    latent_channels: int = Field(32, ge=1, le=256, description="C.")
    channels: tuple[Width, ...] = Field(
        (32, 64, 128, 384, 384), min_length=2, max_length=6,
        description="Width of each convolutional level, finest first; a latent cell has 2 to the power of their number less one "
        "voxels a side.",
    )  # fmt: skip
    num_res_blocks: int = Field(1, ge=1, le=64, description="Residual blocks per level.")
    norm_groups: int = Field(32, ge=1, le=4096, description="Groups of the group normalisation.")
    centre: bool = Field(
        False,
        description="Give the network what a volume differs by from the mean volume: a short fit need not learn what all have in common.",
    )

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        for width in self.channels:
            if width % self.norm_groups:
                raise ValueError(f"width {width} does not divide by {self.norm_groups} norm groups")
        return self

    @property
    def downsampling(self) -> int:
        """Voxels per latent cell and side."""
        return 2 ** (len(self.channels) - 1)


class MaeTokenizerConfig(LevelsConfig):
    """A masked autoencoder's encoder, frozen, one token per latent cell; a linear projection; a CNN decoder (BrainG3N).

    The defaults are the paper's: patches of 16 voxels a side, encoder and masked decoder of width 1152, 43.7 M parameters in the
    CNN decoder, of which the paper prints only this total.
    """

    kind: Literal["mae"] = "mae"
    width: int = Field(1152, ge=8, le=16_384, description="Of the encoder and the masked decoder.")
    depth: int = Field(12, ge=1, le=64, description="Blocks of the encoder.")
    masked_depth: int = Field(8, ge=1, le=64, description="Blocks of the masked decoder, which only the fit needs.")
    heads: int = Field(16, ge=1, le=256, description="Attention heads of both.")
    mlp_ratio: int = Field(4, ge=1, le=64, description="Width of the feed-forward layers in units of the width.")
    mask_ratio: float = Field(0.7, gt=0, lt=1, description="Share of the patches that is hidden.")

    @model_validator(mode="after")
    def _check_heads(self) -> MaeTokenizerConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide by {self.heads} heads")
        return self


class KlConfig(LevelsConfig):
    """MONAI's AutoencoderKL, the usual tokenizer of 3D medical images: the rival of `mae`."""

    kind: Literal["kl"] = "kl"
    channels: tuple[Width, ...] = Field(
        (32, 64, 128, 256), min_length=3, max_length=4,
        description="Width of each level, finest first: three give cells of 4 voxels a side, four give 8.",
    )  # fmt: skip
    num_res_blocks: int = Field(2, ge=1, le=64, description="Residual blocks per level.")
    kl_weight: float = Field(1e-6, ge=0, description="Weight of the divergence, summed over a volume's latents.")


def _kind(value: Any) -> str:
    return value.get("kind", "patch") if isinstance(value, dict) else getattr(value, "kind", "patch")


TokenizerConfig = Annotated[
    Annotated[PatchConfig, Tag("patch")]
    | Annotated[PoolingConfig, Tag("pooling")]
    | Annotated[VqganConfig, Tag("vqgan")]
    | Annotated[MaeTokenizerConfig, Tag("mae")]
    | Annotated[KlConfig, Tag("kl")],
    Discriminator(_kind),
]


NETWORKS = ("vqgan", "mae", "kl")
"""Kinds that are fitted by stochastic gradients."""


class GradientFitConfig(Config):
    """Training of a network tokenizer; the linear kinds do not use it."""

    steps: int = Field(20_000, ge=1, description="Optimiser steps.")
    masked_steps: int = Field(
        0, ge=0,
        description="mae only: the first steps, in which the encoder learns to tell hidden patches; it is frozen for the others.",
    )  # fmt: skip
    batch_size: int = Field(8, ge=1, description="Volumes per step.")
    frames_per_block: int = Field(2, ge=1, description="Volumes taken from each block that a batch reads.")
    learning_rate: float = Field(1e-4, gt=0, description="Of AdamW.")
    betas: tuple[float, float] = Field((0.5, 0.9), description="Of AdamW.")
    weight_decay: float = Field(0.0, ge=0, description="Of AdamW; without it, it is Adam.")
    warmup_steps: int = Field(100, ge=0, description="Linear warmup of the learning rate.")
    decay: Literal["constant", "cosine"] = Field("constant", description="Learning rate after the warmup.")
    grad_clip: float = Field(1.0, gt=0, description="Largest L2 norm of the gradient.")
    loss: Literal["l1", "mse"] = Field("l1", description="Reconstruction loss.")
    adversarial_weight: float = Field(0.1, ge=0, description="0 switches the discriminator off.")
    adversarial_start: int = Field(10_000, ge=0, description="Step from which the discriminator acts.")
    discriminator_ch: int = Field(32, ge=4, description="Width of the discriminator.")
    temporal_weight: float = Field(
        0.0, ge=0, description="Weight of the loss on differences of the frames taken from one block."
    )
    checkpoint_every: int = Field(500, ge=1, description="Steps between checkpoints of the fit.")
    log_every: int = Field(50, ge=1, description="Steps between log records.")

    @model_validator(mode="after")
    def _check(self) -> GradientFitConfig:
        if self.batch_size % self.frames_per_block:
            raise ValueError(
                f"batch_size {self.batch_size} does not divide by frames_per_block {self.frames_per_block}"
            )
        return self


class TokenizeConfig(StageConfig):
    """Everything about one `tokenize` run."""

    normalisation: Literal["dynamics", "global", "relative"] = Field(
        "dynamics",
        description="dynamics: percent signal change of the run's mean; global: z-score over brain voxels; relative: units of the "
        "brain's mean, for anatomies.",
    )
    model: TokenizerConfig = Field(default_factory=PatchConfig)
    fit: GradientFitConfig = Field(default_factory=GradientFitConfig)
    max_fit_blocks: int = Field(2000, ge=1, description="At most so many training blocks (drawn by seed) are used.")
    statistics_blocks: int = Field(
        1000, ge=1, description="Training blocks from which latent statistics and observation noise are measured."
    )
    leave_out: tuple[str, ...] = Field(
        (),
        description="People, as sub-LABEL, to whom nothing is fitted, for example because they moved too much; they are encoded.",
    )
    init: Path | None = Field(
        None, description="Start a vqgan from this tokenizer directory, or from an ALDM-layout state dict."
    )
    batch_size: int = Field(12, ge=1, description="Volumes encoded or decoded at a time.")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on CUDA, else fp32.")
    report: bool = Field(True, description="Measure held-out reconstructions and write the tokenizer report.")
    report_split: Literal["val", "test"] = Field("test", description="Subjects the report is computed on.")
    reconstruct: bool = Field(False, description="Also decode the latents to a block dataset, `reconstructed/`.")

    @model_validator(mode="after")
    def _check(self) -> TokenizeConfig:
        if self.init is not None and self.model.kind != "vqgan":
            raise ValueError("init applies to model.kind vqgan only")
        if self.model.kind == "mae" and not 0 < self.fit.masked_steps < self.fit.steps:
            raise ValueError(
                f"fit.masked_steps {self.fit.masked_steps} has to lie between 0 and fit.steps {self.fit.steps} for model.kind mae"
            )
        if self.model.kind != "mae" and self.fit.masked_steps:
            raise ValueError("fit.masked_steps applies to model.kind mae only")
        if self.model.kind in NETWORKS and self.normalisation == "relative" and self.fit.frames_per_block != 1:
            raise ValueError("fit.frames_per_block has to be 1 with normalisation relative: an anatomy is one volume")
        return self

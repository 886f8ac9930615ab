"""Settings of the `train` stage: the network, the objective and the condition; those of every run are in `run.py`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from fmrisynth.config.base import Config
from fmrisynth.config.run import RunConfig

StageKind = Literal["conv", "transformer"]

DELTA_T = "delta_t"
"""Attribute of a forecast: years from the earlier scan to the later one."""

# A model's card is read before its weights; it must not ask for more than a network ever has.
Small = Annotated[int, Field(ge=1, le=64)]
Width = Annotated[int, Field(ge=1, le=16_384)]


class HybridConfig(Config):
    """The hybrid CNN-Transformer of the paper (Fig. 4) and its ablations.

    Level 0 is the finest grid; the last level is the bottleneck. The defaults are the 38.1 M model.
    """

    kind: Literal["hybrid"] = "hybrid"
    base_ch: int = Field(128, ge=4, le=4096, description="Width w of level 0.")
    width_multipliers: tuple[Small, ...] = Field((1, 2, 4), description="Width of each level in units of base_ch.")
    cond_width: int | None = Field(
        None, ge=4, le=65_536, description="Width of conditioning vectors and context tokens; default 4 base_ch."
    )
    stages: tuple[StageKind, ...] = Field(
        ("conv", "transformer", "transformer"), description="Kind of the blocks at each level."
    )
    encoder_blocks: tuple[Small, ...] = Field((1, 3), description="Blocks per level on the way down.")
    bottleneck_blocks: int = Field(3, ge=1, le=64, description="Blocks of the coarsest level.")
    decoder_blocks: tuple[Small, ...] = Field((2, 3), description="Blocks per level on the way up, finest first.")
    num_heads: int | None = Field(
        None, ge=1, le=4096, description="Attention heads at every level; default base_ch / 16."
    )
    cross_attention: bool = Field(True, description="False is the paper's 'AdaLN-Zero only'.")
    adaln: bool = Field(
        True,
        description="False: transformer blocks have learned constants for modulations; the diffusion time enters "
        "through FiLM alone, the condition through FiLM and cross-attention.",
    )
    context_tokens: int = Field(8, ge=1, le=4096, description="Learned context tokens per condition.")
    mlp_ratio: int = Field(4, ge=1, le=64, description="Width of the feed-forward layers in units of the level.")
    skip: bool = Field(
        False,
        description="Linear paths beside the network, of each cell and of the brain's mean, for one that is narrower than its input.",
    )
    checkpoint_activations: bool = Field(False, description="Recompute blocks in the backward pass to save memory.")

    @model_validator(mode="after")
    def _check_levels(self) -> HybridConfig:
        n_levels = len(self.width_multipliers)
        if n_levels < 2:
            raise ValueError("width_multipliers needs at least two levels")
        if len(self.stages) != n_levels:
            raise ValueError(f"stages needs one kind per level ({n_levels})")
        if len(self.encoder_blocks) != n_levels - 1 or len(self.decoder_blocks) != n_levels - 1:
            raise ValueError(
                f"encoder_blocks and decoder_blocks need one count per level but the last ({n_levels - 1})"
            )
        if not self.adaln and "conv" not in self.stages:
            raise ValueError("without adaln one of the stages has to be conv: the diffusion time enters there")
        for multiplier, stage in zip(self.width_multipliers, self.stages, strict=True):
            if stage == "transformer" and (multiplier * self.base_ch) % self.heads:
                raise ValueError(f"width {multiplier * self.base_ch} does not divide by {self.heads} heads")
        return self

    @property
    def conditioning_width(self) -> int:
        """Width of conditioning vectors and context tokens (E)."""
        return self.cond_width or 4 * self.base_ch

    @property
    def heads(self) -> int:
        """Attention heads (Table 3: base_ch / 16)."""
        return self.num_heads or max(1, self.base_ch // 16)

    @property
    def downsampling(self) -> int:
        """Every side of the latent grid must divide by this."""
        return 2 ** (len(self.width_multipliers) - 1)


class UNetConfig(Config):
    """The paper's baseline: MONAI's ``DiffusionModelUNet`` with the class in the time embedding."""

    kind: Literal["unet"] = "unet"
    num_channels: tuple[Width, ...] = Field((64, 160, 224), description="Width of each level.")
    num_head_channels: tuple[int, ...] = Field((0, 160, 224), description="Width of an attention head per level.")
    attention_levels: tuple[bool, ...] = Field((False, True, True), description="Levels with attention.")
    num_res_blocks: int = Field(2, ge=1, le=64, description="Residual blocks per level.")
    norm_num_groups: int = Field(32, ge=1, le=4096, description="Groups of the group normalisation.")

    @model_validator(mode="after")
    def _check_levels(self) -> UNetConfig:
        if not len(self.num_channels) == len(self.num_head_channels) == len(self.attention_levels):
            found = [len(levels) for levels in (self.num_channels, self.num_head_channels, self.attention_levels)]
            raise ValueError(
                f"num_channels, num_head_channels and attention_levels need the same length, found {found[0]}, {found[1]} and {found[2]}"
            )
        return self

    @property
    def downsampling(self) -> int:
        """Every side of the latent grid must divide by this."""
        return 2 ** (len(self.num_channels) - 1)


class DiTConfig(Config):
    """A plain diffusion transformer: one token per latent cell, no levels, conditions through AdaLN-Zero (BrainG3N)."""

    kind: Literal["dit"] = "dit"
    width: int = Field(384, ge=6, le=16_384, description="Width of the tokens and of the conditioning vector.")
    depth: int = Field(12, ge=1, le=64, description="Blocks.")
    heads: int = Field(6, ge=1, le=4096, description="Attention heads.")
    mlp_ratio: int = Field(4, ge=1, le=64, description="Width of the feed-forward layers in units of the width.")
    checkpoint_activations: bool = Field(False, description="Recompute blocks in the backward pass to save memory.")

    @model_validator(mode="after")
    def _check_heads(self) -> DiTConfig:
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"width {self.width} is odd or does not divide by {self.heads} heads")
        return self

    @property
    def downsampling(self) -> int:
        """Any latent grid will do."""
        return 1


def _model_kind(value: Any) -> str:
    return value.get("kind", "hybrid") if isinstance(value, dict) else getattr(value, "kind", "hybrid")


def network_name(model: Mapping[str, Any]) -> str:
    """What a network is called, from its settings: its kind, or the preset of the hybrid's ablation that it is."""
    stages = set(model.get("stages", ()))
    if stages == {"conv"}:
        return "all-cnn"
    return "all-transformer" if stages == {"transformer"} else str(model.get("kind", "hybrid"))


ModelConfig = Annotated[
    Annotated[HybridConfig, Tag("hybrid")] | Annotated[UNetConfig, Tag("unet")] | Annotated[DiTConfig, Tag("dit")],
    Discriminator(_model_kind),
]


class ObjectiveConfig(Config):
    """What the network predicts and along which noise schedule."""

    prediction: Literal["epsilon", "v", "flow", "bridge"] = Field(
        "epsilon",
        description="The paper predicts epsilon; bridge: from a person's earlier anatomy to a later one, for forecasts.",
    )
    schedule: Literal["linear", "scaled_linear"] = Field(
        "linear", description="Curve of beta: linear, or linear in the square root of beta. Unused by flow."
    )
    n_train_steps: int = Field(1000, ge=2, le=100_000, description="Diffusion steps T.")
    beta_start: float = Field(0.0015, gt=0, lt=1, description="Beta of the first diffusion step.")
    beta_end: float = Field(0.0195, gt=0, lt=1, description="Beta of the last one.")
    min_snr_gamma: float | None = Field(None, gt=0, description="Min-SNR loss weighting (5 is usual); null is off.")
    noise_shift: float = Field(
        1.0,
        ge=1,
        le=1000,
        description="Flow only: training times are moved towards the noise, which multiplies sigma / alpha by this number "
        "(sampling times: by its square root); 1 leaves them even.",
    )
    precondition: bool = Field(
        False,
        description="The network predicts the deviation from what a unit Gaussian would answer (Karras et al. 2022).",
    )
    bridge_sd: float = Field(0.5, ge=0, le=10, description="Bridge only: sigma of the noise between the two scans.")

    @model_validator(mode="after")
    def _check(self) -> ObjectiveConfig:
        if self.prediction in ("flow", "bridge") and self.min_snr_gamma is not None:
            raise ValueError("min_snr_gamma applies to epsilon and v only")
        if self.prediction != "flow" and self.noise_shift != 1:
            raise ValueError("noise_shift applies to flow only")
        if self.prediction == "bridge" and self.precondition:
            raise ValueError("precondition is about noise; a bridge starts at a scan")
        return self


class ConditioningConfig(Config):
    """What the network is told: a block's condition, or what happens in a run; then further attributes."""

    kind: Literal["label", "events"] = Field(
        "label",
        description="label: one condition a block (paper); events: everything that happens in and before a window of a run.",
    )
    history_s: float = Field(
        20.0, ge=0, le=120, description="Events only: how far back from the window events are told, s."
    )
    past_frames: int = Field(
        6,
        ge=0,
        le=64,
        description="Events only: frames before the window that the network sees, so that windows join; 0 is none.",
    )
    past_dropout: float = Field(
        0.1, ge=0, lt=1, description="Events only: rate at which they are withheld, as at the start of a run."
    )
    past_noise: float = Field(
        0.35,
        ge=0,
        le=10,
        description="Events only: in training frames of other runs, times this, are added to them: the network learns not to take its own "
        "errors for the past.",
    )
    descriptors: Path | None = Field(
        None,
        description="Events only: TSV with a row per condition and columns of numbers (modality, hand, load, a text embedding ...); the "
        "network then hears the numbers in place of the names.",
    )
    dropout: float = Field(0.05, ge=0, lt=1, description="Rate at which the task condition becomes the null row.")
    attributes: dict[str, float] = Field(
        default_factory=dict,
        description="Further columns of the latents' index -> dropout rate, e.g. {phase_encoding: 0.1}; at 0 it is never withheld, "
        "and always has to be said.",
    )
    numbers: dict[str, float] = Field(
        default_factory=dict, description="Those that are numbers, e.g. {age: 0.1}: any value can be asked for."
    )

    @model_validator(mode="after")
    def _check(self) -> ConditioningConfig:
        if "condition" in self.attributes:
            raise ValueError("'condition' is always an attribute; set conditioning.dropout instead")
        if self.kind == "label" and self.descriptors is not None:
            raise ValueError("descriptors are for conditioning.kind events")
        if both := self.attributes.keys() & self.numbers.keys():
            raise ValueError(f"{', '.join(sorted(both))}: name an attribute once, with its labels or as a number")
        if "condition" in self.numbers:
            raise ValueError("the condition is no number")
        if any(not 0 <= rate < 1 for rate in self.rates.values()):
            raise ValueError("dropout rates lie in [0, 1)")
        return self

    @property
    def rates(self) -> dict[str, float]:
        """Dropout rate of everything that the network is told, the condition first."""
        return {"condition": self.dropout, **self.attributes, **self.numbers}


class EventTelling(Config):
    """What a model of runs is told of a window; part of its card."""

    window_frames: int = Field(12, ge=1, le=1024, description="Frames that it makes at a time.")
    history_frames: int = Field(14, ge=0, le=1024, description="Frames before, of which it hears the events.")
    past_frames: int = Field(6, ge=0, le=64, description="Frames before, whose latents it sees.")
    past_channels: int = Field(
        19, ge=0, le=65_536, description="Channels of those: C for each frame, and one that says that they are there."
    )
    descriptors: tuple[tuple[float, ...], ...] | None = Field(None, description="A row of numbers per condition.")
    grid: tuple[Width, Width, Width] = Field(description="Latent grid.")


class TrainConfig(RunConfig):
    """Everything about the training of a denoiser."""

    model: ModelConfig = Field(default_factory=HybridConfig)
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig)
    whiten: bool = Field(
        False,
        description="Whiten the C*T numbers of each latent cell by statistics of the training split, as `objective.precondition` assumes.",
    )
    conditioning: ConditioningConfig = Field(default_factory=ConditioningConfig)
    leave_out: tuple[str, ...] = Field(
        (), description="People, as sub-LABEL, of whom nothing is learnt, for example because they moved too much."
    )
    prefetch: int = Field(2, ge=0, description="Batches prepared ahead by a background thread.")
    sample_every: int = Field(
        0, ge=0, description="Draw a small fixed grid of samples every so many steps; 0 is never."
    )
    sample_steps: int = Field(20, ge=1, description="Sampler steps of that grid.")
    samples_per_condition: int = Field(2, ge=1, description="Samples of that grid.")

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.conditioning.kind == "events" and self.sample_every:
            raise ValueError("sample_every draws blocks; it is for conditioning.kind label")
        if self.objective.prediction == "bridge":
            if self.conditioning.numbers.get(DELTA_T) != 0:
                raise ValueError(f"a forecast is always told how far: conditioning.numbers needs {DELTA_T}: 0")
            if self.conditioning.kind == "events" or self.sample_every or self.model.kind == "unet":
                raise ValueError(
                    "a bridge goes with conditioning.kind label, model.kind hybrid or dit, and sample_every 0"
                )
        elif DELTA_T in self.conditioning.rates:
            raise ValueError(f"{DELTA_T} is told to forecasts only, of objective.prediction bridge")
        if self.model.kind == "unet" and (len(self.conditioning.rates) > 1 or self.conditioning.kind == "events"):
            raise ValueError(
                "the U-Net baseline takes the task condition only; remove the other settings of conditioning"
            )
        if self.model.kind == "dit" and self.conditioning.kind == "events":
            raise ValueError(
                "the plain diffusion transformer takes labels and numbers; for events use model.kind hybrid"
            )
        return self

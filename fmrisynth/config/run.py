"""Settings of every training run, whatever is learnt: optimiser, average, batches, engine, records and checkpoints."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fmrisynth.config.base import Config, StageConfig


class OptimiserConfig(Config):
    """AdamW with warmup and gradient clipping."""

    learning_rate: float = Field(1e-4, gt=0, description="After the warmup.")
    weight_decay: float = Field(0.01, ge=0, description="Of AdamW.")
    betas: tuple[float, float] = Field((0.9, 0.99), description="Of AdamW.")
    warmup_steps: int = Field(1000, ge=0, description="Linear warmup of the learning rate.")
    decay: Literal["constant", "cosine"] = Field("constant", description="Learning rate after the warmup.")
    grad_clip: float = Field(1.0, gt=0, description="Largest L2 norm of the gradient.")


class EmaConfig(Config):
    """Exponential moving average of the weights (used for sampling and validation)."""

    decay: float = Field(0.9999, ge=0, lt=1, description="Weight of the past per step.")
    warmup: bool = Field(True, description="Use min(decay, (1 + n) / (10 + n)) after n updates, for short runs.")


class RunConfig(StageConfig):
    """What the training loop (`fmrisynth.train.loop.Trainer`) is told."""

    optimiser: OptimiserConfig = Field(default_factory=OptimiserConfig)
    ema: EmaConfig = Field(default_factory=EmaConfig)

    steps: int = Field(400_000, ge=1, description="Optimiser steps.")
    batch_size: int = Field(16, ge=1, description="Instances per optimiser step, over all ranks.")
    micro_batch_size: int | None = Field(
        None, ge=1, description="Instances per forward pass and rank; the rest is gradient accumulation."
    )

    device: str = Field("auto", description="auto, cpu, cuda or cuda:N (ignored under torchrun on GPUs).")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="auto: bf16 autocast on CUDA, and on a CPU where a trial step at the start is clearly faster.",
    )
    distributed: Literal["ddp", "fsdp"] = Field("ddp", description="Engine when started by torchrun or srun.")
    compile: bool = Field(False, description="torch.compile the network.")
    channels_last: bool = Field(False, description="Keep convolution weights in channels-last-3d order.")

    log_every: int = Field(50, ge=1, description="Steps between log records.")
    val_every: int = Field(1000, ge=1, description="Steps between validations.")
    val_instances: int = Field(256, ge=1, description="Validation instances (the first so many after a fixed shuffle).")
    checkpoint_every: int = Field(5000, ge=1, description="Steps between checkpoints.")
    keep_last: int = Field(3, ge=1, description="Checkpoints kept, beside the best.")
    max_hours: float | None = Field(None, gt=0, description="Stop with a checkpoint after this wall time.")

    @model_validator(mode="after")
    def _check_batch(self) -> RunConfig:
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} does not divide by micro_batch_size {self.micro_batch_size}"
            )
        return self


# Settings that do not change the numbers a run computes: a resumed run may alter them.
OPERATIONAL = frozenset(
    {
        "device",
        "prefetch",
        "log_every",
        "sample_every",
        "checkpoint_every",
        "keep_last",
        "max_hours",
        "distributed",
    }
)

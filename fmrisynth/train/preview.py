"""A small fixed grid of samples during training: a number, latents to decode, and a picture.

Axis legend: K conditions, S samples, C latent channels, T frames, F = C*T, X Y Z latent grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fmrisynth.bids.atomic import atomic_path
from fmrisynth.config.train import TrainConfig
from fmrisynth.data.attributes import Values
from fmrisynth.diffusion.generate import generate_latents
from fmrisynth.models.distributed import World
from fmrisynth.train.batches import derive_seed
from fmrisynth.train.dataset import TrainingLatents
from fmrisynth.train.moments import ClassMoments
from fmrisynth.train.runlog import RunLog
from fmrisynth.train.state import Run
from fmrisynth.train.validate import effect_correlation


class Training(Protocol):
    """What a preview needs to know of the denoiser in training (`fmrisynth.train.denoiser.DenoiserLearning`)."""

    config: TrainConfig
    world: World
    latents: TrainingLatents
    vocabulary: dict[str, Values]

    def moments(self) -> ClassMoments:
        """Statistics of the training latents per condition."""


@dataclass(frozen=True)
class _Model:
    """The network in training, as ``generate_latents`` wants it; latents stay as the network sees them."""

    network: nn.Module
    objective: dict[str, Any]
    labels: dict[str, Values]
    latent_shape: tuple[int, int, int, int, int]
    latent_mean_C: Tensor
    latent_std_C: Tensor
    whitening: None = None
    always: tuple[str, ...] = ()

    @property
    def conditions(self) -> tuple[str, ...]:
        """Task conditions."""
        return tuple(self.labels["condition"])  # type: ignore[arg-type]


def draw_preview(learning: Training, run: Run, out: Path, runlog: RunLog | None) -> None:
    """Sample a few instances per condition with the averaged weights.

    Writes ``samples/step-NNNNNNNN.safetensors`` (tensor per condition, (S, C, T, X, Y, Z), tokenizer units)
    and logs ``effect_r``, the mean correlation between the samples' effect maps and the training ones, and
    ``std_ratio``, the samples' standard deviation over that of the training latents (1 by normalisation).
    """
    config, world, latents = learning.config, learning.world, learning.latents
    if not world.is_main and config.distributed == "ddp":
        return  # under FSDP every rank takes part in every forward pass
    n_channels = latents.latent_shape[0]
    model = _Model(
        network=run.network,
        objective=config.objective.model_dump(),
        labels=learning.vocabulary,
        latent_shape=latents.latent_shape,
        latent_mean_C=torch.zeros(n_channels),
        latent_std_C=torch.ones(n_channels),
    )
    run.network.eval()
    drawn: dict[str, Tensor] = {}
    with run.ema.swap(run.network):
        for condition in model.conditions:
            seeds = [derive_seed("preview", config.seed, condition, i) for i in range(config.samples_per_condition)]
            drawn[condition] = generate_latents(
                model,
                condition,
                seeds=seeds,
                n_steps=config.sample_steps,
                sampler="ab2",
                device=world.device,
            )
    if runlog is None:
        return
    sample_mean_KFXYZ = torch.stack([z.mean(0).flatten(0, 1) for z in drawn.values()])
    values = {"std_ratio": float(torch.cat(list(drawn.values())).std())}
    if len(drawn) > 1:
        values["effect_r"] = effect_correlation(sample_mean_KFXYZ, learning.moments().mean_KFXYZ)
    runlog.write("sample", run.progress.step, values)
    runlog.image("samples", contact_sheet(torch.stack([z[0] for z in drawn.values()])), run.progress.step)
    shape = (-1, 1, 1, 1, 1)
    mean, std = latents.dataset.latent_mean.reshape(shape), latents.dataset.latent_std.reshape(shape)

    def plain(latent_SCTXYZ: Tensor) -> Tensor:
        whitening = latents.whitening
        return (
            latent_SCTXYZ if whitening is None else whitening.undo(latent_SCTXYZ.flatten(1, 2)).view_as(latent_SCTXYZ)
        )

    with atomic_path(out / "samples" / f"step-{run.progress.step:08d}.safetensors") as temporary:
        save_file({condition: (plain(z) * std + mean).contiguous() for condition, z in drawn.items()}, temporary)


def contact_sheet(latent_KCTXYZ: Tensor) -> Tensor:
    """Middle axial slices of the first channel: a row per condition, a column per frame; (H, W) in 0 ... 1."""
    slices_KTXY = latent_KCTXYZ[:, 0, :, :, :, latent_KCTXYZ.shape[-1] // 2]
    rows = [torch.cat(list(frames_TXY.flip(2).transpose(1, 2)), dim=1) for frames_TXY in slices_KTXY]
    sheet_HW = torch.cat(rows)
    return (sheet_HW / 6 + 0.5).clamp(0, 1)  # three standard deviations either way

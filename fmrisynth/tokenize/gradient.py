"""Stochastic-gradient fit of a network tokenizer, adversarial from a set step, resumable to the bit.

What a step sees is a pure function of (seed, step), and the only other random numbers (revived codes) come
from PyTorch's generator, whose state is in the checkpoint; so an interrupted and continued fit ends with the
same weights as an uninterrupted one on the same CPU.

Axis legend: N volumes, C channels, T frames; X, Y, Z voxel axes.
"""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fmrisynth.bids.atomic import write_bytes
from fmrisynth.config.tokenize import GradientFitConfig, TokenizeConfig
from fmrisynth.errors import FmrisynthError
from fmrisynth.models.device import pick_device
from fmrisynth.models.tokenizers.base import Tokenizer, perplexity
from fmrisynth.progress import progress_bar
from fmrisynth.tokenize.source import BlockSource, FrameSource, to_frames

if TYPE_CHECKING:  # MONAI takes seconds to import and the linear kinds do not need it
    from fmrisynth.models.tokenizers.vqgan import VqganTokenizer

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"


def use_bf16(device: torch.device, precision: str) -> bool:
    """Whether to compute in bfloat16."""
    return precision == "bf16" or (precision == "auto" and device.type == "cuda")


def fit_network(
    tokenizer: VqganTokenizer, source: FrameSource, config: TokenizeConfig, folder: Path | None
) -> VqganTokenizer:
    """Fit in place and return the tokenizer, in evaluation mode.

    Parameters
    ----------
    tokenizer : VqganTokenizer
        Freshly built (or initialised from another).
    source : FrameSource
        Fitting blocks.
    config : TokenizeConfig
        Its `fit` part is what matters here.
    folder : Path, optional
        Checkpoint and log; None keeps nothing.
    """
    fit = config.fit
    device = pick_device(config.device)
    trainer = _Trainer(tokenizer.to(device), fit, device, use_bf16(device, config.precision))
    start = trainer.restore(folder / CHECKPOINT) if folder is not None else 0
    with progress_bar("Fitting the tokenizer", fit.steps, completed=start) as bar:
        for step in range(start, fit.steps):
            frames = draw_frames(source, config, step).to(device)
            record = trainer.step(step, frames)
            done = step + 1
            if done % fit.log_every == 0 or done == fit.steps:
                values = {name: float(value.detach()) for name, value in record.items()}
                if not math.isfinite(values["reconstruction"]):
                    raise FmrisynthError(
                        f"the tokenizer's loss is not finite at step {done}; lower fit.learning_rate and start again."
                    )
                bar.update(0, f"loss {values['reconstruction']:.4f}")
                if folder is not None:
                    _append(folder / LOG, {"step": done} | values)
            if folder is not None and (done % fit.checkpoint_every == 0 or done == fit.steps):
                trainer.save(folder / CHECKPOINT, done)
            bar.update(1)
    tokenizer.eval()
    return tokenizer


def draw_frames(source: FrameSource, config: TokenizeConfig, step: int) -> Tensor:
    """The volumes of one step, (N, 1, X, Y, Z): runs of consecutive frames from random blocks."""
    fit = config.fit
    generator = np.random.default_rng([config.seed, 2, step])
    n_take = min(fit.frames_per_block, source.n_frames)
    parts = []
    for index in generator.integers(len(source), size=fit.batch_size // fit.frames_per_block):
        start = int(generator.integers(source.n_frames - n_take + 1))
        frames = _frames_or_next(source, config, int(index))
        parts.append(frames[start : start + n_take])
    return torch.cat(parts)


def _frames_or_next(source: FrameSource, config: TokenizeConfig, index: int) -> Tensor:
    """Frames of a block; of the next readable one where it is damaged."""
    for offset in range(len(source)):
        chosen = (index + offset) % len(source)
        try:
            return to_frames(source.data(chosen), config.normalisation)
        except FmrisynthError as error:
            if not isinstance(source, BlockSource):
                raise
            source.note_failure(chosen, error)
    raise FmrisynthError("no block of the fitting split can be read; prepare the dataset again.")


class _Trainer:
    """Networks, losses and optimisers of one fit."""

    def __init__(self, tokenizer: VqganTokenizer, fit: GradientFitConfig, device: torch.device, bf16: bool) -> None:
        self.tokenizer, self.fit, self.device, self.bf16 = tokenizer.train(), fit, device, bf16
        weights = [p for p in tokenizer.parameters() if p.requires_grad]
        self.optimiser = torch.optim.Adam(weights, lr=fit.learning_rate, betas=fit.betas)
        self.discriminator: nn.Module | None = None
        if fit.adversarial_weight > 0:
            from monai.losses import PatchAdversarialLoss
            from monai.networks.nets import PatchDiscriminator

            groups = math.gcd(32, fit.discriminator_ch)
            self.discriminator = PatchDiscriminator(
                3, fit.discriminator_ch, 1, num_layers_d=2, kernel_size=4, norm=("GROUP", {"num_groups": groups})
            ).to(device)
            self.discriminator_optimiser = torch.optim.Adam(
                self.discriminator.parameters(), lr=fit.learning_rate, betas=fit.betas
            )
            self.hinge = PatchAdversarialLoss(criterion="hinge")

    def step(self, step: int, frames: Tensor) -> dict[str, Tensor]:
        """One optimiser step; returns the losses."""
        fit = self.fit
        frames = frames * self.tokenizer.brain_XYZ
        rate = fit.learning_rate * min(1.0, (step + 1) / max(fit.warmup_steps, 1))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        adversarial = self.discriminator is not None and step >= fit.adversarial_start
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            output, codebook_loss, indices = self.tokenizer(frames)
            output = output.float()
            record = {"reconstruction": self._distance(output, frames), "codebook": codebook_loss}
            loss = record["reconstruction"] + codebook_loss
            if fit.temporal_weight > 0:
                record["temporal"] = self._distance(_differences(output, fit), _differences(frames, fit))
                loss = loss + fit.temporal_weight * record["temporal"]
            if adversarial:
                assert self.discriminator is not None
                self.discriminator.requires_grad_(False)
                record["generator"] = self.hinge(self.discriminator(output)[-1], True, for_discriminator=False)
                self.discriminator.requires_grad_(True)
                loss = loss + fit.adversarial_weight * record["generator"]
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.tokenizer.parameters(), fit.grad_clip)
        self.optimiser.step()
        if adversarial:
            record["discriminator"] = self._discriminate(output.detach(), frames)
        if indices is not None:
            record["perplexity"] = torch.tensor(perplexity(indices))
        return record

    def _distance(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean over brain voxels."""
        distance = functional.l1_loss if self.fit.loss == "l1" else functional.mse_loss
        share = self.tokenizer.brain_XYZ.mean()
        return distance(output, target) / share

    def _discriminate(self, fake: Tensor, real: Tensor) -> Tensor:
        assert self.discriminator is not None
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            on_fake = self.hinge(self.discriminator(fake)[-1], False, for_discriminator=True)
            on_real = self.hinge(self.discriminator(real)[-1], True, for_discriminator=True)
            loss = 0.5 * (on_fake + on_real)
        self.discriminator_optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.discriminator_optimiser.step()
        return loss.detach()

    def save(self, path: Path, step: int) -> None:
        """Write everything the next step depends on."""
        state: dict[str, Any] = {
            "step": step,
            "tokenizer": self.tokenizer.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": torch.get_rng_state(),
        }
        if self.discriminator is not None:
            state["discriminator"] = self.discriminator.state_dict()
            state["discriminator_optimiser"] = self.discriminator_optimiser.state_dict()
        content = io.BytesIO()
        torch.save(state, content)  # straight to a full disk, it would fail without saying why
        write_bytes(path, content.getvalue())

    def restore(self, path: Path) -> int:
        """Continue from a checkpoint where there is one; returns the steps already done."""
        if not path.is_file():
            return 0
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.tokenizer.load_state_dict(state["tokenizer"])
            self.optimiser.load_state_dict(state["optimiser"])
            if self.discriminator is not None:
                self.discriminator.load_state_dict(state["discriminator"])
                self.discriminator_optimiser.load_state_dict(state["discriminator_optimiser"])
            torch.set_rng_state(state["generator"])
            return int(state["step"])
        except Exception as error:
            raise FmrisynthError(
                f"{path}: the fit cannot continue from this checkpoint ({type(error).__name__}); delete it to start again."
            ) from None


def _differences(frames: Tensor, fit: GradientFitConfig) -> Tensor:
    """Successive differences of the frames that came from one block."""
    n_take = fit.frames_per_block
    blocks = frames.unflatten(0, (len(frames) // n_take, n_take))
    return blocks[:, 1:] - blocks[:, :-1]


def _append(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as stream:
        stream.write(json.dumps(record) + "\n")


def move(tokenizer: Tokenizer, config: TokenizeConfig) -> Tokenizer:
    """Put a tokenizer on the configured device, in the configured precision."""
    device = pick_device(config.device)
    tokenizer.precision = torch.bfloat16 if use_bf16(device, config.precision) else torch.float32
    return tokenizer.to(device)

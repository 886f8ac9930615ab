"""Stochastic-gradient fit of a network tokenizer, resumable to the bit.

What a step sees is a pure function of (seed, step), and the only other random numbers (revived codes, draws
of a posterior) come from PyTorch's generator, whose state is in the checkpoint; so an interrupted and continued fit ends with the
same weights as an uninterrupted one on the same CPU.

Axis legend: N volumes, C channels, T frames; X, Y, Z voxel axes.
"""

from __future__ import annotations

import io
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
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
    from fmrisynth.models.tokenizers.mae import MaeTokenizer

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"


def use_bf16(device: torch.device, precision: str) -> bool:
    """Whether to compute in bfloat16."""
    return precision == "bf16" or (precision == "auto" and device.type == "cuda")


def fit_network(tokenizer: Tokenizer, source: FrameSource, config: TokenizeConfig, folder: Path | None) -> None:
    """Fit in place; afterwards the tokenizer is in evaluation mode.

    Parameters
    ----------
    tokenizer : VqganTokenizer, KlTokenizer or MaeTokenizer
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
    kind: type[_Trainer] = _MaskedTrainer if config.model.kind == "mae" else _AdversarialTrainer
    trainer = kind(tokenizer.to(device), config, device)
    start = trainer.restore(folder / CHECKPOINT) if folder is not None else 0
    with progress_bar("Fitting the tokenizer", fit.steps, completed=start) as bar:
        for step in range(start, fit.steps):
            frames = draw_frames(source, config, step).to(device)
            record = trainer.step(step, frames)
            done = step + 1
            if done % fit.log_every == 0 or done == fit.steps:
                values = {name: float(value.detach()) for name, value in record.items()}
                name, value = next(iter(values.items()))
                if not math.isfinite(value):
                    raise FmrisynthError(
                        f"the tokenizer's loss is not finite at step {done}; lower fit.learning_rate and start again."
                    )
                bar.update(0, f"{name} loss {value:.4f}")
                if folder is not None:
                    _append(folder / LOG, {"step": done} | values)
            if folder is not None and (done % fit.checkpoint_every == 0 or done == fit.steps):
                trainer.save(folder / CHECKPOINT, done)
            bar.update(1)
    tokenizer.eval()


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


class _Trainer(ABC):
    """What is learnt in a fit and by which optimisers; `parts` is all that the next step depends on, beside PyTorch's generator."""

    def __init__(self, tokenizer: Tokenizer, config: TokenizeConfig, device: torch.device) -> None:
        self.tokenizer, self.config, self.fit = tokenizer.train(), config, config.fit
        self.device, self.bf16 = device, use_bf16(device, config.precision)
        self.parts: dict[str, nn.Module | torch.optim.Optimizer] = {"tokenizer": tokenizer}

    @abstractmethod
    def step(self, step: int, frames: Tensor) -> dict[str, Tensor]:
        """One optimiser step; returns the losses, the one that counts first."""

    def optimiser(self, name: str, weights: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """A new part that moves some weights."""
        fit = self.fit
        made = torch.optim.AdamW(weights, lr=fit.learning_rate, betas=fit.betas, weight_decay=fit.weight_decay)
        self.parts[name] = made
        return made

    def descend(self, optimiser: torch.optim.Optimizer, loss: Tensor, done: int, total: int) -> None:
        """Move the optimiser's weights; `done` of the `total` steps with these weights lie behind, which sets the learning rate."""
        fit = self.fit
        rate = fit.learning_rate * min(1.0, (done + 1) / max(fit.warmup_steps, 1))
        if fit.decay == "cosine" and done >= fit.warmup_steps:
            share = (done - fit.warmup_steps) / max(1, total - fit.warmup_steps)
            rate = fit.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], fit.grad_clip)
        optimiser.step()

    def autocast(self) -> torch.autocast:
        """In which networks compute."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def distance(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean over brain voxels."""
        distance = functional.l1_loss if self.fit.loss == "l1" else functional.mse_loss
        return distance(output, target) / self.tokenizer.brain_XYZ.mean()

    def save(self, path: Path, step: int) -> None:
        """Write everything the next step depends on."""
        state: dict[str, Any] = {"step": step, "generator": torch.get_rng_state()}
        state |= {name: part.state_dict() for name, part in self.parts.items()}
        content = io.BytesIO()
        torch.save(state, content)  # straight to a full disk, it would fail without saying why
        write_bytes(path, content.getvalue())

    def restore(self, path: Path) -> int:
        """Continue from a checkpoint where there is one; returns the steps already done."""
        if not path.is_file():
            return 0
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
            torch.set_rng_state(state["generator"])
            return int(state["step"])
        except Exception as error:
            raise FmrisynthError(
                f"{path}: the fit cannot continue from this checkpoint ({type(error).__name__}); delete it to start again."
            ) from None


class _AdversarialTrainer(_Trainer):
    """An autoencoder whole, with a discriminator from a set step: `vqgan` and `kl`."""

    def __init__(self, tokenizer: Tokenizer, config: TokenizeConfig, device: torch.device) -> None:
        super().__init__(tokenizer, config, device)
        fit = self.fit
        self.own = self.optimiser("optimiser", [p for p in tokenizer.parameters() if p.requires_grad])
        self.discriminator: nn.Module | None = None
        if fit.adversarial_weight > 0:
            from monai.losses import PatchAdversarialLoss
            from monai.networks.nets import PatchDiscriminator

            groups = math.gcd(32, fit.discriminator_ch)
            self.discriminator = PatchDiscriminator(
                3, fit.discriminator_ch, 1, num_layers_d=2, kernel_size=4, norm=("GROUP", {"num_groups": groups})
            ).to(device)
            self.parts["discriminator"] = self.discriminator
            self.opponent = self.optimiser("discriminator_optimiser", self.discriminator.parameters())
            self.hinge = PatchAdversarialLoss(criterion="hinge")

    def step(self, step: int, frames: Tensor) -> dict[str, Tensor]:
        """See `_Trainer.step`."""
        fit = self.fit
        frames = frames * self.tokenizer.brain_XYZ
        adversarial = self.discriminator is not None and step >= fit.adversarial_start
        with self.autocast():
            output, regularisation, indices = self.tokenizer(frames)
            output = output.float()
            record = {"reconstruction": self.distance(output, frames), "regularisation": regularisation}
            loss = record["reconstruction"] + regularisation
            if fit.temporal_weight > 0:
                record["temporal"] = self.distance(_differences(output, fit), _differences(frames, fit))
                loss = loss + fit.temporal_weight * record["temporal"]
            if adversarial:
                assert self.discriminator is not None
                self.discriminator.requires_grad_(False)
                record["generator"] = self.hinge(self.discriminator(output)[-1], True, for_discriminator=False)
                self.discriminator.requires_grad_(True)
                loss = loss + fit.adversarial_weight * record["generator"]
        self.descend(self.own, loss, step, fit.steps)
        if adversarial:
            record["discriminator"] = self._discriminate(output.detach(), frames)
        if indices is not None:
            record["perplexity"] = torch.tensor(perplexity(indices))
        return record

    def _discriminate(self, fake: Tensor, real: Tensor) -> Tensor:
        assert self.discriminator is not None
        with self.autocast():
            on_fake = self.hinge(self.discriminator(fake)[-1], False, for_discriminator=True)
            on_real = self.hinge(self.discriminator(real)[-1], True, for_discriminator=True)
            loss = 0.5 * (on_fake + on_real)
        self.opponent.zero_grad(set_to_none=True)
        loss.backward()
        self.opponent.step()
        return loss.detach()


class _MaskedTrainer(_Trainer):
    """First the encoder with a masked decoder, then, with the encoder frozen, projection and CNN decoder: `mae`."""

    tokenizer: MaeTokenizer

    def __init__(self, tokenizer: MaeTokenizer, config: TokenizeConfig, device: torch.device) -> None:
        from fmrisynth.models.tokenizers.mae import masked_autoencoder

        super().__init__(tokenizer, config, device)
        self.masked = masked_autoencoder(tokenizer).to(device)
        self.parts["masked"] = self.masked
        self.first = self.optimiser("masked_optimiser", self.masked.parameters())
        learnt = [*tokenizer.project.parameters(), *tokenizer.decoder.parameters()]
        self.second = self.optimiser("optimiser", learnt)

    def step(self, step: int, frames: Tensor) -> dict[str, Tensor]:
        """See `_Trainer.step`."""
        n_masked = self.fit.masked_steps
        frames = frames * self.tokenizer.brain_XYZ
        if step < n_masked:
            drawn = np.random.default_rng([self.config.seed, 3, step]).integers(2**63 - 1, size=len(frames))
            seen = [self.masked.draw_seen(torch.Generator().manual_seed(int(seed))) for seed in drawn]
            seen_BK, volumes = torch.stack(seen).to(self.device), (frames - self.tokenizer.centre_XYZ)[:, 0]
            with self.autocast():
                answer = self.masked(volumes, seen_BK)
            loss = self.masked.loss(answer, volumes, seen_BK).mean()
            self.descend(self.first, loss, step, n_masked)
            return {"masked": loss}
        with self.autocast():
            output = self.tokenizer(frames)
        loss = self.distance(output.float(), frames)
        self.descend(self.second, loss, step - n_masked, self.fit.steps - n_masked)
        return {"reconstruction": loss}


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

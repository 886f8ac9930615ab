"""The training loop. It knows no objective: what is learnt stands behind `Learning`.

Axis legend: B instances of this rank.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from fmrisynth.bids.atomic import write_text
from fmrisynth.config.load import dump_yaml
from fmrisynth.config.run import RunConfig
from fmrisynth.errors import FmrisynthError, UsageError
from fmrisynth.models.build import count_parameters
from fmrisynth.models.checkpoint import list_checkpoints
from fmrisynth.models.distributed import World
from fmrisynth.progress import ProgressBar, StageSummary, log, progress_bar
from fmrisynth.train.ema import Ema
from fmrisynth.train.engine import Engine, faster_precision, wrap_network
from fmrisynth.train.runlog import RunLog
from fmrisynth.train.state import (
    Card,
    Progress,
    Run,
    check_same_run,
    damage,
    mend_best,
    restore_checkpoint,
    save_best,
    save_checkpoint,
    step_folders,
    tidy,
)

Forward = Callable[..., Tensor]


class AnyBatch(Protocol):
    """What one rank needs for one optimiser step; the rest is between a `Learning` and its batches."""

    @property
    def instances(self) -> tuple[int, ...]:
        """Their numbers in the data."""
        ...


B = TypeVar("B", bound=AnyBatch)


class Learning(Protocol[B]):
    """What a run learns, and from what: data, network, loss, validation, and what is written beside the weights.

    Attributes
    ----------
    data : str
        Name of the data in messages: "latents".
    data_digests : sequence of str
        Of the data; the first one is kept with checkpoints, earlier versions kept one of the others.
    data_parts : str
        What may have changed where the digest did.
    amount : str
        How much there is to learn from, in words.
    best_by : str
        What the best model does best.
    groups : str
        What the instances' groups differ in, for the log.
    n_groups : int
        Losses are also logged by group, if there is more than one.
    extra_tensors : mapping
        What goes with the averaged weights.
    """

    data: str
    data_digests: Sequence[str]
    data_parts: str
    amount: str
    best_by: str
    groups: str
    n_groups: int

    @property
    def extra_tensors(self) -> Mapping[str, Tensor]: ...

    def prepare(self, resume_from: Path | None) -> None:
        """Fit to the data, or take from a checkpoint, what must be known before the first step."""

    def build(self) -> nn.Module:
        """The network, freshly initialised."""

    def trial_inputs(self) -> tuple[Tensor, ...]:
        """Inputs of one pass of the network, for timing."""

    def stream(self, first: int, stop: int) -> Iterator[B]:
        """Batches of steps ``first`` to ``stop - 1``, a function of the seed and the step."""

    def loss(self, forward: Forward, batch: B, cut: slice) -> Tensor:
        """Loss of each instance of a part of the batch, (b,), with a graph."""

    def group(self, batch: B) -> Tensor:
        """Group of each instance, int64 (B,)."""

    def describe(self, instance: int) -> str:
        """Where an instance lies, for messages."""

    def validate(self, network: nn.Module, autocast: AbstractContextManager[Any]) -> dict[str, Any] | None:
        """Numbers of a validation with the averaged weights, "loss" among them; None if there is nothing to validate on."""

    def score(self, values: Mapping[str, Any]) -> float:
        """How good the model of a validation is."""

    def told(self, values: Mapping[str, Any]) -> str:
        """A validation in words."""

    def look(self, run: Run, out: Path, runlog: RunLog | None) -> None:
        """After every step: draw what a person may want to look at, if it is time."""

    def card(self, step: int) -> Card:
        """What ``checkpoint.json`` says."""

    def read_card(self, folder: Path) -> Card:
        """Read and check ``checkpoint.json``."""

    def mend(self, out: Path, note: Callable[[str], None]) -> None:
        """Write what else a model needs into the output, or write it again where it is gone or damaged."""


class Trainer:
    """One training run on one rank."""

    def __init__(self, learning: Learning[Any], out: Path, config: RunConfig, world: World) -> None:
        self._called = time.monotonic()
        self._notes: list[str] = []
        self.learning, self.config, self.out, self.world = learning, config, out, world
        self.micro_batch_size = micro_batch_size(config, world)
        resume_from = self._resume_point()
        learning.prepare(resume_from)
        self.run_state, self.engine = self._build(resumes=resume_from is not None)
        if resume_from is not None:
            restore_checkpoint(self.run_state, resume_from)
            log.info("Continuing from step %d.", self.run_state.progress.step)

    def run(self) -> StageSummary:
        """Train to the last step, or until a signal or the time budget asks to stop."""
        config, progress = self.config, self.run_state.progress
        if self.world.is_main:
            self._mend_output()
        if progress.step >= config.steps:
            return self._summary("The run is already complete.")
        runlog = RunLog(self.out, progress.step) if self.world.is_main else None
        started, hours_before = time.monotonic(), progress.hours
        cpu_started, cpu_before = time.process_time(), progress.cpu_hours
        stop_reason = None
        with (
            catch_stop_signals() as stop,
            self._progress_bar() as bar,
        ):
            if progress.step == 0:
                self._validate(runlog)  # networks start silent: where the loss falls from
            longest_step_s = save_s = 0.0
            for batch in self.learning.stream(progress.step, config.steps):
                step_started = time.monotonic()
                loss, grad_norm = self._step(batch)
                self._train_s += time.monotonic() - step_started
                self._n_timed += 1
                progress.step += 1
                step = progress.step
                elapsed_s = time.monotonic() - started
                progress.hours = hours_before + elapsed_s / 3600
                progress.cpu_hours = cpu_before + (time.process_time() - cpu_started) / 3600
                if bar is not None:
                    bar.update(note=f"loss {loss:.4f}")
                if step % config.log_every == 0 or step == config.steps:
                    self._log_window(runlog, loss, grad_norm)
                if step % config.val_every == 0 or step == config.steps:
                    self._validate(runlog)
                self.learning.look(self.run_state, self.out, runlog)
                longest_step_s = max(longest_step_s, time.monotonic() - step_started)
                late = config.max_hours is not None and (
                    time.monotonic() - self._called + 2 * (longest_step_s + save_s) > 3600 * config.max_hours
                )
                if self.world.any(stop.is_set()):
                    stop_reason = "a signal asked to stop"
                elif self.world.any(late):
                    stop_reason = f"the time budget of {config.max_hours} h is used up"
                if step % config.checkpoint_every == 0 or step == config.steps or stop_reason:
                    save_started = time.monotonic()
                    self._save()
                    save_s = time.monotonic() - save_started
                if stop_reason and step < config.steps:
                    break
        if runlog is not None:
            runlog.close()
        if stop_reason and progress.step < config.steps:
            return self._summary(
                f"Stopped at step {progress.step} of {config.steps}: {stop_reason}. Call again to continue."
            )
        return self._summary(f"Finished {config.steps} steps.")

    def _progress_bar(self) -> AbstractContextManager[ProgressBar | None]:
        if not self.world.is_main:
            return nullcontext()
        return progress_bar("train", self.config.steps, self.run_state.progress.step)

    def _step(self, batch: AnyBatch) -> tuple[float, float]:
        """One optimiser step on this rank's share of the batch; returns global loss and gradient norm."""
        config, world, optimiser, learning = self.config, self.world, self.run_state.optimiser, self.learning
        self.run_state.network.train()
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(config, self.run_state.progress.step)
        optimiser.zero_grad(set_to_none=True)
        n_rows = len(batch.instances)
        starts = range(0, n_rows, self.micro_batch_size)
        losses: list[Tensor] = []
        for start in starts:
            with self.engine.synchronise(start == starts[-1]):
                micro_loss_B = learning.loss(self._forward, batch, slice(start, start + self.micro_batch_size))
                (micro_loss_B.sum() / n_rows).backward()
            losses.append(micro_loss_B.detach())
        loss_B = torch.cat(losses).double().cpu()
        # One exchange: sums per group; the loss is their total.
        sums = torch.zeros(2, learning.n_groups, dtype=torch.float64)
        group_B = learning.group(batch)
        sums[0].index_add_(0, group_B, loss_B)
        sums[1].index_add_(0, group_B, torch.ones_like(loss_B))
        world.sum(sums)
        loss = float(sums[0].sum() / sums[1].sum())
        grad_norm = self.engine.clip_gradients(config.optimiser.grad_clip)
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise FmrisynthError(self._non_finite(loss, grad_norm, batch))
        optimiser.step()
        self.run_state.ema.update(self.run_state.network)
        window = self.run_state.progress.window
        name = f"by_{learning.groups}"
        old = torch.tensor(window.get(name, [[0.0] * learning.n_groups] * 2), dtype=torch.float64)
        window[name] = (old + sums).tolist()
        return loss, grad_norm

    def _forward(self, *inputs: Tensor) -> Tensor:
        with self._autocast():
            return self.engine.forward(*inputs)

    def _log_window(self, runlog: RunLog | None, loss: float, grad_norm: float) -> None:
        progress = self.run_state.progress
        groups = self.learning.groups
        sums, counts = progress.window[f"by_{groups}"]
        n_instances = sum(counts)
        rate = self._n_timed / max(1e-9, self._train_s)
        self._train_s, self._n_timed = 0.0, 0
        progress.window = {}
        if runlog is not None:
            values: dict[str, Any] = {
                "loss": loss,
                "loss_mean": sum(sums) / n_instances,
            }
            if len(sums) > 1:
                values[f"loss_by_{groups}"] = [s / c if c else None for s, c in zip(sums, counts, strict=True)]
            values |= {
                "grad_norm": grad_norm,
                "learning_rate": learning_rate(self.config, progress.step - 1),
                "steps_per_s": rate,
                "hours": progress.hours,
                "cpu_hours": progress.cpu_hours,
            }
            if self.world.device.type == "cuda":
                values["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
            runlog.write("train", progress.step, values)
            log.info("step %d: loss %.4f", progress.step, values["loss_mean"])

    _train_s: float = 0.0  # time in optimiser steps since the last log record
    _n_timed: int = 0

    def _validate(self, runlog: RunLog | None) -> None:
        run, progress = self.run_state, self.run_state.progress
        run.network.eval()
        with run.ema.swap(run.network):
            values = self.learning.validate(run.network, self._autocast())
        if values is None:
            return
        if runlog is not None:
            runlog.write("val", progress.step, values)
            log.info("step %d: validation loss %.4f%s", progress.step, values["loss"], self.learning.told(values))
        score = self.learning.score(values)
        if progress.step and (progress.best_score is None or score > progress.best_score):
            progress.best_score, progress.best_step = score, progress.step
            save_best(run, self.out, self._card(), self.learning.extra_tensors, self.world)

    def _save(self) -> Path:
        extra, digest = self.learning.extra_tensors, self.learning.data_digests[0]
        return save_checkpoint(self.run_state, self.out, self._card(), extra, self.config, digest, self.world)

    def _card(self) -> Card:
        return self.learning.card(self.run_state.progress.step)

    def _autocast(self) -> torch.autocast:
        wanted = self.run_state.progress.precision == "bf16"
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=wanted)

    def _build(self, *, resumes: bool) -> tuple[Run, Engine]:
        config, world = self.config, self.world
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network = self.learning.build()
        network.to(world.device)
        if config.channels_last:
            nn.Module.to(network, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        if world.device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        self.n_parameters = count_parameters(network)
        engine = wrap_network(network, config, world)
        optimiser = torch.optim.AdamW(
            network.parameters(),
            lr=config.optimiser.learning_rate,
            betas=config.optimiser.betas,
            weight_decay=config.optimiser.weight_decay,
            fused=world.device.type == "cuda" and config.distributed == "ddp",
        )
        ema = Ema(network, config.ema.decay, warmup=config.ema.warmup)
        precision: str = config.precision
        if precision == "auto" and not resumes:  # a run keeps what it began with
            precision = faster_precision(engine, self.learning.trial_inputs, world)
        return Run(network, optimiser, ema, Progress(precision=precision)), engine

    def _resume_point(self) -> Path | None:
        """The newest checkpoint that is whole; damaged ones after it are made again on the way."""
        damaged: list[str] = []
        if self.world.is_main:
            tidy(self.out)
            for folder in reversed(step_folders(self.out)):
                why = damage(folder, self.learning.read_card)
                if why is None:
                    break
                damaged.append(why)
        n_damaged = int(self.world.sum(torch.tensor([len(damaged)])))  # every rank goes on from the same one
        found = step_folders(self.out)
        whole = found[: len(found) - n_damaged]
        if found and not whole:
            raise FmrisynthError(
                f"{self.out}: expected a whole checkpoint to continue from, found none ({'; '.join(damaged[:3])}); "
                f"restore one, or remove {self.out / 'checkpoints'} to train anew."
            )
        if not whole:
            return None
        for why in damaged:
            self._note(f"{why.rstrip('.')}; training goes on from {whole[-1].name} and makes it again.")
        learning = self.learning
        check_same_run(
            whole[-1], self.config, learning.data_digests, f"{learning.data} ({learning.data_parts} changed)"
        )
        return whole[-1]

    def _mend_output(self) -> None:
        """Write what is not there yet, and make again what is gone or damaged."""
        write_text(self.out / "config.yaml", dump_yaml(self.config))
        self.learning.mend(self.out, self._note)
        self._mend_best()  # if it cannot be, a better model may come yet

    def _mend_best(self) -> str | None:
        return mend_best(self.out, self.run_state.progress, self.learning.read_card)

    def _note(self, text: str) -> None:
        log.warning("%s", text)
        self._notes.append(text)

    def _non_finite(self, loss: float, grad_norm: float, batch: AnyBatch) -> str:
        step = self.run_state.progress.step + 1
        saved = list_checkpoints(self.out)
        rows = ", ".join(self.learning.describe(i) for i in batch.instances[:4])
        rows += ", ..." if len(batch.instances) > 4 else ""
        return (
            f"Step {step}: expected a finite loss and gradient, found loss {loss} and gradient norm {grad_norm} (batch: "
            f"{rows}); the last good checkpoint is {saved[-1] if saved else 'none'}. Check those {self.learning.data} for "
            "non-finite values, or lower optimiser.learning_rate and start in another output folder."
        )

    def _summary(self, first_line: str) -> StageSummary:
        progress = self.run_state.progress
        lines = [
            first_line,
            f"{self.n_parameters / 1e6:.1f} M parameters, {self.learning.amount}, {progress.hours:.2f} h of training.",
        ]
        if progress.best_score is not None:
            lines.append(f"Best model: step {progress.best_step} ({self.learning.best_by}).")
        saved = list_checkpoints(self.out)
        if saved:
            lines.append(f"Newest checkpoint: {saved[-1]}")
        why = self._mend_best() if self.world.is_main else None
        return StageSummary(lines=[*lines, *self._notes], failed={} if why is None else {"best": why})


def learning_rate(config: RunConfig, step: int) -> float:
    """Learning rate of the optimiser step that follows ``step`` done ones."""
    settings = config.optimiser
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    if settings.decay == "constant":
        return settings.learning_rate
    share = (step - settings.warmup_steps) / max(1, config.steps - settings.warmup_steps)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


@contextmanager
def catch_stop_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM, SIGUSR1 (Slurm's warning before a time limit) and the first Ctrl-C set."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if stop.is_set():
                raise KeyboardInterrupt
            log.info("Stopping after this step with a checkpoint; Ctrl-C again stops at once, without one.")
        stop.set()

    watched = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.signal(number, handle) for number in watched}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def micro_batch_size(config: RunConfig, world: World) -> int:
    """Instances per forward pass of a rank."""
    if config.batch_size % world.size:
        raise UsageError(
            f"batch_size {config.batch_size} does not divide by {world.size} processes; choose a multiple."
        )
    share = config.batch_size // world.size
    micro = min(config.micro_batch_size or share, share)
    if share % micro:
        raise UsageError(
            f"micro_batch_size {micro} does not divide each process's share of the batch ({share}); choose a divisor."
        )
    return micro

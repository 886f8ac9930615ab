"""The training loop.

Axis legend: B instances of this rank, F = C*T, X Y Z latent grid, A attributes, K conditions.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from fmrisynth.bids.atomic import write_text
from fmrisynth.bids.lock import exclusive
from fmrisynth.bids.origin import read_origin
from fmrisynth.config.load import dump_yaml
from fmrisynth.config.train import TrainConfig
from fmrisynth.data.latents import LatentDataset
from fmrisynth.diffusion.ema import Ema
from fmrisynth.diffusion.objectives import Objective
from fmrisynth.errors import FmrisynthError, UsageError
from fmrisynth.models.build import build_denoiser, check_grid, count_parameters
from fmrisynth.models.checkpoint import EMA_NAME, ModelCard, list_checkpoints, load_tensors
from fmrisynth.models.distributed import World, join_world
from fmrisynth.models.tokenizers import copy_tokenizer
from fmrisynth.models.tokenizers.base import TOKENIZER_JSON, read_folder
from fmrisynth.models.whitening import Whitening
from fmrisynth.parse import read_json
from fmrisynth.progress import ProgressBar, StageSummary, log, progress_bar
from fmrisynth.stage import Stage
from fmrisynth.train.batches import Batch, BatchMaker
from fmrisynth.train.dataset import TrainingLatents
from fmrisynth.train.engine import faster_precision, wrap_network
from fmrisynth.train.moments import ClassMoments, class_moments, fit_whitening
from fmrisynth.train.runlog import RunLog
from fmrisynth.train.state import (
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
from fmrisynth.train.validate import N_BINS, Validation


def run_training(latents: Path, out: Path, config: TrainConfig) -> StageSummary:
    """Train, or continue; see `fmrisynth.train.train_denoiser`."""
    LatentDataset.open(latents)  # what cannot be used leaves no folder behind
    lock = exclusive(out, "training", wait=False)
    with join_world(config.device) as world:
        stage = None
        if world.is_main and not list_checkpoints(out):
            stage = Stage.begin("train", out, config, settings={})  # what must not change is kept with the checkpoints
        try:
            with lock if world.is_main else nullcontext():
                summary = Trainer(latents, out, config, world).run()
        except FmrisynthError:
            if stage is not None:
                stage.withdraw()
            raise
        return summary if world.is_main else StageSummary()


class Trainer:
    """One training run on one rank."""

    def __init__(self, latents: Path, out: Path, config: TrainConfig, world: World) -> None:
        self._called = time.monotonic()
        self._notes: list[str] = []
        self.config, self.out, self.world = config, out, world
        self.micro_batch_size = _micro_batch_size(config, world)
        self.latents = TrainingLatents(latents)
        self.train_set, self.val_set = self.latents.select("train"), self.latents.select("val")
        if not self.train_set:
            raise FmrisynthError(
                f"{latents}: expected instances of split 'train', found none; prepare a dataset with a training split and "
                "tokenize it again."
            )
        check_grid(config.model, self.latents.latent_shape[2:])
        names = ["condition", *config.conditioning.attributes]
        self.vocabulary = self.latents.vocabulary(self.train_set, names)
        self.objective = Objective(**config.objective.model_dump())
        self.brain_share = float(self.latents.brain_XYZ.float().mean())

        resume_from = self._resume_point()
        if config.whiten:
            self.latents.whitening = (
                fit_whitening(self.latents, self.train_set, world)
                if resume_from is None
                else Whitening.taken_from(load_tensors(resume_from / EMA_NAME))
            )
        self.run_state, self.engine = self._build(resumes=resume_from is not None)
        if resume_from is not None:
            restore_checkpoint(self.run_state, resume_from)
            log.info("Continuing from step %d.", self.run_state.progress.step)
        self.batches = BatchMaker(
            self.latents,
            self.train_set,
            self.vocabulary,
            [config.conditioning.dropout, *config.conditioning.attributes.values()],
            self.objective,
            batch_size=config.batch_size,
            seed=config.seed,
            rank=world.rank,
            n_ranks=world.size,
        )
        self.validation = Validation(
            self.latents,
            self.val_set,
            self.vocabulary,
            self.objective,
            self.moments,
            n=config.val_instances,
            seed=config.seed,
            batch_size=self.micro_batch_size,
        )

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
            for batch in self.batches.stream(progress.step, config.steps, config.prefetch):
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
                if config.sample_every and step % config.sample_every == 0:
                    self._sample(runlog)
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

    def _step(self, batch: Batch) -> tuple[float, float]:
        """One optimiser step on this rank's share of the batch; returns global loss and gradient norm."""
        config, world, optimiser = self.config, self.world, self.run_state.optimiser
        self.run_state.network.train()
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(config, self.run_state.progress.step)
        optimiser.zero_grad(set_to_none=True)
        n_rows = len(batch.instances)
        starts = range(0, n_rows, self.micro_batch_size)
        losses: list[Tensor] = []
        for start in starts:
            cut = slice(start, start + self.micro_batch_size)
            clean = batch.clean_BFXYZ[cut].to(world.device, non_blocking=True)
            noise = batch.noise_BFXYZ[cut].to(world.device, non_blocking=True)
            time_B = batch.time_B[cut]
            noisy = self.objective.add_noise(clean, noise, time_B)
            told_B = self.objective.path.network_time(time_B).float().to(world.device)
            with self.engine.synchronise(start == starts[-1]):
                with self._autocast():
                    prediction = self.engine.forward(noisy, told_B, batch.labels_BA[cut].to(world.device))
                prediction = self.objective.answer(prediction, noisy, time_B)
                micro_loss_B = self.objective.loss(prediction, clean, noise, time_B) / self.brain_share
                (micro_loss_B.sum() / n_rows).backward()
            losses.append(micro_loss_B.detach())
        loss_B = torch.cat(losses).double().cpu()
        # One exchange: sums per noise level; the loss is their total.
        sums = torch.zeros(2, N_BINS, dtype=torch.float64)
        last = 1.0 if self.objective.prediction == "flow" else float(config.objective.n_train_steps)
        bins = (batch.time_B / last * N_BINS).long().clamp(max=N_BINS - 1)
        sums[0].index_add_(0, bins, loss_B)
        sums[1].index_add_(0, bins, torch.ones_like(loss_B))
        world.sum(sums)
        loss = float(sums[0].sum() / sums[1].sum())
        grad_norm = self.engine.clip_gradients(config.optimiser.grad_clip)
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise FmrisynthError(self._non_finite(loss, grad_norm, batch))
        optimiser.step()
        self.run_state.ema.update(self.run_state.network)
        window = self.run_state.progress.window
        old = torch.tensor(window.get("by_noise", [[0.0] * N_BINS] * 2), dtype=torch.float64)
        window["by_noise"] = (old + sums).tolist()
        return loss, grad_norm

    def _log_window(self, runlog: RunLog | None, loss: float, grad_norm: float) -> None:
        progress = self.run_state.progress
        sums, counts = progress.window["by_noise"]
        n_instances = sum(counts)
        rate = self._n_timed / max(1e-9, self._train_s)
        self._train_s, self._n_timed = 0.0, 0
        progress.window = {}
        if runlog is not None:
            values: dict[str, Any] = {
                "loss": loss,
                "loss_mean": sum(sums) / n_instances,
                "loss_by_noise": [s / c if c else None for s, c in zip(sums, counts, strict=True)],
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
        if not self.validation.instances:
            return
        run, progress = self.run_state, self.run_state.progress
        run.network.eval()
        with run.ema.swap(run.network):
            values = self.validation.run(run.network, self.world, self._autocast())
        if runlog is not None:
            runlog.write("val", progress.step, values)
            log.info(
                "step %d: validation loss %.4f, gain from the right label %.5f (%s of what is attainable)",
                progress.step,
                values["loss"],
                values["condition_gain"],
                "n/a" if values["condition_gain_share"] is None else f"{values['condition_gain_share']:.0%}",
            )
        # The plain loss hardly sees the condition and prefers models that ignore it; with one condition there is nothing else.
        # The gain over all noise levels does not serve either: it wavers, because with little noise the latents tell their condition.
        score = values["condition_gain_share"]
        score = -values["loss"] if score is None else score
        if progress.step and (progress.best_score is None or score > progress.best_score):
            progress.best_score, progress.best_step = score, progress.step
            save_best(run, self.out, self._card(), self.latents.whitening, self.world)

    def _sample(self, runlog: RunLog | None) -> None:
        from fmrisynth.train.preview import draw_preview

        self.moments()  # every rank takes part in reading
        draw_preview(self, runlog)

    def moments(self) -> ClassMoments:
        """Moments of the training latents per condition (computed once, when first needed; every rank must ask)."""
        if self._moments is None:
            self._moments = class_moments(self.latents, self.train_set, self.vocabulary, self.world)
        return self._moments

    _moments: ClassMoments | None = None

    def _save(self) -> Path:
        return save_checkpoint(
            self.run_state, self.out, self._card(), self.latents.whitening, self.config, self.latents.digest, self.world
        )

    def _autocast(self) -> torch.autocast:
        wanted = self.run_state.progress.precision == "bf16"
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=wanted)

    def _build(self, *, resumes: bool) -> tuple[Run, Any]:
        config, world = self.config, self.world
        channels = self.latents.channels
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network: nn.Module = build_denoiser(
                config.model, channels, [len(v) for v in self.vocabulary.values()], self.latents.brain_XYZ
            )
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
            sample_FXYZ = self.latents.read(self.train_set[0])
            precision = faster_precision(engine, sample_FXYZ, len(self.vocabulary), self.micro_batch_size, world)
        return Run(network, optimiser, ema, Progress(precision=precision)), engine

    def _resume_point(self) -> Path | None:
        """The newest checkpoint that is whole; damaged ones after it are made again on the way."""
        damaged: list[str] = []
        if self.world.is_main:
            tidy(self.out)
            for folder in reversed(step_folders(self.out)):
                why = damage(folder)
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
        check_same_run(whole[-1], self.config, (self.latents.digest, self.latents.index_digest))
        return whole[-1]

    def _mend_output(self) -> None:
        """Write what is not there yet, and make again what is gone or damaged."""
        write_text(self.out / "config.yaml", dump_yaml(self.config))
        self._mend_tokenizer(self.latents.dataset.tokenizer_dir, self.out / "tokenizer")
        mend_best(self.out, self.run_state.progress)  # if it cannot be, a better model may come yet

    def _mend_tokenizer(self, source: Path, copy: Path) -> None:
        if copy.exists():
            if all(
                (copy / file.name).is_file() and (copy / file.name).read_bytes() == file.read_bytes()
                for file in source.iterdir()
            ):
                return
            try:
                if read_folder(copy)[0]["sha256"] == read_json(source / TOKENIZER_JSON).get("sha256"):
                    return  # it is the source that is not whole
            except FmrisynthError as error:
                self._note(f"the copy of the tokenizer was made again: {error}")
            read_folder(source)
        copy_tokenizer(source, copy)

    def _note(self, text: str) -> None:
        log.warning("%s", text)
        self._notes.append(text)

    def _card(self) -> ModelCard:
        return ModelCard(
            step=self.run_state.progress.step,
            model=self.config.model.model_dump(mode="json"),
            objective=self.config.objective.model_dump(mode="json"),
            labels=self.vocabulary,
            latent_shape=list(self.latents.latent_shape),
            latent_mean=self.latents.dataset.latent_mean.tolist(),
            latent_std=self.latents.dataset.latent_std.tolist(),
            config_digest=self.config.digest(),
            tokenizer_digest=self.latents.tokenizer_digest,
            trained_on={
                "origin": read_origin(self.latents.root).to_json(),
                "n_instances": len(self.train_set),
                "n_subjects": len({self.latents.dataset.rows[i].subject for i in self.train_set}),
                "index_digest": self.latents.index_digest,
                "timing": self.latents.timing(self.train_set),
            },
        )

    def _non_finite(self, loss: float, grad_norm: float, batch: Batch) -> str:
        step = self.run_state.progress.step + 1
        saved = list_checkpoints(self.out)
        rows = ", ".join(self.latents.describe(i) for i in batch.instances[:4])
        rows += ", ..." if len(batch.instances) > 4 else ""
        return (
            f"Step {step}: expected a finite loss and gradient, found loss {loss} and gradient norm {grad_norm} (batch: "
            f"{rows}); the last good checkpoint is {saved[-1] if saved else 'none'}. Check those latents for "
            "non-finite values, or lower optimiser.learning_rate and start in another output folder."
        )

    def _summary(self, first_line: str) -> StageSummary:
        progress = self.run_state.progress
        lines = [
            first_line,
            f"{self.n_parameters / 1e6:.1f} M parameters, {len(self.train_set)} training and {len(self.val_set)} "
            f"validation instances, {progress.hours:.2f} h of training.",
        ]
        if progress.best_score is not None:
            lines.append(f"Best model: step {progress.best_step} (hears the condition best).")
        saved = list_checkpoints(self.out)
        if saved:
            lines.append(f"Newest checkpoint: {saved[-1]}")
        why = mend_best(self.out, progress) if self.world.is_main else None
        return StageSummary(lines=[*lines, *self._notes], failed={} if why is None else {"best": why})


def learning_rate(config: TrainConfig, step: int) -> float:
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


def _micro_batch_size(config: TrainConfig, world: World) -> int:
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

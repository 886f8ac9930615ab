"""What the `train` stage learns: a denoiser of stacked 4D latents.

Axis legend: B instances of this rank, F = C*T, X Y Z latent grid, A attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fmrisynth.bids.lock import exclusive
from fmrisynth.bids.origin import read_origin
from fmrisynth.config.train import TrainConfig
from fmrisynth.data.attributes import n_labels, nulls
from fmrisynth.diffusion.objectives import Objective
from fmrisynth.diffusion.schedule import FlowSchedule
from fmrisynth.errors import FmrisynthError
from fmrisynth.models.build import build_denoiser, check_grid
from fmrisynth.models.checkpoint import EMA_NAME, ModelCard, list_checkpoints, load_tensors, read_card
from fmrisynth.models.distributed import World, join_world
from fmrisynth.models.tokenizers import copy_tokenizer
from fmrisynth.models.tokenizers.base import TOKENIZER_JSON, read_folder
from fmrisynth.models.whitening import Whitening
from fmrisynth.parse import read_json
from fmrisynth.progress import StageSummary
from fmrisynth.stage import Rehearsed, Stage, in_rehearsal
from fmrisynth.train.batches import Batch, BatchMaker
from fmrisynth.train.dataset import TrainingLatents
from fmrisynth.train.loop import Forward, Trainer, micro_batch_size
from fmrisynth.train.moments import ClassMoments, class_moments, fit_whitening
from fmrisynth.train.pairs import TrainingPairs
from fmrisynth.train.runlog import RunLog
from fmrisynth.train.state import Run, check_same_run
from fmrisynth.train.validate import N_BINS, Validation
from fmrisynth.train.windows import TrainingWindows


def run_training(latents: Path, out: Path, config: TrainConfig) -> StageSummary:
    """Train, or continue; see `fmrisynth.train.train_denoiser`."""
    lock = exclusive(out, "training", wait=False)
    with join_world(config.device) as world:
        learning = DenoiserLearning(latents, config, world)  # what cannot be used leaves no folder behind
        earlier = list_checkpoints(out)
        if earlier and in_rehearsal.get():
            check_same_run(earlier[-1], config, learning.data_digests, learning.data)
            raise Rehearsed
        stage = None
        if world.is_main and not earlier:
            stage = Stage.begin("train", out, config, settings={})  # what must not change is kept with the checkpoints
        try:
            with lock if world.is_main else nullcontext():
                summary = Trainer(learning, out, config, world).run()
        except FmrisynthError:
            if stage is not None:
                stage.withdraw()
            raise
        return summary if world.is_main else StageSummary()


def open_latents(root: Path, config: TrainConfig) -> TrainingLatents:
    """Latents as a configuration reads them: blocks, windows of runs, or pairs of sessions.

    Raises
    ------
    FmrisynthError
        They are not what the configuration learns from.
    """
    if config.conditioning.kind == "events":
        return TrainingWindows(root, config.conditioning, config.leave_out)
    pairs = config.objective.prediction == "bridge"
    latents = TrainingPairs(root, config.leave_out) if pairs else TrainingLatents(root, config.leave_out)
    if any(row.n_frames for row in latents.dataset.rows):
        raise FmrisynthError(
            f"{root}: holds whole runs; train a model of them with `--preset runs` or `--set conditioning.kind=events`."
        )
    return latents


class DenoiserLearning:
    """Latents, network and objective of one run on one rank; see `fmrisynth.train.loop.Learning`."""

    data, data_parts = "latents", "they, their index or tokenizer"
    best_by = "hears the condition best"
    groups, n_groups = "noise", N_BINS

    def __init__(self, latents: Path, config: TrainConfig, world: World) -> None:
        self.config, self.world = config, world
        self.micro_batch_size = micro_batch_size(config, world)
        events = config.conditioning.kind == "events"
        self.objective = Objective(**config.objective.model_dump())
        bridge = self.objective.is_bridge
        self.latents = open_latents(latents, config)
        if bridge:
            self.best_by = "has the lowest validation loss"
        self.train_set, self.val_set = self.latents.select("train"), self.latents.select("val")
        if not self.train_set:
            raise FmrisynthError(
                f"{latents}: expected instances of split 'train', found none; prepare a dataset with a training split and "
                "tokenize it again."
            )
        check_grid(config.model, self.latents.latent_shape[2:])
        rates = config.conditioning.rates
        self.vocabulary = self.latents.vocabulary(self.train_set, list(rates), config.conditioning.numbers)
        self.brain_share = float(self.latents.brain_XYZ.float().mean())
        self.data_digests: Sequence[str] = (self.latents.digest, self.latents.index_digest)
        self.amount = f"{len(self.train_set)} training and {len(self.val_set)} validation instances"
        self.batches = BatchMaker(
            self.latents,
            self.train_set,
            self.vocabulary,
            list(rates.values()),
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
            None if events or bridge else self.moments,
            n=config.val_instances,
            seed=config.seed,
            batch_size=self.micro_batch_size,
        )

    def prepare(self, resume_from: Path | None) -> None:
        """Fit the whitening of the latents, or take it from a checkpoint."""
        if self.config.whiten:
            self.latents.whitening = (
                fit_whitening(self.latents, self.train_set, self.world)
                if resume_from is None
                else Whitening.taken_from(load_tensors(resume_from / EMA_NAME))
            )

    @property
    def extra_tensors(self) -> Mapping[str, Tensor]:
        """The whitening, if there is one."""
        return {} if self.latents.whitening is None else self.latents.whitening.tensors()

    def build(self) -> nn.Module:
        """The network, freshly initialised."""
        return build_denoiser(
            self.config.model,
            self.latents.channels,
            n_labels(self.vocabulary),
            self.latents.brain_XYZ,
            self.latents.telling,
            self.latents.whitening,
        )

    def trial_inputs(self) -> tuple[Tensor, ...]:
        """A micro-batch of one instance."""
        stack_FXYZ, n = self.latents.read(self.train_set[0]), self.micro_batch_size
        labels_BA = torch.tensor(nulls(self.vocabulary)).expand(n, -1)
        told = (part.expand(n, *part.shape) for part in self.latents.told(self.train_set[0], None))
        return stack_FXYZ.expand(n, *stack_FXYZ.shape), torch.full((n,), 500.0), labels_BA, *told

    def stream(self, first: int, stop: int) -> Iterator[Batch]:
        """Batches of steps ``first`` to ``stop - 1``."""
        return self.batches.stream(first, stop, self.config.prefetch)

    def loss(self, forward: Forward, batch: Batch, cut: slice) -> Tensor:
        """The objective's loss of each instance, over the cells that hold brain."""
        device, objective = self.world.device, self.objective
        clean = batch.clean_BFXYZ[cut].to(device, non_blocking=True)
        noise = batch.noise_BFXYZ[cut].to(device, non_blocking=True)
        time_B = batch.time_B[cut]
        start = None if batch.start_BFXYZ is None else batch.start_BFXYZ[cut].to(device, non_blocking=True)
        noisy = objective.add_noise(clean, noise, time_B, start)
        told_B = objective.path.network_time(time_B).float().to(device)
        told = [part[cut].to(device) for part in (batch.labels_BA, *batch.told)]
        prediction = objective.answer(forward(noisy, told_B, *told), noisy, time_B)
        return objective.loss(prediction, clean, noise, time_B, start) / self.brain_share

    def group(self, batch: Batch) -> Tensor:
        """Noise level of each instance, from clean to noisy."""
        last = 1.0 if isinstance(self.objective.path, FlowSchedule) else float(self.config.objective.n_train_steps)
        return (batch.time_B / last * N_BINS).long().clamp(max=N_BINS - 1)

    def describe(self, instance: int) -> str:
        """Where an instance lies, for messages."""
        return self.latents.describe(instance)

    def validate(self, network: nn.Module, autocast: AbstractContextManager[Any]) -> dict[str, Any] | None:
        """See `Validation.run`."""
        return self.validation.run(network, self.world, autocast) if self.validation.instances else None

    def score(self, values: Mapping[str, Any]) -> float:
        """Gain from the right label (or events) where there is most noise; of labels its share of what is attainable.

        The plain loss hardly sees the condition and prefers models that ignore it; with one condition there is nothing else. The gain over
        all noise levels does not serve either: it wavers, because with little noise the latents tell their condition.
        """
        if self.objective.is_bridge:
            return -float(values["loss"])
        gain = (
            values["condition_gain_noisiest"]
            if values["condition_gain_share"] is None
            else values["condition_gain_share"]
        )
        return -values["loss"] if gain is None else gain

    def told(self, values: Mapping[str, Any]) -> str:
        """The gain from the right label or events, in words."""
        share, noisiest = values["condition_gain_share"], values["condition_gain_noisiest"]
        if self.objective.is_bridge:
            return ""
        where = "n/a" if noisiest is None else f"{noisiest:.5f} where there is most noise"
        attained = where if share is None else f"{share:.0%} of what is attainable"
        what = "label" if self.config.conditioning.kind == "label" else "events"
        return f", gain from the right {what} {values['condition_gain']:.5f} ({attained})"

    def look(self, run: Run, out: Path, runlog: RunLog | None) -> None:
        """Draw the small fixed grid of samples, if it is time."""
        if not self.config.sample_every or run.progress.step % self.config.sample_every:
            return
        from fmrisynth.train.preview import draw_preview

        self.moments()  # every rank takes part in reading
        draw_preview(self, run, out, runlog)

    def moments(self) -> ClassMoments:
        """Moments of the training latents per condition (computed once, when first needed; every rank must ask)."""
        if self._moments is None:
            self._moments = class_moments(self.latents, self.train_set, self.vocabulary, self.world)
        return self._moments

    _moments: ClassMoments | None = None

    def card(self, step: int) -> ModelCard:
        """What sampling needs to know."""
        return ModelCard(
            step=step,
            model=self.config.model.model_dump(mode="json"),
            objective=self.config.objective.model_dump(mode="json"),
            labels=self.vocabulary,
            always=[name for name, rate in self.config.conditioning.rates.items() if rate == 0],
            latent_shape=list(self.latents.latent_shape),
            latent_mean=self.latents.dataset.latent_mean.tolist(),
            latent_std=self.latents.dataset.latent_std.tolist(),
            config_digest=self.config.digest(),
            tokenizer_digest=self.latents.tokenizer_digest,
            events=None if self.latents.telling is None else self.latents.telling.model_dump(mode="json"),
            trained_on={
                "origin": read_origin(self.latents.root).to_json(),
                **self.latents.amounts(self.train_set),
                "index_digest": self.latents.index_digest,
                "timing": self.latents.timing(self.train_set),
                **self.latents.extent(self.train_set),
            },
        )

    def read_card(self, folder: Path) -> ModelCard:
        """Read and check ``checkpoint.json``."""
        return read_card(folder)

    def mend(self, out: Path, note: Callable[[str], None]) -> None:
        """Copy the tokenizer, and again where the copy is not whole."""
        source, copy = self.latents.dataset.tokenizer_dir, out / "tokenizer"
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
                note(f"the copy of the tokenizer was made again: {error}")
            read_folder(source)
        copy_tokenizer(source, copy)

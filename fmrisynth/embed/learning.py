"""What `embed` learns: to tell the hidden patches of a clip from the seen ones.

Axis legend: B instances of this rank, T frames, H W the padded flat map, K seen patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fmrisynth.bids.origin import Origin
from fmrisynth.config.embed import EmbedConfig
from fmrisynth.embed.encoder import EncoderCard, build_autoencoder, read_card, to_sheet
from fmrisynth.embed.maps import FlatMaps
from fmrisynth.errors import FmrisynthError
from fmrisynth.models.distributed import World
from fmrisynth.models.vit import draw_seen
from fmrisynth.train.batches import batch_order, derive_seed
from fmrisynth.train.loop import Forward, micro_batch_size
from fmrisynth.train.runlog import RunLog
from fmrisynth.train.state import Run


@dataclass(frozen=True)
class MaskedBatch:
    """Clips and which of their patches are seen."""

    clips_BTHW: Tensor
    seen_BK: Tensor
    instances: tuple[int, ...]


class MaskedLearning:
    """Flat maps, network and loss of one run on one rank; see `fmrisynth.train.loop.Learning`."""

    data, data_parts = "flat maps", "they or their index"
    best_by = "lowest masked loss on held-out subjects"
    groups, n_groups = "all", 1

    def __init__(self, maps: FlatMaps, origin: Origin, config: EmbedConfig, world: World) -> None:
        self.maps, self.origin, self.config, self.world = maps, origin, config, world
        self.micro_batch_size = micro_batch_size(config, world)
        self.train_set, self.val_set = maps.select("train"), maps.select("val")
        if not self.train_set:
            raise FmrisynthError(
                f"{maps.folder}: expected series of split 'train', found none; prepare a dataset with a training split, or name a "
                "trained encoder with --encoder."
            )
        order = torch.randperm(len(self.val_set), generator=_generator("val", config.seed))
        self.val_set = [self.val_set[i] for i in order[: config.val_instances].tolist()]
        self.data_digests: Sequence[str] = (maps.digest,)
        self.amount = f"{len(self.train_set)} training and {len(self.val_set)} validation series"
        # The trainer builds the network; here only its patches and their weights are needed.
        self.network = build_autoencoder(config.model, config.maps)
        self.network.encoder = self.network.decoder = nn.Identity()  # type: ignore[assignment]
        self.used, self.valid_HW = self.network.used, self.network.valid.clone()
        self.network.to(world.device)
        share = config.batch_size // world.size
        self.positions = range(world.rank * share, (world.rank + 1) * share)

    def prepare(self, resume_from: Path | None) -> None:
        """Nothing has to be known before the first step."""

    @property
    def extra_tensors(self) -> Mapping[str, Tensor]:
        """None beside the network's own."""
        return {}

    def build(self) -> nn.Module:
        """The network, freshly initialised."""
        return build_autoencoder(self.config.model, self.config.maps)

    def trial_inputs(self) -> tuple[Tensor, ...]:
        """A micro-batch of one instance."""
        clip, seen = self._instance(self.train_set[0], _generator("trial"), 0)
        n = self.micro_batch_size
        return to_sheet(torch.from_numpy(clip)[None], self.valid_HW).expand(n, -1, -1, -1), seen.expand(n, -1)

    def stream(self, first: int, stop: int) -> Iterator[MaskedBatch]:
        """Batches of steps ``first`` to ``stop - 1``."""
        return (self.make(step) for step in range(first, stop))

    def make(self, step: int) -> MaskedBatch:
        """The batch of a step (0-based). Every instance has its own generator, keyed by its position."""
        order = batch_order(len(self.train_set), self.config.batch_size, self.config.seed, step)
        chosen = [self.train_set[order[position]] for position in self.positions]
        made = [
            self._instance(i, _generator("batch", self.config.seed, step, position), None)
            for position, i in zip(self.positions, chosen, strict=True)
        ]
        return self._batch(made, chosen)

    def _instance(self, i: int, generator: torch.Generator, start: int | None) -> tuple[np.ndarray, Tensor]:
        if start is None:
            last = self.maps.rows[i].n_frames - self.config.maps.n_frames
            start = int(torch.randint(last + 1, (), generator=generator))
        tube = self.config.model.masking == "tube"
        return self.maps.read(i, start), draw_seen(self.used, self.config.model.mask_ratio, generator, tube=tube)

    def _batch(self, made: Sequence[tuple[np.ndarray, Tensor]], instances: Sequence[int]) -> MaskedBatch:
        clips_BTHW = to_sheet(torch.from_numpy(np.stack([clip for clip, _ in made])), self.valid_HW)
        return MaskedBatch(clips_BTHW, torch.stack([seen for _, seen in made]), tuple(instances))

    def loss(self, forward: Forward, batch: MaskedBatch, cut: slice) -> Tensor:
        """Squared error on valid pixels of hidden patches; 1 is what the mean of a frame scores."""
        device = self.world.device
        clips, seen = batch.clips_BTHW[cut].to(device), batch.seen_BK[cut].to(device)
        return self.network.loss(forward(clips, seen), clips, seen)

    def group(self, batch: MaskedBatch) -> Tensor:
        """All are in one."""
        return torch.zeros(len(batch.instances), dtype=torch.int64)

    def describe(self, instance: int) -> str:
        """Where a series lies, for messages."""
        row = self.maps.rows[instance]
        return f"sub-{row.subject}, {row.filename}"

    @torch.no_grad()
    def validate(self, network: nn.Module, autocast: AbstractContextManager[Any]) -> dict[str, Any] | None:
        """Masked loss on fixed clips with fixed masks."""
        if not self.val_set:
            return None
        world, size = self.world, self.micro_batch_size
        totals = torch.zeros(2, dtype=torch.float64)
        for i_round in range(
            -(-len(self.val_set) // (size * world.size))
        ):  # as many forward passes on every rank, as FSDP demands
            first = (i_round * world.size + world.rank) * size
            chosen = list(range(first, min(first + size, len(self.val_set))))
            real = len(chosen)
            chosen = chosen or [0]
            made = [self._instance(self.val_set[i], _generator("val-mask", self.config.seed, i), 0) for i in chosen]
            batch = self._batch(made, chosen)
            clips, seen = batch.clips_BTHW.to(world.device), batch.seen_BK.to(world.device)
            with autocast:
                answer = network(clips, seen)
            loss_B = self.network.loss(answer, clips, seen).double().cpu()[:real]
            totals += torch.tensor([loss_B.sum(), real], dtype=torch.float64)
        world.sum(totals)
        return {"loss": float(totals[0] / totals[1])}

    def score(self, values: Mapping[str, Any]) -> float:
        """The lower the loss, the better."""
        return -float(values["loss"])

    def told(self, values: Mapping[str, Any]) -> str:
        """Nothing more."""
        return ""

    def look(self, run: Run, out: Path, runlog: RunLog | None) -> None:
        """Pictures are drawn when the run is done."""

    def card(self, step: int) -> EncoderCard:
        """What encoding needs to know."""
        return EncoderCard(
            step=step, model=self.config.model.model_dump(mode="json"), maps=self.config.maps.model_dump(mode="json"),
            config_digest=self.config.digest(),
            trained_on={
                "origin": self.origin.to_json(), "n_series": len(self.train_set),
                "n_subjects": len({self.maps.rows[i].subject for i in self.train_set}), "data_digest": self.data_digests[0],
            },
        )  # fmt: skip

    def read_card(self, folder: Path) -> EncoderCard:
        """Read and check ``checkpoint.json``."""
        return read_card(folder)

    def mend(self, out: Path, note: Callable[[str], None]) -> None:
        """Nothing lies beside the weights."""


def _generator(*parts: object) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(*parts))

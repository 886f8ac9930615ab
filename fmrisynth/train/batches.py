"""Batches as a pure function of (seed, step): the same after a restart and for any number of ranks.

Axis legend: B instances of this rank, F = C*T, X Y Z latent grid, A attributes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from fmrisynth.data.attributes import Vocabulary, nulls
from fmrisynth.diffusion.objectives import Objective


class LatentSource(Protocol):
    """Anything that reads instances by number (see `dataset.TrainingLatents`)."""

    @property
    def brain_XYZ(self) -> Tensor:
        """Cells that hold brain, bool (X, Y, Z)."""
        ...

    def read(self, instance: int) -> Tensor:
        """Standardised latents (F, X, Y, Z), 0 in cells without brain."""
        ...

    def start(self, instance: int) -> Tensor | None:
        """Where the path to an instance starts, (F, X, Y, Z), of a bridge; else None, which is noise."""
        ...

    def labels(self, instance: int, vocabulary: Vocabulary) -> list[int | float]:
        """What the network gets of each attribute."""
        ...

    def told(self, instance: int, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """What else the network is told of an instance; the generator says what is withheld in training."""
        ...


@dataclass(frozen=True)
class Batch:
    """What one rank needs for one optimiser step.

    Attributes
    ----------
    clean_BFXYZ, noise_BFXYZ : Tensor, float32
        Standardised latents and unit noise, both 0 in cells without brain.
    time_B : Tensor, float64
        Training times of the objective.
    labels_BA : Tensor, int64, or float32 with numbers
        Labels and numbers after dropout.
    instances : tuple of int
        Their numbers in the dataset.
    told : tuple of Tensor
        Further inputs of the network, first axis B.
    start_BFXYZ : Tensor, float32, or None
        Of a bridge: the latents that it starts at.
    """

    clean_BFXYZ: Tensor
    noise_BFXYZ: Tensor
    time_B: Tensor
    labels_BA: Tensor
    instances: tuple[int, ...]
    told: tuple[Tensor, ...] = ()
    start_BFXYZ: Tensor | None = None


def starts(source: LatentSource, instances: Sequence[int]) -> Tensor | None:
    """Where the paths to some instances start, (B, F, X, Y, Z); None where they start at noise."""
    found = [start for i in instances if (start := source.start(i)) is not None]
    return torch.stack(found) if found else None


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from any names and numbers."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@lru_cache(maxsize=4)
def _epoch_order(n_instances: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(n_instances, generator=torch.Generator().manual_seed(derive_seed("order", seed, epoch)))


def batch_order(n_instances: int, batch_size: int, seed: int, step: int) -> list[int]:
    """Positions of the global batch of a step: consecutive cuts of endless shuffled epochs."""
    positions = range(step * batch_size, (step + 1) * batch_size)
    return [
        int(_epoch_order(n_instances, seed, position // n_instances)[position % n_instances]) for position in positions
    ]


class BatchMaker:
    """Prepare batches for one rank.

    Parameters
    ----------
    source : LatentSource
        Reads normalised instances.
    instances : sequence of int
        Numbers of the training instances.
    vocabulary : Vocabulary
        Attribute -> what it may be.
    dropout : sequence of float
        Rate of the null per attribute.
    objective : Objective
    batch_size : int
        Over all ranks.
    seed : int
    rank, n_ranks : int
        Which consecutive share of the global batch to make.
    """

    def __init__(
        self,
        source: LatentSource,
        instances: Sequence[int],
        vocabulary: Vocabulary,
        dropout: Sequence[float],
        objective: Objective,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        n_ranks: int = 1,
    ) -> None:
        self.source, self.instances, self.vocabulary, self.dropout = source, instances, vocabulary, dropout
        self.objective, self.batch_size, self.seed = objective, batch_size, seed
        share = batch_size // n_ranks
        self.positions = range(rank * share, (rank + 1) * share)
        self.null_A = nulls(vocabulary)

    def make(self, step: int) -> Batch:
        """The batch of a step (0-based). Every instance has its own generator, keyed by its position."""
        order = batch_order(len(self.instances), self.batch_size, self.seed, step)
        chosen = [self.instances[order[position]] for position in self.positions]
        clean, noise, uniform, labels, told = [], [], [], [], []
        for position, instance in zip(self.positions, chosen, strict=True):
            generator = torch.Generator().manual_seed(derive_seed("batch", self.seed, step, position))
            stack_FXYZ = self.source.read(instance)
            clean.append(stack_FXYZ)
            noise.append(torch.randn(stack_FXYZ.shape, generator=generator) * self.source.brain_XYZ)
            # Stratified over the batch: still uniform for every instance, with less variance in the loss.
            jitter = torch.rand((), generator=generator, dtype=torch.float64)
            uniform.append((position + jitter) / self.batch_size)
            true = self.source.labels(instance, self.vocabulary)
            drop = torch.rand(len(true), generator=generator).tolist()
            labels.append(
                [
                    null if value < rate else label
                    for label, null, value, rate in zip(true, self.null_A, drop, self.dropout, strict=True)
                ]
            )
            told.append(self.source.told(instance, generator))
        return Batch(
            clean_BFXYZ=torch.stack(clean),
            noise_BFXYZ=torch.stack(noise),
            time_B=self.objective.draw_time(torch.stack(uniform)),
            labels_BA=torch.tensor(labels),
            instances=tuple(chosen),
            told=tuple(torch.stack(parts) for parts in zip(*told, strict=True)),
            start_BFXYZ=starts(self.source, chosen),
        )

    def stream(self, first: int, stop: int, ahead: int) -> Iterator[Batch]:
        """Batches of steps ``first`` to ``stop - 1``, prepared ``ahead`` of time by a thread."""
        if ahead == 0:
            yield from (self.make(step) for step in range(first, stop))
            return
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
            waiting: list[Future[Batch]] = [
                pool.submit(self.make, step) for step in range(first, min(first + ahead, stop))
            ]
            try:
                for step in range(first, stop):
                    batch = waiting.pop(0).result()
                    if step + ahead < stop:
                        waiting.append(pool.submit(self.make, step + ahead))
                    yield batch
            finally:
                for future in waiting:
                    future.cancel()

"""One process, DDP or FSDP behind one small interface."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from fmrisynth.config.run import RunConfig
from fmrisynth.models.blocks import FilmConvBlock, TransformerBlock
from fmrisynth.models.distributed import World
from fmrisynth.models.vit import ViTBlock
from fmrisynth.progress import log

CLEARLY = 0.8
"""Below this ratio of times bfloat16 is used on a CPU: less is not worth its rounding, and timings vary."""


@dataclass
class Engine:
    """Forward pass, gradient exchange and clipping of one rank.

    Attributes
    ----------
    network : nn.Module
        The bare network (its parameters are sharded in place under FSDP).
    wrapped : nn.Module
        The network, or DDP around it.
    compiled : callable
        What training calls: ``wrapped``, compiled on request.
    """

    network: nn.Module
    wrapped: nn.Module
    compiled: Callable[..., Tensor]
    channels_last: bool = False

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        """Training-mode prediction from the network's inputs."""
        if self.channels_last:
            first = first.contiguous(memory_format=torch.channels_last_3d)
        return self.compiled(first, *others)

    @contextmanager
    def synchronise(self, last: bool) -> Iterator[None]:
        """Exchange gradients in the last micro-batch of a step only."""
        if isinstance(self.network, FSDPModule):
            self.network.set_requires_gradient_sync(last)
            yield
        elif not last and isinstance(self.wrapped, DistributedDataParallel):
            with self.wrapped.no_sync():
                yield
        else:
            yield

    def clip_gradients(self, largest: float) -> float:
        """Scale the gradient to a norm of at most ``largest``; returns the norm before."""
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), largest)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def wrap_network(network: nn.Module, config: RunConfig, world: World) -> Engine:
    """Prepare a network for the launcher's world.

    DDP averages gradients over equal shares of the batch; FSDP also shards parameters, optimiser state and
    average, block by block, for models that do not fit one device.
    """
    wrapped: nn.Module = network
    if world.size > 1 and config.distributed == "fsdp":
        mesh = init_device_mesh(world.device.type, (world.size,))
        for module in network.modules():
            if isinstance(module, FilmConvBlock | TransformerBlock | ViTBlock):
                fully_shard(module, mesh=mesh)
        # In place. The root is resharded after the forward pass too, so that the average can be swapped in and out.
        fully_shard(network, mesh=mesh, reshard_after_forward=True)
    elif world.size > 1:
        device_ids = [world.device] if world.device.type == "cuda" else None
        wrapped = DistributedDataParallel(network, device_ids=device_ids)
    return Engine(network, wrapped, torch.compile(wrapped) if config.compile else wrapped, config.channels_last)


def faster_precision(engine: Engine, inputs: Callable[[], tuple[Tensor, ...]], world: World) -> str:
    """``bf16`` on a GPU; on a CPU, ``bf16`` if a forward and backward pass takes at most `CLEARLY` times as long as in ``fp32``.

    Whether bfloat16 pays depends on the processor (AMX, AVX-512) and on the width of the network. Of several processes the slowest decides.
    """
    if world.device.type != "cpu":
        return "bf16"
    trial = inputs()

    def seconds(half: bool) -> float:
        started = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            answer = engine.network(*trial)
        answer.float().square().mean().backward()
        return time.process_time() - started

    # The first pass of each sets up the library's kernels. Processor time, because other work slows the clock on the wall.
    trials = {half: min(seconds(half) for _ in range(3)) for half in (False, True)}
    engine.network.zero_grad(set_to_none=True)
    slow = world.any(trials[True] > CLEARLY * trials[False])
    log.info(
        "A pass takes %.3f s of processor time in fp32, %.3f s in bf16: %s.",
        trials[False],
        trials[True],
        "fp32" if slow else "bf16",
    )
    return "fp32" if slow else "bf16"

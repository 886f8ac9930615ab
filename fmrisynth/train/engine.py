"""One process, DDP or FSDP behind one small interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from fmrisynth.config.train import TrainConfig
from fmrisynth.models.blocks import FilmConvBlock, TransformerBlock
from fmrisynth.models.distributed import World


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

    def forward(self, noisy: Tensor, time_B: Tensor, labels_BA: Tensor) -> Tensor:
        """Training-mode prediction."""
        if self.channels_last:
            noisy = noisy.contiguous(memory_format=torch.channels_last_3d)
        return self.compiled(noisy, time_B, labels_BA)

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


def wrap_network(network: nn.Module, config: TrainConfig, world: World) -> Engine:
    """Prepare a network for the launcher's world.

    DDP averages gradients over equal shares of the batch; FSDP also shards parameters, optimiser state and
    average, block by block, for models that do not fit one device.
    """
    wrapped: nn.Module = network
    if world.size > 1 and config.distributed == "fsdp":
        mesh = init_device_mesh(world.device.type, (world.size,))
        for module in network.modules():
            if isinstance(module, FilmConvBlock | TransformerBlock):
                fully_shard(module, mesh=mesh)
        # In place. The root is resharded after the forward pass too, so that the average can be swapped in and out.
        fully_shard(network, mesh=mesh, reshard_after_forward=True)
    elif world.size > 1:
        device_ids = [world.device] if world.device.type == "cuda" else None
        wrapped = DistributedDataParallel(network, device_ids=device_ids)
    return Engine(network, wrapped, torch.compile(wrapped) if config.compile else wrapped, config.channels_last)

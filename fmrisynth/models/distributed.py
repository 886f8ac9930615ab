"""One process, or one of many started by ``torchrun`` or ``srun``; all through torch.distributed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from fmrisynth.errors import FmrisynthError
from fmrisynth.models.device import pick_device


@dataclass(frozen=True)
class World:
    """This process among all.

    Attributes
    ----------
    rank, size : int
        Number of this process, and of all.
    device : torch.device
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over all processes (in place)."""
        if self.size > 1:
            on_device = tensor.to(self.device)
            dist.all_reduce(on_device)
            tensor.copy_(on_device)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.size == 1:
            return flag
        value = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value.item())

    def barrier(self) -> None:
        """Wait for the others."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """Join the process group of the launcher, if there is one, and choose this process's device.

    ``torchrun`` sets RANK, WORLD_SIZE and LOCAL_RANK; under ``srun`` the SLURM variables serve, with
    MASTER_ADDR and MASTER_PORT from the job script.
    """
    rank, size, local = _ranks()
    chosen = _choose_device(device, local, size)
    if size == 1:
        yield World(0, 1, chosen)
        return
    if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
        raise FmrisynthError(
            f"{size} processes were started but MASTER_ADDR and MASTER_PORT are not set; start with torchrun, or "
            "export both in the job script (see docs/training.md)."
        )
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group(
        "nccl" if chosen.type == "cuda" else "gloo", rank=rank, world_size=size, timeout=timedelta(minutes=30)
    )
    try:
        yield World(rank, size, chosen)
    finally:
        dist.destroy_process_group()


def _ranks() -> tuple[int, int, int]:
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0))
    # A batch step of one task also carries SLURM variables; only srun with several tasks is a group.
    if int(env.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in env and "SLURM_STEP_ID" in env:
        return int(env["SLURM_PROCID"]), int(env["SLURM_NTASKS"]), int(env.get("SLURM_LOCALID", 0))
    return 0, 1, 0


def _choose_device(device: str, local_rank: int, size: int) -> torch.device:
    chosen = pick_device(device)
    if chosen.type == "cuda" and size > 1:
        return torch.device("cuda", local_rank)
    return chosen

"""Which device to compute on."""

from __future__ import annotations

import os

import torch

from fmrisynth.errors import UsageError


def pick_device(name: str = "auto") -> torch.device:
    """Resolve ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises
    ------
    UsageError
        The name is not a device, or a GPU is asked for and none can be used.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device {name}: expected auto, cpu, cuda or cuda:N.") from None
    if device.type == "cuda":
        n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= n_devices:
            raise UsageError(
                f"device {name}: PyTorch sees {n_devices} CUDA devices; check the driver (nvidia-smi), start the "
                "container with --nv, or compute on the device cpu."
            )
    return device


def usable_cores() -> int:
    """CPU cores this process may use (a scheduler often grants fewer than the machine has)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

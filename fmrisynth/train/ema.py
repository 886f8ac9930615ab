"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Ema:
    """Shadow copy of a network's parameters: shadow <- d * shadow + (1 - d) * weight.

    With ``warmup`` the decay after n updates is min(decay, (1 + n) / (10 + n)), so that the average of a
    short run is not dominated by the initial weights.
    """

    def __init__(self, network: nn.Module, decay: float, *, warmup: bool = True) -> None:
        self.decay, self.warmup, self.n_updates = decay, warmup, 0
        self.shadow: dict[str, Tensor] = {
            name: parameter.detach().clone() for name, parameter in network.named_parameters()
        }

    def current_decay(self) -> float:
        """Decay of the next update."""
        if not self.warmup:
            return self.decay
        return min(self.decay, (1 + self.n_updates) / (10 + self.n_updates))

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the shadow towards the network's present weights."""
        shadows, weights = [], []
        for name, parameter in network.named_parameters():
            shadows.append(self.shadow[name])
            weights.append(parameter.detach())
        torch._foreach_lerp_(shadows, weights, 1 - self.current_decay())
        self.n_updates += 1

    @torch.no_grad()
    def load(self, shadow: Mapping[str, Tensor], n_updates: int) -> None:
        """Restore a saved average."""
        for name, tensor in self.shadow.items():
            tensor.copy_(shadow[name])
        self.n_updates = n_updates

    def swap(self, network: nn.Module) -> _Swap:
        """Context in which the network carries the averaged weights."""
        return _Swap(self, network)


class _Swap:
    def __init__(self, ema: Ema, network: nn.Module) -> None:
        self._ema, self._network = ema, network

    def _exchange(self) -> None:
        with torch.no_grad():
            for name, parameter in self._network.named_parameters():
                shadow = self._ema.shadow[name]
                kept = parameter.detach().clone()
                parameter.copy_(shadow)
                shadow.copy_(kept)

    def __enter__(self) -> None:
        self._exchange()

    def __exit__(self, *_: object) -> None:
        self._exchange()

"""Condition prior: diffuse around a per-condition Gaussian instead of around zero.

The idea of PriorGrad (Lee et al. 2022) and Grad-TTS (Popov et al. 2021). Training latents z of condition k
are written z = mean_k + std_k * u and the diffusion runs on u, whose prior is the unit Gaussian. ``none``
is mean 0, std 1; ``class_mean`` uses the training mean and std 1; ``class_gaussian`` also the elementwise
standard deviation, shrunk towards the one pooled over conditions.

Axis legend: K conditions, F = C*T, X Y Z latent grid, B batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SHRINKAGE_INSTANCES = 32.0  # weight of the pooled variance, in instances
STD_FLOOR = 0.05  # in units of the pooled root-mean-square deviation


@dataclass(frozen=True)
class Prior:
    """Per-condition location and scale of the normalised latents.

    Attributes
    ----------
    kind : {"none", "class_mean", "class_gaussian"}
    mean_KFXYZ, std_KFXYZ : Tensor or None
        None stands for 0 and 1.
    """

    kind: str = "none"
    mean_KFXYZ: Tensor | None = None
    std_KFXYZ: Tensor | None = None

    def whiten(self, stack_BFXYZ: Tensor, condition_B: Tensor) -> Tensor:
        """u = (z - mean_k) / std_k."""
        if self.mean_KFXYZ is not None:
            stack_BFXYZ = stack_BFXYZ - self._pick(self.mean_KFXYZ, condition_B, stack_BFXYZ)
        if self.std_KFXYZ is not None:
            stack_BFXYZ = stack_BFXYZ / self._pick(self.std_KFXYZ, condition_B, stack_BFXYZ)
        return stack_BFXYZ

    def unwhiten(self, stack_BFXYZ: Tensor, condition_B: Tensor) -> Tensor:
        """z = mean_k + std_k u."""
        if self.std_KFXYZ is not None:
            stack_BFXYZ = stack_BFXYZ * self._pick(self.std_KFXYZ, condition_B, stack_BFXYZ)
        if self.mean_KFXYZ is not None:
            stack_BFXYZ = stack_BFXYZ + self._pick(self.mean_KFXYZ, condition_B, stack_BFXYZ)
        return stack_BFXYZ

    def tensors(self) -> dict[str, Tensor]:
        """Tensors to store beside the weights."""
        pairs = {"mean": self.mean_KFXYZ, "std": self.std_KFXYZ}
        return {name: tensor for name, tensor in pairs.items() if tensor is not None}

    @staticmethod
    def _pick(table_KFXYZ: Tensor, condition_B: Tensor, like: Tensor) -> Tensor:
        return table_KFXYZ[condition_B.to(table_KFXYZ.device)].to(like.device, like.dtype)


class MomentAccumulator:
    """Per-condition sums of latents, one instance at a time: memory does not grow with the cohort."""

    def __init__(self, n_conditions: int, shape: tuple[int, ...]) -> None:
        self.count_K = torch.zeros(n_conditions, dtype=torch.float64)
        self.sum = torch.zeros(n_conditions, *shape, dtype=torch.float64)
        self.sum_of_squares = torch.zeros(n_conditions, *shape, dtype=torch.float64)

    def add(self, stack_FXYZ: Tensor, condition: int) -> None:
        """Add one normalised instance."""
        value = stack_FXYZ.double()
        self.count_K[condition] += 1
        self.sum[condition] += value
        self.sum_of_squares[condition] += value.square()

    def mean(self) -> Tensor:
        """Mean per condition, (K, ...), float64."""
        return self.sum / self._counts()

    def variance(self) -> Tensor:
        """Variance per condition around its own mean, (K, ...), float64."""
        return (self.sum_of_squares / self._counts() - self.mean().square()).clamp_min(0)

    def prior(self, kind: str) -> Prior:
        """Finish the statistics as a `Prior`."""
        if kind == "none":
            return Prior()
        mean = self.mean()
        if kind == "class_mean":
            return Prior(kind, mean.float())
        counts = self._counts()
        variance = self.variance()
        pooled = (counts * variance).sum(0) / counts.sum()
        shrunk = (counts * variance + SHRINKAGE_INSTANCES * pooled) / (counts + SHRINKAGE_INSTANCES)
        floor = STD_FLOOR * pooled.mean().sqrt().clamp_min(1e-6)
        return Prior(kind, mean.float(), shrunk.sqrt().clamp_min(floor).float())

    def _counts(self) -> Tensor:
        return self.count_K.clamp_min(1).reshape(-1, *[1] * (self.sum.ndim - 1))

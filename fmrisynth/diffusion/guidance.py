"""Classifier-free guidance with one scale per attribute (Ho & Salimans 2022).

Attributes are switched on one after another: p_0 knows none, p_1 the first, ..., p_A all of them. With
scales s_1 ... s_A the guided prediction is

    p_0 + sum_a s_a (p_a - p_(a-1))  =  sum_k (s_k - s_(k+1)) p_k,   s_0 = 1, s_(A+1) = 0,

so that all scales 1 give exactly the conditional prediction, all 0 the unconditional one, and equal scales
the usual two-branch formula. Branches with coefficient zero are not evaluated; the others share one batch.

Axis legend: B batch, A attributes, K branches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fmrisynth.errors import UsageError

Network = Callable[[Tensor, Tensor, Tensor], Tensor]


def branch_coefficients(scales: Sequence[float]) -> list[tuple[int, float]]:
    """Branches to evaluate: (number of attributes switched on, coefficient), coefficients summing to 1."""
    chain = [1.0, *map(float, scales), 0.0]
    return [(k, chain[k] - chain[k + 1]) for k in range(len(chain) - 1) if chain[k] != chain[k + 1]]


def guided(
    network: Network,
    labels_BA: Tensor,
    null_A: Tensor,
    scales: Sequence[float],
    *,
    interval: tuple[float, float] | None = None,
) -> Callable[[Tensor, Tensor], Tensor]:
    """Wrap a conditional network as ``denoise(noisy, network_time_B)`` with guidance.

    Parameters
    ----------
    network : callable
        ``network(noisy, network_time_B, labels_BA)``.
    labels_BA : Tensor of shape (B, A)
        What is asked for.
    null_A : Tensor of shape (A,)
        What stands for each attribute where it is switched off.
    scales : sequence of float, length A
        Guidance scale per attribute.
    interval : (float, float), optional
        Guide only at network times inside (0 clean, 1000 noise); outside, the scales are 1.
    """
    if len(scales) != labels_BA.shape[1]:
        raise UsageError(f"{len(scales)} guidance scales for {labels_BA.shape[1]} attributes: expected one for each.")
    branches = branch_coefficients(scales)
    plain = branch_coefficients([1.0] * len(scales))

    def denoise(noisy: Tensor, time_B: Tensor) -> Tensor:
        inside = interval is None or interval[0] <= float(time_B[0]) <= interval[1]
        chosen = branches if inside else plain
        labels = []
        for n_on, _ in chosen:
            branch_BA = labels_BA.clone()
            branch_BA[:, n_on:] = null_A[n_on:]
            labels.append(branch_BA)
        n_branches = len(chosen)
        repeats = [n_branches] + [1] * (noisy.ndim - 1)
        answer = network(noisy.repeat(repeats), time_B.repeat(n_branches), torch.cat(labels))
        if n_branches == 1:
            return answer
        parts = answer.chunk(n_branches)
        total = chosen[0][1] * parts[0]
        for (_, coefficient), part in zip(chosen[1:], parts[1:], strict=True):
            total = total + coefficient * part
        return total

    return denoise

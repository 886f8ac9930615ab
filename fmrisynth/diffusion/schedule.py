"""Noise schedules: x_t = alpha(t) x_0 + sigma(t) noise.

Axis legend: B batch. Both schedules answer the same three questions: ``alpha_sigma(time)``, the time
grid of a sampler (``times(n_steps)``, descending, ending at the clean end), and the time the network is
told (``network_time``, 0 to about 1000 for both).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fmrisynth.errors import UsageError

MAX_KEPT_SIGNAL = 0.1
"""Signal coefficient at the noisy end; the paper's schedule leaves 0.5 %, Stable Diffusion's 7 %."""


@dataclass(frozen=True)
class DiffusionSchedule:
    """Variance-preserving schedule of DDPM (Ho et al. 2020), T discrete steps 0 ... T-1.

    Between integer steps log(alpha_bar) is interpolated linearly; time -1 is the clean end. Sampling with
    the times T-1, ..., 0, -1 is exactly the discrete process.

    Parameters
    ----------
    curve : {"linear", "scaled_linear"}
        Beta is linear in the step, or its square root is (the usage of MONAI and diffusers).
    n_steps : int
        T.
    beta_start, beta_end : float
        First and last beta (paper: 0.0015 and 0.0195).

    Raises
    ------
    UsageError
        Unknown curve, or the last step keeps more than `MAX_KEPT_SIGNAL` of the signal.
    """

    curve: str = "linear"
    n_steps: int = 1000
    beta_start: float = 0.0015
    beta_end: float = 0.0195
    _log_alpha_bar: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        start, end = self.beta_start, self.beta_end
        if self.curve == "linear":
            betas = torch.linspace(start, end, self.n_steps, dtype=torch.float64)
        elif self.curve == "scaled_linear":
            betas = torch.linspace(start**0.5, end**0.5, self.n_steps, dtype=torch.float64) ** 2
        else:
            raise UsageError(f"There is no noise schedule named {self.curve!r}: known: linear, scaled_linear.")
        kept = math.exp(0.5 * float(torch.log1p(-betas).sum()))
        if kept > MAX_KEPT_SIGNAL:
            raise UsageError(
                f"{self.n_steps} diffusion steps with beta from {start:g} to {end:g} leave {kept:.0%} of the signal at the last one, "
                f"expected at most {MAX_KEPT_SIGNAL:.0%}: sampling begins with noise alone, so samples would be off; raise "
                "objective.beta_end or objective.n_train_steps."
            )
        log_alpha_bar = torch.cat([torch.zeros(1, dtype=torch.float64), torch.log1p(-betas).cumsum(0)])
        object.__setattr__(self, "_log_alpha_bar", log_alpha_bar)

    def alpha_sigma(self, time: Tensor) -> tuple[Tensor, Tensor]:
        position = time.to("cpu", torch.float64) + 1  # the clean end sits at index 0
        low = position.floor().clamp(0, self.n_steps - 1).long()
        fraction = position - low
        table = self._log_alpha_bar
        log_alpha_bar = table[low] + fraction * (table[low + 1] - table[low])
        alpha, sigma = torch.exp(0.5 * log_alpha_bar), torch.sqrt(-torch.expm1(log_alpha_bar))
        return alpha.to(time.device), sigma.to(time.device)

    def times(self, n_steps: int) -> Tensor:
        if not 1 <= n_steps <= self.n_steps:
            raise UsageError(f"{n_steps} sampling steps: expected 1 to {self.n_steps}, the steps of training.")
        if n_steps == self.n_steps:
            return torch.arange(self.n_steps - 1, -2, -1, dtype=torch.float64)
        # Quadratic, denser towards the clean end: with 20 evenly spaced steps the last jump alone loses a sixth
        # of the standard deviation of a Gaussian of half unit width; with these, less than a hundredth.
        share = torch.linspace(1, 0, n_steps + 1, dtype=torch.float64)
        times = (self.n_steps - 1) * share**2
        times[-1] = -1
        return times

    def network_time(self, time: Tensor) -> Tensor:
        return time * (1000 / self.n_steps)


@dataclass(frozen=True)
class FlowSchedule:
    """Straight path of flow matching (Lipman et al. 2023): x_t = (1 - t) x_0 + t noise, t from 1 to 0.

    Parameters
    ----------
    shift : float
        Training times are u of even spread, moved towards the noise: t = s u / (1 + (s - 1) u) (Esser et al. 2024, eq.
        23). It multiplies sigma / alpha by s. In many dimensions a noisy latent tells its own class until almost
        nothing of it is left (Hoogeboom et al.
        2023; Chen 2023), so a label is learnt beyond, where few of the even times lie. Sampling times are moved half as far, by the
        square root of s: a solver needs steps at the clean end too (benchmarks/sampler_error.py).
    """

    shift: float = 1.0

    def training_times(self, even: Tensor) -> Tensor:
        """Times of numbers evenly spread over [0, 1]."""
        return _shifted(even, self.shift)

    def alpha_sigma(self, time: Tensor) -> tuple[Tensor, Tensor]:
        time = time.to(torch.float64)
        return 1 - time, time

    def times(self, n_steps: int) -> Tensor:
        if n_steps < 1:
            raise UsageError(f"{n_steps} sampling steps: expected at least 1.")
        return _shifted(torch.linspace(1, 0, n_steps + 1, dtype=torch.float64), self.shift**0.5)

    def network_time(self, time: Tensor) -> Tensor:
        return time * 1000


def _shifted(even: Tensor, shift: float) -> Tensor:
    return shift * even / (1 + (shift - 1) * even)

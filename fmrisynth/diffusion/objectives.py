"""Training objectives: what the network predicts, at which times, with which weight.

Axis legend: B batch; F = C*T, X Y Z latent grid; "..." any further axes. All functions are pure; random numbers come in
as arguments.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fmrisynth.diffusion.schedule import DiffusionSchedule, FlowSchedule
from fmrisynth.errors import UsageError


def expand(coefficient_B: Tensor, like: Tensor) -> Tensor:
    """Shape a per-sample coefficient (B,) to broadcast over ``like`` (B, ...), in its type and place."""
    return coefficient_B.to(like.device, like.dtype).reshape(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True)
class Objective:
    """Epsilon prediction (paper), v-prediction (Salimans & Ho 2022), flow matching, or a bridge between two scans of one person.

    Parameters
    ----------
    prediction : {"epsilon", "v", "flow", "bridge"}
        Target of the network: the noise, alpha * noise - sigma * x_0, the velocity noise - x_0, or the velocity start - x_0.
    schedule, n_train_steps, beta_start, beta_end
        See `DiffusionSchedule`; unused by flow.
    min_snr_gamma : float, optional
        Min-SNR weighting (Hang et al. 2023).
    noise_shift : float
        See `FlowSchedule`; used by flow only.
    precondition : bool
        The network adds to what a unit Gaussian would make of the noisy input (`gaussian_prediction`); see `answer`.
    bridge_sd : float
        Sigma of the bridge's noise; 0.5 in BrainG3N.

    Notes
    -----
    A bridge is a stochastic interpolant with coupled ends (Albergo et al. 2024, arXiv 2310.03725; BrainG3N, Van Puyvelde et al. 2026,
    Section 3.4): x_0 is a person's later scan and the path starts at the earlier one, s, in place of noise,

        x_t = (1 - t) x_0 + t s + sigma sqrt(t (1 - t)) noise,   t from 1 to 0

    (the paper counts the other way). The noise vanishes at both ends. The mean square loss is least for the velocity
    v(x, t) = E[s - x_0 | x_t = x], and dx = v dt is integrated from x_1 = s without noise. The velocity that carries the law of x_t
    along has one more term, d/dt (sigma sqrt(t (1 - t))) E[noise | x_t]. As in the paper, where "the noise is training-only", it is
    left out: it grows without bound at both ends. So:

    - At t = 1 x_t is s and v = s - E[x_0 | s]. A single Euler step lands on the conditional mean, whatever the laws are.
    - Many steps land there too where all people change alike. Else the network takes part of what is a person's own for noise, and
      part of what changed in other ways for the person's own. Of Gaussians with x_0 = a s + c + residual, with the variance S of s
      and q of the residual, the deviation of s from the mean is multiplied, with tau = 1 - t and m = t + a tau, by

          exp of the integral over tau of ((a - 1) m S + tau q) / (m^2 S + tau^2 q + sigma^2 t tau)

      and not by a: with q = 0 by something between a and 1. It is one cause of the paper's forecasts changing less than people do.

    Either way it is one forecast, near the mean of what may come, and no draw from it.
    """

    prediction: str = "epsilon"
    schedule: str = "linear"
    n_train_steps: int = 1000
    beta_start: float = 0.0015
    beta_end: float = 0.0195
    min_snr_gamma: float | None = None
    noise_shift: float = 1.0
    precondition: bool = False
    bridge_sd: float = 0.5

    def __post_init__(self) -> None:
        if self.prediction not in ("epsilon", "v", "flow", "bridge"):
            raise UsageError(f"There is no objective named {self.prediction!r}: known: epsilon, v, flow, bridge.")
        path: DiffusionSchedule | FlowSchedule
        if self.prediction in ("flow", "bridge"):
            path = FlowSchedule(self.noise_shift)
        else:
            path = DiffusionSchedule(self.schedule, self.n_train_steps, self.beta_start, self.beta_end)
        object.__setattr__(self, "path", path)

    path: DiffusionSchedule | FlowSchedule = None  # type: ignore[assignment]  # set above

    @property
    def is_bridge(self) -> bool:
        """Whether the path starts at a scan, not at noise."""
        return self.prediction == "bridge"

    def draw_time(self, uniform_B: Tensor) -> Tensor:
        """Map uniform numbers in [0, 1) to training times, float64."""
        if isinstance(self.path, DiffusionSchedule):
            return (uniform_B.double() * self.path.n_steps).floor()
        return self.path.training_times(uniform_B.double())

    def add_noise(self, clean: Tensor, noise: Tensor, time_B: Tensor, start: Tensor | None = None) -> Tensor:
        """x_t = alpha x_0 + sigma noise (paper, forward process); a bridge needs its ``start``, the earlier scan."""
        alpha_B, sigma_B = self.path.alpha_sigma(time_B)
        if self.is_bridge:
            straight = expand(alpha_B, clean) * clean + expand(sigma_B, clean) * _given(start)
            return straight + expand(self.bridge_sd * (alpha_B * sigma_B).sqrt(), clean) * noise
        return expand(alpha_B, clean) * clean + expand(sigma_B, clean) * noise

    def target(self, clean: Tensor, noise: Tensor, time_B: Tensor, start: Tensor | None = None) -> Tensor:
        """What the network should answer for ``add_noise(clean, noise, time_B, start)``."""
        if self.is_bridge:
            return _given(start) - clean
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "flow":
            return noise - clean
        alpha_B, sigma_B = self.path.alpha_sigma(time_B)
        return expand(alpha_B, clean) * noise - expand(sigma_B, clean) * clean

    def gaussian_prediction(self, noisy: Tensor, time_B: Tensor) -> Tensor:
        """The best prediction if clean data were unit Gaussian: the target's mean given ``noisy``.

        With x_t = alpha x_0 + sigma noise and both unit Gaussian, E[x_0 | x_t] = alpha x_t / (alpha^2 + sigma^2) and
        E[noise | x_t] = sigma x_t / (alpha^2 + sigma^2).
        """
        alpha_B, sigma_B = self.path.alpha_sigma(time_B)
        if self.prediction == "epsilon":
            numerator_B = sigma_B
        elif self.prediction == "flow":
            numerator_B = sigma_B - alpha_B
        else:
            numerator_B = torch.zeros_like(alpha_B)
        return expand(numerator_B / (alpha_B**2 + sigma_B**2), noisy) * noisy

    def answer(self, output: Tensor, noisy: Tensor, time_B: Tensor) -> Tensor:
        """The prediction that a network's output stands for.

        With ``precondition`` the network gives the deviation from `gaussian_prediction`: the skip connection of Karras et al. (2022,
        eq. 7) for data of unit variance. A network narrower than the latents' channels cannot copy their noise; with the skip it need not.
        """
        return output + self.gaussian_prediction(noisy, time_B) if self.precondition else output

    def clean_and_noise(self, prediction: Tensor, noisy: Tensor, time_B: Tensor) -> tuple[Tensor, Tensor]:
        """Solve the prediction for x_0 and the noise. Nothing is clipped."""
        alpha_B, sigma_B = self.path.alpha_sigma(time_B)
        alpha, sigma = expand(alpha_B, noisy), expand(sigma_B, noisy)
        if self.prediction == "epsilon":
            return (noisy - sigma * prediction) / alpha, prediction
        if self.prediction == "flow":
            return noisy - sigma * prediction, noisy + alpha * prediction
        return alpha * noisy - sigma * prediction, sigma * noisy + alpha * prediction

    def slope(self, alpha: float, sigma: float) -> float:
        """By how much the target falls when x_0 rises by one and x_t stays: x_0 and the noise are then exchanged."""
        if self.prediction == "epsilon":
            return alpha / sigma
        return (alpha + sigma) / sigma if self.prediction == "flow" else (alpha**2 + sigma**2) / sigma

    def weight(self, time_B: Tensor) -> Tensor:
        """Loss weight per sample: 1, or min-SNR for the target in use."""
        if self.min_snr_gamma is None:
            return torch.ones_like(time_B, dtype=torch.float64)
        alpha_B, sigma_B = self.path.alpha_sigma(time_B)
        snr_B = (alpha_B / sigma_B) ** 2
        clipped_B = snr_B.clamp(max=self.min_snr_gamma)
        return clipped_B / (snr_B if self.prediction == "epsilon" else snr_B + 1)

    def loss(
        self, prediction: Tensor, clean: Tensor, noise: Tensor, time_B: Tensor, start: Tensor | None = None
    ) -> Tensor:
        """Weighted mean squared error per sample, shape (B,), float32."""
        error = prediction.float() - self.target(clean, noise, time_B, start).float()
        return error.square().flatten(1).mean(1) * self.weight(time_B).to(error.device, error.dtype)


def _given(start: Tensor | None) -> Tensor:
    if start is None:
        raise ValueError("a bridge needs the scan that it starts at")
    return start

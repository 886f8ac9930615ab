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
    """Epsilon prediction (paper), v-prediction (Salimans & Ho 2022) or flow matching.

    Parameters
    ----------
    prediction : {"epsilon", "v", "flow"}
        Target of the network: the noise, alpha * noise - sigma * x_0, or the velocity noise - x_0.
    schedule, n_train_steps, beta_start, beta_end
        See `DiffusionSchedule`; unused by flow.
    min_snr_gamma : float, optional
        Min-SNR weighting (Hang et al. 2023).
    noise_shift : float
        See `FlowSchedule`; used by flow only.
    precondition : bool
        The network adds to what a unit Gaussian would make of the noisy input (`gaussian_prediction`); see `answer`.
    """

    prediction: str = "epsilon"
    schedule: str = "linear"
    n_train_steps: int = 1000
    beta_start: float = 0.0015
    beta_end: float = 0.0195
    min_snr_gamma: float | None = None
    noise_shift: float = 1.0
    precondition: bool = False

    def __post_init__(self) -> None:
        if self.prediction not in ("epsilon", "v", "flow"):
            raise UsageError(f"There is no objective named {self.prediction!r}: known: epsilon, v, flow.")
        path: DiffusionSchedule | FlowSchedule
        if self.prediction == "flow":
            path = FlowSchedule(self.noise_shift)
        else:
            path = DiffusionSchedule(self.schedule, self.n_train_steps, self.beta_start, self.beta_end)
        object.__setattr__(self, "path", path)

    path: DiffusionSchedule | FlowSchedule = None  # type: ignore[assignment]  # set above

    def draw_time(self, uniform_B: Tensor) -> Tensor:
        """Map uniform numbers in [0, 1) to training times, float64."""
        if isinstance(self.path, DiffusionSchedule):
            return (uniform_B.double() * self.path.n_steps).floor()
        return self.path.training_times(uniform_B.double())

    def add_noise(self, clean: Tensor, noise: Tensor, time_B: Tensor) -> Tensor:
        """x_t = alpha x_0 + sigma noise (paper, forward process)."""
        alpha_B, sigma_B = self.path.alpha_sigma(time_B)
        return expand(alpha_B, clean) * clean + expand(sigma_B, clean) * noise

    def target(self, clean: Tensor, noise: Tensor, time_B: Tensor) -> Tensor:
        """What the network should answer for ``add_noise(clean, noise, time_B)``."""
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

    def loss(self, prediction: Tensor, clean: Tensor, noise: Tensor, time_B: Tensor) -> Tensor:
        """Weighted mean squared error per sample, shape (B,), float32."""
        error = prediction.float() - self.target(clean, noise, time_B).float()
        return error.square().flatten(1).mean(1) * self.weight(time_B).to(error.device, error.dtype)

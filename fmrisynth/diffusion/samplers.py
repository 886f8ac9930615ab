"""Samplers as pure functions of (denoise, noise, objective, times).

``denoise(noisy, time_B)`` answers the objective's target. ``times`` is a descending float64 vector whose
last entry is where the result lies (``objective.path.times(n)`` ends at the clean end). ``draw_noise()``
returns fresh unit noise shaped like the state. No sampler clips anything.

Axis legend: B batch; further axes are free.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fmrisynth.diffusion.objectives import Objective
from fmrisynth.errors import UsageError

Denoise = Callable[[Tensor, Tensor], Tensor]
DrawNoise = Callable[[], Tensor]
OnStep = Callable[[int, Tensor], None]


def _evaluate(denoise: Denoise, x: Tensor, time: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    time_B = time.expand(x.shape[0])
    return objective.clean_and_noise(denoise(x, time_B), x, time_B)


def posterior_std(alpha: float, sigma: float, alpha_next: float, sigma_next: float) -> float:
    """Standard deviation of q(x_s | x_t, x_0) for a Gaussian path x_t = alpha_t x_0 + sigma_t noise.

    Parameters
    ----------
    alpha, sigma : float
        Coefficients at time t.
    alpha_next, sigma_next : float
        Coefficients at the cleaner time s.

    Notes
    -----
    With r = alpha_t / alpha_s, a Markov chain with these marginals has x_t = r x_s + tau noise, where
    tau^2 = sigma_t^2 - r^2 sigma_s^2 (not negative, because the signal-to-noise ratio falls with t). Bayes' rule gives

        q(x_s | x_t, x_0) = N(r (sigma_s / sigma_t)^2 x_t + alpha_s (tau / sigma_t)^2 x_0, (tau sigma_s / sigma_t)^2).

    The mean is alpha_s x_0 + sqrt(sigma_s^2 - std^2) noise with the noise that x_t and x_0 imply, so a DDIM step
    whose fresh noise has this deviation is a draw from the posterior. For a variance-preserving path
    tau^2 = 1 - r^2 (Ho et al. 2020, eq. 7); for flow matching at t = 1 r is 0 and the whole noise is drawn anew.
    """
    tau_squared = sigma**2 - (alpha / alpha_next * sigma_next) ** 2
    return max(0.0, tau_squared) ** 0.5 * sigma_next / sigma


def ddim(
    denoise: Denoise,
    noise: Tensor,
    objective: Objective,
    times: Tensor,
    *,
    eta: float = 0.0,
    draw_noise: DrawNoise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12 and 16); ``eta`` 0 is deterministic, 1 is ancestral sampling.

    Parameters
    ----------
    denoise : callable
        ``denoise(noisy, time_B) -> prediction``.
    noise : Tensor of shape (B, ...)
        State at ``times[0]``.
    objective : Objective
        What ``denoise`` predicts, and the schedule.
    times : Tensor of shape (n_steps + 1,), float64
        Descending times.
    eta : float
        Share of the posterior's standard deviation that is drawn anew.
    draw_noise : callable, optional
        Source of fresh noise, needed when ``eta`` > 0.

    Returns
    -------
    Tensor of shape (B, ...)
    """
    if eta > 0 and draw_noise is None:
        raise UsageError("DDIM with eta > 0 and DDPM draw fresh noise at every step: pass draw_noise.")
    x = noise
    alphas, sigmas = (c.tolist() for c in objective.path.alpha_sigma(times))
    for step in range(len(times) - 1):
        clean, eps = _evaluate(denoise, x, times[step], objective)
        alpha, sigma, alpha_next, sigma_next = alphas[step], sigmas[step], alphas[step + 1], sigmas[step + 1]
        fresh = 0.0
        if eta > 0 and sigma_next > 0:
            fresh = eta * posterior_std(alpha, sigma, alpha_next, sigma_next)
        x = alpha_next * clean + max(0.0, sigma_next**2 - fresh**2) ** 0.5 * eps
        if fresh > 0 and draw_noise is not None:
            x = x + fresh * draw_noise()
        if on_step is not None:
            on_step(step, x)
    return x


def ddpm(
    denoise: Denoise,
    noise: Tensor,
    objective: Objective,
    times: Tensor,
    *,
    draw_noise: DrawNoise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, algorithm 2): every step draws from q(x_s | x_t, x_0 as predicted).

    With all T steps of a diffusion schedule this is the paper's sampler; with fewer, the posterior between the
    times chosen. It is DDIM with ``eta`` 1 (Song et al. 2021), and holds on any path (see `posterior_std`).
    """
    return ddim(denoise, noise, objective, times, eta=1.0, draw_noise=draw_noise, on_step=on_step)


def ab2(
    denoise: Denoise, noise: Tensor, objective: Objective, times: Tensor, *, on_step: OnStep | None = None
) -> Tensor:
    """Two-step Adams-Bashforth in the angle of the path: second order with one evaluation a step.

    With x_t = alpha x_0 + sigma noise, the state y = x_t / sqrt(alpha^2 + sigma^2) turns from noise to data as the
    angle atan(sigma / alpha) falls from pi / 2 to 0, and its derivative by the angle is the velocity v = cos noise -
    sin x_0 (Salimans & Ho 2022, appendix D). For unit Gaussian data E[v | y] = 0, so such data are sampled exactly in
    any number of steps. Solvers that take x_0, the noise or the flow's velocity as constant over a step shrink or swell
    even those when steps are few, and the variance of samples is what one measures.
    """
    alphas, sigmas = objective.path.alpha_sigma(times)
    radii, angles = torch.hypot(alphas, sigmas).tolist(), torch.atan2(sigmas, alphas).tolist()
    y, previous, previous_h = noise / radii[0], None, 0.0
    for step in range(len(times) - 1):
        clean, eps = _evaluate(denoise, y * radii[step], times[step], objective)
        velocity = (float(alphas[step]) * eps - float(sigmas[step]) * clean) / radii[step]
        h = angles[step + 1] - angles[step]
        direction = velocity if previous is None else velocity + h / (2 * previous_h) * (velocity - previous)
        y = y + h * direction
        previous, previous_h = velocity, h
        if on_step is not None:
            on_step(step, y * radii[step + 1])
    return y * radii[-1]


def euler(
    denoise: Denoise, noise: Tensor, objective: Objective, times: Tensor, *, on_step: OnStep | None = None
) -> Tensor:
    """Euler steps along the flow's velocity: first order, one evaluation a step."""
    x = noise
    for step in range(len(times) - 1):
        velocity = denoise(x, times[step].expand(x.shape[0]))
        x = x + float(times[step + 1] - times[step]) * velocity
        if on_step is not None:
            on_step(step, x)
    return x


SAMPLERS = ("ab2", "ddpm", "ddim", "euler")


def check_sampler(sampler: str, objective: Objective) -> None:
    """Refuse an unknown sampler, or one that does not fit the objective."""
    if sampler not in SAMPLERS:
        raise UsageError(f"There is no sampler named {sampler!r}: known: {', '.join(SAMPLERS)}.")
    if sampler == "euler" and objective.prediction not in ("flow", "bridge"):
        raise UsageError(
            f"Sampler 'euler' integrates a flow; this model predicts {objective.prediction}: use ab2, ddpm or ddim."
        )
    if sampler != "euler" and objective.is_bridge:
        raise UsageError(f"Sampler {sampler!r} removes noise; a forecast follows a velocity: use euler.")


def sample(
    sampler: str,
    denoise: Denoise,
    noise: Tensor,
    objective: Objective,
    n_steps: int,
    *,
    eta: float = 0.0,
    draw_noise: DrawNoise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Run the named sampler from unit noise, or the start of a bridge, to the clean end in ``n_steps`` steps."""
    check_sampler(sampler, objective)
    times = objective.path.times(n_steps)
    if sampler == "ddpm":
        return ddpm(denoise, noise, objective, times, draw_noise=draw_noise, on_step=on_step)
    if sampler == "ddim":
        return ddim(denoise, noise, objective, times, eta=eta, draw_noise=draw_noise, on_step=on_step)
    solver = ab2 if sampler == "ab2" else euler
    return solver(denoise, noise, objective, times, on_step=on_step)

"""Samplers: an oracle is inverted, solvers converge at their order, guidance adds up."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fmrisynth.diffusion.guidance import branch_coefficients, guided
from fmrisynth.diffusion.objectives import Objective, expand
from fmrisynth.diffusion.samplers import ab2, ddim, ddpm, euler, posterior_std, sample
from fmrisynth.errors import UsageError

DIFFUSION = [Objective("epsilon"), Objective("v", "scaled_linear")]
FLOW = Objective("flow")
STD, MEAN = 0.5, 1.5  # Gaussian target


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def oracle(objective, clean):
    """Answers as if the one clean state were all of the data."""

    def denoise(x, time_B):
        alpha, sigma = (expand(c, x) for c in objective.path.alpha_sigma(time_B))
        return objective.target(clean, (x - alpha * clean) / sigma, time_B)

    return denoise


def gaussian(objective):
    """Exact answer for data distributed as N(MEAN, STD^2): E[x_0 | x_t] is linear in x_t."""

    def denoise(x, time_B):
        alpha, sigma = (expand(c, x) for c in objective.path.alpha_sigma(time_B))
        variance = alpha**2 * STD**2 + sigma**2
        clean = MEAN + alpha * STD**2 / variance * (x - alpha * MEAN)
        noise = sigma / variance * (x - alpha * MEAN)
        return objective.target(clean, noise, time_B)

    return denoise


def gaussian_solution(objective, noise, start, end):
    """The probability-flow ODE keeps the standardised state."""
    (alpha, sigma), (alpha_end, sigma_end) = (
        objective.path.alpha_sigma(torch.tensor([t], dtype=torch.float64)) for t in (start, end)
    )
    standardised = (noise - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2).sqrt()
    return alpha_end * MEAN + (alpha_end**2 * STD**2 + sigma_end**2).sqrt() * standardised


@pytest.mark.parametrize("n_steps", [1, 2, 7, 50])
@pytest.mark.parametrize(
    ("sampler", "objective"),
    [(s, o) for o in DIFFUSION for s in ("ddpm", "ddim")] + [(s, FLOW) for s in ("ddpm", "euler", "ddim")],
)
def test_an_oracle_is_inverted_exactly(sampler, objective, n_steps):
    clean, noise = randn(2, 3, 4), randn(2, 3, 4, seed=1)
    found = sample(
        sampler,
        oracle(objective, clean),
        noise,
        objective,
        n_steps,
        draw_noise=lambda: randn(2, 3, 4, seed=2),
    )
    torch.testing.assert_close(found, clean, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("solver", "objective", "start", "end", "order"),
    [
        (ab2, DIFFUSION[0], 900.0, 20.0, 2),
        (ab2, DIFFUSION[1], 900.0, 20.0, 2),
        (ab2, FLOW, 1.0, 0.0, 2),
        (ddim, DIFFUSION[0], 900.0, 20.0, 1),
        (ddim, DIFFUSION[1], 900.0, 20.0, 1),
        (euler, FLOW, 1.0, 0.0, 1),
    ],
)
def test_solvers_converge_at_their_order(solver, objective, start, end, order):
    noise = randn(1, 64)
    exact = gaussian_solution(objective, noise, start, end)
    errors = []
    for n_steps in (60, 120):
        power = 1 if objective is FLOW else 2  # steps of like size in log-SNR
        times = torch.linspace(start ** (1 / power), end ** (1 / power), n_steps + 1, dtype=torch.float64) ** power
        errors.append(float((solver(gaussian(objective), noise, objective, times) - exact).abs().max()))
    measured = math.log2(errors[0] / errors[1])
    assert errors[1] < 0.1
    assert measured == pytest.approx(order, abs=0.35)


def posterior(alpha, sigma, alpha_next, sigma_next):
    """q(x_s | x_t, x_0) by completing the square: weights of x_t and x_0, and the variance."""
    ratio = alpha / alpha_next
    tau_squared = sigma**2 - ratio**2 * sigma_next**2
    precision = 1 / sigma_next**2 + ratio**2 / tau_squared
    return ratio / tau_squared / precision, alpha_next / sigma_next**2 / precision, 1 / precision


@given(
    alpha_next=st.floats(0.05, 3), sigma_next=st.floats(0.05, 3), shrink=st.floats(0.0, 1.2),
    grow=st.floats(1.01, 5), eps=st.floats(-3, 3), clean=st.floats(-3, 3),
)  # fmt: skip
def test_an_ancestral_step_draws_from_the_posterior_of_any_path(alpha_next, sigma_next, shrink, grow, eps, clean):
    # Noise relative to signal grows with time; signal and noise may each rise or fall.
    alpha, sigma = shrink * alpha_next, sigma_next * grow * max(shrink, 0.1)
    path = SimpleNamespace(
        alpha_sigma=lambda t: (
            torch.where(t > 0, *torch.tensor([alpha, alpha_next], dtype=torch.float64)),
            torch.where(t > 0, *torch.tensor([sigma, sigma_next], dtype=torch.float64)),
        )
    )
    objective = SimpleNamespace(path=path, clean_and_noise=lambda answer, x, time: answer)
    x = torch.full((1, 1), alpha * clean + sigma * eps, dtype=torch.float64)
    answer = (torch.full_like(x, clean), torch.full_like(x, eps))
    weight_x, weight_clean, variance = posterior(alpha, sigma, alpha_next, sigma_next)
    times = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for z in (0.0, 1.0):
        found = ddpm(lambda *_: answer, x, objective, times, draw_noise=lambda z=z: torch.full_like(x, z))
        expected = weight_x * float(x) + weight_clean * clean + variance**0.5 * z
        assert float(found) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert posterior_std(alpha, sigma, alpha_next, sigma_next) ** 2 == pytest.approx(variance, rel=1e-6)


def ancestral_moments(objective, times):
    """Mean and standard deviation after ancestral sampling of the Gaussian target: a linear recursion."""
    alphas, sigmas = (c.tolist() for c in objective.path.alpha_sigma(times))
    mean, variance = 0.0, 1.0  # starts from unit noise
    for alpha, sigma, alpha_next, sigma_next in zip(alphas, sigmas, alphas[1:], sigmas[1:], strict=False):
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)  # E[x_0 | x_t] = MEAN + gain (x_t - alpha MEAN)
        if sigma_next == 0:
            weight_x, weight_clean, drawn = 0.0, alpha_next, 0.0
        else:
            weight_x, weight_clean, drawn = posterior(alpha, sigma, alpha_next, sigma_next)
        slope = weight_x + weight_clean * gain
        mean = slope * mean + weight_clean * MEAN * (1 - gain * alpha)
        variance = slope**2 * variance + drawn
    return mean, variance**0.5


@pytest.mark.parametrize("n_steps", [10, 50, 1000])
@pytest.mark.parametrize("objective", [*DIFFUSION, FLOW])
def test_ancestral_sampling_of_a_gaussian_has_the_analytic_moments(objective, n_steps):
    generator = torch.Generator().manual_seed(0)

    def draw():
        return torch.randn(1, 20_000, generator=generator, dtype=torch.float64)

    times = objective.path.times(n_steps)
    found = ddpm(gaussian(objective), draw(), objective, times, draw_noise=draw)
    mean, std = ancestral_moments(objective, times)
    assert float(found.mean()) == pytest.approx(mean, abs=5 * std / 20_000**0.5)
    assert float(found.std()) == pytest.approx(std, rel=5 / 40_000**0.5)
    if n_steps == 1000:  # and they are the target's own in the limit
        assert mean == pytest.approx(MEAN, abs=0.005)
        assert std == pytest.approx(STD, rel=0.02)  # the finite first beta costs 1.5 %


@pytest.mark.parametrize(("objective", "start", "end"), [(DIFFUSION[0], 999.0, -1.0), (FLOW, 1.0, 0.0)])
def test_twenty_steps_keep_the_variance(objective, start, end):
    noise = randn(1, 64)
    exact = gaussian_solution(objective, noise, start, end)
    found = ab2(gaussian(objective), noise, objective, objective.path.times(20))
    assert float(found.std() / exact.std()) == pytest.approx(1, abs=0.02)
    worse = ddim(gaussian(objective), noise, objective, objective.path.times(20))
    assert (found - exact).abs().max() < (worse - exact).abs().max() / 2


def test_nothing_is_clipped():
    objective = DIFFUSION[0]
    clean = torch.full((1, 4), 50.0, dtype=torch.float64)
    found = ddim(oracle(objective, clean), randn(1, 4), objective, objective.path.times(5))
    torch.testing.assert_close(found, clean)


def test_combinations_that_make_no_sense_are_refused():
    with pytest.raises(UsageError, match="integrates a flow"):
        sample("euler", lambda x, t: x, randn(1, 2), DIFFUSION[0], 5)
    with pytest.raises(UsageError, match="known: ab2, ddpm"):
        sample("plms", lambda x, t: x, randn(1, 2), FLOW, 5)
    with pytest.raises(UsageError, match="draw_noise"):
        ddpm(lambda x, t: x, randn(1, 2), DIFFUSION[0], DIFFUSION[0].path.times(5))


class Recorder:
    """A network whose answer encodes which attributes are on, and that counts batches."""

    def __init__(self):
        self.batches = []

    def __call__(self, x, time_B, labels_BA):
        self.batches.append(len(x))
        weights = torch.tensor([1.0, 10.0])
        known = (labels_BA != torch.tensor([5, 7])).float()
        return x * 0 + (known * weights * (1 + labels_BA)).sum(1).reshape(-1, 1)


@pytest.mark.parametrize(
    ("scales", "expected", "n_branches"),
    [
        ((1.0, 1.0), 2 + 30, 1),  # conditional
        ((0.0, 0.0), 0, 1),  # unconditional
        ((3.0, 3.0), 3 * (2 + 30), 2),
        ((3.0, 1.0), 3 * 2 + 30, 3),
        ((1.0, 4.0), 2 + 4 * 30, 2),
        ((0.0, 2.0), 2 * 30, 3),
    ],
)
def test_guidance_per_attribute(scales, expected, n_branches):
    network = Recorder()
    denoise = guided(network, torch.tensor([[1, 2]]).repeat(4, 1), torch.tensor([5, 7]), scales)
    answer = denoise(torch.randn(4, 3), torch.full((4,), 500.0))
    torch.testing.assert_close(answer, torch.full((4, 3), float(expected)))
    assert network.batches == [4 * n_branches]  # all branches in one batch
    assert sum(c for _, c in branch_coefficients(scales)) == pytest.approx(1)


def test_guidance_interval():
    denoise = guided(Recorder(), torch.tensor([[1, 2]]), torch.tensor([5, 7]), (3.0, 3.0), interval=(100, 600))
    for time, expected in ((50.0, 32.0), (100.0, 96.0), (600.0, 96.0), (601.0, 32.0)):
        assert float(denoise(torch.zeros(1, 1), torch.tensor([time]))) == expected


def test_guidance_needs_a_scale_for_each_attribute():
    with pytest.raises(UsageError, match="one for each"):
        guided(Recorder(), torch.tensor([[1, 2]]), torch.tensor([5, 7]), (3.0,))


@pytest.mark.parametrize("std", [0.1, 0.3])
def test_ab2_is_far_nearer_than_euler_on_a_mixture_of_narrow_gaussians(std):
    """The answer is known: posterior means of the components, weighted by how likely each is."""
    means = torch.tensor([-1.2, 0.3, 1.0], dtype=torch.float64)

    def denoise(x, time_B):
        alpha, sigma = (expand(c, x) for c in FLOW.path.alpha_sigma(time_B))
        away = x[..., None] - alpha[..., None] * means
        variance = ((alpha * std) ** 2 + sigma**2)[..., None]
        share = (-(away**2) / variance / 2).softmax(-1)
        clean = (share * (means + alpha[..., None] * std**2 / variance * away)).sum(-1)
        return FLOW.target(clean, (x - alpha * clean) / sigma, time_B)

    noise = randn(1, 2000)
    exact = sample("ab2", denoise, noise, FLOW, 1000)
    for n_steps in (10, 20):
        ours, theirs = (
            (sample(name, denoise, noise, FLOW, n_steps) - exact).square().mean().sqrt() for name in ("ab2", "euler")
        )
        assert ours < 0.6 * theirs

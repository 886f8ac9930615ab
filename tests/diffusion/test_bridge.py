"""The bridge between two scans: ends, moments, and where the sampler lands when everything is Gaussian."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from fmrisynth.diffusion.objectives import Objective
from fmrisynth.diffusion.samplers import sample
from fmrisynth.errors import UsageError

shares = st.floats(0.01, 0.99)
few = settings(max_examples=25, deadline=None)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_ends_are_the_scans():
    bridge = Objective("bridge")
    later, earlier, noise = (randn(2, 3, 4, seed=seed) for seed in range(3))
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    x = bridge.add_noise(later, noise, ends, earlier)
    assert torch.equal(x[0], later[0])
    assert torch.equal(x[1], earlier[1])
    assert torch.equal(bridge.target(later, noise, ends, earlier), earlier - later)


@few
@given(time=shares, sd=st.floats(0, 2))
def test_moments_between_the_ends(time, sd):
    """Given both ends: the straight line, and a Brownian bridge's variance."""
    bridge = Objective("bridge", bridge_sd=sd)
    n = 5_000
    x = bridge.add_noise(torch.full((1, n), 3.0), randn(1, n), torch.tensor([time]), torch.full((1, n), -1.0)).double()
    assert float(x.mean()) == pytest.approx(3 * (1 - time) - time, abs=5 * sd / n**0.5 + 1e-6)
    assert float(x.std()) == pytest.approx(sd * (time * (1 - time)) ** 0.5, rel=0.06, abs=1e-6)


def test_the_loss_is_least_for_the_conditional_velocity():
    """Regression of the target on x_t, as training does it, finds the closed form that the tests below integrate."""
    bridge, n, time = Objective("bridge"), 400_000, 0.6
    earlier = 0.7 * randn(n)
    later = 0.8 * earlier + 0.5 + 0.3 * randn(n, seed=1)
    times = torch.full((n,), time, dtype=torch.float64)
    noise = randn(n, seed=2)
    x = bridge.add_noise(later, noise, times, earlier)
    slope, constant = np.polyfit(x.numpy(), bridge.target(later, noise, times, earlier).numpy(), 1)
    velocity = gaussian_velocity(0.8, 0.5, 0.49, 0.09, 0.5)
    ends = velocity(torch.tensor([[0.0], [1.0]], dtype=torch.float64), torch.tensor([time, time]))
    assert constant == pytest.approx(float(ends[0]), abs=0.01)
    assert slope == pytest.approx(float(ends[1] - ends[0]), abs=0.01)


def gaussian_velocity(a, shift, variance, residual, sd):
    """E[s - x_0 | x_t] for s ~ N(0, variance) and x_0 = a s + shift + N(0, residual)."""

    def velocity(x, time_B):
        t = time_B.double().reshape(-1, 1)
        m, tau = t + a * (1 - t), 1 - t
        spread = m**2 * variance + tau**2 * residual + sd**2 * t * tau
        covariance = (1 - a) * m * variance - tau * residual
        return -shift + covariance / spread * (x - tau * shift)

    return velocity


@few
@given(a=st.floats(0.5, 1.5), shift=st.floats(-1, 1), residual=st.floats(0, 1), sd=st.floats(0, 1))
def test_one_step_lands_on_the_conditional_mean(a, shift, residual, sd):
    earlier = randn(5, 1)
    x = sample("euler", gaussian_velocity(a, shift, 0.8, residual, sd), earlier, Objective("bridge", bridge_sd=sd), 1)
    torch.testing.assert_close(x, a * earlier + shift)


@few
@given(shift=st.floats(-1, 1), sd=st.floats(0, 1), n_steps=st.sampled_from([1, 10, 100]))
def test_any_number_of_steps_does_where_all_change_alike(shift, sd, n_steps):
    earlier = randn(5, 1)
    x = sample(
        "euler", gaussian_velocity(1.0, shift, 0.8, 0.0, sd), earlier, Objective("bridge", bridge_sd=sd), n_steps
    )
    torch.testing.assert_close(x, earlier + shift)


@few
@given(a=st.floats(0.6, 1.4), residual=st.floats(0, 0.5), sd=st.floats(0, 1))
def test_what_is_a_persons_own_is_scaled_as_the_docstring_says(a, residual, sd):
    def rate(tau):
        t = 1 - tau
        m = t + a * tau
        return ((a - 1) * m * 0.8 + tau * residual) / (m**2 * 0.8 + tau**2 * residual + sd**2 * t * tau)

    factor = np.exp(quad(rate, 0, 1)[0])
    earlier = randn(5, 1)
    x = sample("euler", gaussian_velocity(a, 0.3, 0.8, residual, sd), earlier, Objective("bridge", bridge_sd=sd), 500)
    torch.testing.assert_close(x, factor * earlier + 0.3, atol=5e-3, rtol=5e-3)
    if residual == 0 and sd > 0:
        assert min(a, 1) - 1e-9 <= factor <= max(a, 1) + 1e-9


def test_what_removes_noise_is_refused():
    for sampler in ("ab2", "ddpm", "ddim"):
        with pytest.raises(UsageError, match="use euler"):
            sample(sampler, gaussian_velocity(1, 0, 1, 0, 0), randn(1, 1), Objective("bridge"), 2)


def test_a_bridge_needs_its_start():
    with pytest.raises(ValueError, match="starts at"):
        Objective("bridge").add_noise(randn(1, 2), randn(1, 2), torch.tensor([0.5]))

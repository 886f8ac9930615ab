"""Schedules and objectives against MONAI, diffusers and their own algebra."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fmrisynth.diffusion.objectives import Objective
from fmrisynth.diffusion.samplers import ddim
from fmrisynth.diffusion.schedule import DiffusionSchedule, FlowSchedule
from fmrisynth.errors import UsageError

BETAS = {"beta_start": 0.0015, "beta_end": 0.0195}
MONAI_NAMES = {"linear": "linear_beta", "scaled_linear": "scaled_linear_beta"}


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("curve", ["linear", "scaled_linear"])
def test_noising_equals_monai_and_diffusers(curve):
    monai = pytest.importorskip("monai.networks.schedulers")
    diffusers = pytest.importorskip("diffusers")
    ours = Objective(schedule=curve)
    theirs = [
        monai.DDPMScheduler(num_train_timesteps=1000, schedule=MONAI_NAMES[curve], clip_sample=False, **BETAS),
        diffusers.DDPMScheduler(num_train_timesteps=1000, beta_schedule=curve, clip_sample=False, **BETAS),
    ]
    clean, noise = randn(5, 3, 4, 4, 4), randn(5, 3, 4, 4, 4, seed=1)
    time = torch.tensor([0, 1, 250, 500, 999])
    for scheduler in theirs:
        expected = scheduler.add_noise(clean, noise, time)
        torch.testing.assert_close(ours.add_noise(clean, noise, time.double()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("curve", ["linear", "scaled_linear"])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize("step", [999, 500, 3])
def test_one_ancestral_step_equals_monai_and_diffusers(curve, prediction, step):
    monai = pytest.importorskip("monai.networks.schedulers")
    diffusers = pytest.importorskip("diffusers")
    kind = {"epsilon": "epsilon", "v": "v_prediction"}[prediction]
    theirs = [
        monai.DDPMScheduler(
            num_train_timesteps=1000,
            schedule=MONAI_NAMES[curve],
            prediction_type=kind,
            clip_sample=False,
            **BETAS,
        ),
        diffusers.DDPMScheduler(
            num_train_timesteps=1000, beta_schedule=curve, prediction_type=kind, clip_sample=False, **BETAS
        ),
    ]
    x, answer = randn(1, 3, 4, 4, 4), randn(1, 3, 4, 4, 4, seed=1)
    fresh = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    objective = Objective(prediction=prediction, schedule=curve)
    times = torch.tensor([step, step - 1], dtype=torch.float64)
    ours = ddim(lambda *_: answer, x, objective, times, eta=1.0, draw_noise=lambda: fresh)
    for scheduler in theirs:
        result = scheduler.step(answer, step, x, generator=torch.Generator().manual_seed(5))
        expected = result[0] if isinstance(result, tuple) else result.prev_sample
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_one_ddim_step_equals_monai(prediction):
    monai = pytest.importorskip("monai.networks.schedulers")
    kind = {"epsilon": "epsilon", "v": "v_prediction"}[prediction]
    scheduler = monai.DDIMScheduler(
        num_train_timesteps=1000, schedule="linear_beta", prediction_type=kind, clip_sample=False, **BETAS
    )
    scheduler.set_timesteps(20)  # times 950, 900, ..., 0
    x, answer = randn(1, 3, 4, 4, 4), randn(1, 3, 4, 4, 4, seed=1)
    expected, _ = scheduler.step(answer, 500, x, eta=0.0)
    ours = ddim(lambda *_: answer, x, Objective(prediction=prediction), torch.tensor([500.0, 450.0]).double())
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_flow_noising_and_target_equal_monai():
    monai = pytest.importorskip("monai.networks.schedulers")
    scheduler = monai.RFlowScheduler(num_train_timesteps=1000, use_discrete_timesteps=False)
    clean, noise, time = randn(3, 2, 4, 4, 4), randn(3, 2, 4, 4, 4, seed=1), torch.tensor([0.0, 0.3, 1.0])
    objective = Objective(prediction="flow")
    expected = scheduler.add_noise(clean, noise, time * 1000)
    torch.testing.assert_close(objective.add_noise(clean, noise, time), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(objective.target(clean, noise, time), noise - clean)


@given(
    prediction=st.sampled_from(["epsilon", "v", "flow"]),
    curve=st.sampled_from(["linear", "scaled_linear"]),
    uniform=st.floats(0, 0.999),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_the_target_gives_back_clean_and_noise(prediction, curve, uniform, seed):
    objective = Objective(prediction=prediction, schedule=curve)
    clean, noise = randn(2, 4, seed=seed).double(), randn(2, 4, seed=seed + 1000).double()
    time = objective.draw_time(torch.tensor([uniform, 0.5]))
    noisy = objective.add_noise(clean, noise, time)
    found_clean, found_noise = objective.clean_and_noise(objective.target(clean, noise, time), noisy, time)
    torch.testing.assert_close(found_clean, clean, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found_noise, noise, rtol=1e-7, atol=1e-7)
    assert objective.loss(objective.target(clean, noise, time), clean, noise, time).max() == 0


@pytest.mark.parametrize("curve", ["linear", "scaled_linear"])
def test_diffusion_is_variance_preserving_and_ends_clean(curve):
    schedule = DiffusionSchedule(curve)
    alpha, sigma = schedule.alpha_sigma(torch.linspace(-1, 999, 4001, dtype=torch.float64))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha), rtol=0, atol=1e-12)
    assert alpha[0] == 1
    assert sigma[0] == 0
    assert (alpha.diff() < 0).all()
    assert schedule.times(1000).tolist() == list(range(999, -2, -1))
    assert schedule.times(20)[0] == 999
    assert schedule.times(20)[-1] == -1
    assert len(schedule.times(20)) == 21
    for n_steps in (1, 2, 20, 500, 999):
        assert (schedule.times(n_steps).diff() < 0).all()
        assert (schedule.times(n_steps)[:-1] >= 0).all()


def test_min_snr_weights():
    time = torch.tensor([0.0, 400.0, 999.0])
    epsilon, v = Objective(min_snr_gamma=5.0), Objective(prediction="v", min_snr_gamma=5.0)
    alpha, sigma = epsilon.path.alpha_sigma(time)
    snr = (alpha / sigma) ** 2
    torch.testing.assert_close(epsilon.weight(time), torch.minimum(snr, torch.tensor(5.0)) / snr)
    torch.testing.assert_close(v.weight(time), torch.minimum(snr, torch.tensor(5.0)) / (snr + 1))
    assert Objective().weight(time).tolist() == [1, 1, 1]


def test_training_times_cover_the_schedule():
    uniform = torch.linspace(0, 0.999999, 20001)
    steps = Objective().draw_time(uniform)
    assert steps.min() == 0
    assert steps.max() == 999


@pytest.mark.parametrize("shift", [1.0, 8.0])
def test_a_shift_multiplies_the_noise_to_signal_ratio_in_training_and_sampling(shift):
    even, moved = Objective(prediction="flow"), Objective(prediction="flow", noise_shift=shift)
    uniform = torch.linspace(0.01, 0.99, 99)
    for before, after, factor in (
        (even.draw_time(uniform), moved.draw_time(uniform), shift),
        (even.path.times(10)[1:-1], moved.path.times(10)[1:-1], shift**0.5),
    ):
        torch.testing.assert_close(after / (1 - after), factor * before / (1 - before))
    assert moved.path.times(10)[[0, -1]].tolist() == [1, 0]


def test_unknown_names_and_step_counts_are_refused():
    with pytest.raises(UsageError, match="cosine"):
        DiffusionSchedule("cosine")
    with pytest.raises(UsageError, match="x0"):
        Objective(prediction="x0")
    with pytest.raises(UsageError, match="1 to 1000"):
        DiffusionSchedule().times(1001)
    with pytest.raises(UsageError, match="at least 1"):
        FlowSchedule().times(0)


@pytest.mark.parametrize(
    "given", [{"n_train_steps": 50}, {"beta_end": 0.002}, {"prediction": "v", "n_train_steps": 100}]
)
def test_a_schedule_that_does_not_end_in_noise_is_refused(given):
    """Sampling begins with noise alone: of data with mean 0.7 such a schedule would give samples with mean 0.3."""
    with pytest.raises(UsageError, match=r"of the signal at the last one, expected at most 10%"):
        Objective(**given)
    Objective(schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)  # Stable Diffusion's

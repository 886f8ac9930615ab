"""The condition prior against samples of known Gaussians."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fmrisynth.data.cosines import cosines
from fmrisynth.diffusion.generate import generate_latents
from fmrisynth.diffusion.neighbours import OFFSETS, blend, local_products
from fmrisynth.diffusion.objectives import Objective
from fmrisynth.diffusion.prior import Prior, frequencies_of, symmetric_inverse, symmetric_root
from fmrisynth.diffusion.prior_fit import FittedPrior, MomentAccumulator, add_courses, add_modes
from fmrisynth.diffusion.samplers import sample
from fmrisynth.errors import FmrisynthError

T, C, GRID = 4, 2, (3, 4, 2)
F, P = C * T, C * 24
N_CONDITIONS = 2


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def world():
    """Instances of two conditions that vary in three modes with courses of their own, and unevenly over elements."""
    mean = randn(N_CONDITIONS, F, *GRID, seed=1)
    std = 0.5 + torch.rand(F, *GRID, generator=torch.Generator().manual_seed(2))
    maps = torch.linalg.qr(randn(P, 3, seed=3)).Q.T
    smooth = symmetric_root(torch.exp(-(torch.arange(T)[:, None] - torch.arange(T)).abs() / 3.0))
    n = 4000
    courses = randn(n, 3, T, seed=4) @ smooth * torch.tensor([6.0, 4.0, 3.0])[:, None]
    frames = torch.einsum("nrt,rp->ntp", courses, maps) + randn(n, T, P, seed=5)
    stack = frames.reshape(n, T, C, *GRID).transpose(1, 2).reshape(n, F, *GRID)
    stack = stack * std
    labels = torch.arange(n) % N_CONDITIONS
    return stack + mean[labels], labels


@pytest.fixture(scope="module")
def elementwise(world):
    """The prior before it has modes."""
    stack, labels = world
    return courses_of(stack, labels)


@pytest.fixture(scope="module")
def prior(world, elementwise):
    stack, labels = world
    return add_modes(elementwise, lambda: instances_of(stack, labels), 3, T).prior


def without_modes(prior):
    """The part of a prior that knows single channels and cells only."""
    return replace(prior, mode_gain_HRR=None, link_HACCXYZ=None)


def bare(prior):
    """K and A alone."""
    return replace(
        prior, mean_KFXYZ=None, response_gain_KSS=None, response_spread_KP=None,
        course_root_PHH=torch.eye(T).repeat(P, 1, 1),
    )  # fmt: skip


def instances_of(stack, labels, n_subjects=100):
    """Instances as training reads them: subject by subject."""
    per_subject = -(-len(stack) // n_subjects)
    return ((stack[i], int(labels[i]), i // per_subject) for i in range(len(stack)))


def people(n_subjects, per_subject, seed):
    """Noise of one condition: a pattern of each subject's own, and of each instance."""
    own = randn(n_subjects, 1, F, *GRID, seed=seed) + randn(n_subjects, per_subject, F, *GRID, seed=seed + 1)
    return own.flatten(0, 1), torch.zeros(n_subjects * per_subject, dtype=torch.int64)


def courses_of(stack, labels=None):
    """Prior of one condition, or more, before it has modes."""
    labels = torch.zeros(len(stack), dtype=torch.int64) if labels is None else labels
    moments = MomentAccumulator(int(labels.max()) + 1, (F, *GRID))
    for value, label in zip(stack, labels, strict=True):
        moments.add(value, int(label))
    return add_courses(moments.prior("class_covariance"), lambda: instances_of(stack, labels), T)


def test_whitening_is_inverted(world, prior):
    stack, labels = world
    again = prior.unwhiten(prior.whiten(stack[:20], labels[:20]), labels[:20])
    torch.testing.assert_close(again, stack[:20], rtol=1e-4, atol=1e-4)


def test_white_latents_are_white(world, elementwise, prior):
    stack, labels = world
    white = frequencies_of(prior.whiten(stack, labels), T)
    before = frequencies_of(elementwise.whiten(stack, labels), T)

    def departure(frames):
        covariance = torch.cov(frames.flatten(1).T)
        return float((covariance - torch.eye(len(covariance))).square().mean().sqrt())

    assert white.mean().abs() < 0.02
    assert departure(white) < 0.4 * departure(before)


def test_draws_have_the_covariance_of_the_training_latents(world, prior):
    stack, labels = world
    drawn = prior.unwhiten(randn(len(stack), F, *GRID, seed=9), labels)
    torch.testing.assert_close(drawn.var(0).mean(), stack.var(0).mean(), rtol=0.1, atol=0)
    real, ours = (torch.cov((x - x.mean(0)).flatten(1).T) for x in (stack[labels == 0], drawn[labels == 0]))
    assert torch.corrcoef(torch.stack([real.flatten(), ours.flatten()]))[0, 1] > 0.97
    torch.testing.assert_close(drawn[labels == 1].mean(0), stack[labels == 1].mean(0), atol=0.4, rtol=0)


def test_ranks_that_share_the_reading_find_the_same_prior(world, elementwise, prior):
    stack, labels = world
    totals = {}

    def both():
        for rank in range(2):
            yield from list(instances_of(stack, labels))[rank::2]

    again = add_modes(elementwise, both, 3, T).prior
    for name, tensor in prior.tensors().items():
        other = again.tensors()[name]
        if name == "unasked":  # a space, whatever spans it
            tensor, other = tensor.T @ tensor, other.T @ other
        totals[name] = float((tensor.abs() - other.abs()).abs().max())
    assert max(totals.values()) < 1e-3, totals


@pytest.mark.parametrize(("n_subjects", "error"), [(10, 0.25), (40, 0.12)])
def test_modes_of_whitening_vary_as_much_as_in_subjects_who_were_not_seen(n_subjects, error):
    """Few subjects, each with patterns of their own: components found in them vary too much, and what they leave too little."""
    (seen, labels), (unseen, unseen_labels) = people(n_subjects, 10, seed=11), people(400, 10, seed=21)
    plain = courses_of(seen)
    prior = add_modes(plain, lambda: instances_of(seen, labels, n_subjects), 8, T).for_new_subjects()

    def power(stack, labels):
        courses = frequencies_of(without_modes(prior).whiten(stack, labels), T) @ prior.modes_RP.T
        return courses.square().mean((0, 1))

    ours = power(prior.unwhiten(randn(*unseen.shape, seed=12), unseen_labels), unseen_labels)
    assert (power(seen, labels) / power(unseen, unseen_labels)).mean() > 1.2  # what is to be mended
    ratio = (ours / power(unseen, unseen_labels)).mean()
    assert abs(float(ratio) - 1) < error
    white = prior.whiten(unseen, unseen_labels)
    assert abs(float(white.var()) - float(plain.whiten(unseen, unseen_labels).var())) < 0.1


def test_draws_vary_as_all_training_subjects():
    """Also in patterns that were not sought in them, where new subjects do as well, on average."""
    seen, labels = people(10, 10, seed=11)
    prior = add_modes(courses_of(seen), lambda: instances_of(seen, labels, 10), 8, T).prior
    drawn = prior.unwhiten(randn(4000, F, *GRID, seed=12), torch.zeros(4000, dtype=torch.int64))
    seen, drawn = (frequencies_of(stack - stack.mean(0), T) for stack in (seen, drawn))
    for patterns in (prior.modes_RP.T, torch.linalg.qr(randn(P, 8, seed=13)).Q):
        ratio = (drawn @ patterns).square().mean((0, 1)) / (seen @ patterns).square().mean((0, 1))
        assert abs(float(ratio.log().mean())) < 0.1


def test_a_preconditioned_network_is_not_asked_along_the_modes(prior):
    output, noisy, time_B = randn(3, F, *GRID), randn(3, F, *GRID, seed=1), torch.full((3,), 0.5, dtype=torch.float64)
    objective = Objective(prediction="flow", precondition=True)
    deviation = objective.answer(output, noisy, time_B, prior) - objective.gaussian_prediction(noisy, time_B)
    labels = torch.zeros(3, dtype=torch.int64)
    flat = bare(prior)

    def along(stack):
        return (frequencies_of(flat.unwhiten(stack, labels), T) @ prior.modes_RP.T).square().mean()

    assert along(deviation) < 0.02 * along(output - objective.gaussian_prediction(noisy, time_B))
    lost = frequencies_of(output - deviation, T)  # and little else is missing
    assert (torch.linalg.svdvals(lost.flatten(0, 1))[len(prior.modes_RP) :] < 1e-4).all()
    plain = Objective(prediction="flow")
    assert torch.equal(plain.answer(output, noisy, time_B, prior), output)


@pytest.mark.parametrize(("sampler", "kept"), [("ab2", True), ("heun", True), ("ddpm", False)])
def test_samples_show_their_noise_along_the_modes_whatever_the_network_says(prior, sampler, kept):
    flat = bare(prior)

    def draw(network):
        model = SimpleNamespace(
            network=network, objective={"prediction": "flow", "precondition": True}, labels={"condition": ("a", "b")},
            latent_shape=(C, T, *GRID), latent_mean_C=torch.zeros(C), latent_std_C=torch.ones(C),
            prior_kind=flat.kind, prior_tensors=flat.tensors(),
        )  # fmt: skip
        latents = generate_latents(model, "b", seeds=range(6), sampler=sampler, n_steps=6)
        values = frequencies_of(latents.flatten(1, 2), T)
        return values, values @ flat.modes_RP.T

    class Network(torch.nn.Module):
        def __init__(self, strength):
            super().__init__()
            self.strength = strength

        def forward(self, x, time_B, labels_BA):
            return self.strength * x.roll(1, 1)

    (silent, silent_modes), (loud, loud_modes) = draw(Network(0.0)), draw(Network(0.5))
    assert (loud - silent).std() > 0.1 * silent.std()
    assert torch.allclose(loud_modes, silent_modes, atol=1e-3) == kept


def test_training_latents_are_whitened_as_if_they_had_not_been_seen():
    """Under the prior of all subjects the training latents look whiter than new ones; cross-fitted they do not."""
    n_subjects, per_subject = 30, 8

    (seen, labels), (unseen, unseen_labels) = (
        people(n_subjects, per_subject, seed=31),
        people(300, per_subject, seed=41),
    )
    fitted = add_modes(courses_of(seen), lambda: instances_of(seen, labels, n_subjects), 10, T)

    def power(prior, white):
        return frequencies_of(white, T) @ prior.modes_RP.T

    prior = fitted.for_new_subjects()
    new = power(prior, prior.whiten(unseen, unseen_labels)).square().mean()
    inside = power(prior, prior.whiten(seen, labels)).square().mean()
    crossed = []
    for subject in range(n_subjects):
        prior, own = fitted.for_subject(subject), slice(subject * per_subject, (subject + 1) * per_subject)
        crossed.append(power(prior, prior.whiten(seen[own], labels[own])).square().mean())
    assert float(inside / new) > 1.2
    assert abs(float(torch.stack(crossed).mean() / new) - 1) < 0.12
    again = FittedPrior.from_fold_tensors(fitted.prior, fitted.fold_tensors())
    for subject in range(5):
        assert torch.equal(
            again.for_subject(subject).whiten(seen[:1], labels[:1]),
            fitted.for_subject(subject).whiten(seen[:1], labels[:1]),
        )


def test_one_subject_alone_is_not_shrunk():
    values, labels = randn(60, F, *GRID), torch.zeros(60, dtype=torch.int64)
    plain = courses_of(values)
    fitted = add_modes(plain, lambda: instances_of(values, labels, n_subjects=1), 5, T)
    prior = fitted.prior
    assert fitted.for_subject(0) is prior
    drawn = prior.unwhiten(randn(4000, F, *GRID, seed=1), torch.zeros(4000, dtype=torch.int64))

    def power(stack):
        along = frequencies_of(without_modes(prior).whiten(stack, torch.zeros(len(stack), dtype=torch.int64)), T)
        return (along @ prior.modes_RP.T).square().mean((0, 1))

    torch.testing.assert_close(power(drawn), power(values), rtol=0.1, atol=0)


def test_smooth_and_rough_channels_both_vary_as_they_should():
    """Channel 0 is two modes and little else, channel 1 is white; one level for all that is left would lift one and lower the other."""
    n = 3000
    maps = torch.linalg.qr(randn(24, 2, seed=51)).Q.T
    smooth = torch.einsum("ntr,rp->ntp", 4 * randn(n, T, 2, seed=52), maps) + 0.2 * randn(n, T, 24, seed=53)
    frames = torch.cat([smooth / smooth.std(0), randn(n, T, 24, seed=54)], dim=2)
    stack = frames.reshape(n, T, C, *GRID).transpose(1, 2).reshape(n, F, *GRID)
    labels = torch.zeros(n, dtype=torch.int64)
    prior = add_modes(courses_of(stack), lambda: instances_of(stack, labels), 2, T).prior
    drawn = prior.unwhiten(randn(n, F, *GRID, seed=55), labels)
    ratio = (drawn.var(0) / stack.var(0)).unflatten(0, (C, T)).mean(1)
    assert float((ratio - 1).abs().max()) < 0.1
    rest = frequencies_of(drawn, T) - frequencies_of(stack.mean(0)[None], T)
    outside = rest[..., :24] - (rest[..., :24] @ maps.T) @ maps
    true = smooth / smooth.std(0)
    true_outside = true - (true @ maps.T) @ maps
    assert abs(float(outside.var() / true_outside.var()) - 1) < 0.2


def test_draws_are_as_slow_in_every_cell_as_the_latents():
    """Slow modes weigh more in some elements than in others; what they leave cannot make up for it with one covariance."""
    n = 4000
    slow = symmetric_root(torch.exp(-(torch.arange(T)[:, None] - torch.arange(T)).abs() / 4.0))
    loads = torch.linspace(0, 2, P) * randn(6, P, seed=61).sign()
    frames = torch.einsum("ntr,rp->ntp", torch.einsum("st,ntr->nsr", slow, randn(n, T, 6, seed=62)), loads) / 2
    frames = frames + randn(n, T, P, seed=63)
    stack = frames.reshape(n, T, C, *GRID).transpose(1, 2).reshape(n, F, *GRID)
    labels = torch.zeros(n, dtype=torch.int64)
    courses = courses_of(stack)
    # Half of the modes: the others stay in what is left.
    prior = add_modes(courses, lambda: instances_of(stack, labels), 3, T).prior
    drawn = prior.unwhiten(randn(n, F, *GRID, seed=64), labels)

    def offset(stack):
        return frequencies_of(stack - stack.mean(0), T)[:, 0].square().mean(0)

    ratio = offset(drawn) / offset(stack)
    assert float((ratio.log()).abs().mean()) < 0.04
    assert abs(float(ratio.mean()) - 1) < 0.02


def test_modes_go_together_as_in_the_latents():
    """Slow frames hold the sum of two maps and fast ones their difference: pooled over frames the maps are independent."""
    n = 3000
    maps = torch.linalg.qr(randn(P, 2, seed=91)).Q.T
    turn = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / 2**0.5
    values = torch.cat(  # frequencies, of the sum and of the difference of the maps
        [
            randn(n, T // 2, 2, seed=92) * torch.tensor([4.0, 1.0]),
            randn(n, T // 2, 2, seed=93) * torch.tensor([1.0, 4.0]),
        ],
        1,
    )
    frames = torch.from_numpy(cosines(T)).float().T @ (
        values @ turn * torch.tensor([1.5, 1.0]) @ maps + randn(n, T, P, seed=94)
    )
    stack = frames.reshape(n, T, C, *GRID).transpose(1, 2).reshape(n, F, *GRID)
    labels = torch.zeros(n, dtype=torch.int64)
    prior = add_modes(courses_of(stack), lambda: instances_of(stack, labels), 2, T).prior

    def together(prior):
        drawn = prior.unwhiten(randn(*stack.shape, seed=95), labels)
        values = frequencies_of(drawn, T) @ maps.T
        return torch.stack([torch.corrcoef(values[:, h].T)[0, 1] for h in range(T)])

    true = torch.tensor([1.0, 1.0, -1.0, -1.0]) * (17 - 2) / (17 + 2)
    torch.testing.assert_close(together(prior), true, atol=0.1, rtol=0)
    alone = torch.diag_embed(prior.mode_gain_HRR.square().sum(2).sqrt())
    assert together(replace(prior, mode_gain_HRR=alone)).abs().max() < 0.15


def test_only_the_condition_that_responds_varies_along_its_response():
    """Two conditions with responses of their own, one of varying strength, in the noise of two networks."""
    n = 4000
    response = torch.einsum("kt,kp->ktp", randn(2, T, seed=101), randn(2, P, seed=102))
    labels = torch.arange(n) % 2
    strength = 1 + torch.tensor([0.2, 0.0])[labels] * randn(n, seed=103)
    networks = torch.einsum("ntr,rp->ntp", 1.5 * randn(n, T, 2, seed=104), torch.linalg.qr(randn(P, 2, seed=105)).Q.T)
    frames = strength[:, None, None] * response[labels] + networks + randn(n, T, P, seed=106)
    stack = frames.reshape(n, T, C, *GRID).transpose(1, 2).reshape(n, F, *GRID)
    prior = add_modes(courses_of(stack, labels), lambda: instances_of(stack, labels), 2, T).prior
    changing = frequencies_of(prior.mean_KFXYZ, T)
    changing[:, 0] = 0

    def variance(values):  # condition, response
        along = torch.einsum("nhp,khp->nk", frequencies_of(values, T), changing)
        return torch.stack([along[labels == k].var(0) for k in range(2)])

    def drawn(prior):
        return variance(prior.unwhiten(randn(*stack.shape, seed=107), labels)) / variance(stack)

    assert float((drawn(prior) - 1).abs().max()) < 0.1
    shared = drawn(replace(prior, response_gain_KSS=None))
    assert float(shared[0, 0]) < 0.8
    assert float(shared[1, 0]) > 1.5
    torch.testing.assert_close(prior.unwhiten(prior.whiten(stack, labels), labels), stack, atol=1e-3, rtol=1e-3)


def test_a_condition_varies_most_where_it_responds():
    """Two conditions that respond in cells of their own, each person and cell with an own strength, in the noise of two networks."""
    n = 4000
    course = torch.tensor([[1.0, 2.0, -1.0, -2.0], [3.0, -1.0, -1.0, -1.0]])
    where = torch.stack([torch.arange(P) % 4 == k for k in range(2)]).float()
    labels = torch.arange(n) % 2
    strength = 1 + 0.6 * randn(n, P, seed=111)
    networks = torch.einsum("ntr,rp->ntp", 1.5 * randn(n, T, 2, seed=112), torch.linalg.qr(randn(P, 2, seed=113)).Q.T)
    frames = course[labels][:, :, None] * (strength * where[labels])[:, None] + networks + randn(n, T, P, seed=114)
    stack = frames.reshape(n, T, C, *GRID).transpose(1, 2).reshape(n, F, *GRID)
    prior = add_modes(courses_of(stack, labels), lambda: instances_of(stack, labels), 2, T).prior

    def variance(values):  # condition, element
        values = values.unflatten(1, (C, T)).movedim(2, 1).flatten(2)
        return torch.stack([(course[k] @ values[labels == k]).var(0) / course[k].square().sum() for k in range(2)])

    def drawn(prior):
        return variance(prior.unwhiten(randn(*stack.shape, seed=115), labels)) / variance(stack)

    assert float((drawn(prior) - 1).abs().max()) < 0.2
    assert float((drawn(prior) - 1).mean().abs()) < 0.01
    shared = drawn(replace(prior, response_spread_KP=None))
    assert float(shared[where > 0].mean()) < 0.7
    assert float(shared[where.flip(0) > 0].mean()) > 1.2
    for one in (
        prior,
        add_modes(courses_of(stack, labels), lambda: instances_of(stack, labels), 2, T).for_new_subjects(),
    ):
        torch.testing.assert_close(one.unwhiten(one.whiten(stack, labels), labels), stack, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("precondition", [True, False])
def test_only_a_network_that_is_not_asked_along_the_modes_gets_their_loudness_from_the_prior(prior, precondition):
    def draw(spread):
        model = SimpleNamespace(
            network=lambda x, time_B, labels_BA: torch.zeros_like(x), latent_shape=(C, T, *GRID),
            objective={"prediction": "flow", "precondition": precondition}, labels={"condition": ("a", "b")},
            latent_mean_C=torch.zeros(C), latent_std_C=torch.ones(C), prior_kind=prior.kind,
            prior_tensors=replace(prior, scale_spread_H=torch.full((T,), spread)).tensors(),
        )  # fmt: skip
        model.network.to = lambda device: model.network
        return generate_latents(model, "a", seeds=[1])

    assert torch.allclose(draw(0.0), draw(1.0)) != precondition


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_blocks_differ_in_how_loud_their_modes_are_as_the_latents_do(spread):
    n, n_modes = 4000, 4
    maps = torch.linalg.qr(randn(P, n_modes, seed=121)).Q.T
    loudness = (spread * randn(n, T, 1, seed=122) - spread**2).exp()
    frames = torch.from_numpy(cosines(T)).float().T @ (
        loudness * randn(n, T, n_modes, seed=123) * 3 @ maps + randn(n, T, P, seed=124)
    )
    stack = frames.reshape(n, T, C, *GRID).transpose(1, 2).reshape(n, F, *GRID)
    labels = torch.zeros(n, dtype=torch.int64)
    prior = add_modes(courses_of(stack), lambda: instances_of(stack, labels), n_modes, T).prior
    generator = torch.Generator().manual_seed(125)
    scale_BH = torch.stack([prior.draw_scales(generator) for _ in range(n)])
    drawn = prior.unwhiten(randn(n, F, *GRID, seed=126), labels, scale_BH=scale_BH)

    def along(stack):
        return frequencies_of(stack - stack.mean(0), T) @ maps.T

    def log_spread(stack):
        return along(stack).square().sum(2).log().std(0)

    alike = prior.unwhiten(randn(n, F, *GRID, seed=126), labels)
    torch.testing.assert_close(log_spread(drawn), log_spread(stack), atol=0, rtol=0.12)
    torch.testing.assert_close(along(drawn).var(0).mean(), along(stack).var(0).mean(), atol=0, rtol=0.15)
    if spread:
        assert (log_spread(alike) < 0.8 * log_spread(stack)).all()


def test_inverses_of_many_modes_hold_on_several_threads():
    roots = randn(3, 200, 200)
    matrices, before = roots @ roots.mT / 200 + torch.eye(200), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        inverses = symmetric_inverse(matrices)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(inverses @ matrices, torch.eye(200).expand(3, -1, -1), atol=1e-4, rtol=0)


def test_more_modes_than_the_instances_span_are_harmless():
    values, labels = people(6, 1, seed=96)
    prior = add_modes(courses_of(values), lambda: instances_of(values, labels, 6), 40, T).prior
    torch.testing.assert_close(prior.unwhiten(prior.whiten(values, labels), labels), values, atol=1e-2, rtol=1e-2)
    drawn = prior.unwhiten(randn(500, F, *GRID, seed=97), torch.zeros(500, dtype=torch.int64))
    assert 0.3 < float(drawn.var(0).mean() / values.var(0).mean()) < 3


def linked(link):
    """Instances of noise that is blended with links, beside two modes."""
    n = 3000
    maps = torch.linalg.qr(randn(P, 2, seed=71)).Q.T
    cells = blend(randn(n, T, C, *GRID, seed=73), link)
    frames = torch.from_numpy(cosines(T)).float().T @ cells.flatten(2) + torch.einsum(
        "ntr,rp->ntp", 3 * randn(n, T, 2, seed=72), maps
    )
    return frames.reshape(n, T, C, *GRID).transpose(1, 2).reshape(n, F, *GRID)


def covariances_of_neighbours(stack):
    """Of each cell, per frequency."""
    cells = frequencies_of(stack / stack.std(0), T).reshape(len(stack), T, C, *GRID)
    return local_products(cells, torch.ones(GRID, dtype=torch.bool)) / len(cells)


@pytest.mark.parametrize("everywhere", [True, False])
def test_neighbours_vary_together_as_in_the_latents(everywhere):
    """Slow frames of channel 0 are smooth beyond the modes, channel 1 holds slopes of it; modes alone would draw both as white noise.

    With the same links in all cells, and with links that have the opposite sign in half of them.
    """
    link = torch.zeros(T, len(OFFSETS), C, C, *GRID)
    link[:, :3] = torch.tensor([[0.16, 0.1], [-0.1, 0.0]])[:, :, None, None, None]
    link *= torch.tensor([1.2, 0.8, 0.4, 0.0]).reshape(T, 1, 1, 1, 1, 1, 1)
    if not everywhere:
        link[..., 2:, :] *= -1
    stack = linked(link)
    labels = torch.zeros(len(stack), dtype=torch.int64)
    prior = add_modes(courses_of(stack), lambda: instances_of(stack, labels), 2, T).prior
    drawn = prior.unwhiten(randn(*stack.shape, seed=74), labels)
    without = replace(prior, link_HACCXYZ=None).unwhiten(randn(*stack.shape, seed=74), labels)
    true, ours, theirs = (covariances_of_neighbours(values) for values in (stack, drawn, without))
    assert float((ours - true).square().mean().sqrt()) < 0.026
    assert float((theirs - true).square().mean().sqrt()) > 0.034
    torch.testing.assert_close(drawn.var(0).mean(), stack.var(0).mean(), rtol=0.02, atol=0)


def test_links_that_may_be_chance_are_not_believed():
    stack, labels = people(10, 10, seed=81)
    prior = add_modes(courses_of(stack), lambda: instances_of(stack, labels, 10), 3, T).for_new_subjects()
    assert float(prior.link_HACCXYZ.abs().max()) < 0.1


def test_channels_that_are_copies_of_one_another_stay_so():
    """As in a cell with one voxel of brain."""
    stack, labels = randn(2000, F, *GRID, seed=82), torch.zeros(2000, dtype=torch.int64)
    stack.unflatten(1, (C, T))[:, 1, :, 1, 1, 1] = -2 * stack.unflatten(1, (C, T))[:, 0, :, 1, 1, 1]
    prior = add_modes(courses_of(stack), lambda: instances_of(stack, labels), 2, T).prior
    torch.testing.assert_close(prior.unwhiten(prior.whiten(stack, labels), labels), stack, atol=1e-3, rtol=1e-3)
    drawn = prior.unwhiten(randn(*stack.shape, seed=83), labels).unflatten(1, (C, T))[:, :, :, 1, 1, 1]
    assert torch.corrcoef(drawn.transpose(0, 1).flatten(1))[0, 1] < -0.99


def test_stored_tensors_give_the_prior_back(prior, world):
    stack, labels = world
    again = Prior.from_tensors("class_covariance", prior.tensors())
    torch.testing.assert_close(again.whiten(stack[:3], labels[:3]), prior.whiten(stack[:3], labels[:3]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("link", 0.5),
        ("link", float("nan")),
        ("mode_gain", float("nan")),
        ("response_gain", 1.0),
        ("new", 0.0),
        ("mean", float("inf")),
    ],
)
def test_values_of_a_damaged_file_are_refused(prior, name, value):
    tensors = prior.tensors()
    tensors[name] = torch.full_like(tensors[name], value)
    with pytest.raises(FmrisynthError, match="damaged"):
        Prior.from_tensors("class_covariance", tensors)


def test_cells_that_never_vary_become_noise():
    moments = MomentAccumulator(1, (F, *GRID))
    values = randn(50, F, *GRID)
    values[:, :, 0] = 3.0
    for value in values:
        moments.add(value, 0)
    prior, filler = moments.prior("class_gaussian"), randn(50, F, *GRID, seed=8)
    white = prior.whiten(values, torch.zeros(50, dtype=torch.int64), filler_BFXYZ=filler)
    torch.testing.assert_close(white[:, :, 0], filler[:, :, 0])
    assert float((white[:, :, 1:] - filler[:, :, 1:]).abs().mean()) > 0.5
    again = prior.unwhiten(white, torch.zeros(50, dtype=torch.int64))
    torch.testing.assert_close(again[:, :, 1:], values[:, :, 1:], rtol=1e-4, atol=1e-4)
    assert float((again[:, :, 0] - 3.0).abs().mean()) < 0.1


def test_courses_give_every_cell_its_own_covariance_over_time():
    """Half of the cells are slow, half are white: effects along a slow regressor vary accordingly, in the data and in draws."""
    n = 4000
    slow = symmetric_root(torch.exp(-(torch.arange(T)[:, None] - torch.arange(T)).abs() / 3.0))
    white = randn(n, C, T, *GRID)
    stack = torch.where(
        (torch.arange(GRID[0]) % 2 == 0)[:, None, None], torch.einsum("st,nctxyz->ncsxyz", slow, white), white
    ).flatten(1, 2)
    stack[:, :, 0, 0] = 0.0
    labels = torch.zeros(n, dtype=torch.int64)

    def instances():
        return instances_of(stack, labels)

    moments = MomentAccumulator(1, (F, *GRID))
    for value in stack:
        moments.add(value, 0)
    plain = moments.prior("class_gaussian")
    prior = add_modes(courses_of(stack), instances, 2, T).prior
    torch.testing.assert_close(prior.unwhiten(prior.whiten(stack, labels), labels), stack, atol=1e-4, rtol=1e-3)

    def effect_variance(values):
        return values.unflatten(1, (C, T)).mean(2).var(0)

    noise = randn(n, F, *GRID, seed=7)
    real, ours, old = (
        effect_variance(values) for values in (stack, prior.unwhiten(noise, labels), plain.unwhiten(noise, labels))
    )
    keep = real > 0
    torch.testing.assert_close(ours[keep], real[keep], rtol=0.15, atol=0)
    assert (old[keep] / real[keep]).std() > 0.3  # white noise is right for half of the cells
    again = Prior.from_tensors("class_covariance", prior.tensors())
    torch.testing.assert_close(again.whiten(stack[:3], labels[:3]), prior.whiten(stack[:3], labels[:3]))


@pytest.mark.parametrize("prediction", ["epsilon", "v", "flow"])
def test_gaussian_prediction_is_the_regression_of_the_target(prediction):
    objective = Objective(prediction=prediction)
    clean, noise = randn(20_000, 4), randn(20_000, 4, seed=1)
    for share in (0.05, 0.4, 0.8):
        time = objective.draw_time(torch.full((20_000,), share, dtype=torch.float64))
        noisy = objective.add_noise(clean, noise, time)
        target, answer = objective.target(clean, noise, time), objective.gaussian_prediction(noisy, time)
        slope = float((target * noisy).sum() / noisy.square().sum())
        torch.testing.assert_close(answer, slope * noisy, atol=0.06, rtol=0)


@pytest.mark.parametrize(
    ("prediction", "sampler"),
    [("flow", "ab2"), ("epsilon", "ab2"), ("v", "ab2"), ("flow", "heun"), ("flow", "dpmpp2m"), ("epsilon", "dpmpp2m")],
)
def test_a_silent_preconditioned_network_draws_from_the_prior(prediction, sampler):
    objective = Objective(prediction=prediction, precondition=True)
    start = randn(3, 5000)

    def denoise(x, time_B):
        return objective.answer(torch.zeros_like(x), x, time_B)

    end = sample(sampler, denoise, start, objective, 20)
    assert float(end.std()) == pytest.approx(1, abs=0.03)
    if sampler == "ab2":  # in any number of steps, and nothing moves
        torch.testing.assert_close(end, start, atol=1e-4, rtol=0)
        torch.testing.assert_close(sample(sampler, denoise, start, objective, 2), start, atol=1e-4, rtol=0)
    plain = Objective(prediction=prediction)
    torch.testing.assert_close(plain.answer(start, start, torch.full((3,), 0.5)), start)

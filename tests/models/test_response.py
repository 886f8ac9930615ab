"""What the response to events does whatever it has learned."""

from __future__ import annotations

import pytest
import torch

from fmrisynth.config.train import EventTelling
from fmrisynth.models.response import EventResponse
from fmrisynth.models.whitening import Whitening

C, T, HISTORY, D, WIDTH, COND = 2, 4, 3, 3, 6, 5
GRID = (2, 3, 4)
TELLING = EventTelling(window_frames=T, history_frames=HISTORY, grid=GRID)


def response(whitening: Whitening | None = None) -> EventResponse:
    torch.manual_seed(0)
    return EventResponse(WIDTH, COND, C, D, TELLING, whitening)


@pytest.fixture
def trained() -> EventResponse:
    network = response()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return network


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(1)
    h_BWXYZ = torch.randn(2, WIDTH, *GRID, generator=draws)
    return h_BWXYZ, torch.randn(2, COND, generator=draws), torch.randn(2, HISTORY + T, D, generator=draws)


def test_nothing_is_answered_at_first_and_everything_learns(inputs):
    network = response()
    assert network(*inputs).eq(0).all()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(2):  # maps at first; courses and scale as soon as there are maps
        optimiser.zero_grad()
        (network(*inputs) - 1).square().mean().backward()
        optimiser.step()
    assert all(value.grad.any() for value in network.parameters())


def test_an_event_does_the_same_in_every_frame(trained, inputs):
    h_BWXYZ, cond_BE, events_BSD = inputs
    later_BSD = events_BSD.roll(1, dims=1)
    one, other = (trained(h_BWXYZ, cond_BE, told).unflatten(1, (C, T)) for told in (events_BSD, later_BSD))
    torch.testing.assert_close(other[:, :, 1:], one[:, :, :-1])


def test_events_add_up(trained, inputs):
    h_BWXYZ, cond_BE, events_BSD = inputs
    part_BSD = events_BSD.clamp_min(0)
    parts = trained(h_BWXYZ, cond_BE, part_BSD) + trained(h_BWXYZ, cond_BE, events_BSD - part_BSD)
    torch.testing.assert_close(parts, trained(h_BWXYZ, cond_BE, events_BSD), rtol=1e-4, atol=1e-4)


def test_what_comes_later_does_not_matter(trained, inputs):
    h_BWXYZ, cond_BE, events_BSD = inputs
    changed_BSD = events_BSD.clone()
    changed_BSD[:, HISTORY + 2 :] += 1
    one, other = (trained(h_BWXYZ, cond_BE, told).unflatten(1, (C, T)) for told in (events_BSD, changed_BSD))
    assert torch.equal(one[:, :, :2], other[:, :, :2])
    assert not torch.allclose(one[:, :, 2:], other[:, :, 2:])


def test_a_whitened_response_is_the_response_whitened(trained, inputs):
    mix_FF = torch.randn(C * T, C * T, generator=torch.Generator().manual_seed(2))
    whitening = Whitening(torch.ones(C, *GRID), mix_FF)
    whitened = response(whitening)
    whitened.load_state_dict(trained.state_dict())
    torch.testing.assert_close(whitened(*inputs), whitening.apply(trained(*inputs)), rtol=1e-4, atol=1e-4)

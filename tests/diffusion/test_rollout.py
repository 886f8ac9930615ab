"""Whole runs from windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fmrisynth.config.train import EventTelling, HybridConfig
from fmrisynth.diffusion.generate import Drawing
from fmrisynth.diffusion.rollout import past_channels, roll_out
from fmrisynth.models.build import build_denoiser

from .test_generate import make_model

C, T, GRID = 2, 3, (4, 4, 8)
TELLING = EventTelling(window_frames=T, history_frames=2, past_frames=2, past_channels=2 * C + 1, grid=GRID)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = HybridConfig(base_ch=16, num_heads=2, encoder_blocks=(1, 1), decoder_blocks=(1, 1), bottleneck_blocks=1)
    network = build_denoiser(config, C * T, [2], events=TELLING).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return make_model("flow", network, labels={"condition": ("a", "b")}, latent_shape=(C, T, *GRID))


def run_of(model, on_BTK, seeds, guidance=1.0):
    drawing = Drawing(
        model, torch.tensor([0]), sampler="ab2", n_steps=3, guidance=guidance, guidance_interval=None, eta=0.0,
        device=torch.device("cpu"),
    )  # fmt: skip
    return torch.cat(list(roll_out(drawing, TELLING, np.asarray(on_BTK, np.float32), seeds)), dim=2)


def test_a_run_has_its_length_and_its_beginning_does_not_depend_on_it(model, rng):
    on_TK = rng.random((11, 2))
    long = run_of(model, [on_TK], [7])
    assert long.shape == (1, C, 11, *GRID)
    short = run_of(model, [on_TK[:7]], [7])  # its last window is cut
    assert torch.equal(short[:, :, :6], long[:, :, :6])
    assert not torch.equal(run_of(model, [on_TK], [8]), long)


def test_events_change_their_window_and_what_follows_only(model, rng):
    on_TK = rng.random((12, 2))
    other_TK = on_TK.copy()
    other_TK[6, 0] += 1
    one, other = run_of(model, [on_TK], [7]), run_of(model, [other_TK], [7])
    assert torch.equal(one[:, :, :6], other[:, :, :6])
    assert not torch.allclose(one[:, :, 6:9], other[:, :, 6:9])
    assert not torch.allclose(one[:, :, 9:], other[:, :, 9:])
    # Without guidance nobody hears them.
    assert torch.equal(run_of(model, [on_TK], [7], guidance=0.0), run_of(model, [other_TK], [7], guidance=0.0))


def test_strength_is_in_units_of_the_training_data(model):
    drawing = Drawing(
        model, torch.tensor([0]), sampler="ab2", n_steps=3, guidance=1.0, guidance_interval=None, eta=0.0,
        device=torch.device("cpu"),
    )  # fmt: skip
    stack = torch.randn(2, C * T, *GRID, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 3.0]).view(
        2, 1, 1, 1, 1
    )
    latents = drawing.raw(drawing.standardised(stack))
    torch.testing.assert_close(drawing.strength(latents), torch.tensor([1.0, 3.0]), rtol=0.05, atol=0)


def test_a_window_sees_the_one_before(model):
    quiet = np.zeros((6, 2))
    seen = run_of(model, [quiet], [7])
    blind = EventTelling(
        **(TELLING.model_dump() | {"past_frames": 4, "past_channels": 2 * C + 1})
    )  # never enough of them
    drawing = Drawing(
        model, torch.tensor([0]), sampler="ab2", n_steps=3, guidance=1.0, guidance_interval=None, eta=0.0,
        device=torch.device("cpu"),
    )  # fmt: skip
    unseen = torch.cat(list(roll_out(drawing, blind, np.zeros((1, 6, 2), np.float32), [7])), dim=2)
    assert torch.equal(seen[:, :, :3], unseen[:, :, :3])
    assert not torch.allclose(seen[:, :, 3:], unseen[:, :, 3:])


def test_what_is_shown_of_the_past():
    brain = torch.ones(GRID, dtype=torch.bool)
    brain[0] = False
    past = torch.randn(C, 2, *GRID)
    shown = past_channels(past, TELLING, brain, torch.full((C, *GRID), 2.0))
    assert torch.equal(shown[:-1, 1:], past.flatten(0, 1)[:, 1:] / 2)
    assert shown[-1, 1:].eq(1).all()
    assert shown[:, 0].eq(0).all()
    assert past_channels(None, TELLING, brain, None).eq(0).all()

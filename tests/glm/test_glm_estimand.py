"""What a window's effect estimates, against noise-free signals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nilearn.glm.first_level import compute_regressor

from fmrisynth.config.glm import GlmConfig
from fmrisynth.data.blocks import Block
from fmrisynth.glm.design import window_design
from fmrisynth.glm.estimand import Event, describe, window_weights

BLOCK = Block(Path(), "01", "language_story", Path("x_bold.nii.gz"), 0.0, 27.0, 1.44, 12)


def test_a_block_alone_estimates_itself():
    assert window_weights(BLOCK, [Event("language_story", 0.0, 27.0)], GlmConfig()) == {
        "language_story": pytest.approx(1.0, abs=1e-6)
    }


def test_weights_are_the_effect_of_the_noise_free_signal():
    """Fit the sum of both conditions' responses and compare with the weighted sum of their sizes."""
    events = [Event("language_math", -27.0, 27.0), Event("language_story", 0.0, 27.0)]
    weights = window_weights(BLOCK, events, GlmConfig())
    frames = np.arange(12) * 1.44
    sizes = {"language_math": 2.0, "language_story": 3.0}
    signal = sum(
        sizes[e.condition]
        * compute_regressor(np.array([[e.onset_s], [e.duration_s], [1.0]]), "spm", frames, min_onset=-40)[0][:, 0]
        for e in events
    )
    effect = window_design(0.0, 27.0, 12, 1.44).pinv_PT[0] @ signal
    assert effect == pytest.approx(sum(weights[c] * sizes[c] for c in sizes), abs=2e-2)
    assert weights["language_math"] == pytest.approx(-1.0, abs=0.01)  # math decays as story rises


def test_a_pause_between_blocks_weakens_what_came_before():
    weights = [
        window_weights(BLOCK, [Event("a", -18.0 - pause, 18.0), Event("b", 0.0, 18.0)], GlmConfig())["a"]
        for pause in (0.0, 3.0, 8.0)
    ]
    assert weights == sorted(weights)
    assert weights[0] < weights[1] < -0.3
    assert window_weights(BLOCK, [Event("a", -90.0, 18.0), Event("b", 0.0, 18.0)], GlmConfig()).get("a", 0.0) == 0.0


def test_a_formula_names_what_counts():
    assert describe({"a": 1.0, "b": -0.873, "c": 0.004}) == "a - 0.87 b"
    assert describe({"a": 0.8}) == "0.80 a"

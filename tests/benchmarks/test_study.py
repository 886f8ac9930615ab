"""The study's short cuts give what the commands give; its configuration is one that the stages accept."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from fmrisynth.config.glm import GlmConfig
from fmrisynth.config.sample import SampleConfig
from fmrisynth.config.train import TrainConfig
from fmrisynth.data.blocks import common_grid, read_blocks
from fmrisynth.data.normalisation import normalise
from fmrisynth.glm.effects import fit_one
from fmrisynth.glm.windows import common_mask, iterate_windows
from fmrisynth.sample import sample_dataset
from fmrisynth.sample.drawer import load_model

STUDY = Path(__file__).parents[2] / "benchmarks" / "study"


@pytest.fixture(scope="module", autouse=True)
def study_on_the_path():
    sys.path.insert(0, str(STUDY))
    yield
    sys.path.remove(str(STUDY))


def test_effects_of_samples_equal_those_of_written_samples(tmp_path):
    from score import sample_effects

    ask = SampleConfig(
        conditions=("motor_rh",),
        n=2,
        seed=5,
        steps=2,
        observation_noise=False,
        preview=False,
        device="cpu",
        anatomy=Path("mean"),
    )
    sample_dataset(tmp_path / "out", ask)
    blocks = read_blocks(tmp_path / "out")
    config, grid = GlmConfig(), common_grid(blocks)
    mask_XYZ = common_mask(blocks, grid, config.min_reference_fraction)
    written = np.stack([fit_one(w, config).effect for w in iterate_windows(blocks, mask_XYZ, grid, config)])
    model, tokenizer = load_model(None)
    direct = sample_effects(
        model, tokenizer, "motor_rh", mask_XYZ, n=2, seed=5, sampler="ab2", steps=2, guidance=1.0, observation_noise=False
    )  # fmt: skip
    # files hold 16-bit integers
    np.testing.assert_allclose(direct, written, atol=0.02)
    assert np.corrcoef(direct[0], written[0])[0, 1] > 0.9999


def test_observation_noise_has_the_variance_that_the_weights_give_it():
    from score import _weighted

    from fmrisynth.models.tokenizers.noise import ObservationNoise

    correlation = 0.5 ** np.abs(np.subtract.outer(np.arange(6), np.arange(6)))
    std_FXYZ = np.linspace(1.2, 0.4, 6, dtype=np.float32)[:, None, None, None] * np.ones((16, 16, 16), np.float32)
    noise = ObservationNoise(std_FXYZ, correlation, np.full((6, 3), 0.3))
    weights = np.array([-1.0, -0.5, 0.2, 0.8, 0.4, 0.1])
    rng = np.random.default_rng(0)
    whole = np.stack([noise.draw(rng) @ weights for _ in range(20)])
    short = np.stack([_weighted(noise, weights).draw(rng)[..., 0] for _ in range(20)])
    assert short.std() == pytest.approx(whole.std(), rel=0.02)


@pytest.mark.parametrize("kind", ["dynamics", "global"])
def test_percent_per_unit_undoes_the_normalisation(kind):
    from types import SimpleNamespace

    from score import percent_per_unit

    rng = np.random.default_rng(0)
    mask = np.zeros((6, 6, 6), bool)
    mask[1:5, 1:5, 1:5] = True
    reference = np.where(mask, rng.uniform(8000, 12000, mask.shape), 0).astype(np.float32)
    bold = reference[..., None] * (1 + 0.01 * rng.normal(size=(*mask.shape, 3)).astype(np.float32))
    values = normalise(bold, reference, mask, kind)
    tokenizer = SimpleNamespace(info=SimpleNamespace(mask_XYZ=mask, reference_XYZ=reference, normalisation=kind))
    percent = 100 * (bold[mask] / reference[mask][:, None] - 1)
    rise = (values[mask] - values[mask][:, :1]) * percent_per_unit(tokenizer)[mask][:, None]
    np.testing.assert_allclose(rise, percent - percent[:, :1], atol=2e-3)


@pytest.mark.parametrize("name", ["study", "recipe"])
def test_every_arm_is_a_valid_training(name):
    from run import jobs

    study = yaml.safe_load((STUDY / f"{name}.yaml").read_text())
    found = list(jobs(study, None))
    assert len({job.key for job in found}) == len(found)
    for job in found:
        settings = {key: v for key, v in job.settings.items() if key not in ("sampling", "tokenize", "n_subjects")}
        config = TrainConfig(**settings, seed=job.seed)
        assert max(job.score_at) <= config.steps
        assert all(step % config.checkpoint_every == 0 for step in job.score_at)


def test_settings_are_merged_and_another_kind_of_model_replaces_the_whole():
    from run import merged

    assert merged({"model": {"kind": "a", "x": 1}}, {"model": {"kind": "b"}}) == {"model": {"kind": "b"}}
    assert merged({"model": {"kind": "a", "x": 1}}, {"model": {"y": 2}}) == {"model": {"kind": "a", "x": 1, "y": 2}}


def test_page_says_what_the_results_say(tmp_path):
    from page import write_page

    study = yaml.safe_load((STUDY / "study.yaml").read_text())
    results = tmp_path / "results"
    results.mkdir()
    ceiling = {"corr": 0.79, "rsa": 0.98, "top1": 1.0, "top1_samples": 0.75, "effect_variance_ratio": 1.0}
    (results / "ceilings.json").write_text(json.dumps({key: [value] * 5 for key, value in ceiling.items()}))
    for arm, gain in (("hybrid", 0.0), ("all CNN", -0.2), ("MONAI U-Net", 0.1)):
        for seed in (1, 2, 3):
            scores = {
                str(step): ceiling | {"corr": corr + gain + 0.01 * seed, "loss": 1.3, "cpu_hours": step / 6000}
                for step, corr in ((600, 0.5), (4200, 0.7))
            }
            content = {"table": "backbones", "arm": arm, "seed": seed, "parameters": 4e5, "scores": scores}
            (results / f"{arm}-seed{seed}.json").write_text(json.dumps(content))
    (tmp_path / "reading.md").write_text("Five sentences.\n")
    write_page(tmp_path / "study.md", study, results, tmp_path / "reading.md")
    text = (tmp_path / "study.md").read_text()
    assert text.startswith("# The study\n\nFive sentences.\n")
    assert "| the hybrid beats a pure CNN | hybrid | all CNN | 3 | 0.200 | holds |" in text
    assert "| the hybrid beats the MONAI U-Net | hybrid | MONAI U-Net | 3 | -0.100 | does not hold |" in text
    assert "| all CNN | 0.40 | 600 | 6 | 3 | 0.32 [0.31, 0.33] |" in text
    # Corr 0.711 is reached between steps 600 (6 minutes) and 4200 (42): never with the CNN, by two of three hybrids, soonest with the U-Net
    assert text.count("| – |\n") == 1
    assert "| 42 | 3 | 0.72 [0.71, 0.73] | 0.98 | 1.00 | 0.75 | 1.00 | 1.300 | 39, 1 of 3 not |" in text
    assert "have not been made yet" in text
    assert (tmp_path / "figures" / "study_curves.png").stat().st_size > 5000

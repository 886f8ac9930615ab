"""The trainer: it learns, resumes to the last bit, and refuses what would break a run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fmrisynth.config.load import dump_yaml, load_config
from fmrisynth.config.train import TrainConfig
from fmrisynth.diffusion.generate import generate_latents
from fmrisynth.diffusion.objectives import Objective
from fmrisynth.errors import FmrisynthError, UsageError
from fmrisynth.models.checkpoint import find_model_dir, list_checkpoints, load_denoiser
from fmrisynth.models.distributed import World
from fmrisynth.train import train_denoiser
from fmrisynth.train.dataset import TrainingLatents
from fmrisynth.train.moments import ClassMoments, class_moments
from fmrisynth.train.runlog import read_log

RUN = """
import sys
from pathlib import Path
from fmrisynth.config.load import load_config
from fmrisynth.config.train import TrainConfig
from fmrisynth.models.distributed import World
from fmrisynth.train import train_denoiser
from fmrisynth.train.dataset import TrainingLatents
from fmrisynth.train.moments import ClassMoments, class_moments
latents, out, config = map(Path, sys.argv[1:])
train_denoiser(latents, out, load_config(TrainConfig, "train", file=config))
"""


def losses(out, kind="train"):
    return {r["step"]: r["loss"] for r in read_log(out / "log.jsonl") if r["kind"] == kind}


def same_weights(a, b):
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        left, right = load_file(a / name), load_file(b / name)
        assert left.keys() == right.keys()
        for key in left:
            assert torch.equal(left[key], right[key]), (name, key)


def start(latents, out, config, path):
    path.write_text(dump_yaml(config))
    command = [sys.executable, "-c", RUN, str(latents), str(out), str(path)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True)


def test_output_holds_all_that_sampling_needs(latents, tmp_path, make_config):
    summary = train_denoiser(latents, tmp_path / "out", make_config(sample_every=6))
    assert not summary.failed
    assert "Finished 6 steps" in summary.lines[0]
    loaded = load_denoiser(tmp_path / "out")
    assert loaded.step == 6
    assert loaded.conditions == ("emotion_fear", "gambling_loss", "motor_rh")
    assert loaded.latent_shape == (2, 3, 4, 4, 4)
    assert loaded.network.brain_XYZ.sum() == 3 * 4 * 4
    assert loaded.tokenizer == tmp_path / "out" / "tokenizer"
    assert load_denoiser(tmp_path / "out" / "best").tokenizer == tmp_path / "out" / "tokenizer"
    records = read_log(tmp_path / "out" / "log.jsonl")
    assert {record["kind"] for record in records} == {"train", "val", "sample"}
    assert next(r for r in records if r["kind"] == "sample").keys() >= {"effect_r", "std_ratio"}
    assert next(r for r in records if r["kind"] == "val").keys() >= {
        "loss",
        "loss_by_noise",
        "condition_gain",
        "condition_gain_share",
    }
    assert len(list_checkpoints(tmp_path / "out")) == 3
    assert not list((tmp_path / "out").rglob("*.pt"))
    again = train_denoiser(latents, tmp_path / "out", make_config(sample_every=6))
    assert "already complete" in again.lines[0]


@pytest.mark.parametrize("log_every", [1, 4])
def test_resumed_run_equals_the_uninterrupted_one(latents, tmp_path, make_config, log_every):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_denoiser(latents, whole, make_config(steps=7, log_every=log_every))
    for steps in (2, 5, 7):
        train_denoiser(latents, parts, make_config(steps=steps, log_every=log_every))
    resumed = losses(parts)
    assert all(resumed[step] == loss for step, loss in losses(whole).items())
    assert losses(whole, "val")[6] == losses(parts, "val")[6]
    same_weights(find_model_dir(whole), find_model_dir(parts))


def test_whitened_training_resumes_and_samples_in_the_tokenizers_units(latents, tmp_path, make_config):
    for shard in latents.glob("*.safetensors"):  # one channel of one cell varies ten times as much
        stored = load_file(shard)["latents"]
        stored[:, 0, :, 1, 1, 1] *= 10
        save_file({"latents": stored}, shard)
    settings = {"whiten": True, "objective.precondition": True, "sample_every": 2}
    overrides = [f"{key}={value}" for key, value in settings.items()]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_denoiser(latents, whole, make_config(*overrides, steps=4))
    for steps in (2, 4):
        train_denoiser(latents, parts, make_config(*overrides, steps=steps))
    same_weights(find_model_dir(whole), find_model_dir(parts))
    model = load_denoiser(whole)
    drawn = generate_latents(model, "gambling_loss", seeds=range(30), n_steps=6)
    preview = load_file(whole / "samples" / "step-00000004.safetensors")["gambling_loss"]
    ratio_T = drawn[:, 0].std(0)[:, 1, 1, 1] / drawn[:, 0].std(0)[:, :3].mean()
    assert float(ratio_T.mean()) > 5
    assert preview.shape[1:] == drawn.shape[1:]
    assert float(preview[:, 0, :, 1, 1, 1].abs().mean()) > 3 * float(preview[:, 0, :, :3].abs().mean())
    # Half of it, or another shape, is refused like any weights that do not fit.
    weights = load_file(find_model_dir(whole) / "ema.safetensors")
    broken = {name: tensor for name, tensor in weights.items() if name != "whitening.mix_FF"}
    save_file(broken, find_model_dir(whole) / "ema.safetensors")
    with pytest.raises(FmrisynthError, match=r"whitening\.mix_FF"):
        load_denoiser(whole)


@pytest.mark.slow
def test_sigkill_at_any_moment_costs_nothing(latents, tmp_path, make_config):
    config = make_config(steps=40, checkpoint_every=3, keep_last=2, val_every=10, sample_every=15)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train_denoiser(latents, whole, config)
    for n_lines in (4, 13, 25):  # kill once the log has come so far, wherever the process then is
        process = start(latents, killed, config, tmp_path / "config.yaml")
        log = killed / "log.jsonl"
        while process.poll() is None and not (log.is_file() and log.read_text().count("\n") >= n_lines):
            time.sleep(0.002)
        process.kill()
        process.communicate()
    train_denoiser(latents, killed, config)
    assert losses(killed) == losses(whole)
    assert losses(killed, "val") == losses(whole, "val")
    same_weights(find_model_dir(whole), find_model_dir(killed))
    assert not list(killed.rglob("*.part"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_leaves_a_checkpoint(latents, tmp_path, make_config, number):
    out = tmp_path / "out"

    def send_when_training():
        while not losses(out):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send_when_training)
    sender.start()
    summary = train_denoiser(latents, out, make_config(steps=100_000, checkpoint_every=100_000))
    sender.join()
    assert "a signal asked to stop" in summary.lines[0]
    assert load_denoiser(out).step == max(losses(out)) < 100_000


def test_time_budget_leaves_a_checkpoint(latents, tmp_path, make_config):
    config = make_config(steps=100_000, checkpoint_every=100_000, max_hours=0.5 / 3600)
    summary = train_denoiser(latents, tmp_path / "out", config)
    assert "time budget" in summary.lines[0]
    assert load_denoiser(tmp_path / "out").step < 100_000


def test_changed_settings_are_refused_by_name(latents, tmp_path, make_config):
    out = tmp_path / "out"
    train_denoiser(latents, out, make_config(steps=2))
    changed = make_config("optimiser.learning_rate=0.5", "model.base_ch=16", steps=4)
    with pytest.raises(FmrisynthError, match=r"model\.base_ch: was 8, now 16; optimiser\.learning_rate: was 0\.001"):
        train_denoiser(latents, out, changed)
    train_denoiser(latents, out, make_config(steps=4, keep_last=1, max_hours=1.0))
    index = next(latents.glob("*.tsv"))
    index.write_text(index.read_text().replace("gambling_loss", "motor_rh"))
    with pytest.raises(FmrisynthError, match="other latents"):
        train_denoiser(latents, out, make_config(steps=6))


def test_a_run_of_a_version_without_some_setting_continues_with_its_default(latents, tmp_path, make_config):
    out = tmp_path / "out"
    train_denoiser(latents, out, make_config(steps=2))
    state_file = out / "checkpoints" / "step-00000002" / "state.json"
    state = json.loads(state_file.read_text())
    del state["config"]["objective"]["noise_shift"]
    state_file.write_text(json.dumps(state))
    with pytest.raises(FmrisynthError, match=r"objective\.noise_shift: was 1\.0, now 8\.0"):
        train_denoiser(latents, out, make_config("objective.noise_shift=8", steps=4))
    train_denoiser(latents, out, make_config(steps=4))


def test_non_finite_loss_names_step_batch_and_checkpoint(latents, tmp_path, make_config, monkeypatch):
    out = tmp_path / "out"
    train_denoiser(latents, out, make_config(steps=2))
    read = TrainingLatents.read
    monkeypatch.setattr(TrainingLatents, "read", lambda self, instance: read(self, instance) * float("nan"))
    with pytest.raises(FmrisynthError, match=r"Step 3: .*sub-\d+ row \d.*step-00000002"):
        train_denoiser(latents, out, make_config(steps=4))
    assert load_denoiser(out).step == 2


def test_latents_without_statistics_are_refused(latents, tmp_path, make_config):
    (latents / "tokenizer" / "tokenizer.json").write_text(json.dumps({"latent_mean": [0.0, 0.0]}))
    with pytest.raises(FmrisynthError, match="latent mean and standard deviation"):
        train_denoiser(latents, tmp_path / "out", make_config())


def test_other_unusable_input(latents, tmp_path, make_config):
    with pytest.raises(FmrisynthError, match="fmrisynth tokenize"):
        train_denoiser(tmp_path, tmp_path / "out", make_config())
    with pytest.raises(FmrisynthError, match="'sex' has no value"):
        train_denoiser(latents, tmp_path / "out", make_config("conditioning.attributes={sex: 0.1}"))
    with pytest.raises(UsageError, match="U-Net"):
        load_config(TrainConfig, "train", preset="unet-41m", overrides=["conditioning.attributes={sex: 0.1}"])


def test_accumulation_changes_nothing_but_rounding(latents, tmp_path, make_config):
    train_denoiser(latents, tmp_path / "one", make_config())
    train_denoiser(latents, tmp_path / "two", make_config(micro_batch_size=1))
    for step, loss in losses(tmp_path / "one").items():
        assert losses(tmp_path / "two")[step] == pytest.approx(loss, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_two_ranks_give_the_loss_curve_of_one(latents, tmp_path, make_config, engine):
    config = make_config(distributed=engine, checkpoint_every=3)
    one, two = tmp_path / "one", tmp_path / "two"
    train_denoiser(latents, one, config)
    (tmp_path / "config.yaml").write_text(dump_yaml(config))
    (tmp_path / "run.py").write_text(RUN)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    subprocess.run(
        [*launcher, tmp_path / "run.py", latents, two, tmp_path / "config.yaml"],
        check=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
    )
    assert losses(two).keys() == losses(one).keys()
    for kind in ("train", "val"):
        for step, loss in losses(one, kind).items():
            assert losses(two, kind)[step] == pytest.approx(loss, rel=1e-5)
    shutil.rmtree(two / "checkpoints" / "step-00000006")  # a checkpoint of two ranks continues on one
    train_denoiser(latents, two, config)
    for step, loss in losses(one).items():
        assert losses(two)[step] == pytest.approx(loss, rel=1e-5)


def test_the_unet_baseline_goes_through_the_same_stage(latents, tmp_path):
    overrides = [
        "model={kind: unet, num_channels: [8, 8], num_head_channels: [0, 8], attention_levels: [false, true], "
        "norm_num_groups: 4}"
    ]
    flags = {"steps": 3, "batch_size": 4, "log_every": 1, "objective.prediction": "v"}
    train_denoiser(latents, tmp_path / "out", load_config(TrainConfig, "train", overrides=overrides, flags=flags))
    loaded = load_denoiser(tmp_path / "out")
    drawn = generate_latents(loaded, "motor_rh", seeds=[1], n_steps=2)
    assert drawn.shape == (1, 2, 3, 4, 4, 4)
    assert drawn.isfinite().all()


def test_signal_handlers_are_put_back_and_threads_end(latents, tmp_path, make_config):
    before, n_threads = signal.getsignal(signal.SIGTERM), threading.active_count()
    train_denoiser(latents, tmp_path / "out", make_config())
    assert signal.getsignal(signal.SIGTERM) is before
    assert threading.active_count() <= n_threads


@pytest.mark.slow
def test_eight_instances_are_learnt_by_heart(make_latents, tmp_path, make_config):
    latents = make_latents(tmp_path / "latents", blocks_per_condition=1)
    left = 8
    for index in sorted(latents.glob("*.tsv")):  # the other training instances move to the test split
        lines = [line.split("\t") for line in index.read_text().splitlines()]
        for line in lines[1:]:
            if line[2] == "train":
                line[2], left = ("train" if left > 0 else "test"), left - 1
        index.write_text("".join("\t".join(line) + "\n" for line in lines))
    overrides = ["objective.prediction=epsilon", "model.base_ch=32", "model.num_heads=4"]
    overrides += ["optimiser.learning_rate=2e-3", "optimiser.decay=cosine", "conditioning.dropout=0"]
    config = make_config(
        *overrides,
        steps=900,
        batch_size=16,
        log_every=100,
        val_every=900,
        checkpoint_every=900,
        channels_last=True,
    )
    summary = train_denoiser(latents, tmp_path / "out", config)
    assert "8 training" in summary.lines[1]
    curve = [r["loss_mean"] for r in read_log(tmp_path / "out" / "log.jsonl") if r["kind"] == "train"]
    assert curve[0] > 0.15
    assert curve[-1] < 0.05  # predicting no noise at all scores 1


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["epsilon", "v", "flow"])
def test_validation_loss_falls_and_the_condition_is_heard(make_latents, tmp_path, make_config, prediction):
    latents = make_latents(tmp_path / "latents", n_subjects=20, effect=1.0)
    overrides = [
        f"objective.prediction={prediction}",
        "model.base_ch=16",
        "optimiser.learning_rate=2e-3",
    ]
    config = make_config(*overrides, steps=160, batch_size=16, log_every=40, val_every=40, checkpoint_every=160)
    train_denoiser(latents, tmp_path / "out", config)
    records = [r for r in read_log(tmp_path / "out" / "log.jsonl") if r["kind"] == "val"]
    assert [r["step"] for r in records] == [0, 40, 80, 120, 160]
    assert records[0]["condition_gain"] == 0  # networks start silent
    # By the end v-prediction is at its floor (what noise leaves unknown), so only the whole fall is asserted.
    assert records[-1]["loss"] < 0.97 * records[1]["loss"] < records[0]["loss"]
    assert records[-1]["condition_gain"] > 0.005


def test_the_best_model_is_the_one_that_hears_the_condition(make_latents, tmp_path, make_config):
    latents = make_latents(tmp_path / "latents", n_subjects=12, effect=1.0)
    train_denoiser(latents, tmp_path / "out", make_config("optimiser.learning_rate=2e-3", steps=60, val_every=10))
    records = [r for r in read_log(tmp_path / "out" / "log.jsonl") if r["kind"] == "val" and r["step"]]
    best = max(records, key=lambda record: record["condition_gain"])
    assert load_denoiser(tmp_path / "out" / "best").step == best["step"]
    assert best["condition_gain_share"] > 0


def test_a_restless_person_is_named_and_can_be_left_out(latents, tmp_path, make_config, caplog):
    shard = latents / "sub-02_latents.safetensors"
    save_file({"latents": 5 * load_file(shard)["latents"]}, shard)
    train_denoiser(latents, tmp_path / "all", make_config("whiten=true"))
    (warning,) = [message for message in caplog.messages if "median person" in message]
    assert "sub-02 varies" in warning
    assert "sub-01" not in warning
    caplog.clear()
    train_denoiser(latents, tmp_path / "few", make_config("whiten=true", "leave_out=[sub-02]"))
    assert not any("median person" in message for message in caplog.messages)
    trained = [load_denoiser(tmp_path / name).card.trained_on["n_subjects"] for name in ("all", "few")]
    assert trained == [4, 3]
    with pytest.raises(FmrisynthError, match="sub-77, of whom there are no latents"):
        train_denoiser(latents, tmp_path / "none", make_config("leave_out=[sub-77]"))


def test_gain_from_the_label_that_is_attainable(latents):
    """Against the exact posterior mean of independent Gaussians, for every objective."""
    source = TrainingLatents(latents)
    vocabulary = {"condition": ["emotion_fear", "gambling_loss", "motor_rh"]}
    found = class_moments(source, source.select("train"), vocabulary, World(0, 1, torch.device("cpu")))
    stacks = {
        k: [source.read(i) for i in source.select("train") if source.labels(i, vocabulary) == [k]] for k in range(3)
    }
    torch.testing.assert_close(found.mean_KFXYZ, torch.stack([torch.stack(stacks[k]).mean(0) for k in range(3)]))
    within = torch.cat([torch.stack(stacks[k]) - found.mean_KFXYZ[k] for k in range(3)])
    torch.testing.assert_close(found.variance_FXYZ, within.square().sum(0) / (len(within) - 3))

    generator = torch.Generator().manual_seed(0)
    mean_KFXYZ, std = torch.randn(2, 4, 4, 4, 4, generator=generator), 0.7
    exact = ClassMoments(torch.full((2,), 1e9), mean_KFXYZ, torch.full((4, 4, 4, 4), std**2))
    clean = mean_KFXYZ[0] + std * torch.randn(4000, 4, 4, 4, 4, generator=generator)
    noise = torch.randn(clean.shape, generator=generator)
    for prediction, moment in (("epsilon", 600.0), ("v", 800.0), ("flow", 0.9)):
        objective = Objective(prediction)
        time_B = torch.full((len(clean),), moment, dtype=torch.float64)
        noisy = objective.add_noise(clean, noise, time_B)
        alpha, sigma = (float(c[0]) for c in objective.path.alpha_sigma(time_B))
        loss = []
        for mean_FXYZ in mean_KFXYZ:
            posterior = mean_FXYZ + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (noisy - alpha * mean_FXYZ)
            guess = objective.target(posterior, (noisy - alpha * posterior) / sigma, time_B)
            loss.append(float(objective.loss(guess, clean, noise, time_B).mean()))
        told = exact.attainable_gain(objective, time_B[:1], torch.tensor([0]), torch.tensor([1]))
        assert float(told) == pytest.approx(loss[1] - loss[0], rel=0.02)

"""Training on whole runs."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from fmrisynth.cli import plans
from fmrisynth.config.train import ConditioningConfig
from fmrisynth.errors import FmrisynthError, UsageError
from fmrisynth.models.build import build_denoiser, count_parameters
from fmrisynth.models.checkpoint import find_model_dir, load_denoiser
from fmrisynth.train import train_denoiser
from fmrisynth.train.runlog import read_log
from fmrisynth.train.windows import TrainingWindows

from .test_training import same_weights

TR_S, GRID = 1.44, (4, 4, 4)
EVENTS = ["--", "conditioning.kind=events", "conditioning.past_frames=2", "conditioning.history_s=4"][1:]


@pytest.fixture
def runs(tmp_path, make_latents):
    """Two runs of 9 and 7 frames for each of four people; windows have 3 frames."""
    root = make_latents(tmp_path / "runs", n_subjects=4)
    path = root / "tokenizer" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"n_frames": 3}))
    for number, index in enumerate(sorted(root.glob("sub-*_latents.tsv"))):
        shard = index.with_suffix(".safetensors")
        generator = torch.Generator().manual_seed(number)
        save_file({"latents": torch.randn(1, 2, 16, *GRID, generator=generator)}, shard)
        split = ["train", "train", "val", "test"][number]
        rows = [
            [
                "row",
                "condition",
                "split",
                "phase_encoding",
                "onset_s",
                "duration_s",
                "tr_s",
                "filename",
                "first_frame",
                "n_frames",
            ]
        ]
        rows += [
            [0, "run", split, "LR", -0.72, 12.96, TR_S, "a.nii.gz", 0, 9],
            [1, "run", split, "RL", -0.72, 10.08, TR_S, "b.nii.gz", 9, 7],
        ]
        index.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
        events = [
            ["row", "onset", "duration", "trial_type", "modulation"],
            [0, 1.44, 2.88, "a", 1],
            [1, 0, 1.44, "b", 0.5],
        ]
        index.with_name(index.name.replace("_latents", "_latentevents")).write_text(
            "".join("\t".join(map(str, row)) + "\n" for row in events)
        )
    return root


def test_every_offset_of_every_run_is_a_window(runs):
    windows = TrainingWindows(runs, ConditioningConfig(kind="events", past_frames=2, history_s=2.0))
    train = windows.select("train")
    assert len(train) == 2 * (7 + 5)
    whole = windows.dataset.load(1)  # the second run of the first person
    assert whole.shape == (2, 7, *GRID)
    third = [i for i in train if windows.place(i) == (1, 3)]
    stack = windows.read(third[0]).unflatten(0, (2, 3))
    assert torch.equal(stack[:, :, :3], whole[:, 3:6, :3])
    assert stack[:, :, 3].eq(0).all()  # no brain
    events, past = windows.told(third[0], None)
    assert torch.equal(past[:-1, :3], whole[:, 1:3].flatten(0, 1)[:, :3])
    assert events.shape == (2 + 3, 2)
    assert events.eq(0).all()  # b was over before the history
    events, past = windows.told(next(i for i in train if windows.place(i) == (1, 0)), None)
    assert events.tolist() == [[0, 0], [0, 0], [0, 0.5], [0, 0], [0, 0]]
    assert past.eq(0).all()


def test_the_past_is_withheld_at_its_rate(runs):
    windows = TrainingWindows(runs, ConditioningConfig(kind="events", past_frames=2, past_dropout=0.3))
    instance = next(i for i in windows.select("train") if windows.place(i) == (0, 4))
    generator = torch.Generator().manual_seed(0)
    withheld = [bool(windows.told(instance, generator)[1].eq(0).all()) for _ in range(200)]
    assert 0.2 < sum(withheld) / 200 < 0.4


def test_in_training_a_part_of_other_runs_is_added_to_the_past(runs):
    windows = TrainingWindows(runs, ConditioningConfig(kind="events", past_frames=2, past_dropout=0, past_noise=0.5))
    whole = [windows.dataset.load(run) for run in range(len(windows.dataset.rows))]
    lent = {
        tuple((0.5 * run[:, first : first + 2, :3]).flatten().tolist())
        for run, row in zip(whole, windows.dataset.rows, strict=True)
        for first in range(row.n_frames - 1)
        if row.split == "train"
    }
    instance = next(i for i in windows.select("train") if windows.place(i) == (0, 4))
    generator = torch.Generator().manual_seed(0)
    added = set()
    for _ in range(40):
        noise = windows.told(instance, generator)[1][:-1, :3].unflatten(0, (2, 2)) - whole[0][:, 2:4, :3]
        added.add(min(lent, key=lambda frames: (torch.tensor(frames) - noise.flatten()).abs().max()))
        assert torch.tensor([*added]).sub(noise.flatten()).abs().amax(1).min() < 1e-5
    assert len(added) > 10
    assert torch.equal(windows.told(instance, None)[1][:-1, :3], whole[0][:, 2:4].flatten(0, 1)[:, :3])  # validation


def test_training_on_runs_resumes_exactly_and_says_what_it_knows(runs, tmp_path, make_config):
    config = [*EVENTS, "whiten=true", "conditioning.attributes={phase_encoding: 0.1}"]
    train_denoiser(runs, tmp_path / "whole", make_config(*config))
    for steps in (2, 6):
        train_denoiser(runs, tmp_path / "parts", make_config(*config, steps=steps))
    same_weights(find_model_dir(tmp_path / "whole"), find_model_dir(tmp_path / "parts"))
    model = load_denoiser(tmp_path / "whole")
    assert model.conditions == ("a", "b")
    assert model.event_telling is not None
    assert (model.event_telling.history_frames, model.event_telling.past_channels) == (3, 5)
    assert model.card.trained_on["n_instances"] == 4
    values = next(r for r in read_log(tmp_path / "whole" / "log.jsonl") if r["kind"] == "val")
    assert values["condition_gain_share"] is None
    assert isinstance(values["condition_gain_noisiest"], float)


def test_the_plan_counts_the_network_and_the_windows_that_training_has(runs, tmp_path, make_config):
    config = make_config(*EVENTS, "model.base_ch=16", "model.cond_width=1024", "conditioning.history_s=100")
    lines = list(plans.training(runs, tmp_path / "out", config))
    assert any("24 training instances, 12 for validation; conditions a, b" in line for line in lines)
    telling = TrainingWindows(runs, config.conditioning).telling
    with torch.device("meta"):
        alone, whole = (count_parameters(build_denoiser(config.model, 6, [2], events=e)) for e in (None, telling))
    assert any(f" {whole / 1e6:.1f} M parameters" in line for line in lines)
    assert f"{whole / 1e6:.1f}" != f"{alone / 1e6:.1f}"  # the response and what sees the past count


def test_descriptors_take_the_place_of_names(runs, tmp_path, make_config):
    table = tmp_path / "descriptors.tsv"
    table.write_text("condition\thand\tload\na\t1\t0.5\nb\t0\t2\n")
    train_denoiser(runs, tmp_path / "out", make_config(*EVENTS, f"conditioning.descriptors={table}", steps=2))
    network = load_denoiser(tmp_path / "out").network
    assert network.condition.descriptors_KD.tolist() == [[1, 0.5], [0, 2]]
    table.write_text("condition\thand\tload\na\t1\t0.5\nb\t0\t3\n")  # other numbers: another run
    with pytest.raises(FmrisynthError, match="latents"):
        train_denoiser(runs, tmp_path / "out", make_config(*EVENTS, f"conditioning.descriptors={table}", steps=4))
    table.write_text("condition\thand\na\t1\n")
    with pytest.raises(FmrisynthError, match="expected a row for 'b'"):
        train_denoiser(runs, tmp_path / "other", make_config(*EVENTS, f"conditioning.descriptors={table}"))


def test_an_attribute_without_values_is_named(runs, tmp_path, make_config):
    with pytest.raises(FmrisynthError, match="'age' has no value"):
        train_denoiser(runs, tmp_path / "out", make_config(*EVENTS, "conditioning.attributes={age: 0.1}"))


def test_blocks_and_runs_are_told_apart(runs, latents, tmp_path, make_config):
    with pytest.raises(FmrisynthError, match="expected latents of whole runs"):
        train_denoiser(latents, tmp_path / "out", make_config(*EVENTS))
    with pytest.raises((FmrisynthError, UsageError), match=r"whole runs.*conditioning\.kind=events"):
        train_denoiser(runs, tmp_path / "out", make_config())

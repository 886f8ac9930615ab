"""`tokenize_dataset`: the files it writes, resuming, refusals."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from fmrisynth.bids.sidecars import read_tsv
from fmrisynth.config.load import load_config, preset_names
from fmrisynth.config.tokenize import TokenizeConfig
from fmrisynth.data.blocks import read_subject
from fmrisynth.data.latents import LatentDataset
from fmrisynth.data.normalisation import normalise
from fmrisynth.errors import FmrisynthError, UsageError
from fmrisynth.models.tokenizers import load_tokenizer
from fmrisynth.tokenize import tokenize_dataset

FAST = TokenizeConfig(report=False)
TINY_NETWORK = load_config(
    TokenizeConfig, "tokenize", preset="vqgan-smoke",
    overrides=["report=false", "fit.steps=6", "fit.adversarial_start=3", "fit.checkpoint_every=2", "model.codebook_size=16"],
)  # fmt: skip

COMMON = {
    "steps": 6,
    "batch_size": 2,
    "frames_per_block": 1,
    "checkpoint_every": 2,
    "log_every": 1,
    "adversarial_weight": 0,
}
TINY_KL = TokenizeConfig(
    report=False, model={"kind": "kl", "channels": [4, 4, 4], "norm_groups": 4, "num_res_blocks": 1, "latent_channels": 2},
    fit=COMMON,
)  # fmt: skip


def mae(masked_steps, steps):
    """Settings of a tiny masked autoencoder."""
    model = {
        "kind": "mae",
        "channels": [4, 4, 4, 4],
        "norm_groups": 4,
        "width": 16,
        "depth": 1,
        "masked_depth": 1,
        "heads": 2,
    }
    fit = COMMON | {"masked_steps": masked_steps, "steps": steps, "warmup_steps": 1, "learning_rate": 1e-3}
    return TokenizeConfig(report=False, model=model | {"latent_channels": 4, "centre": True}, fit=fit)


def test_writes_latents_and_tokenizer(prepared, tmp_path):
    summary = tokenize_dataset(prepared, tmp_path, FAST)
    assert not summary.failed
    dataset = LatentDataset.open(tmp_path)
    assert len(dataset) == 6 * 4
    assert dataset.shape == (3, 6, 4, 4, 4)
    assert dataset.conditions == ["gambling_loss", "motor_rh"]
    assert len(dataset.subset(split="test")) == 8
    row = dataset.rows[0]
    assert (row.subject, row.duration_s, dict(row.attributes)) == ("01", 12.0, {"phase_encoding": "LR"})
    block = read_subject(prepared, "05")[2]
    data = block.load()
    values = normalise(data.bold_XYZT, data.reference_XYZ, data.mask_XYZ, "dynamics")
    frames = torch.from_numpy(np.moveaxis(values, 3, 0).copy())[:, None]
    expected = load_tokenizer(tmp_path / "tokenizer").encode(frames).transpose(0, 1)
    index = next(i for i, r in enumerate(dataset.rows) if r.subject == "05" and r.row == 2)
    torch.testing.assert_close(dataset.load(index), expected)


def test_latent_statistics_are_those_of_the_training_split(prepared, tmp_path):
    tokenize_dataset(prepared, tmp_path, FAST)
    dataset = LatentDataset.open(tmp_path)
    train = dataset.subset(split="train")
    inside = load_tokenizer(tmp_path / "tokenizer").info.latent_mask_xyz
    values = train.load_many(range(len(train)))[..., inside].movedim(1, 0).flatten(1)
    torch.testing.assert_close(dataset.latent_mean, values.mean(dim=1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dataset.latent_std, values.std(dim=1), rtol=1e-3, atol=1e-4)
    standardised = torch.stack([train[i] for i in range(len(train))])[..., inside].movedim(1, 0).flatten(1)
    torch.testing.assert_close(standardised.std(dim=1), torch.ones(3), rtol=1e-3, atol=1e-3)


def test_called_again_it_changes_nothing(prepared, tmp_path):
    tokenize_dataset(prepared, tmp_path, FAST)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("sub-*")} | {
        p: p.stat().st_mtime_ns for p in (tmp_path / "tokenizer").iterdir()
    }
    tokenize_dataset(prepared, tmp_path, FAST)
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())
    (tmp_path / "sub-02_latents.tsv").unlink()  # as if killed between shard and index
    tokenize_dataset(prepared, tmp_path, FAST)
    assert (tmp_path / "sub-02_latents.tsv").exists()
    assert (tmp_path / "sub-03_latents.tsv").stat().st_mtime_ns == before[tmp_path / "sub-03_latents.tsv"]


def test_a_bad_subject_does_not_stop_the_others(prepared, tmp_path):
    broken = tmp_path / "prepared"
    shutil.copytree(prepared, broken)
    victim = sorted((broken / "sub-02" / "func").glob("*_bold.nii.gz"))[0]
    victim.write_bytes(victim.read_bytes()[:2000])
    summary = tokenize_dataset(broken, tmp_path / "out", FAST)
    assert list(summary.failed) == ["02"]
    assert str(victim) in summary.failed["02"]
    assert not (tmp_path / "out" / "sub-02_latents.tsv").exists()
    assert LatentDataset.open(tmp_path / "out").subjects == ["01", "03", "04", "05", "06"]


def test_given_tokenizer_is_used_and_copied(prepared, tmp_path):
    tokenize_dataset(prepared, tmp_path / "a", FAST)
    given = tmp_path / "a" / "tokenizer"
    tokenize_dataset(prepared, tmp_path / "b", FAST, tokenizer=given, participant_labels=["sub-06", "04"])
    assert sorted(p.name for p in (tmp_path / "b").glob("*.tsv")) == ["sub-04_latents.tsv", "sub-06_latents.tsv"]
    for name in ("tokenizer.json", "weights.safetensors", "reference.safetensors"):
        assert (tmp_path / "b" / "tokenizer" / name).read_bytes() == (given / name).read_bytes()


def test_latents_of_two_tokenizers_are_not_mixed(prepared, tmp_path):
    tokenize_dataset(prepared, tmp_path / "a", FAST)
    other = FAST.model_copy(update={"normalisation": "global"})
    tokenize_dataset(prepared, tmp_path / "b", other)
    with pytest.raises(FmrisynthError, match="tokenizer was fitted here, is"):
        tokenize_dataset(prepared, tmp_path / "a", FAST, tokenizer=tmp_path / "b" / "tokenizer")
    with pytest.raises(UsageError, match="normalisation was dynamics, is global"):
        tokenize_dataset(prepared, tmp_path / "a", other)


def test_another_grid_is_refused_per_subject(prepared, dataset_maker, tmp_path):
    from fmrisynth.data.grid import make_grid

    grid = make_grid((16, 16, 32), np.diag([3.0, 3.0, 3.0, 1.0]), "scanner")
    larger = dataset_maker(tmp_path / "larger", splits=("train",), n_repeats=1, grid=grid)
    tokenize_dataset(prepared, tmp_path / "a", FAST)
    summary = tokenize_dataset(larger, tmp_path / "b", FAST, tokenizer=tmp_path / "a" / "tokenizer")
    assert "fitted on 16 x 16 x 16" in summary.failed["01"]


def test_a_dataset_without_training_split_is_fitted_whole(dataset_maker, tmp_path):
    single = dataset_maker(tmp_path / "single", splits=(None,))
    tokenize_dataset(single, tmp_path / "out", FAST)
    assert load_tokenizer(tmp_path / "out" / "tokenizer").info.provenance["split"] == "all"


def test_a_person_left_out_is_encoded_but_not_learnt_from(prepared, dataset_maker, tmp_path):
    """The same tokenizer as of a dataset in which that person never was in training."""
    tokenize_dataset(prepared, tmp_path / "all", FAST)
    tokenize_dataset(prepared, tmp_path / "few", FAST.model_copy(update={"leave_out": ("sub-02",)}))
    tokenize_dataset(
        dataset_maker(tmp_path / "apart", splits=("train", "val", "train", "val", "test", "test")),
        tmp_path / "same",
        FAST,
    )
    weights = [(tmp_path / name / "tokenizer" / "weights.safetensors").read_bytes() for name in ("all", "few", "same")]
    assert weights[1] == weights[2] != weights[0]
    assert "02" in LatentDataset.open(tmp_path / "few").subjects
    with pytest.raises(FmrisynthError, match="other settings"):
        tokenize_dataset(prepared, tmp_path / "all", FAST.model_copy(update={"leave_out": ("sub-02",)}))
    tokenize_dataset(prepared, tmp_path / "few", FAST, force=True)  # and back
    assert (tmp_path / "few" / "tokenizer" / "weights.safetensors").read_bytes() == weights[0]
    everybody = FAST.model_copy(update={"leave_out": ("sub-01", "sub-02", "sub-03")})
    with pytest.raises(FmrisynthError, match="leave out fewer people"):
        tokenize_dataset(prepared, tmp_path / "nobody", everybody)
    assert not (tmp_path / "nobody").exists()
    with pytest.raises(UsageError, match="there is no sub-77"):
        tokenize_dataset(prepared, tmp_path / "none", FAST.model_copy(update={"leave_out": ("sub-77",)}))


def test_unknown_subject(prepared, tmp_path):
    with pytest.raises(UsageError, match="there is no sub-99"):
        tokenize_dataset(prepared, tmp_path, FAST, participant_labels=["99"])


@pytest.mark.parametrize(
    "config", [TINY_NETWORK, TINY_KL, mae(3, 6), mae(5, 6)], ids=["vqgan", "kl", "mae", "mae-first"]
)
def test_network_fit_resumes_to_the_bit(config, prepared, tmp_path, monkeypatch):
    from fmrisynth.tokenize import gradient

    tokenize_dataset(prepared, tmp_path / "whole", config)
    draw = gradient.draw_frames

    def interrupted(source, config, step):
        if step == 5:
            raise KeyboardInterrupt
        return draw(source, config, step)

    monkeypatch.setattr(gradient, "draw_frames", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tokenize_dataset(prepared, tmp_path / "parts", config)
    assert not (tmp_path / "parts" / "tokenizer").exists()
    monkeypatch.setattr(gradient, "draw_frames", draw)
    steps = []
    monkeypatch.setattr(gradient, "draw_frames", lambda s, c, step: steps.append(step) or draw(s, c, step))
    tokenize_dataset(prepared, tmp_path / "parts", config)
    assert steps == [4, 5]  # continued from the checkpoint of step 4
    for name in ("weights.safetensors", "tokenizer.json", "reference.safetensors"):
        assert (tmp_path / "whole/tokenizer" / name).read_bytes() == (tmp_path / "parts/tokenizer" / name).read_bytes()


def test_the_masked_encoder_is_frozen_in_the_second_phase(prepared, tmp_path):
    import json

    found = {}
    for masked_steps, steps in ((2, 3), (3, 4), (3, 6)):
        out = tmp_path / f"{masked_steps}-{steps}"
        tokenize_dataset(prepared, out, mae(masked_steps, steps))
        found[masked_steps, steps] = load_tokenizer(out / "tokenizer").state_dict()
        records = [json.loads(line) for line in (out / "fit" / "log.jsonl").read_text().splitlines()]
        kinds = [next(name for name in record if name != "step") for record in records]
        assert kinds == ["masked"] * masked_steps + ["reconstruction"] * (steps - masked_steps)
    before, short, long = found.values()
    encoder = [name for name in long if name.startswith("encoder.")]
    assert all(torch.equal(short[name], long[name]) for name in encoder)
    assert not all(torch.equal(before[name], long[name]) for name in encoder)
    for part in ("project.", "decoder."):
        assert any(not torch.equal(short[name], long[name]) for name in long if name.startswith(part))
    assert not any(name.startswith("masked") for name in long)
    assert LatentDataset.open(tmp_path / "3-6").shape == (4, 6, 2, 2, 2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["model.kind=mae"], "masked_steps 0 has to lie between 0 and fit.steps"),
        (["model.kind=mae", "fit.masked_steps=9", "fit.steps=9"], "has to lie between 0 and fit.steps 9"),
        (["model.kind=kl", "fit.masked_steps=9"], "applies to model.kind mae only"),
        (["model.kind=kl", "model.channels=[32, 32]"], "at least 3"),
        (["model.kind=mae", "fit.masked_steps=9", "model.heads=7"], "does not divide by 7 heads"),
        (["model.kind=kl", "normalisation=relative"], "frames_per_block has to be 1"),
        (["model.kind=kl", "model.norm_groups=5"], "does not divide by 5 norm groups"),
    ],
)  # fmt: skip
def test_settings_of_networks_that_cannot_be_used(settings, said):
    with pytest.raises(UsageError, match=said):
        load_config(TokenizeConfig, "tokenize", overrides=settings)


def test_network_fit_with_other_settings_is_not_continued(prepared, tmp_path, monkeypatch):
    from fmrisynth.tokenize import gradient

    monkeypatch.setattr(gradient, "draw_frames", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        tokenize_dataset(prepared, tmp_path, TINY_NETWORK)
    monkeypatch.undo()
    with pytest.raises(UsageError, match="seed was 0, is 3"):
        tokenize_dataset(prepared, tmp_path, TINY_NETWORK.model_copy(update={"seed": 3}))


def test_adversarial_loss_starts_at_its_step(prepared, tmp_path):
    import json

    config = TINY_NETWORK.model_copy(
        update={"fit": TINY_NETWORK.fit.model_copy(update={"log_every": 1, "temporal_weight": 0.5})}
    )
    tokenize_dataset(prepared, tmp_path, config)
    records = [json.loads(line) for line in (tmp_path / "fit" / "log.jsonl").read_text().splitlines()]
    assert [("discriminator" in r) for r in records] == [False] * 3 + [True] * 3
    assert all("temporal" in r and 1 <= r["perplexity"] <= 16 for r in records)


@pytest.mark.parametrize("name", preset_names("tokenize"))
def test_presets_are_valid(name):
    config = load_config(TokenizeConfig, "tokenize", preset=name)
    assert config.model.kind == name.partition("-")[0] or name in ("anatomy", "smoke")


def test_index_columns(prepared, tmp_path):
    tokenize_dataset(prepared, tmp_path, FAST)
    rows = read_tsv(tmp_path / "sub-01_latents.tsv")
    assert list(rows[0])[:6] == ["row", "condition", "split", "onset_s", "duration_s", "tr_s"]
    assert [int(r["row"]) for r in rows] == [0, 1, 2, 3]

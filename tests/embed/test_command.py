"""`fmrisynth embed` from the command line: fit, apply, probe, continue, refuse."""

import json
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from fmrisynth.bids.sidecars import read_tsv
from fmrisynth.cli.main import run
from fmrisynth.embed.encoder import load_encoder
from fmrisynth.train.runlog import read_log

SMALL = [
    "--set", "maps.pixel_mm=9.6", "--set", "model.patch=[4, 4, 4]", "--set", "model.width=24", "--set", "model.depth=1",
    "--set", "model.heads=2", "--set", "model.decoder_width=16", "--set", "model.decoder_depth=1", "--set", "model.decoder_heads=2",
    "--set", "batch_size=4", "--set", "val_every=2", "--set", "checkpoint_every=2", "--set", "log_every=1",
    "--set", "probe.folds=3", "--set", "probe.parcels=20", "--set", "probe.resamples=100", "--set", "precision=fp32",
]  # fmt: skip


@pytest.fixture(scope="module")
def embedded(planted, tmp_path_factory):
    out = tmp_path_factory.mktemp("embedded") / "out"
    probes = ["--probe", "condition", "--probe", "subject", "--probe", "sex", "--probe", "age"]
    assert run(["embed", str(planted), str(out), "--steps", "4", *SMALL, *probes]) == 0
    return out


def test_fit_writes_maps_encoder_features_pictures_and_probes(embedded):
    rows = read_tsv(embedded / "features.tsv", ("participant_id", "filename", "condition", "split"))
    assert len(rows) == 24
    features = np.array([[float(v) for k, v in row.items() if k.startswith("feature")] for row in rows])
    assert features.shape == (24, 24)
    assert np.isfinite(features).all()
    assert features.std(axis=0).min() > 0
    for name in ("flatmap.png", "reconstruction.png", "loss.png"):
        assert (embedded / "figures" / name).read_bytes().startswith(b"\x89PNG")
    assert (embedded / "figures" / "series.gif").read_bytes().startswith(b"GIF89a")
    assert {record["kind"] for record in read_log(embedded / "encoder" / "log.jsonl")} == {"train", "val"}


def test_probes_find_what_was_planted_and_stand_beside_baselines(embedded):
    found = {(r["target"], r["features"]): r for r in json.loads((embedded / "probes.json").read_text())}
    state = {features: r for (target, features), r in found.items() if target == "condition"}
    assert state.keys() == {
        "encoder, linear", "encoder, mean token, linear", "encoder, attentive", "untrained encoder, linear", "parcel series, MLP",
        "parcel series, linear", "connectome, ridge",
    }  # fmt: skip
    assert state["parcel series, linear"]["value"] == 1.0
    assert all(r["chance"] == 0.5 and r["low"] <= r["value"] <= r["high"] for r in state.values())
    assert found["sex", "connectome, ridge"]["n"] == 6
    assert found["age", "connectome, ridge"]["measure"] == "correlation"


def test_a_second_call_makes_nothing_and_a_given_encoder_gives_the_same_features(embedded, planted, tmp_path, capsys):
    before = (embedded / "features.tsv").stat().st_mtime_ns
    assert run(["embed", str(planted), str(embedded), "--steps", "4", *SMALL]) == 0
    assert (embedded / "features.tsv").stat().st_mtime_ns == before
    assert "already complete" in capsys.readouterr().out
    assert run(["embed", str(planted), str(tmp_path / "out"), "--encoder", str(embedded)]) == 0
    assert (tmp_path / "out" / "features.tsv").read_bytes() == (embedded / "features.tsv").read_bytes()
    assert not (tmp_path / "out" / "encoder").exists()


def test_a_run_in_parts_gives_the_bytes_of_the_whole(embedded, planted, tmp_path):
    out = tmp_path / "parts"
    assert run(["embed", str(planted), str(out), "--steps", "4", *SMALL]) == 0
    shutil.rmtree(out / "encoder" / "checkpoints" / "step-00000004")
    assert run(["embed", str(planted), str(out), "--steps", "4", *SMALL]) == 0
    for name in ("ema", "model", "optimizer"):
        left, right = (
            load_file(folder / "encoder" / "checkpoints" / "step-00000004" / f"{name}.safetensors")
            for folder in (out, embedded)
        )
        assert left.keys() == right.keys()
        assert all((left[key] == right[key]).all() for key in left)


def test_unusable_input_is_refused_in_one_sentence(embedded, planted, tmp_path, capsys):
    def refused(*arguments):
        assert run(["embed", *map(str, arguments)]) != 0
        return capsys.readouterr().err

    assert "expected a block dataset" in refused(tmp_path, tmp_path / "out")
    assert "expected an encoder" in refused(planted, tmp_path / "out", "--encoder", planted)
    assert "--probe height: expected condition, subject or a column" in refused(
        planted, embedded, "--steps", 4, *SMALL, "--probe", "height"
    )
    assert "expected 50 subjects or more" in refused(
        planted, embedded, "--steps", 4, *SMALL, "--set", "probe.folds=50", "--probe", "sex"
    )
    assert "does not divide by the 3 frames" in refused(planted, tmp_path / "out", "--set", "model.patch=[3, 8, 8]")
    assert "12 frames every 1.44 s make 16 at 1 Hz, expected 32" in refused(
        planted, tmp_path / "long", *SMALL, "--set", "maps.n_frames=32"
    )
    copy = tmp_path / "altered"
    shutil.copytree(embedded / "encoder" / "best", copy)
    weights = load_file(copy / "ema.safetensors")
    save_file(
        {name: tensor * 2 if tensor.is_floating_point() else tensor for name, tensor in weights.items()},
        copy / "ema.safetensors",
    )
    assert "do not match their digest" in refused(planted, tmp_path / "out", "--encoder", copy)
    card = json.loads((copy / "checkpoint.json").read_text())
    (copy / "checkpoint.json").write_text(json.dumps(card | {"maps": card["maps"] | {"pixel_mm": 0.001}}))
    assert "expected the description of an encoder" in refused(planted, tmp_path / "out", "--encoder", copy)
    assert not (tmp_path / "out").exists()


def test_the_plan_says_what_would_be_done(planted, tmp_path, capsys):
    assert run(["embed", str(planted), str(tmp_path / "out"), "--preset", "mae-vitb", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "99.8 M parameters with its decoder, 86.2 M without" in told
    assert "235 x 541 pixels" in told
    assert not (tmp_path / "out").exists()


def test_an_encoder_knows_what_it_was_trained_on(embedded):
    card = load_encoder(embedded).card
    assert card.trained_on["n_subjects"] == 4
    assert card.trained_on["n_series"] == 16
    assert card.trained_on["origin"]["Kind"] == "phantom"

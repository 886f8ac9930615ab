"""Whole runs through the command line: simulated, prepared, encoded, learned, made for an events file, analysed, compared."""

from __future__ import annotations

import filecmp
import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fmrisynth.bids.events import Event, read_events, write_events
from fmrisynth.cli.main import run
from fmrisynth.data.blocks import read_blocks
from fmrisynth.models.tokenizers import load_tokenizer

from ..sample.test_run import validator_errors

EVENTS = [Event(4.0, 8.0, "motor_rh"), Event(22.0, 2.0, "motor_lh"), Event(30.0, 6.0, "motor_rh", 2.0)]


def call(*words: object) -> int:
    return run([str(word) for word in words])


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Four phantom people doing one short run, its latents, and a model that saw them for a moment."""
    root = tmp_path_factory.mktemp("runs")
    write_events(root / "task-tap_events.tsv", EVENTS)
    common = [
        "--layout",
        "runs",
        "--n-subjects",
        "4",
        "--seed",
        "5",
        "--set",
        "directions=[LR]",
        "--set",
        "split.all=train",
    ]
    assert call("simulate", root / "real", *common, "--set", f"events=[{root / 'task-tap_events.tsv'}]") == 0
    assert call("tokenize", root / "real", root / "latents", "--set", "model.storage=float16") == 0
    assert call(
        "train", root / "latents", root / "model", "--preset", "runs", "--set", "steps=2", "--set", "model.base_ch=12",
        "--set", "model.num_heads=1", "--set", "conditioning.history_s=6",
    ) == 0  # fmt: skip
    assert call("sample", root / "out", *_sample(root), "--n", "3") == 0
    return root


def _sample(root: Path) -> list[object]:
    return ["--events", root / "task-tap_events.tsv", "--checkpoint", root / "model", "--steps", "2", "--seed", "3"]


def test_simulated_runs_hold_what_they_were_told(root):
    runs = read_blocks(root / "real")
    assert [run.is_run for run in runs] == [True] * 4
    assert read_events(runs[0].events_path).events == tuple(EVENTS)
    data = runs[0].load()
    assert data.bold_XYZT.shape == (48, 64, 64, int((36 + 16) / 0.72) // 2)
    assert data.bold_XYZT[data.mask_XYZ].mean() == pytest.approx(10_000, rel=0.02)


def test_prepared_runs_equal_the_direct_ones(root, tmp_path):
    config = ["--set", "tasks=[RELATIONAL]", "--set", "directions=[LR]", "--n-subjects", "1", "--seed", "5"]
    assert call("simulate", tmp_path / "hcp", "--layout", "hcp", "--resolution", "3", *config) == 0
    assert call("simulate", tmp_path / "direct", "--layout", "runs", *config) == 0
    assert call("prepare", tmp_path / "hcp", tmp_path / "prepared", "--unit", "run", "--seed", "5") == 0
    (one,), (other,) = read_blocks(tmp_path / "direct"), read_blocks(tmp_path / "prepared")
    assert (one.condition, one.n_frames, one.tr_s, one.onset_s) == (
        other.condition,
        other.n_frames,
        other.tr_s,
        other.onset_s,
    )
    assert one.bold.name.replace("RELATIONAL", "relational") == other.bold.name.replace("_run-01", "")
    assert [e.label for e in read_events(one.events_path).events] == [
        e.label for e in read_events(other.events_path).events
    ]
    a, b = one.load(), other.load()
    inside = a.mask_XYZ & b.mask_XYZ
    change = [d.bold_XYZT[inside] / d.bold_XYZT[inside].mean(1, keepdims=True) - 1 for d in (a, b)]
    assert np.corrcoef(change[0].ravel(), change[1].ravel())[0, 1] > 0.97
    sidecar = json.loads((tmp_path / "prepared" / other.bold).with_suffix("").with_suffix(".json").read_text())
    assert sidecar["StartTime"] == 0.72
    assert call("prepare", tmp_path / "prepared", tmp_path / "again") == 2  # it was prepared already


def test_a_tokenizer_can_be_fitted_to_runs(root):
    described = json.loads((root / "latents" / "tokenizer" / "tokenizer.json").read_text())
    assert described["n_frames"] == 12
    assert described["provenance"]["n_blocks"] == 4


def test_synthetic_runs_are_ordinary_ones(root):
    runs = read_blocks(root / "out")
    assert [run.subject for run in runs] == ["synth0001", "synth0002", "synth0003"]
    for run_ in runs:
        assert filecmp.cmp(run_.events_path, root / "task-tap_events.tsv", shallow=False)
        image = nib.load(run_.path)
        assert image.shape == (48, 64, 64, 37)  # 52 s and a frame begun
        assert image.header.get_zooms()[3] == pytest.approx(1.44)
        data = run_.load()
        assert (data.bold_XYZT[~data.mask_XYZ] == 0).all()
        assert (
            0.2 < (100 * data.bold_XYZT[data.mask_XYZ] / data.reference_XYZ[data.mask_XYZ][:, None]).std(1).mean() < 20
        )
    sidecar = json.loads(runs[0].path.with_name(runs[0].path.name.replace(".nii.gz", ".json")).read_text())
    assert (sidecar["StartTime"], sidecar["WindowFrames"], sidecar["Synthetic"]) == (0.72, 12, True)
    assert 0.5 < sidecar["StrongestWindow"] < 2.0  # a network that hardly learnt anything answers white noise
    assert validator_errors(root / "out") == []


def test_who_makes_a_run_that_ran_away_is_told(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fmrisynth.sample.runs.TOO_STRONG", 0.5)
    assert call("sample", tmp_path, *_sample(root), "--n", "1") == 0
    assert "desc-preproc_bold.nii.gz: one of its windows varies" in capsys.readouterr().err


def test_nilearn_loads_synthetic_runs(root):
    from nilearn.glm.first_level import first_level_from_bids

    models, _, events, _ = first_level_from_bids(
        root / "out", "tap", space_label="MNI152NLin6Asym", derivatives_folder=".", img_filters=[("desc", "preproc")]
    )
    assert len(models) == 3
    assert models[0].t_r == pytest.approx(1.44)
    assert models[0].slice_time_ref == pytest.approx(0.5)
    assert list(events[0][0].trial_type) == ["motor_rh", "motor_lh", "motor_rh"]


def test_shards_interruptions_and_batch_sizes_change_no_byte(root, tmp_path):
    for shard in ("2/2", "1/2"):
        assert (
            call("sample", tmp_path / "parts", *_sample(root), "--n", "3", "--shard", shard, "--batch-size", "1") == 0
        )
    for run_ in read_blocks(root / "out"):
        other = tmp_path / "parts" / run_.bold
        assert filecmp.cmp(run_.path, other, shallow=False)
    shutil.rmtree(tmp_path / "parts" / "sub-synth0002")
    assert call("sample", tmp_path / "parts", *_sample(root), "--n", "3") == 0
    assert filecmp.cmp(
        root / "out" / read_blocks(root / "out")[1].bold,
        tmp_path / "parts" / read_blocks(root / "out")[1].bold,
        shallow=False,
    )


def test_other_events_make_the_people_again(root, tmp_path):
    path = tmp_path / "task-tap_events.tsv"
    write_events(path, EVENTS[:2])
    words = ["--events", path, *_sample(root)[2:], "--n", "1", "--duration", "30"]
    assert call("sample", tmp_path / "out", *words) == 0
    first = read_blocks(tmp_path / "out")[0].path.read_bytes()
    write_events(path, EVENTS[1:2])
    assert call("sample", tmp_path / "out", *words) == 0
    assert read_blocks(tmp_path / "out")[0].path.read_bytes() != first
    assert len(read_events(read_blocks(tmp_path / "out")[0].events_path).events) == 1


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("task-x_events.tsv", "onset\tduration\ttrial_type\n1\t2\tmotor_rk\n", "did you mean motor_rh"),
        ("task-x_events.tsv", "onset\tduration\ttrial_type\n", "expected events"),
        ("task-x_events.tsv", "onset\tduration\ttrial_type\n9e5\t2\tmotor_rh\n", "seconds"),
        ("faces.tsv", "onset\tduration\ttrial_type\n1\t2\tmotor_rh\n", "rename the file"),
        ("task-x_events.tsv", "onset,duration,trial_type\n1,2,motor_rh\n", "task-x_events.tsv"),
    ],
)
def test_events_that_cannot_be_right_leave_nothing(root, tmp_path, capsys, name, text, said):
    (tmp_path / name).write_text(text)
    words = ["--events", tmp_path / name, *_sample(root)[2:]]
    assert call("sample", tmp_path / "out", *words) != 0
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_blocks_are_not_asked_of_a_model_of_runs_nor_runs_of_the_bundled_one(root, tmp_path, capsys):
    assert call("sample", tmp_path / "out", "--condition", "motor_rh", "--checkpoint", root / "model") == 2
    assert "--events" in capsys.readouterr().err
    assert call("sample", tmp_path / "out", "--events", root / "task-tap_events.tsv") == 2
    assert "--preset runs" in capsys.readouterr().err
    assert call("glm", root / "out", tmp_path / "maps") == 2
    assert "--unit run" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_runs_are_analysed_and_compared(root, tmp_path):
    assert (
        call(
            "glm",
            root / "out",
            tmp_path / "maps",
            "--unit",
            "run",
            "--set",
            "reports=false",
            "--set",
            "smoothing_fwhm_mm=0",
        )
        == 0
    )
    assert list(tmp_path.rglob("group/*contrast-tapMotorRh*stat-effect_statmap.nii.gz"))
    words = ["--unit", "run", "--real", root / "real", "--synthetic", root / "out", "--truth", root / "real"]
    words += ["--set", "test_split=all", "--set", f"tokenizer={root / 'latents' / 'tokenizer'}"]
    assert call("evaluate", tmp_path / "report", *words) == 0
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert metrics["conditions"] == ["motor_lh", "motor_rh"]
    assert metrics["truth"]["real"]["r"][1] > 0.3
    assert metrics["checks"]["maps"]["answer"] == "cannot tell"  # three people
    # Real people through the tokenizer, whose noise gives back what decoding takes.
    through = metrics["tokenizer"]
    assert max(abs(through[key]) for key in ("sd", "power5", "lag1", "border")) < 0.1
    report = (tmp_path / "report" / "report.html").read_text()
    assert "phantom" in report
    assert f"Real runs through the tokenizer: {through['sd']:.2f}." in report


def test_a_tokenizer_of_another_repetition_time_is_refused(root, tmp_path, capsys):
    tokenizer = load_tokenizer(root / "latents" / "tokenizer")
    tokenizer.info = replace(tokenizer.info, tr_s=2.0)
    tokenizer.save(tmp_path / "tokenizer")
    words = ["--unit", "run", "--real", root / "real", "--synthetic", root / "out", "--set", "test_split=all"]
    assert call("evaluate", tmp_path / "report", *words, "--set", f"tokenizer={tmp_path / 'tokenizer'}") == 1
    assert "every 2 s, the runs have a volume every 1.44 s" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "report").exists()

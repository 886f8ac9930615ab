"""Forecasts through the command line: people of a small planted dataset, a model, later anatomies, and their evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fmrisynth.bids import naming
from fmrisynth.bids.provenance import write_dataset_description
from fmrisynth.cli.main import run
from fmrisynth.data.blocks import EPI, BlockData, finish_subject, read_blocks, write_block
from fmrisynth.data.forecasts import forecast_of
from fmrisynth.data.grid import make_grid
from fmrisynth.models.checkpoint import read_card
from tests.sample.test_run import digest_tree

SHAPE, VOXEL_MM = (32, 32, 32), 3.0
N_PEOPLE, YEARS = 42, (0, 4, 10)


def person_at(rng_seed: int, age: float, sex: str) -> tuple[np.ndarray, np.ndarray]:
    """A head with a texture of its own whose dark middle widens with age."""
    rng = np.random.default_rng(rng_seed)
    x, y, z = (np.linspace(-1, 1, n) for n in SHAPE)
    radius = np.sqrt((x[:, None, None] / 0.85) ** 2 + (y[None, :, None] / 0.9) ** 2 + (z[None, None, :] / 0.85) ** 2)
    mask = radius < 1
    texture = np.kron(rng.normal(size=tuple(-(-n // 4) for n in SHAPE)), np.ones((4, 4, 4)))[tuple(map(slice, SHAPE))]
    core = 0.5 * np.exp(-((radius / (0.2 + 0.004 * (age - 20))) ** 2))
    volume = np.where(mask, (1 + 0.06 * texture - core + (0.05 if sex == "M" else 0)) * 10_000, 0).astype(np.float32)
    return volume, mask


def write_people(root: Path, sessions: tuple[int, ...] = YEARS, ages: bool = True, n: int = N_PEOPLE) -> Path:
    write_dataset_description(root, "People", sources=[], origin=None, readme="")
    affine = np.diag([VOXEL_MM, VOXEL_MM, VOXEL_MM, 1.0])
    grid = make_grid(SHAPE, affine, "MNI152NLin6Asym")
    for k in range(n):
        age, sex, blocks = 22 + k, "FM"[k % 2], []
        for number, later in enumerate(sessions, 1):
            volume, mask = person_at(k, age + later, sex)
            entities = naming.Entities(sub=f"{k:02d}", ses=f"{number:02d}", task="anatomy", space=grid.space)
            blocks.append(
                write_block(
                    root, entities, "epi", BlockData(volume[..., None], volume, mask), grid, condition=EPI, onset_s=0.0,
                    duration_s=1.44, tr_s=1.44, split="test" if k % 3 == 2 else "val" if k % 6 == 4 else "train",
                    attributes={"sex": sex, **({"age": f"{age + later}"} if ages else {})},
                )
            )  # fmt: skip
        finish_subject(root, f"{k:02d}", blocks)
    return root


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("forecasts")
    write_people(root / "people")
    assert run(["tokenize", str(root / "people"), str(root / "latents"), "--preset", "anatomy"]) == 0
    few = ["--steps", "60", "--set", "val_every=30", "--set", "checkpoint_every=60", "--set", "model.base_ch=8"]
    assert run(["train", str(root / "latents"), str(root / "model"), "--preset", "forecast", *few]) == 0
    return root


def ask(world: Path, out: Path, *more: str) -> int:
    return run(
        [
            "sample",
            str(out),
            "--from",
            str(world / "people"),
            "--checkpoint",
            str(world / "model"),
            "--steps",
            "3",
            *more,
        ]
    )


@pytest.fixture(scope="module")
def forecasts(world) -> Path:
    assert ask(world, world / "forecasts", "--set", "baseline_split=test") == 0
    return world / "forecasts"


def test_the_card_says_what_was_seen(world):
    card = read_card(world / "model" / "best")
    n_train = len({b.subject for b in read_blocks(world / "people", split="train")})
    assert card.trained_on["n_pairs"] == 3 * n_train
    assert card.trained_on["n_instances"] == 3 * n_train
    assert card.trained_on["delta_t"] == [4.0, 10.0]
    assert card.always == ["condition", "delta_t"]
    assert card.labels["delta_t"].mean == 0
    assert card.labels["delta_t"].std == pytest.approx(np.sqrt(np.mean(np.square([4, 6, 10]))))


def test_it_learns_more_than_no_change(world):
    """The network starts silent, so the first validation is the loss of "nothing changes"."""
    records = [json.loads(line) for line in (world / "model" / "log.jsonl").read_text().splitlines()]
    losses = {r["step"]: r["loss"] for r in records if r["kind"] == "val"}
    assert losses[60] < 0.9 * losses[0]


def test_without_a_time_the_later_sessions_are_forecast(world, forecasts):
    found = {(b.subject, b.bold.name): forecast_of(b) for b in read_blocks(forecasts)}
    people = {b.subject for b in read_blocks(world / "people", split="test")}
    assert {subject for subject, _ in found} == people
    one = sorted((f for (subject, _), f in found.items() if subject == "02"), key=lambda f: (f.age, f.years))
    assert [(f.age, f.years) for f in one] == [(24, 4), (24, 10), (28, 6)]
    assert all(f.within_training and (world / "people" / f.baseline).is_file() for f in found.values())
    ages = [b.attributes["age"] for b in read_blocks(forecasts) if b.subject == "02"]
    assert ages == ["28", "34", "34"]


def test_a_silent_network_forecasts_no_change(world, tmp_path):
    """The decoded change is added to the scan: without one the scan comes back, with what the tokenizer drops."""
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(world / "model" / "best", tmp_path / "model")
    shutil.copytree(world / "model" / "tokenizer", tmp_path / "model" / "tokenizer")
    weights = load_file(tmp_path / "model" / "ema.safetensors")
    for name in weights:
        if "whitening" not in name and weights[name].is_floating_point():
            weights[name] = weights[name] * 0
    save_file(weights, tmp_path / "model" / "ema.safetensors")
    card = json.loads((tmp_path / "model" / "checkpoint.json").read_text())
    (tmp_path / "model" / "checkpoint.json").write_text(json.dumps(card | {"weights_sha256": ""}))
    asked = [
        "--from",
        str(world / "people"),
        "--checkpoint",
        str(tmp_path / "model"),
        "--steps",
        "2",
        "--set",
        "delta_t=4",
    ]
    assert run(["sample", str(tmp_path / "out"), *asked, "--set", "baseline_split=val"]) == 0
    before = {(b.subject, b.entities["ses"]): b.load() for b in read_blocks(world / "people", split="val")}
    for block in read_blocks(tmp_path / "out"):
        data, was = block.load(), before[block.subject, block.entities["ses"]]
        np.testing.assert_array_equal(data.mask_XYZ, was.mask_XYZ)
        one, other = (d.reference_XYZ / d.reference_XYZ[d.mask_XYZ].mean() for d in (data, was))
        np.testing.assert_allclose(one, other, atol=2e-3)


def test_same_bytes_for_any_share_and_interruption(world, forecasts, tmp_path):
    for share in ("2/2", "1/2"):
        assert (
            ask(world, tmp_path / "parts", "--set", "baseline_split=test", "--shard", share, "--batch-size", "1") == 0
        )
    whole, parts = digest_tree(forecasts), digest_tree(tmp_path / "parts")
    images = [name for name in whole if name.startswith("sub-")]
    assert len(images) > 50
    assert [name for name in images if whole[name] != parts[name]] == []


def test_a_time_that_training_did_not_see_is_made_and_said(world, tmp_path, capsys):
    assert ask(world, tmp_path / "out", "--set", "delta_t=30", "--set", "baseline_split=val") == 0
    assert "training saw 4 to 10" in capsys.readouterr().err
    blocks = read_blocks(tmp_path / "out")
    assert len(blocks) == 3 * len({b.subject for b in blocks})
    assert not any(forecast_of(b).within_training for b in blocks)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--set", "delta_t=-1"], "expected a number of years from 0"),
        (["--set", "delta_t=soon"], "expected a number of years from 0"),
        (["--set", "age=70"], "of a forecast only delta_t is asked for"),
        (["--condition", "motor_rh"], "leave conditions out"),
        (["--sampler", "ab2"], "use euler"),
    ],
)
def test_what_cannot_be_asked_is_refused(world, more, said, tmp_path, capsys):
    assert ask(world, tmp_path / "out", *more) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_models_and_data_are_refused(world, tmp_path, capsys):
    bundled = ["sample", str(tmp_path / "out"), "--from", str(world / "people"), "--set", "delta_t=2"]
    assert run(bundled) == 2
    assert "makes no forecasts" in capsys.readouterr().err
    assert run(["sample", str(tmp_path / "out"), "--checkpoint", str(world / "model"), "--all-conditions"]) == 2
    assert "say of whom with --from DATASET" in capsys.readouterr().err
    draw = ["sample", str(tmp_path / "out"), "--condition", "motor_rh", "--anatomy", str(world / "model")]
    assert run(draw) == 2
    assert "does not draw how people look" in capsys.readouterr().err
    single = write_people(tmp_path / "single", sessions=(0,), n=8)
    asked = [
        "sample",
        str(tmp_path / "out"),
        "--from",
        str(single),
        "--checkpoint",
        str(world / "model"),
        "--steps",
        "2",
    ]
    assert run(asked) == 2
    assert "has no later sessions" in capsys.readouterr().err
    unknown = write_people(tmp_path / "unknown", ages=False, n=2)
    assert run(["sample", str(tmp_path / "out"), "--from", str(unknown), *asked[4:], "--set", "delta_t=2"]) == 1
    assert "expected the age of sub-00" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_people_with_one_session_cannot_be_trained_on(tmp_path, capsys):
    write_people(tmp_path / "people", sessions=(0,), n=8)
    assert run(["tokenize", str(tmp_path / "people"), str(tmp_path / "latents"), "--preset", "anatomy"]) == 0
    assert run(["train", str(tmp_path / "latents"), str(tmp_path / "model"), "--preset", "forecast"]) == 1
    assert "expected people with sessions at different ages, found none" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_delta_t_is_for_bridges(world, tmp_path, capsys):
    common = ["train", str(world / "latents"), str(tmp_path / "model"), "--preset"]
    assert run([*common, "anatomy", "--set", "conditioning.numbers.delta_t=0"]) == 2
    assert "told to forecasts only" in capsys.readouterr().err
    assert run([*common, "forecast", "--set", "conditioning.numbers.delta_t=0.1"]) == 2
    assert "always told how far" in capsys.readouterr().err


def evaluate(out: Path, people: Path, forecasts: Path) -> int:
    return run(["evaluate", str(out), "--unit", "anatomy", "--real", str(people), "--synthetic", str(forecasts)])


@pytest.fixture(scope="module")
def report(world, forecasts) -> dict:
    assert evaluate(world / "report", world / "people", forecasts) == 0
    assert "sub-02, 4 years after 24" in (world / "report" / "report.html").read_text()
    return json.loads((world / "report" / "metrics.json").read_text())


def test_the_rows_of_an_evaluation(report):
    rows = report["rows"]
    assert report["kind"] == "forecasts"
    assert list(rows) == ["forecast", "no change", "mean change of training people", "real follow-up"]
    assert rows["no change"]["error"][0] == pytest.approx(1)
    assert rows["no change"]["slope_years"] == [0, 0, 0]
    assert rows["no change"]["r_years"] is None
    assert rows["real follow-up"]["r_years"][0] > 0.7  # planted: all widen alike
    mean = rows["mean change of training people"]
    assert mean["error"][0] < 0.8
    assert mean["pattern"][0] > 0.7
    assert mean["r_years"][0] > 0.9
    low, high = mean["error"][1:]
    assert low < mean["error"][0] < high


def planted(people: Path, out: Path, share: float) -> Path:
    """ "Forecasts" that are the earlier scan plus a share of the real change, written as `sample` would."""
    from fmrisynth.data.forecasts import ForecastOf

    write_dataset_description(out, "Forecasts", sources=[], origin=None, readme="")
    by_person: dict[str, list] = {}
    for block in read_blocks(people, split="test"):
        by_person.setdefault(block.subject, []).append(block)
    for subject, (first, *later) in by_person.items():
        written = []
        for number, block in enumerate(later, 1):
            before, after = first.load(), block.load()
            volume = before.reference_XYZ + share * (after.reference_XYZ - before.reference_XYZ)
            age = float(first.attributes["age"])
            said = ForecastOf(
                people.name,
                first.reference_path.relative_to(people).as_posix(),
                age,
                float(block.attributes["age"]) - age,
                True,
            )
            entities = naming.Entities(sub=subject, ses="01", task="anatomy", run=number, space="MNI152NLin6Asym")
            written.append(
                write_block(
                    out, entities, "forecast", BlockData(volume[..., None], volume, after.mask_XYZ), first.load_grid(), condition=EPI,
                    onset_s=0.0, duration_s=1.44, tr_s=1.44, attributes=block.attributes, sidecar={"Synthetic": True, **said.sidecar()},
                )
            )  # fmt: skip
        finish_subject(out, subject, written)
    return out


def test_perfect_and_damped_forecasts_are_told(world, tmp_path):
    rows = []
    for share in (1.0, 0.5):
        assert (
            evaluate(
                tmp_path / f"report-{share}",
                world / "people",
                planted(world / "people", tmp_path / f"of-{share}", share),
            )
            == 0
        )
        rows.append(json.loads((tmp_path / f"report-{share}" / "metrics.json").read_text())["rows"]["forecast"])
    perfect, half = rows
    assert perfect["slope_real"][0] == pytest.approx(1, abs=0.03)
    assert perfect["r_real"][0] > 0.99
    assert perfect["error"][0] < 0.05
    assert half["slope_real"][0] == pytest.approx(0.5, abs=0.05)
    assert half["error"][0] == pytest.approx(0.5, abs=0.03)
    assert half["pattern"][0] > 0.99


def test_what_cannot_be_compared_is_refused(forecasts, tmp_path, capsys):
    other = write_people(tmp_path / "other", sessions=(0,), n=8)
    assert evaluate(tmp_path / "report", other, forecasts) == 1
    assert "give the dataset that was named with --from" in capsys.readouterr().err
    few = write_people(tmp_path / "few", n=9)
    assert evaluate(tmp_path / "report", few, planted(few, tmp_path / "of-few", 1.0)) == 1
    assert "expected 20 training people" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_intervals_by_leaving_out_people():
    """Of a mean with one pair a person the jackknife is the ordinary standard error."""
    from scipy import stats

    from fmrisynth.evaluate.forecasts import jackknife

    values = np.random.default_rng(0).normal(size=12)
    value, low, high = jackknife(lambda i: float(values[i].mean()), np.array([f"{k}" for k in range(12)]))
    expected = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    assert (value, low, high) == pytest.approx((values.mean(), *expected))

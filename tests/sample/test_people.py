"""`fmrisynth sample --subjects --blocks --anatomy`: people with an anatomy of their own who do several blocks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fmrisynth.bids.naming import Entities
from fmrisynth.cli.main import run
from fmrisynth.data.blocks import BlockData, finish_subject, read_blocks, write_block
from fmrisynth.models.bundled import bundled_model_dir
from fmrisynth.models.tokenizers import load_tokenizer
from tests.sample.test_run import digest_tree, validator_errors

ASK = ["sample", "--condition", "motor_rh", "--condition", "gambling_loss", "--steps", "2", "--seed", "7"]


@pytest.fixture(scope="module")
def info():
    return load_tokenizer(bundled_model_dir() / "tokenizer").info


@pytest.fixture(scope="module")
def looks(tmp_path_factory, info) -> Path:
    """Two people who look like nobody: the mean anatomy, darker and brighter by place, one with half a brain less a corner."""
    root = tmp_path_factory.mktemp("looks")
    rng = np.random.default_rng(3)
    for number in (1, 2):
        mask_XYZ = info.mask_XYZ.copy()
        mask_XYZ[: 14 + number] = False
        reference_XYZ = np.where(mask_XYZ, info.reference_XYZ * rng.uniform(0.7, 1.4, info.grid.shape), 0.0)
        data = BlockData(reference_XYZ[..., None].repeat(2, axis=-1), reference_XYZ, mask_XYZ)
        block = write_block(
            root, Entities(sub=f"{number:02d}", task="rest", space=info.grid.space, res=info.grid.resolution), "rest",
            data, info.grid, condition="rest", onset_s=0.0, duration_s=2.0, tr_s=1.44,
        )  # fmt: skip
        finish_subject(root, f"{number:02d}", [block])
    return root


@pytest.fixture(scope="module")
def people(tmp_path_factory, looks) -> Path:
    out = tmp_path_factory.mktemp("people") / "out"
    ask = [*ASK, "--subjects", "3", "--blocks", "2", "--anatomy", str(looks), "--save-latents", "--report", str(out)]
    assert run(ask) == 0
    return out


def test_each_person_does_everything_and_looks_like_somebody(people, looks, info):
    blocks = read_blocks(people)
    assert [(b.subject, b.condition) for b in blocks] == [
        (f"synth{k:04d}", condition) for k in (1, 2, 3) for condition in ("motor_rh", "gambling_loss") for _ in range(2)
    ]
    theirs = {block.subject: block.load() for block in read_blocks(looks)}
    for block in blocks:
        own, source = block.load(), ("01", "02", "01")[int(block.subject[-1]) - 1]  # the third shares the first's
        np.testing.assert_array_equal(own.mask_XYZ, theirs[source].mask_XYZ & info.mask_XYZ)
        inside = own.mask_XYZ
        np.testing.assert_allclose(own.reference_XYZ[inside], theirs[source].reference_XYZ[inside], rtol=1e-3, atol=1)
        # The reference is what percent signal change is counted from, so the frames stay near it.
        assert np.corrcoef(own.bold_XYZT.mean(axis=-1)[inside], own.reference_XYZ[inside])[0, 1] > 0.999
        assert (own.bold_XYZT[~inside] == 0).all()
        sidecar = json.loads(block.path.with_name(block.path.name.replace(".nii.gz", ".json")).read_text())
        assert sidecar["Anatomy"] == f"{looks.name}: sub-{source}"
    seeds = {json.loads(b.path.with_name(b.path.name.replace(".nii.gz", ".json")).read_text())["Seed"] for b in blocks}
    assert len(seeds) == len(blocks)


def test_validator_and_report(people):
    assert validator_errors(people) == []
    assert "by 3 people" in (people / "report.html").read_text()
    pictures = {path.name for path in (people / "figures").glob("*_preview.png")}
    assert pictures == {f"sub-synth0001_desc-{name}_preview.png" for name in ("synthRh", "synthLoss")}


def test_same_bytes_in_any_order_and_for_any_number_of_people(people, looks, tmp_path):
    ask = [*ASK, "--blocks", "2", "--anatomy", str(looks), "--save-latents"]
    assert run([*ask, "--subjects", "1", "--start-index", "1", str(tmp_path / "b")]) == 0
    assert run([*ask, "--subjects", "3", "--shard", "2/2", str(tmp_path / "b")]) == 0  # is there already
    alone, all_three = digest_tree(tmp_path / "b"), digest_tree(people)
    mine = {name: content for name, content in all_three.items() if "sub-synth0002" in name and "figures" not in name}
    assert len(mine) > 10
    assert {name: alone.get(name) for name in mine} == mine


def test_people_of_the_bundled_model_have_anatomies_of_their_own(tmp_path):
    ask = ["sample", "--condition", "motor_rh", "--steps", "1", "--seed", "7", "--set", "preview=false"]
    assert run([*ask, "--n", "4", str(tmp_path / "out")]) == 0
    four = [block.load() for block in read_blocks(tmp_path / "out")]
    brain = np.logical_or.reduce([one.mask_XYZ for one in four])
    for i, one in enumerate(four):
        assert 0.85 * brain.sum() < one.mask_XYZ.sum()
        for other in four[:i]:
            assert not np.array_equal(one.mask_XYZ, other.mask_XYZ)
            assert np.corrcoef(one.reference_XYZ[brain], other.reference_XYZ[brain])[0, 1] < 0.9
    # A sample of another condition is another person, and asked for alone it is the same one.
    assert run([*ask, "--condition", "gambling_loss", "--n", "1", str(tmp_path / "two")]) == 0
    loss, motor = (block.load().reference_XYZ for block in read_blocks(tmp_path / "two"))
    assert not np.array_equal(loss, motor)
    assert np.array_equal(motor, four[0].reference_XYZ)


def test_people_may_all_have_the_mean_anatomy(tmp_path, info):
    ask = [*ASK, "--subjects", "2", "--anatomy", "mean", "--set", "preview=false", str(tmp_path / "out")]
    assert run(ask) == 0
    for block in read_blocks(tmp_path / "out"):
        assert np.array_equal(block.load_mask(), info.mask_XYZ)


def test_latents_of_all_blocks_are_kept(people):
    from safetensors.numpy import load_file

    latents = load_file(next((people / "latents").glob("sub-synth0001*")))["latents"]
    assert len(latents) == 4
    assert len({latent.tobytes() for latent in latents}) == 4


def test_another_anatomy_makes_the_person_again(looks, tmp_path, capsys):
    ask = [*ASK, "--subjects", "1", "--set", "preview=false", str(tmp_path / "out")]
    assert run(ask) == 0
    assert run([*ask, "--anatomy", str(looks)]) == 2
    assert "begun with other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "status", "said"),
    [
        (["--subjects", "2", "--n", "3"], 2, "takes the place of n"),
        (["--blocks", "2"], 2, "blocks are counted per person"),
        (["--anatomy", "EMPTY"], 1, "EMPTY"),
    ],
)
def test_what_cannot_be_is_refused(more, status, said, tmp_path, capsys):
    (tmp_path / "EMPTY").mkdir()
    more = [str(tmp_path / "EMPTY") if word == "EMPTY" else word for word in more]
    assert run([*ASK, *more, str(tmp_path / "out")]) == status
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_batches_of_many_people_are_the_same_dataset(people, looks, tmp_path, monkeypatch):
    """The way of a GPU, on a CPU: latents of one condition are drawn together, whoever does them; what is written is the same."""
    from fmrisynth.sample import run as sample_run

    def in_batches(self, subjects):
        return self.on_gpu(subjects, torch.device("cpu"))

    monkeypatch.setattr(sample_run.SampleMaker, "on_cpu", in_batches)
    ask = [*ASK, "--subjects", "3", "--blocks", "2", "--anatomy", str(looks), "--save-latents"]
    ask += ["--set", "preview=false"]
    assert run([*ask, "--batch-size", "2", str(tmp_path / "out")]) == 0
    one, other = digest_tree(tmp_path / "out"), digest_tree(people)
    tables = [name for name in other if name.endswith((".tsv", "bold.json"))]
    assert len(tables) > 20
    assert [name for name in tables if one[name] != other[name]] == []
    monkeypatch.undo()
    assert run([*ask, str(tmp_path / "out")]) == 0  # and it is finished
    assert digest_tree(tmp_path / "out") == one


def test_measured_anatomies_are_said(people):
    assert "can be recognised" in (people / "README.md").read_text()  # nothing says that these are not measured

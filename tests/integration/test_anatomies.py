"""Anatomies from the phantom to people who have them, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from fmrisynth.bids.sidecars import read_tsv
from fmrisynth.cli.main import run
from fmrisynth.data.blocks import read_blocks
from fmrisynth.models.checkpoint import read_card
from fmrisynth.report.methods import methods_of
from tests.sample.test_run import digest_tree, validator_errors


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Phantom people in two sessions, and a model that hardly learned how they look."""
    root = tmp_path_factory.mktemp("anatomies")
    common = ["--seed", "3"]
    people = ["--layout", "anatomy", "--n-subjects", "5", "--set", "sessions=2", "--set", "years_between=10"]
    people += ["--set", "anatomy.patients=0.5"]
    assert run(["simulate", str(root / "people"), *people, "--set", "split.all=train", *common]) == 0
    assert run(["tokenize", str(root / "people"), str(root / "latents"), "--preset", "anatomy", *common]) == 0
    few = ["--steps", "2", "--set", "batch_size=2", "--set", "val_every=2", "--set", "checkpoint_every=2"]
    assert run(["train", str(root / "latents"), str(root / "model"), "--preset", "anatomy", *few, *common, "--set",
                "conditioning.attributes={sex: 0.1, diagnosis: 0.1}"]) == 0  # fmt: skip
    return root


def test_people_age_between_sessions(world):
    blocks = read_blocks(world / "people")
    assert len(blocks) == 10
    by_person = {}
    for block in blocks:
        by_person.setdefault(block.subject, []).append(block)
    for first, second in by_person.values():
        assert float(second.attributes["age"]) == float(first.attributes["age"]) + 10
        one, other = first.load(), second.load()
        assert one.bold_XYZT.shape[-1] == 1
        np.testing.assert_array_equal(one.bold_XYZT[..., 0], one.reference_XYZ)
        both = one.mask_XYZ & other.mask_XYZ
        same = np.corrcoef(one.reference_XYZ[both], other.reference_XYZ[both])[0, 1]
        others = [b.load() for b in blocks if b.subject != first.subject]
        strangers = max(np.corrcoef(one.reference_XYZ[both], o.reference_XYZ[both])[0, 1] for o in others)
        assert 1 > same > strangers  # the same person, changed


def test_the_tokenizer_keeps_anatomies(world):
    from fmrisynth.models.tokenizers import load_tokenizer
    from fmrisynth.tokenize.source import to_frames

    tokenizer = load_tokenizer(world / "latents" / "tokenizer")
    data = read_blocks(world / "people")[0].load()
    frames = to_frames(data, "relative")
    back = tokenizer.decode(tokenizer.encode(frames))
    inside = data.mask_XYZ
    assert np.corrcoef(frames[0, 0].numpy()[inside], back[0, 0].numpy()[inside])[0, 1] > 0.9
    assert abs(float(frames[0, 0].numpy()[inside].mean()) - 1) < 1e-4


def test_the_card_knows_ages_as_a_number(world):
    card = read_card(next((world / "model" / "checkpoints").glob("step-*")))
    assert card.labels["sex"] == sorted({b.attributes["sex"] for b in read_blocks(world / "people")})
    ages = [float(b.attributes["age"]) for b in read_blocks(world / "people")]
    assert card.labels["age"].mean == pytest.approx(np.mean(ages))
    assert card.always == ["condition"]


@pytest.fixture(scope="module")
def drawn(world) -> Path:
    table = world / "asked.tsv"
    rows = [
        "participant_id sex age site diagnosis",
        "sub-1 F 30 A patient",
        "sub-2 M 70 B n/a",
        "sub-3 n/a 50 A control",
    ]
    table.write_text("\n".join(row.replace(" ", "\t") for row in rows) + "\n")
    ask = ["sample", str(world / "drawn"), "--checkpoint", str(world / "model"), "--all-conditions", "--n", "3"]
    assert run([*ask, "--participants", str(table), "--steps", "4"]) == 0
    return world / "drawn"


def test_everybody_is_asked_for_as_in_the_table(drawn):
    blocks = read_blocks(drawn)
    asked = [tuple(b.attributes.get(name) for name in ("sex", "age", "diagnosis")) for b in blocks]
    assert asked == [("F", "30", "patient"), ("M", "70", None), (None, "50", "control")]
    assert not any("site" in b.attributes for b in blocks)  # the model does not know it
    volumes = []
    for block in blocks:
        sidecar = json.loads(block.path.with_name(block.path.name.replace(".nii.gz", ".json")).read_text())
        assert sidecar["Attributes"] == dict(block.attributes)
        data = block.load()
        assert data.mask_XYZ.sum() > 20_000
        np.testing.assert_allclose(
            data.bold_XYZT[..., 0][data.mask_XYZ], data.reference_XYZ[data.mask_XYZ], rtol=1e-3, atol=2
        )
        volumes.append(data.reference_XYZ)
    assert not np.allclose(volumes[0], volumes[1])
    assert (drawn / "figures" / "anatomies.png").stat().st_size > 10_000
    assert validator_errors(drawn) == []


def test_from_the_same_noise_people_differ_by_what_was_asked_alone(world, drawn, tmp_path):
    table = tmp_path / "asked.tsv"
    rows = ["participant_id sex age diagnosis", "sub-1 F 30 patient", "sub-2 F 30 patient", "sub-3 M 70 control"]
    table.write_text("\n".join(row.replace(" ", "\t") for row in rows) + "\n")
    ask = ["sample", str(tmp_path / "out"), "--checkpoint", str(world / "model"), "--all-conditions", "--n", "3"]
    ask += ["--participants", str(table), "--steps", "4"]
    assert run([*ask, "--set", "same_noise=true"]) == 0
    blocks = read_blocks(tmp_path / "out")
    first, second, _ = (block.load().reference_XYZ for block in blocks)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, read_blocks(drawn)[0].load().reference_XYZ)  # the first of any call
    assert not np.allclose(first, read_blocks(drawn)[1].load().reference_XYZ)
    assert [block.attributes["age"] for block in blocks] == ["30", "30", "70"]
    pictures = [plt.imread(root / "figures" / "anatomies.png") for root in (tmp_path / "out", drawn)]
    assert pictures[0].shape[0] > 1.7 * pictures[1].shape[0]  # with differences below
    assert run(ask) != 0  # other noise does not go into the same folder


def test_each_attribute_has_a_guidance_of_its_own(world, drawn, tmp_path, capsys):
    ask = ["--checkpoint", str(world / "model"), "--all-conditions", "--n", "1", "--steps", "4"]
    ask += ["--participants", str(world / "asked.tsv")]
    assert run(["sample", str(tmp_path / "same"), *ask, "--set", "guidance={age: 1, sex: 1}"]) == 0
    assert run(["sample", str(tmp_path / "more"), *ask, "--set", "guidance={age: 50}"]) == 0
    same, more = (read_blocks(tmp_path / name)[0].load().reference_XYZ for name in ("same", "more"))
    np.testing.assert_array_equal(same, read_blocks(drawn)[0].load().reference_XYZ)
    assert not np.array_equal(more, same)
    assert any("guidance age 50" in paragraph for paragraph in methods_of(tmp_path / "more"))
    assert run(["sample", str(tmp_path / "none"), *ask, "--set", "guidance={weight: 2}"]) != 0
    assert "Guidance for 'weight'" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_too_few_rows_are_refused(world, drawn, tmp_path, capsys):
    ask = ["sample", str(tmp_path / "out"), "--checkpoint", str(world / "model"), "--all-conditions", "--n", "4"]
    assert run([*ask, "--participants", str(world / "asked.tsv")]) != 0
    assert "expected 4 rows" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_people_whose_anatomy_is_drawn(world, tmp_path):
    ask = [
        "sample",
        "--condition",
        "motor_rh",
        "--steps",
        "2",
        "--anatomy",
        str(world / "model"),
        "--set",
        "preview=false",
    ]
    assert run([*ask, "--subjects", "2", "--blocks", "2", "--set", "age=70", str(tmp_path / "a")]) == 0
    assert (
        run([*ask, "--subjects", "1", "--start-index", "1", "--blocks", "2", "--set", "age=70", str(tmp_path / "b")])
        == 0
    )
    blocks = read_blocks(tmp_path / "a")
    looks = [block.load() for block in blocks]
    np.testing.assert_array_equal(looks[0].reference_XYZ, looks[1].reference_XYZ)  # one person
    assert not np.allclose(looks[0].reference_XYZ, looks[2].reference_XYZ)
    sidecar = json.loads(blocks[0].path.with_name(blocks[0].path.name.replace(".nii.gz", ".json")).read_text())
    assert sidecar["Anatomy"].startswith("drawn by model ")
    alone, both = digest_tree(tmp_path / "b"), digest_tree(tmp_path / "a")
    mine = [name for name in both if name.startswith("sub-synth0002/")]
    assert len(mine) > 8
    assert [name for name in mine if alone[name] != both[name]] == []
    assert read_tsv(tmp_path / "a" / "participants.tsv")[0]["participant_id"] == "sub-synth0001"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--condition", "motor_rh", "--anatomy", "BUNDLED"], "does not draw how people look"),
        (["--condition", "motor_rh", "--anatomy", "mean", "--set", "age=70"], "no attribute 'age'"),
        (["--checkpoint", "MODEL", "--all-conditions", "--set", "age=old"], "expected a number"),
        (["--condition", "motor_rh", "--anatomy", "MODEL", "--set", "age=old"], "expected a number"),
        (["--checkpoint", "MODEL", "--all-conditions", "--report"], "makes anatomies"),
    ],
)
def test_what_cannot_be_is_refused(world, more, said, tmp_path, capsys):
    from fmrisynth.models.bundled import bundled_model_dir

    places = {"BUNDLED": str(bundled_model_dir()), "MODEL": str(world / "model")}
    assert run(["sample", str(tmp_path / "out"), *[places.get(word, word) for word in more]]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_t1w_are_not_what_percent_changes_are_of(world, tmp_path, capsys):
    people = ["--layout", "anatomy", "--set", "modality=T1w", "--n-subjects", "2", "--set", "split.all=train"]
    assert run(["simulate", str(tmp_path / "t1w"), *people]) == 0
    assert run(["tokenize", str(tmp_path / "t1w"), str(tmp_path / "latents"), "--preset", "anatomy"]) == 0
    few = ["--steps", "1", "--set", "batch_size=2", "--set", "checkpoint_every=1"]
    assert run(["train", str(tmp_path / "latents"), str(tmp_path / "model"), "--preset", "anatomy", *few]) == 0
    for anatomy in ("t1w", "model"):
        ask = ["sample", str(tmp_path / "out"), "--condition", "motor_rh", "--anatomy", str(tmp_path / anatomy)]
        assert run(ask) == 2
        assert "found T1-weighted images" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_any_block_dataset_has_anatomies(world, drawn, tmp_path):
    """Two blocks of one person are one anatomy, that of the reference."""
    from fmrisynth.data.latents import LatentDataset

    ask = [
        "sample",
        "--condition",
        "motor_rh",
        "--subjects",
        "2",
        "--blocks",
        "2",
        "--steps",
        "2",
        "--set",
        "preview=false",
    ]
    assert run([*ask, "--anatomy", str(drawn), str(tmp_path / "blocks")]) == 0
    tokenizer = str(world / "latents" / "tokenizer")
    assert run(["tokenize", str(tmp_path / "blocks"), str(tmp_path / "latents"), "--tokenizer", tokenizer]) == 0
    dataset = LatentDataset.open(tmp_path / "latents")
    assert [(row.subject, row.condition) for row in dataset.rows] == [(f"synth000{k}", "anatomy_epi") for k in (1, 2)]
    assert dataset.shape[1] == 1
    assert not np.allclose(dataset[0].numpy(), dataset[1].numpy())


@pytest.mark.parametrize("command", ["glm", "check", "evaluate"])
def test_anatomies_are_not_taken_for_blocks(world, drawn, command, tmp_path, capsys):
    asked = {
        "glm": ["glm", str(drawn), str(tmp_path / "out")],
        "check": ["check", str(drawn), "--checkpoint", str(world / "model")],
        "evaluate": ["evaluate", str(tmp_path / "out"), "--real", str(drawn), "--synthetic", str(drawn)],
    }[command]
    assert run(asked) == 2
    assert "evaluate --unit anatomy" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

"""What data are: declared, handed on, and said in words."""

from __future__ import annotations

import json

import pytest

from fmrisynth.bids.origin import KEY, PHANTOM, Origin, parse_origin, read_origin
from fmrisynth.bids.provenance import write_dataset_description
from fmrisynth.errors import FmrisynthError
from fmrisynth.models.bundled import bundled_model_dir
from fmrisynth.models.checkpoint import read_card


@pytest.mark.parametrize(
    "origin",
    [
        PHANTOM,
        Origin("measured", "HCP Young Adult"),
        PHANTOM.sampled(),
        Origin("synthetic"),
        Origin("measured", "x", 3, 40).sampled().sampled(),
    ],
)
def test_a_dataset_says_what_it_was_told(tmp_path, origin):
    write_dataset_description(tmp_path, "name", origin=origin)
    assert read_origin(tmp_path) == origin
    assert origin.statement in (tmp_path / "README.md").read_text()
    description = json.loads((tmp_path / "dataset_description.json").read_text())
    assert description["GeneratedBy"][0]["Description"] == origin.statement
    assert ("phantom" in description.get("Keywords", [])) == origin.is_phantom


def test_a_phantom_stays_a_phantom_however_many_models_lie_between():
    assert PHANTOM.sampled().sampled().is_phantom
    assert not Origin("measured", "study").sampled().is_phantom
    assert not Origin("synthetic").is_phantom
    text = Origin("phantom", n_subjects=32, n_blocks=1056).sampled().sampled().statement
    assert (
        "synthetic data of a model that was trained on phantom (simulated) data (1,056 blocks of 32 subjects)" in text
    )


@pytest.mark.parametrize(
    ("keywords", "kind"), [(["fMRI", "Simulated"], "phantom"), (["synthetic"], "synthetic"), (["fMRI"], "measured")]
)
def test_datasets_of_other_software_declare_themselves_by_keyword(tmp_path, keywords, kind):
    content = {"Name": "theirs", "BIDSVersion": "1.10.0", "Keywords": keywords}
    (tmp_path / "dataset_description.json").write_text(json.dumps(content))
    assert read_origin(tmp_path) == Origin(kind, "theirs")


def test_without_a_description_data_are_taken_as_measured_and_named_for_their_folder(tmp_path):
    assert read_origin(tmp_path) == Origin("measured", tmp_path.name)


def _nested(depth):
    content = {"Kind": "phantom"}
    for _ in range(depth):
        content = {"Kind": "synthetic", "TrainedOn": content}
    return content


@pytest.mark.parametrize(
    "content",
    [
        "phantom",
        {"Kind": "real"},
        {"Kind": "phantom", "Subjects": "many"},
        {"Kind": "phantom", "Blocks": True},
        _nested(9),
    ],
)
def test_what_is_no_origin_is_refused(tmp_path, content):
    with pytest.raises(ValueError):
        parse_origin(content)
    (tmp_path / "dataset_description.json").write_text(json.dumps({"Name": "x", KEY: content}))
    with pytest.raises(FmrisynthError, match="origin of the data"):
        read_origin(tmp_path)


def test_the_bundled_model_says_that_it_is_a_phantoms():
    origin = read_card(bundled_model_dir()).origin
    assert origin.kind == "synthetic"
    assert origin.is_phantom
    assert "1,056 blocks of 32 subjects" in origin.statement

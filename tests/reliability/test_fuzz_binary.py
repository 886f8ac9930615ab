"""Images, latents, tokenizers and checkpoints with bytes changed: an answer or one sentence, and no memory for mere claims."""

from __future__ import annotations

import gzip
import json
import shutil
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from fmrisynth.data.latents import LatentDataset
from fmrisynth.data.nifti import iterate_frames, read_header, read_image, write_image
from fmrisynth.errors import FmrisynthError
from fmrisynth.models.checkpoint import load_denoiser
from fmrisynth.models.tokenizers import load_tokenizer
from fmrisynth.models.tokenizers.base import digest
from fmrisynth.sample.plan import SampleRequest
from tests.reliability.test_fuzz_text import answer

FUZZ = settings(max_examples=25, deadline=60_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
FEW = settings(FUZZ, max_examples=12)
MOST_BYTES = 64 * 2**20


def frugal(work) -> None:
    """`answer`, without taking more memory than the small files here could ever need."""
    tracemalloc.start()
    try:
        answer(work)
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("image") / "good.nii"
    values = np.random.default_rng(0).random((6, 5, 4, 3)).astype(np.float32)
    write_image(path, values, np.diag([3.0, 3, 3, 1]), tr_s=1.0)
    return path


CHANGES = st.lists(st.tuples(st.integers(0, 355), st.integers(0, 255)), max_size=6)
WORDS = st.lists(st.tuples(st.sampled_from([40, 42, 44, 46, 48, 50, 70, 72, 108, 112, 116, 252, 254, 280, 76, 80, 92]),
                           st.binary(min_size=4, max_size=4)), max_size=4)  # fmt: skip
"""Places of dimensions, types, offsets, slopes and affines."""


@FUZZ
@given(CHANGES, WORDS, st.booleans(), st.integers(0, 900))
def test_nifti(image, changes, words, packed, cut):
    content = bytearray(image.read_bytes())
    for place, value in changes:
        content[place] = value
    for place, value in words:
        content[place : place + 4] = value
    content = content[: len(content) - cut] if cut < len(content) else content
    path = image.with_name("bad.nii.gz" if packed else "bad.nii")
    path.write_bytes(gzip.compress(bytes(content)) if packed else bytes(content))
    frugal(lambda: read_header(path))
    frugal(lambda: read_image(path).scaled())
    frugal(lambda: read_image(path, ndim=3))
    frugal(lambda: [frame.sum() for frame in iterate_frames(path)])


@FUZZ
@given(st.binary(max_size=400), st.booleans())
def test_no_nifti(tmp_path, content, packed):
    path = tmp_path / ("x.nii.gz" if packed else "x.nii")
    path.write_bytes(content)
    frugal(lambda: read_image(path))


def test_a_small_file_cannot_claim_a_terabyte(image):
    content = bytearray(image.read_bytes())
    struct.pack_into("<5h", content, 40, 4, 30_000, 30_000, 30_000, 3)
    path = image.with_name("claim.nii.gz")
    path.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(FmrisynthError, match="not plausible"):
        read_image(path)
    struct.pack_into("<5h", content, 40, 4, 600, 600, 600, 3)
    path.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(FmrisynthError, match="more than a file of"):
        read_image(path)


JSON_VALUES = st.sampled_from(
    [None, True, -1, 0, 1, 10**9, 10**30, 1.5, float("nan"), float("inf"), "", "x", "../../x_y", "a/b_c", [], [1], [10**9] * 5, [[]],
     {}, {"a": 1}, [0.0] * 3, ["motor_rh"], {"condition": []}, {"condition": ["../../../etc_passwd"]}, {"x": ["y"]},
     "hybrid", "vqgan", "unet"]
)  # fmt: skip


def paths_of(content, prefix=()):
    """Every place in a JSON object."""
    for key, value in content.items() if isinstance(content, dict) else ():
        yield (*prefix, key)
        yield from paths_of(value, (*prefix, key))


def changed(content: dict, path: tuple, value) -> dict:
    copy = json.loads(json.dumps(content))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    if value == "remove":
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return copy


@pytest.fixture(scope="module")
def model(world, tmp_path_factory) -> Path:
    """A model directory of its own."""
    folder = tmp_path_factory.mktemp("model")
    source = world.root / "model"
    shutil.copytree(source / "checkpoints" / "step-00000006", folder, dirs_exist_ok=True)
    shutil.copytree(source / "tokenizer", folder / "tokenizer")
    return folder


@FEW
@given(st.data())
def test_card_of_a_model(model, data):
    card = json.loads((model / "checkpoint.json").read_text())
    bad = model.with_name("bad-model")
    shutil.copytree(model, bad, dirs_exist_ok=True)
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(list(paths_of(card))))
        card = changed(card, path, data.draw(JSON_VALUES | st.just("remove")))
    (bad / "checkpoint.json").write_text(json.dumps(card))
    frugal(lambda: load_denoiser(bad))


@FEW
@given(
    st.sampled_from(["checkpoint.json", "ema.safetensors"]),
    st.integers(0, 10**6),
    st.binary(min_size=1, max_size=8),
    st.booleans(),
)
def test_bytes_of_a_model(model, name, place, change, cut):
    bad = model.with_name("bad-bytes")
    shutil.copytree(model, bad, dirs_exist_ok=True)
    content = bytearray((model / name).read_bytes())
    place %= len(content) if data_matters(name) else min(len(content), 4096)
    content[place : place + len(change)] = change
    (bad / name).write_bytes(content[:place] if cut else content)
    frugal(lambda: load_denoiser(bad))


def data_matters(name: str) -> bool:
    return name.endswith(".json")


@FUZZ
@given(st.data())
def test_description_of_a_tokenizer(world, tmp_path_factory, data):
    good = world.root / "latents" / "tokenizer"
    bad = world.root / "bad-tokenizer"
    shutil.copytree(good, bad, dirs_exist_ok=True)
    content = json.loads((good / "tokenizer.json").read_text())
    path = data.draw(st.sampled_from(list(paths_of(content))))
    content = changed(content, path, data.draw(JSON_VALUES | st.just("remove")))
    if data.draw(st.booleans()):  # by somebody who can compute a digest
        content["sha256"] = digest(
            content, *((good / f"{n}.safetensors").read_bytes() for n in ("weights", "reference"))
        )
    (bad / "tokenizer.json").write_text(json.dumps(content))
    frugal(lambda: load_tokenizer(bad))


@FUZZ
@given(st.integers(0, 4000), st.binary(min_size=1, max_size=8), st.booleans())
def test_shard_of_latents(tmp_path_factory, world, place, change, cut):
    bad = world.root / "bad-latents"
    if not bad.exists():
        shutil.copytree(world.root / "latents", bad)
    name = "sub-01_latents.safetensors"
    content = bytearray((world.root / "latents" / name).read_bytes())
    content[place : place + len(change)] = change
    (bad / name).write_bytes(content[:place] if cut else content)
    frugal(lambda: LatentDataset.open(bad, subjects=["01"]).load(0))


def test_a_header_that_claims_more_than_the_file(tmp_path):
    save_file({"latents": np.zeros((1, 1, 1, 1, 1, 1), np.float32)}, tmp_path / "x.safetensors")
    content = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", 2**62) + content[8:])
    from fmrisynth.data.latents import shard_shape

    with pytest.raises(FmrisynthError, match="cannot be read"):
        shard_shape(tmp_path / "x.safetensors")


def test_a_label_cannot_lead_out_of_the_dataset():
    """Labels come from a model's card; the names of folders are made of them."""
    from fmrisynth.conditions import load_table

    condition = load_table().get("../../../tmp/evil_x")
    assert SampleRequest(condition, 0, 1).subject.isalnum()

"""Tables, events and settings with anything in them: an answer or one sentence, never a traceback, never a hang."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fmrisynth.bids.confounds import read_confounds
from fmrisynth.bids.events import conditions_of_task, find_blocks, read_ev, read_events
from fmrisynth.bids.naming import unit_record
from fmrisynth.bids.runs import Timing
from fmrisynth.bids.sidecars import read_tsv
from fmrisynth.bids.sources import read_json, read_participants
from fmrisynth.cli.options import resolve
from fmrisynth.conditions import load_table
from fmrisynth.config.evaluate import EvaluateConfig
from fmrisynth.config.glm import GlmConfig
from fmrisynth.config.load import load_config
from fmrisynth.config.prepare import BlocksConfig, PrepareConfig, WindowConfig
from fmrisynth.config.sample import SampleConfig
from fmrisynth.config.simulate import SimulateConfig
from fmrisynth.config.tokenize import TokenizeConfig
from fmrisynth.config.train import TrainConfig
from fmrisynth.data.blocks import SCANS_COLUMNS, read_subject
from fmrisynth.data.grid import make_grid
from fmrisynth.data.latents import INDEX_COLUMNS, read_index
from fmrisynth.data.splits import read_families
from fmrisynth.data.windows import plan_windows
from fmrisynth.errors import FmrisynthError
from fmrisynth.evaluate.rois import read_spheres
from fmrisynth.simulate.activations import read_activation_table
from fmrisynth.stage import Stage, Unit

FUZZ = settings(max_examples=25, deadline=60_000, suppress_health_check=[HealthCheck.function_scoped_fixture])

GRID = make_grid((4, 4, 4), np.diag([3.0, 3.0, 3.0, 1.0]), "scanner")

CELLS = st.sampled_from(
    ["n/a", "nan", "inf", "-inf", "1e308", "-1e308", "1e-308", "1,5", "", " ", "0", "-5", "9" * 30, "9" * 5000, "0x10", "1_0", "٣",
     "\x00", "../../x", "/etc/passwd", "=cmd()", "sub-01", "loss", "gambling_loss", "punishment", "12.5", "28", "1", "'", '"', "\x1b[31m"]
) | st.text(max_size=8) | st.floats().map(str) | st.integers().map(str)  # fmt: skip


def tables(*columns: str) -> st.SearchStrategy[bytes]:
    """Tables with these columns and hostile cells, ragged at times; and bytes that are no table at all."""
    rows = st.lists(
        st.lists(CELLS, min_size=len(columns), max_size=len(columns)) | st.lists(CELLS, max_size=5), max_size=6
    )
    header = st.just(list(columns)) | st.permutations(columns) | st.lists(CELLS, max_size=4)
    text = st.builds(lambda head, body: "\n".join("\t".join(row) for row in [head, *body]), header, rows)
    return text.map(lambda t: t.encode("utf-8", "surrogatepass")) | st.binary(max_size=80)


def answer(work: Callable[[], Any]) -> Any:
    """What `work` gives; an error must be ours, one printable line, with something to read."""
    try:
        return work()
    except FmrisynthError as error:
        text = str(error)
        assert text.isprintable()
        assert 10 < len(text) < 2_000
        return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@FUZZ
@given(tables("onset", "duration", "trial_type"))
def test_events_to_windows(folder, content):
    path = put(folder / "sub-01_events.tsv", content)
    table = answer(lambda: read_events(path))
    if table is not None:
        plan(table.events)


@FUZZ
@given(tables("5.0", "28.0", "1"))
def test_evs_to_windows(folder, content):
    path = put(folder / "loss.txt", content)
    events = answer(lambda: read_ev(path, "loss"))
    if events is not None:
        plan(events)


def plan(events) -> None:
    table = load_table()
    conditions = conditions_of_task("gambling", events, table, None)
    blocks = find_blocks(events, conditions, table, merge_gap_s=2.0)
    kept, dropped = plan_windows(blocks, Timing(60, 1.0, 0.0), WindowConfig(), BlocksConfig(), 1.44)
    assert len(kept) + len(dropped) == len(blocks)
    assert all(0 <= window.start_s <= 60 for window in kept)


@FUZZ
@given(tables("trans_x", "rot_z", "csf", "framewise_displacement"))
def test_confounds(folder, content):
    path = put(folder / "confounds.tsv", content)
    found = answer(lambda: read_confounds(path, 3))
    for values in found.regressors("simple").values() if found is not None else ():
        assert np.isfinite(values).all()
        assert values.shape == (3,)


@FUZZ
@given(tables(*SCANS_COLUMNS))
def test_index_of_a_block_dataset(folder, content):
    put(folder / "sub-01" / "sub-01_scans.tsv", content)
    blocks = answer(lambda: read_subject(folder, "01"))
    for block in blocks or ():
        assert block.path.resolve().is_relative_to((folder / "sub-01").resolve())
        assert 0 < block.tr_s < 1e6
        assert 0 < block.n_frames < 1e6
        assert abs(block.onset_s) + abs(block.duration_s) < float("inf")


@FUZZ
@given(tables(*INDEX_COLUMNS))
def test_index_of_latents(folder, content):
    put(folder / "sub-01_latents.tsv", content)
    for row in answer(lambda: read_index(folder, "01")) or ():
        assert row.row >= 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | CELLS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(CELLS, inner, max_size=3), max_leaves=5,
)  # fmt: skip
RECORDS = st.fixed_dictionaries(
    {"Version": st.just(1) | JSON, "About": st.just({}) | JSON, "Index": CELLS | JSON, "Stamps": st.just({}) | JSON,
     "Outputs": st.dictionaries(CELLS, JSON, max_size=3) | JSON, "Result": JSON}
)  # fmt: skip


@FUZZ
@given(RECORDS.map(lambda content: json.dumps(content).encode()) | st.binary(max_size=80))
def test_records_of_units(folder, content):
    """A record that is not ours is no reason to believe, or to delete, anything."""
    precious = put(folder / "precious", b"x")
    put(folder / "out" / unit_record("sub-01"), content)
    stage = Stage("glm", folder / "out")
    unit = Unit("sub-01", {"content": 1}, lambda: "made", Path("index"))
    assert not answer(lambda: stage.is_finished(unit))
    assert answer(lambda: stage.do(unit)) == "made"
    assert answer(lambda: Stage("glm", folder / "out").do(unit)) == "made"
    assert precious.read_bytes() == b"x"


@FUZZ
@given(tables("participant_id", "sex", "age") | tables("Subject", "Family_ID"))
def test_participants_and_families(folder, content):
    path = put(folder / "participants.tsv", content)
    answer(lambda: read_participants(folder))
    answer(lambda: read_families(path))
    answer(lambda: read_tsv(path))


@FUZZ
@given(tables("parcel", "motor_rh", "gambling_loss") | tables("label", "task", "x", "y", "z", "radius_mm"))
def test_activations_and_regions(folder, content):
    path = put(folder / "table.tsv", content)
    answer(lambda: read_activation_table(path))
    answer(lambda: read_spheres(np.ones(GRID.shape, dtype=bool), GRID, path))


BOMB = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (97 + i, 97 + i, b", ".join([b"*%c" % (96 + i)] * 9)) for i in range(1, 20)
)
"""Nine to the power of twenty strings, if somebody looked at them all."""

HOSTILE_YAML = {
    "brackets": b"[" * 500, "dashes": b"- " * 1000 + b"x", "no such day": b"a: 2020-13-45", "long number": b"a: " + b"9" * 5000,
    "list as key": b"? [1, 2]\n: 3", "number as key": b"1: 2", "object": b"!!python/object/apply:os.system [true]", "circle": b"a: &x [*x]",
    "merge": b"<<: 1", "number as condition": b"conditions: {a_b: 3}", "number as label": b"conditions: {1: {}}",
    "list of lists": b"conditions: {a_b: {trial_types: [1, [2]]}}", "text as list": b"conditions: {a_b: {trial_types: x}}",
    "number as tasks": b"tasks: 3\nconditions: {a_b: {}}", "number as task": b"tasks: {a: 3}\nconditions: {a_b: {}}",
    "unknown rule": b"tasks: {a: {blocks: no}}\nconditions: {a_b: {}}",
    "number as names": b"tasks: {a: {mixes_with: 7}}\nconditions: {a_b: {}}",
    "path as label": b"conditions: {'../x_y': {}}", "bomb": BOMB, "self": b"conditions:\n  b_c: &a {d: *a}", "utf-16": b"\xff\xfe\x00",
    "nan": b"split: {train: .nan}", "infinite seed": b"seed: .inf", "huge seed": b"seed: 1e400",
    "many blocks": b"model: {kind: hybrid, bottleneck_blocks: 1000000000}",
    "kind": b"model: {kind: 7}", "list": b"model: [1]", "huge window": b"window: {n_frames: 1e9}", "null byte": b'condition_table: "a\\0b"',
}  # fmt: skip

YAML = (
    st.binary(max_size=60)
    | st.text(max_size=60).map(lambda t: t.encode("utf-8", "surrogatepass"))
    | st.dictionaries(st.text(max_size=6), st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=6),
                      lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6),
                      max_size=4).map(lambda value: repr(value).encode("utf-8", "surrogatepass"))
)  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_YAML)
def test_hostile_yaml(folder, name):
    read_condition_table(folder, HOSTILE_YAML[name])
    path = put(folder / "config.yaml", HOSTILE_YAML[name])
    for stage, model in CONFIGS.items():
        answer(lambda: load_config(model, stage, file=path))  # noqa: B023
        if len(HOSTILE_YAML[name]) > 500:
            break


@FUZZ
@given(YAML)
def test_condition_tables(folder, content):
    read_condition_table(folder, content)


def read_condition_table(folder: Path, content: bytes) -> None:
    path = put(folder / "conditions.yaml", content)
    load_table.cache_clear()
    table = answer(lambda: load_table(path))
    if table is not None:
        table.match("gambling", "loss")
        for condition in table.conditions.values():
            assert "/" not in condition.contrast


CONFIGS = {"prepare": PrepareConfig, "simulate": SimulateConfig, "tokenize": TokenizeConfig, "train": TrainConfig,
           "sample": SampleConfig, "glm": GlmConfig, "evaluate": EvaluateConfig}  # fmt: skip


@FUZZ
@given(st.sampled_from(list(CONFIGS)), YAML)
def test_settings(folder, stage, content):
    path = put(folder / "config.yaml", content)
    answer(lambda: load_config(CONFIGS[stage], stage, file=path))
    text = content.decode("utf-8", "replace")
    answer(lambda: load_config(CONFIGS[stage], stage, overrides=[f"seed={text}"]))
    answer(lambda: load_config(CONFIGS[stage], stage, overrides=[text]))
    answer(lambda: resolve(CONFIGS[stage], stage, preset=text or "x"))


@FUZZ
@given(
    st.binary(max_size=40)
    | st.sampled_from(
        [
            b"[" * 100_000,
            b'{"a":' * 100_000,
            b"9" * 5000,
            b"[]",
            b"null",
            b'{"RepetitionTime": 1e400}',
            b"\xef\xbb\xbf{}",
        ]
    )
)
def test_json(folder, content):
    path = put(folder / "x.json", content)
    found = answer(lambda: read_json(path))
    assert found is None or isinstance(found, dict)

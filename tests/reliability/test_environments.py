"""Odd places to run in: no root, no home, a closed umask, the C locale, warnings as errors, hostile labels."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from fmrisynth.bids.events import find_blocks, read_events
from fmrisynth.bids.sources import read_participants
from fmrisynth.conditions import Condition, ConditionTable
from tests.glm.test_glm_runs import make_bids
from tests.reliability.conftest import digests
from tests.reliability.faults import WRITERS

NOBODY = 65534


TWICE = "import sys; from fmrisynth.cli.main import run; sys.exit(run(sys.argv[1:]) or run(sys.argv[1:]))"


def call(
    arguments: list[str],
    *,
    python: tuple[str, ...] = ("-m", "fmrisynth"),
    user: int | None = None,
    **environment: str | None,
):
    """Run the command line in a process of its own."""
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(
        [sys.executable, *python, *arguments], capture_output=True, text=True, user=user, check=False,
        env={name: value for name, value in variables.items() if value is not None}, cwd="/",
        umask=0o077,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("command", WRITERS)
def test_nobody_without_a_home_in_the_c_locale(command, world, tmp_path):
    """A user without a name, a home or rights; files of its own only."""
    if os.geteuid() != 0:
        pytest.skip("only root can run a command as somebody else")
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    try:
        subprocess.run([sys.executable, "-c", ""], user=NOBODY, check=True)
    except PermissionError:
        pytest.skip(f"others may not enter a folder above this Python ({os.path.realpath(sys.executable)})")
    shutil.copytree(world.root, tmp_path / "world").chmod(0o755)
    out = tmp_path / "theirs" / "out"
    out.parent.mkdir()
    os.chown(out.parent, NOBODY, NOBODY)
    nowhere = {name: None for name in ("HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "USER", "LOGNAME")}
    ask = world.arguments(command, out, tmp_path / "world")
    done = call(ask, python=("-c", TWICE), user=NOBODY, LANG="C", LC_ALL="C", **nowhere)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    modes = {
        path.stat().st_mode & 0o777 for path in out.rglob("*") if path.is_file() and "tensorboard" not in path.parts
    }
    assert modes == {0o600}


@pytest.mark.slow
@pytest.mark.parametrize("command", WRITERS)
def test_warnings_as_errors(command, world, tmp_path):
    """Our own code warns of nothing; what libraries say of themselves while they are imported is theirs."""
    ours = tuple(word for kind in ("UserWarning", "RuntimeWarning", "ResourceWarning", "SyntaxWarning", "BytesWarning")
                 for word in ("-W", f"error::{kind}"))  # fmt: skip
    done = call(world.arguments(command, tmp_path / "out"), python=(*ours, "-m", "fmrisynth"))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("label", ["=1+1", "@SUM(A1)", "../../etc/passwd", '=HYPERLINK("x";"y")', "a/../b"])
def test_labels_of_events_cannot_become_paths_or_formulas(label, start, tmp_path):
    root = make_bids(tmp_path / "bids", derivatives=True, n_runs=1)
    for table in root.rglob("*_events.tsv"):
        head, *rows = table.read_text().splitlines()
        place = head.split("\t").index("trial_type")
        cells = [row.split("\t") for row in rows]
        kinds = sorted({row[place] for row in cells})
        table.write_text("\n".join([head, *(
            "\t".join(label if i == place and cell == kinds[0] else cell for i, cell in enumerate(row)) for row in cells
        )]) + "\n")  # fmt: skip
    before = digests(root)
    out = tmp_path / "out"
    done = start.run(["glm", str(root), str(out), "--unit", "run", "--set", "reports=false"])
    assert "Traceback" not in done.said
    assert done.status in (0, 1, 2)
    assert digests(root) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == (["bids", "out"] if out.exists() else ["bids"])
    for table in out.rglob("*.tsv"):
        for cell in table.read_text().replace("\n", "\t").split("\t"):
            assert not cell.startswith(("=", "@", "+")), (table, cell)


def test_a_participant_that_is_a_path_is_refused(world, start, tmp_path):
    for label in ("../x", "..", "a/b"):
        done = start.run([*world.arguments("prepare", tmp_path / "out"), "--participant-label", label])
        assert done.status == 2
        assert "there is no sub-" in done.said
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_version(world, start, tmp_path):
    model = shutil.copytree(world.root / "model" / "checkpoints" / "step-00000006", tmp_path / "model")
    card = json.loads((model / "checkpoint.json").read_text())
    (model / "checkpoint.json").write_text(json.dumps(card | {"format_version": 99}))
    shutil.copytree(world.root / "model" / "tokenizer", model / "tokenizer")
    done = start.run(["sample", str(tmp_path / "out"), "--condition", "motor_rh", "--checkpoint", str(model)])
    assert (done.status, len(done.errors)) == (1, 1)
    assert "expected format version 2, found 99" in done.said
    assert not (tmp_path / "out").exists()


def test_a_record_of_another_version_of_the_method_is_made_again(world, whole, start, tmp_path):
    out = tmp_path / "out"
    ask = world.arguments("glm", out)
    assert start.run(ask).status == 0
    record = out / "logs" / "units" / "sub-01.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"Version": 0}))
    done = start.run(ask)
    assert "sub-01 was made again: another version of the method made it" in done.said
    assert digests(out) == whole("glm")


def test_a_record_that_points_outside_is_not_believed(world, whole, start, tmp_path):
    """Whoever can write into the output cannot make a command delete something elsewhere."""
    out, precious = tmp_path / "out", tmp_path / "thesis.txt"
    precious.write_text("x")
    ask = world.arguments("glm", out)
    assert start.run(ask).status == 0
    record = out / "logs" / "units" / "sub-01.json"
    content = json.loads(record.read_text())
    for change in ({"Index": "../thesis.txt"}, {"Outputs": content["Outputs"] | {"../thesis.txt": "0"}}):
        record.write_text(json.dumps(content | change | {"Version": 0}))
        assert start.run(ask).status == 0
        assert precious.read_text() == "x"
    assert digests(out) == whole("glm")


@pytest.mark.slow
def test_a_million_lines(world, start, tmp_path):
    """Of events and of participants: read in seconds, and refused or used like any others."""
    n, kinds = 1_000_000, ("left", "right")
    events = tmp_path / "events.tsv"
    events.write_text(
        "onset\tduration\ttrial_type\n" + "".join(f"{k / 1e4:.4f}\t0.0001\t{kinds[k % 2]}\n" for k in range(n))
    )
    table = read_events(events)
    assert len(table.events) == n
    conditions = [Condition(f"hand_{kind}", "hand", kind, ("hand",), (kind,)) for kind in kinds]
    found = find_blocks(table.events, conditions, ConditionTable(), merge_gap_s=2.0)
    assert len(found) == n  # every trial is interrupted by one of the other kind
    root = make_bids(tmp_path / "bids", derivatives=True, n_runs=1, subjects=("01",))
    shutil.copyfile(events, next(root.rglob("*_events.tsv")))
    done = start.run(["glm", str(root), str(tmp_path / "out"), "--unit", "run", "--dry-run"])
    assert done.status == 0, done.said
    assert "1000000 events" in done.said
    hcp = shutil.copytree(world.root / "hcp", tmp_path / "hcp")
    (hcp / "participants.tsv").write_text("participant_id\tage\n" + "".join(f"sub-{k}\t30\n" for k in range(n)))
    assert len(read_participants(hcp)) == n
    done = start.run(["prepare", str(hcp), str(tmp_path / "blocks")])
    assert done.status == 0, done.said
    assert "sub-100307\tn/a\t30" in (tmp_path / "blocks" / "participants.tsv").read_text()


MEASURED = "import resource, sys; from fmrisynth.cli.main import run; status = run(sys.argv[1:]); " \
           "print('KIB', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(status)"  # fmt: skip


@pytest.mark.slow
def test_memory_of_sampling_does_not_grow_with_the_samples(world, tmp_path):
    peak: dict[int, int] = {}
    for n in (20, 200):
        ask = ["sample", str(tmp_path / "out"), "--condition", "motor_rh", "--n", str(n), "--steps", "1",
               "--checkpoint", str(world.root / "model"), "--set", "preview=false"]  # fmt: skip
        done = call(ask, python=("-c", MEASURED))
        assert done.returncode == 0, done.stderr
        peak[n] = int(done.stdout.rpartition("KIB")[2])
        assert len(list((tmp_path / "out").glob("sub-*/"))) == n
    print(peak)
    assert peak[200] < 1.05 * peak[20]

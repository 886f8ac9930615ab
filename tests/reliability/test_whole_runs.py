"""``glm --unit run`` on a dataset with one damaged subject: the other one gets its maps."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmrisynth.cli.main import run
from tests.glm.test_glm_runs import make_bids


def cut_short(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


DAMAGE = {
    "image": ("*sub-01*_bold.nii.gz", cut_short),
    "header": ("*sub-01*_bold.nii.gz", lambda path: path.write_bytes(b"no image")),
    "mask": ("*sub-01*_mask.nii.gz", lambda path: path.write_bytes(b"no image")),
    "events": ("*sub-01*_events.tsv", lambda path: path.write_text("onset,duration\n")),
    "confounds": ("*sub-01*_timeseries.tsv", lambda path: path.write_text("csf\n" + "moon\n" * 60)),
    "sidecar": ("*sub-01*_bold.json", lambda path: path.write_text('{"RepetitionTime": "two"}')),
}


@pytest.mark.fault(
    command="glm",
    fault="corrupt input",
    outcome="That participant fails with one sentence, the others are done; exit status 1.",
)
@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_subject_fails_alone(what, tmp_path, capsys):
    root = make_bids(tmp_path / "bids", derivatives=True, n_runs=1)
    pattern, damage = DAMAGE[what]
    (victim,) = (path for path in root.rglob(pattern.lstrip("*")) if "sub-01" in path.name)
    damage(victim)
    status = run(["glm", str(root), str(tmp_path / "out"), "--unit", "run", "--set", "reports=false"])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert (tmp_path / "out" / "sub-02" / "sub-02_design.tsv").exists()
    assert status == 1
    (line,) = (line for line in said.err.splitlines() if line.startswith("FAILED"))
    assert line.startswith("FAILED 01: ")
    assert victim.name.removesuffix(".json") in line
    assert "unexpected" not in line

"""The landing page of a folder, its methods with citations, and the group's page with thresholded maps."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from fmrisynth.bids.origin import PHANTOM
from fmrisynth.bids.provenance import write_dataset_description
from fmrisynth.bids.sidecars import read_tsv
from fmrisynth.cli.main import run
from fmrisynth.config.load import dump_yaml, load_config
from fmrisynth.report.landing import write_index
from fmrisynth.report.methods import citations, methods_of
from fmrisynth.report.viewer import write_viewer
from tests.glm.test_glm_stage import GRID, make_dataset


@pytest.fixture(scope="module")
def maps(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("landing")
    effect = np.zeros(GRID.shape)
    effect[5:9, 5:9, 6:9] = 5.0
    make_dataset(root / "data", {"motor_rh": effect, "motor_lh": 0 * effect}, n_subjects=6)
    write_dataset_description(root / "data", "planted", origin=PHANTOM)
    assert run(["glm", str(root / "data"), str(root / "maps")]) == 0
    return root / "maps"


def test_the_group_page_shows_what_survives_and_says_what_does_not(maps):
    page = (maps / "group.html").read_text()
    found = re.search(r"motor_rh: \|z\| &gt; ([\d.]+)|motor_rh: random effects over subjects, n = 6", page)
    assert found
    assert "motor_rh: clusters and their sub-peaks" in page
    assert "motor_lh (random effects over subjects, n = 6; n = 6 is few): no cluster survives" in page
    assert "uncorrected: not a result. Peak z " in page
    for link in ("index.html", "sub-01.html", "sub-06.html"):
        assert f'href="{link}"' in page
    assert "is for display, not a test" in (maps / "sub-01.html").read_text()
    assert 'class="banner loud"' in page
    (size,) = re.findall(r'<th scope="row">1</th>.*?<td class="num">([\d,]+)</td>\s*</tr>', page, re.S)
    assert int(size.replace(",", "")) == pytest.approx(4 * 4 * 3 * 27, rel=0.25)  # the block that was planted, mm3
    (name,) = re.findall(r"in (group/\S+_clusters.tsv)", page)
    clusters = read_tsv(maps / name, ("cluster", "size_mm3"))
    sizes = [int(row["size_mm3"]) for row in clusters if row["cluster"].isdigit()]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == int(size.replace(",", ""))


def test_every_group_map_has_a_viewer_that_loads_nothing(maps):
    page = (maps / "group.html").read_text()
    viewers = re.findall(r'href="(group/[^"]*_viewer.html)"', page)
    assert len(viewers) == 2
    for name in viewers:
        viewer = (maps / name).read_text()
        assert "default-src 'none'" in viewer.partition("</head>")[0]
        assert not re.search(r'(?:src|href)="(?!data:|\.\./group.html)', viewer.partition("<script>")[0])
        assert PHANTOM.statement in viewer
        assert "brainsprite" in viewer
        assert "The colour bar is z." in viewer
    assert re.findall(r'href="(figures/[^"]*.pdf)"', page) == [
        f"figures/group_{name}.pdf" for name in ("motor-lh", "motor-rh", "design")
    ]
    assert "First-level design matrix, one example: sub-01, a window of motor_rh." in page
    assert (maps / "figures" / "group_motor-rh.pdf").read_bytes().startswith(b"%PDF-")


def test_a_viewer_has_the_same_bytes_twice(tmp_path):
    z_XYZ = np.zeros(GRID.shape, np.float32)
    z_XYZ[5:9, 5:9, 6:9] = 5
    for name in ("a.html", "b.html"):
        write_viewer(tmp_path / name, "z", z_XYZ, GRID, threshold=2.0, peak_mm=(0, 0, 0), origin=PHANTOM, back="x.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_the_landing_page_links_everything_that_is_there(maps):
    page = (maps / "index.html").read_text()
    links = re.findall(r'href="(?!#|data:)([^"]+)"', page)
    assert "group.html" in links
    assert sum(link.startswith("sub-") for link in links) == 6
    assert [link for link in links if not (maps / link).exists()] == []
    assert 'class="banner loud"' in page
    assert "</a>: group maps, their clusters and viewers" in page


def test_a_dataset_says_what_it_holds_and_what_comes_next(maps, tmp_path):
    shutil.copytree(maps.parent / "data", tmp_path / "data")
    blocks = begun(tmp_path / "data", "prepare", [])
    write_index(blocks)
    page = (blocks / "index.html").read_text()
    assert "24 blocks of 6 subjects, 12 frames of" in page
    assert "motor_rh (12), motor_lh (12)" in page
    assert "Next, from this folder: fmrisynth glm . ../maps/" in page
    begun(blocks / "glm", "glm", [blocks])  # as the BIDS App leaves it
    (blocks / "glm" / "sub-01.html").write_text("")
    write_index(blocks)
    page = (blocks / "index.html").read_text()
    assert "written by the BIDS App" in page
    assert '<a href="glm/index.html">glm/index</a>: activation maps' in page
    assert '<a href="glm/sub-01.html">glm/sub-01</a>: maps of this participant' in page
    begun(blocks / "evaluation", "evaluate", [blocks])
    begun(blocks / "synthetic", "sample", [], all_conditions=True)
    write_index(blocks)
    page = (blocks / "index.html").read_text()
    order = [page.index(f'href="{name}/index.html"') for name in ("synthetic", "glm", "evaluation")]
    assert order == sorted(order)  # of the work


def test_the_methods_cite_what_the_bibliography_holds(maps):
    paragraphs = methods_of(maps)
    cited = set(re.findall(r"@(\w+)", " ".join(paragraphs)))
    entries = re.findall(r"^@\w+\{(\w+),", (maps / "references.bib").read_text(), re.M)
    assert set(entries) == cited
    assert "benjamini1995" in cited
    assert "by ordinary least squares to the block windows of 6 subjects, without smoothing" in paragraphs[0]
    assert "random-effects t tests over 6 subjects" in paragraphs[0]
    page = (maps / "index.html").read_text()
    assert "(Benjamini &amp; Hochberg 1995)" in page
    assert "[@" not in page


def test_a_second_writing_changes_nothing(maps):
    before = {name: (maps / name).read_bytes() for name in ("index.html", "references.bib")}
    write_index(maps)
    assert {name: (maps / name).read_bytes() for name in before} == before


def begun(folder: Path, command: str, sources: list[Path], settings: dict | None = None, **given) -> Path:
    """A folder as `command` leaves it, as far as the methods read it."""
    model = getattr(__import__(f"fmrisynth.config.{command}", fromlist=["x"]), f"{command.capitalize()}Config")
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    config = load_config(model, command, flags=given)
    (folder / "logs" / f"{command}_0.yaml").write_text(dump_yaml(config))
    content = {"Command": command, "Sources": list(map(str, sources)), "Settings": settings or {}}
    (folder / "logs" / "begun.json").write_text(json.dumps(content))
    return folder


def test_the_steps_before_come_first_and_say_what_was_set(tmp_path):
    blocks = begun(tmp_path / "blocks", "prepare", [tmp_path / "gone"], native=True)
    latents = begun(tmp_path / "latents", "tokenize", [blocks])
    model = begun(tmp_path / "model", "train", [latents], **{"objective.prediction": "flow", "steps": 123_000})
    text = methods_of(model)
    assert "in each participant's own space" in text[0]
    assert "linear transform of patches" in text[1]
    assert "flow matching" in text[2]
    assert "123,000 steps" in text[2]
    assert "lipman2023" in citations(text)
    write_dataset_description(tmp_path / "s", "s", origin=PHANTOM.sampled())
    samples = begun(tmp_path / "s", "sample", [], all_conditions=True)
    joined = " ".join(methods_of(begun(tmp_path / "e", "evaluate", [blocks, samples])))
    assert "trained on phantom (simulated) data" in joined


def test_prepared_runs_are_whose_the_source_says(tmp_path):
    source = tmp_path / "source"
    blocks = begun(tmp_path / "blocks", "prepare", [source])
    assert methods_of(blocks)[0].startswith("Preprocessed runs were cut into block windows")
    source.mkdir()
    made = {"GeneratedBy": [{"Name": "fMRIPrep", "Version": "23.2.1"}]}
    (source / "dataset_description.json").write_text(json.dumps(made))
    assert methods_of(blocks)[0].startswith("Runs preprocessed with fMRIPrep 23.2.1 [@esteban2019] were")
    write_dataset_description(blocks, "b", origin=PHANTOM)
    assert methods_of(blocks)[0].startswith("Simulated runs were")


def test_a_folder_that_no_command_began_is_left_alone(tmp_path):
    write_index(tmp_path)
    assert not list(tmp_path.iterdir())

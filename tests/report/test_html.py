"""Pages: escaping, self-containment, and figures that draw."""

from __future__ import annotations

import base64
import re

import numpy as np
import pandas as pd
import pytest

from fmrisynth.bids.origin import PHANTOM, Origin
from fmrisynth.data.grid import MNI_3MM, make_grid
from fmrisynth.report import Cards, Figure, Page, Section, Table, Text, Verdicts, figures, render_page, write_page
from fmrisynth.report.brain import mosaic, slice_indices
from fmrisynth.report.html import Card, Verdict, banner_of, embed, format_cell


@pytest.fixture
def page() -> Page:
    figure = figures.lines_figure(np.arange(3), {"real": np.arange(3.0)}, xlabel="x", ylabel="y", title="t")
    return Page(
        "A <b>title</b>", "sub & title",
        [
            Section("First part", [
                Text("One.\n\nTwo <script>alert(1)</script>."), Cards([Card("Corr", "0.83", "note", "pass")]),
                Table(("name", "value"), [("a", 1.23456), ("b", None), ("c", float("nan"))], highlight=0),
                Verdicts([Verdict("fail", "Bad", "It is."), Verdict("warn", "Hm", "Look.")]),
                Figure.of(figure, "A \"caption\"", vector=True),
            ]),
            Section("Second", []),
        ],
        facts=(("seed", "0"),),
    )  # fmt: skip


def test_user_text_is_escaped_and_nothing_is_loaded(page):
    text = render_page(page)
    assert "<script>" not in text
    assert "A &lt;b&gt;title&lt;/b&gt;" in text
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", text)
    assert "@import" not in text


def test_a_banner_says_once_that_nothing_follows():
    banner = banner_of(PHANTOM, PHANTOM.sampled())
    assert banner.loud
    assert banner.text.count("Nothing about brains follows") == 1
    assert banner.text.endswith("follows from them.")
    assert "Nothing about brains" not in banner_of(Origin("measured", "mine")).text


def test_anchors_meet_their_sections(page):
    text = render_page(page)
    links = set(re.findall(r'href="#([^"]+)"', text))
    assert links == set(re.findall(r'<section id="([^"]+)"', text)) == {"first-part", "second"}


def test_same_page_same_bytes(page):
    assert render_page(page, timestamp=False) == render_page(page, timestamp=False)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (float("nan"), "–"), (0.12345, "0.123"), (12345, "12,345"), ("x", "x"), (True, "yes")],
)
def test_cells(value, text):
    assert format_cell(value) == text


def test_png_is_a_png():
    uri = embed(
        figures.histogram_figure({"a": np.arange(5.0), "b": np.array([])}, xlabel="x", title="t", mark=("m", 2.0))
    )
    assert base64.b64decode(uri.split(",")[1])[:8] == b"\x89PNG\r\n\x1a\n"


def test_every_figure_draws_with_awkward_input(rng):
    k = ["one", "two"]
    figures.scatter_figure(rng.standard_normal((2, 30)), np.zeros((2, 30)), k)
    figures.matrix_figure([("m", np.array([[1.0, np.nan], [0.2, -1]]))], k, k)
    figures.score_figure(
        [{"name": "a", "value": None, "role": "synthetic"}, {"name": "b", "value": -0.2, "role": "ceiling"}], "t"
    )
    figures.courses_figure([{"title": "p", "lines": {"real": (np.zeros(4), np.zeros(4), "real")}}], 1.44)
    figures.components_figure([("p", rng.standard_normal((9, 2)), list("abcabcabc"))], [0.5, 0.1])
    figures.design_figure([("d", pd.DataFrame(np.ones((12, 2)), columns=["block", "constant"]))])
    figures.connectivity_figure([("c", np.zeros((3, 3)))])


def test_a_confound_with_a_large_mean_does_not_look_constant():
    frame = pd.DataFrame({"white_matter": 1000 + np.sin(np.arange(12.0)), "constant": np.ones(12)})
    (axis, *_) = figures.design_figure([("d", frame)]).axes
    shown = np.asarray(axis.images[0].get_array())
    assert np.ptp(shown[:, 0]) > 0.5
    assert np.ptp(shown[:, 1]) == 0
    assert shown[0, 1] > 0


def test_mosaic_flips_left_handed_grids():
    """A voxel on the subject's right is drawn on the right, whichever way the array runs."""
    drawn = []
    for sign in (3.0, -3.0):
        affine = np.diag([sign, 3.0, 3.0, 1.0])
        affine[0, 3] = -24 if sign > 0 else 21
        grid = make_grid((16, 16, 16), affine, "scanner")
        x = np.indices(grid.shape)[0] * sign + affine[0, 3]
        values = np.where(x > 6, 5.0, 0.0)
        figure = mosaic([("right", values)], np.ones(grid.shape), np.ones(grid.shape, bool), grid, n_slices=1)
        overlay = figure.axes[0].images[1].get_array()
        drawn.append(np.ma.getmaskarray(overlay))
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert drawn[0][:, 0].all()
    assert not drawn[0][:, -1].any()


def test_slices_of_an_empty_and_a_full_mask():
    assert slice_indices(np.zeros((4, 4, 4), bool), 5) == [0]
    found = slice_indices(np.ones(MNI_3MM.shape, bool), 8)
    assert len(found) == 8
    assert 0 < found[0] < found[-1] < 63


def test_a_named_figure_is_written_as_pdf_and_linked(tmp_path):
    drawn = figures.lines_figure(np.arange(3), {"real": np.arange(3.0)}, xlabel="x", ylabel="y", title="t")
    named = Figure.of(drawn, "Named.", name="a - b")
    page = Page("t", "s", [Section("One", [named, Figure.of(drawn, "Not named.")])])
    written = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        write_page(folder / "report.html", page, timestamp=False)
        (pdf,) = (folder / "figures").iterdir()
        assert pdf.name == "report_a-b.pdf"
        assert 'href="figures/report_a-b.pdf"' in (folder / "report.html").read_text()
        written.append(pdf.read_bytes())
    assert written[0] == written[1]
    assert written[0].startswith(b"%PDF-")
    assert 'href="figures' not in render_page(page, timestamp=False)

"""Interactive viewers of maps: nilearn's, as one HTML file that loads nothing and says what the data are."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from fmrisynth.bids.atomic import write_text
from fmrisynth.bids.origin import Origin
from fmrisynth.data.grid import Grid
from fmrisynth.data.nifti import as_nibabel
from fmrisynth.report.html import escape

NO_REQUESTS = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""Content policy of a viewer: what is in the file may run, nothing may be fetched."""

_BODY = "margin: 0; background: #000; color: #fff; font: 16px/1.5 system-ui, sans-serif"
_LOUD, _QUIET = "background: #ffd54a; color: #3a2a00; font-weight: 600", "background: #e8eef6; color: #22344d"


def write_viewer(
    path: Path, title: str, z_XYZ: np.ndarray, grid: Grid, *, threshold: float, peak_mm: Sequence[float], origin: Origin, back: str
) -> None:  # fmt: skip
    """Write a viewer of a z map: click or drag to move through the brain.

    Parameters
    ----------
    path : Path
        The HTML file.
    title : str
        What the map is.
    z_XYZ : array
        The map on `grid`.
    threshold : float
        Values below it in magnitude are transparent.
    peak_mm : sequence of 3 floats
        Where it opens, mm.
    origin : Origin
        What the data are; stands at the top.
    back : str
        Address of the page that the viewer belongs to, relative to `path`.
    """
    from nilearn.plotting import view_img

    background = False if grid.is_native else _template(round(grid.voxel_mm[0]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of NumPy about masked arrays inside nilearn
        view = view_img(
            as_nibabel(z_XYZ, grid.affine), bg_img=background, cut_coords=list(peak_mm), threshold=threshold, cmap="RdBu_r",
            symmetric_cmap=True, opacity=0.9, black_bg=True,
        )  # fmt: skip
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{NO_REQUESTS}">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title>'
    )
    kind, colours = ("banner loud", _LOUD) if origin.is_phantom else ("banner", _QUIET)
    top = (
        f'<p class="{kind}" style="margin: 0; padding: 9px 24px; {colours}">{escape(origin.statement)}</p>'
        f'<h1 style="margin: 12px 24px; font-size: 1.3rem">{escape(title)}</h1>'
        '<p style="margin: 12px 24px">It opens at the peak; click or drag in a slice to move. The colour bar is z. '
        f'<a style="color: #8fb3dd" href="{escape(back)}">Back to all maps</a></p>'
    )
    html = re.sub(r'<link rel="icon".*?/>|<title>.*?</title>', "", view.html, flags=re.DOTALL)
    html = html.replace("<head>", f"<head>{head}", 1).replace("<body>", f'<body style="{_BODY}">{top}', 1)
    for name in set(re.findall(r"div_viewer-([0-9a-f]{32})", html)):  # random; the same map is to give the same bytes
        html = html.replace(name, "map")
    write_text(path, html)


@lru_cache(maxsize=2)
def _template(voxel_mm: int):
    """The MNI152 template that nilearn packages; nothing is downloaded."""
    from nilearn.datasets import load_mni152_template

    return load_mni152_template(resolution=voxel_mm)

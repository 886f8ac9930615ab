"""Sphinx configuration: `sphinx-build -W --keep-going docs docs/_build/html`."""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "_extensions")]

import fmrisynth  # noqa: E402

project = "fmrisynth"
author = "The fmrisynth developers"
project_copyright = "The fmrisynth developers"
release = version = fmrisynth.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "reference_pages",
    "notebooks",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "notebooks"]  # shown with their outputs, under reference/
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["toc.empty_glob"]  # pages that a measurement writes may not be there yet

html_theme = "furo"
html_title = f"fmrisynth {release}"
html_static_path = ["_static"]
html_css_files = ["fmrisynth.css"]
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#8c2d19", "color-brand-content": "#8c2d19"},
    "dark_css_variables": {"color-brand-primary": "#f0a58f", "color-brand-content": "#f0a58f"},
    "top_of_page_buttons": [],
}
html_domain_indices = False

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the numpydoc sections say it, with shapes and units
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

linkcheck_timeout = 20
linkcheck_anchors = False

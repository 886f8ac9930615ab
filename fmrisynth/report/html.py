"""Pages made of a few kinds of elements, rendered to one HTML file that needs no network."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from fmrisynth import __version__
from fmrisynth.bids import naming
from fmrisynth.bids.atomic import atomic_path, write_text
from fmrisynth.bids.origin import NOTHING_FOLLOWS, Origin

Status = Literal["pass", "warn", "fail", "info"]


@dataclass(frozen=True)
class Text:
    """A paragraph of plain text; blank lines separate paragraphs."""

    text: str
    note: bool = False
    kind: str = "text"

    @property
    def paragraphs(self) -> list[str]:
        """The paragraphs."""
        return [part.strip() for part in self.text.split("\n\n") if part.strip()]


@dataclass(frozen=True)
class Table:
    """A table; cells are text or numbers (shown with three decimals), None is an empty dash."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    highlight: int | None = None
    kind: str = "table"

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers: their headings stand right, as the numbers do."""
        return [all(is_number(row[index]) for row in self.rows) for index in range(len(self.columns))]


@dataclass(frozen=True)
class Figure:
    """A picture embedded in the page.

    Attributes
    ----------
    uri : str
        ``data:`` URI, from `embed` or `embed_svg`.
    caption : str
        What is seen, in words.
    width : {"full", "half"}
        Half-width figures stand side by side on wide screens.
    max_px : int
        Largest width on the page, in CSS pixels.
    name : str
        Of the PDF that `write_page` writes beside the page; empty for none.
    drawn : matplotlib Figure or None
        What the PDF shows.
    """

    uri: str
    caption: str
    width: Literal["full", "half"] = "full"
    max_px: int = 1100
    name: str = ""
    drawn: Any = None
    kind: str = "figure"

    @classmethod
    def of(
        cls, figure, caption: str, *, width: Literal["full", "half"] = "full", vector: bool = False, name: str = ""
    ) -> Figure:
        """Embed a matplotlib figure, shown at its own size at most; `vector` for line drawings."""
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once, not again for each file
        uri = embed_svg(figure) if vector else embed(figure)
        max_px = round(figure.get_size_inches()[0] * 100)
        return cls(uri, caption, width, max_px, name, figure if name else None)

    @classmethod
    def of_file(cls, path: Path, caption: str, *, max_px: int) -> Figure:
        """Embed a picture from disk, PNG or GIF."""
        return cls(_data_uri(f"image/{path.suffix[1:]}", path.read_bytes()), caption, max_px=max_px)


@dataclass(frozen=True)
class Card:
    """One number with its name and context."""

    label: str
    value: str
    note: str = ""
    status: Status = "info"


@dataclass(frozen=True)
class Cards:
    """A row of cards."""

    cards: Sequence[Card]
    kind: str = "cards"


@dataclass(frozen=True)
class Verdict:
    """One check with its outcome in words."""

    status: Status
    title: str
    detail: str


@dataclass(frozen=True)
class Verdicts:
    """A list of checks."""

    verdicts: Sequence[Verdict]
    kind: str = "verdicts"


@dataclass(frozen=True)
class Links:
    """A list of links to files beside the page: (address, name, what it is)."""

    links: Sequence[tuple[str, str, str]]
    kind: str = "links"


Element = Text | Table | Figure | Cards | Verdicts | Links


@dataclass(frozen=True)
class Section:
    """A headed part of the page."""

    title: str
    elements: Sequence[Element]

    @property
    def anchor(self) -> str:
        """Its link target."""
        return "".join(c if c.isalnum() else "-" for c in self.title.lower()).strip("-")


@dataclass(frozen=True)
class Banner:
    """What must be read before anything else; `loud` where nobody was measured."""

    text: str
    loud: bool


def banner_of(*origins: Origin) -> Banner:
    """What the data of a page are, each kind said once."""
    loud = any(origin.is_phantom for origin in origins)
    texts = dict.fromkeys(origin.statement.removesuffix(NOTHING_FOLLOWS) for origin in origins)
    return Banner(" ".join(texts) + (NOTHING_FOLLOWS if loud else ""), loud)


@dataclass(frozen=True)
class Page:
    """A whole report."""

    title: str
    subtitle: str
    sections: Sequence[Section]
    facts: Sequence[tuple[str, str]] = field(default_factory=tuple)
    banner: Banner | None = None


def embed(figure, *, dpi: int = 140) -> str:
    """A matplotlib figure as a PNG ``data:`` URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0.2, facecolor="white")
    return _data_uri("image/png", buffer.getvalue())


def embed_svg(figure) -> str:
    """A matplotlib figure as an SVG ``data:`` URI: sharp at any size, for line drawings."""
    import matplotlib as mpl

    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "fmrisynth"}):
        figure.savefig(
            buffer, format="svg", bbox_inches="tight", pad_inches=0.2, facecolor="white", metadata={"Date": None}
        )
    return _data_uri("image/svg+xml", buffer.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64," + base64.b64encode(content).decode("ascii")


def format_cell(value: Any) -> str:
    """A table cell as text: three decimals for numbers, an en dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if value != value:
            return "–"
        return f"{value:.3f}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


def is_number(value: Any) -> bool:
    """Whether a cell is set flush right."""
    text = str(value)
    return isinstance(value, (int, float)) or value is None or text[:1].isdigit() or text[:1] in "+-−–<"


def write_page(path: Path, page: Page, *, timestamp: bool = True) -> None:
    """Write a page, and its named figures as PDF beside it (`naming.page_figure`), for papers.

    Parameters
    ----------
    path : Path
        The HTML file.
    page : Page
        The content.
    timestamp : bool, default True
        Whether the footer says when it was made.
    """
    import matplotlib as mpl

    pictures: dict[str, str] = {}
    for figure in (e for section in page.sections for e in section.elements if isinstance(e, Figure) and e.name):
        own = naming.page_figure(path, figure.name)
        pictures[figure.name] = own.as_posix()
        with atomic_path(path.parent / own) as temporary, mpl.rc_context({"pdf.fonttype": 42}):  # text stays text
            figure.drawn.savefig(
                temporary, format="pdf", bbox_inches="tight", facecolor="white", metadata={"CreationDate": None}
            )
    write_text(path, render_page(page, timestamp=timestamp, pictures=pictures))


def render_page(page: Page, *, timestamp: bool = True, pictures: Mapping[str, str] | None = None) -> str:
    """Render a page to HTML text.

    Parameters
    ----------
    page : Page
        The content.
    timestamp : bool, default True
        Whether the footer says when it was made.
    pictures : mapping of str to str, optional
        Name of a figure -> address of its PDF.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("fmrisynth.report", "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["cell"] = format_cell
    environment.tests["number_like"] = is_number
    made = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC" if timestamp else ""
    return environment.get_template("page.html").render(
        page=page, version=__version__, made=made, pictures=pictures or {}
    )


def escape(text: str) -> str:
    """Text made safe for HTML."""
    return html.escape(text)

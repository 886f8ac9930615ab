"""``index.html``: the page that links everything in an output folder, with the methods in words and their references."""

from __future__ import annotations

from pathlib import Path

from fmrisynth.bids.atomic import settle, write_text
from fmrisynth.bids.origin import read_origin
from fmrisynth.models.checkpoint import find_model_dir, list_checkpoints, read_card
from fmrisynth.parse import read_json
from fmrisynth.report.html import Links, Page, Section, Text, banner_of, render_page
from fmrisynth.report.methods import citations, methods_of, with_names
from fmrisynth.stage import CLAIM

INDEX, REFERENCES = "index.html", "references.bib"
_ABOUT = {
    "README.md": "what the folder holds", "dataset_description.json": "name, origin, version", "participants.tsv": "participants",
    "metrics.json": "all numbers of the comparison", "tokenizer_metrics.json": "all numbers of the tokenizer report",
    "log.jsonl": "the log of the training", "group": "group maps", "figures": "pictures", "checkpoints": "models", "best": "the best model",
    "logs": "settings and versions of every call", "ground_truth": "what was planted", "tokenizer": "the tokenizer",
}  # fmt: skip


def write_index(out: Path) -> None:
    """Write ``index.html`` and ``references.bib`` of a folder that a command began, and of such folders inside it."""
    if not (out / CLAIM).is_file():
        return
    inner = sorted(path.parent.parent for path in out.glob(f"*/{CLAIM}"))
    for folder in inner:
        write_index(folder)
    settle(lambda: _found(out), lambda found: _write(out, *found))


def _found(out: Path) -> tuple[list[str], list[str]]:
    pages = [path.name for path in sorted(out.glob("*.html")) if path.name != INDEX]
    pages += [f"{path.parent.name}/{INDEX}" for path in sorted(out.glob(f"*/{INDEX}"))]
    return pages, [name for name in _ABOUT if (out / name).exists()]


def _write(out: Path, pages: list[str], files: list[str]) -> None:
    command = dict(read_json(out / CLAIM)).get("Command")
    paragraphs = methods_of(out)
    sections = []
    if pages:
        sections.append(Section("Pages", [Links([(page, _name(page), "") for page in pages])]))
    sections.append(Section("Files", [Links([(name, name, _ABOUT[name]) for name in files])]))
    if paragraphs:
        write_text(out / REFERENCES, citations(paragraphs))
        note = Text(
            "Written from what was run. The references are in references.bib; check what is your own.",
            note=True,
        )
        sections.append(
            Section(
                "Methods",
                [
                    Text("\n\n".join(map(with_names, paragraphs))),
                    note,
                    Links([(REFERENCES, REFERENCES, "BibTeX of the citations")]),
                ],
            )
        )
    title, origin = f"Output of fmrisynth {command}", None
    if (out / "dataset_description.json").is_file():
        title = str(dict(read_json(out / "dataset_description.json")).get("Name") or title)
        origin = read_origin(out)
    elif command == "train" and list_checkpoints(out):
        origin = read_card(find_model_dir(out)).origin
    page = Page(
        title,
        f"Everything in this folder, written by fmrisynth {command}.",
        sections,
        banner=banner_of(origin) if origin else None,
    )
    write_text(out / INDEX, render_page(page, timestamp=False))


def _name(page: str) -> str:
    return page.removesuffix(f"/{INDEX}").removesuffix(".html")

"""``index.html``: the page that links everything in an output folder, with the methods in words and their references."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from fmrisynth.bids.atomic import settle, write_text
from fmrisynth.bids.origin import read_origin
from fmrisynth.data.blocks import ANATOMIES, read_blocks
from fmrisynth.errors import FmrisynthError
from fmrisynth.models.checkpoint import find_model_dir, list_checkpoints, read_card
from fmrisynth.parse import read_json
from fmrisynth.progress import count
from fmrisynth.report.html import Element, Figure, Links, Page, Section, Text, banner_of, render_page
from fmrisynth.report.methods import citations, methods_of, with_names
from fmrisynth.stage import CLAIM

INDEX, REFERENCES = "index.html", "references.bib"
_ABOUT = {
    "README.md": "what the folder holds", "dataset_description.json": "name, origin, version", "participants.tsv": "participants",
    "metrics.json": "all numbers of the comparison", "tokenizer_metrics.json": "all numbers of the tokenizer report",
    "log.jsonl": "the log of the training", "group": "group maps", "figures": "pictures", "checkpoints": "models", "best": "the best model",
    "logs": "settings and versions of every call", "ground_truth": "what was planted", "tokenizer": "the tokenizer",
}  # fmt: skip
_PAGES = {"report.html": "the report", "group.html": "group maps, their clusters and viewers"}
_FOLDERS = {  # in the order of the work
    "prepare": "blocks", "tokenize": "the blocks as latents", "train": "a model", "sample": "the synthetic cohort",
    "glm": "activation maps", "evaluate": "the synthetic cohort against the real one",
}  # fmt: skip
_NEXT = {
    "sample": "fmrisynth glm{unit} . ../maps/",
    "prepare": "fmrisynth glm{unit} . ../maps/ for maps, fmrisynth tokenize . ../latents/ for a model",
    "anatomy": "fmrisynth tokenize . ../latents/ --preset anatomy",
    "tokenize": "fmrisynth train . ../model/", "train": "fmrisynth sample --checkpoint . --all-conditions ../samples/",
}  # fmt: skip


def write_index(out: Path) -> None:
    """Write ``index.html`` and ``references.bib`` of a folder that a command began, and of such folders inside it."""
    if not (out / CLAIM).is_file():
        return
    inner = sorted(path.parent.parent for path in out.glob(f"*/{CLAIM}"))
    for folder in inner:
        write_index(folder)
    settle(lambda: _found(out), lambda found: _write(out, *found))


def page_to_open(out: Path) -> Path | None:
    """The page of a folder that a reader wants first; None where it has none."""
    return next((out / name for name in ("report.html", "group.html", INDEX) if (out / name).is_file()), None)


def _found(out: Path) -> tuple[list[str], list[str], int]:
    """Pages, and files or folders worth a line, relative to the folder; and how many subjects are finished."""
    order, steps = {out: -1}, list(_FOLDERS)
    for path in out.glob(f"*/{CLAIM}"):
        command = _command(path.parent.parent)
        order[path.parent.parent] = steps.index(command) if command in steps else len(steps)
    pages = [path for folder in order for path in folder.glob("*.html") if path != out / INDEX]
    pages.sort(
        key=lambda path: (
            order[path.parent],
            path.parent,
            path.name.startswith("sub-"),
            path.name != INDEX,
            path.name != "report.html",
            path.name,
        )
    )
    names = [path.relative_to(out).as_posix() for path in pages]
    return names, [name for name in _ABOUT if (out / name).exists()], len(list(out.glob("sub-*/sub-*_scans.tsv")))


def _command(folder: Path) -> str:
    """The command that began a folder."""
    return str(dict(read_json(folder / CLAIM)).get("Command"))


def _contents(out: Path, command: str, is_app: bool) -> list[Element]:
    """What a dataset of blocks or runs holds, one sample of it in pictures, and what to do next."""
    try:
        blocks = read_blocks(out)
    except FmrisynthError:  # none is finished, or a table is damaged: the command has said it
        blocks = []
    elements: list[Element] = []
    is_anatomy = bool(blocks) and blocks[0].condition in ANATOMIES
    if blocks:
        conditions = Counter(block.condition for block in blocks)
        kind = "run" if blocks[0].is_run else "image" if is_anatomy else "block"
        what = f"{count(len(blocks), kind)} of {count(len({block.subject for block in blocks}), 'subject')}"
        if is_anatomy:
            what += ": " + ", ".join(f"{k} ({n})" for k, n in conditions.items())
        elif not blocks[0].is_run:
            what += f", {blocks[0].n_frames} frames of {blocks[0].tr_s:g} s each: " + ", ".join(
                f"{k} ({n})" for k, n in conditions.items()
            )
        elements.append(Text(what + "."))
    for pattern, about in (("preview.png", "One of them"), ("timelapse.gif", "The same, frame by frame")):
        for path in sorted(out.glob(f"figures/*_{pattern}"))[:1]:
            caption = (
                f"{about}: {path.name.removesuffix('_' + pattern)}. Smoothed, and cut where its own effect is largest."
            )
            elements.append(Figure.of_file(path, caption, max_px=1000))
    following = None if is_app else _NEXT.get("anatomy" if is_anatomy and command == "prepare" else command)
    if following is not None:
        unit = " --unit run" if blocks and blocks[0].is_run else ""
        elements.append(Text("Next, from this folder: " + following.format(unit=unit)))
    return elements


def _write(out: Path, pages: list[str], files: list[str], n_finished: int) -> None:
    command = _command(out)
    is_app = command == "prepare" and any(out.glob(f"*/{CLAIM}"))
    paragraphs = methods_of(out)
    sections = []
    if contents := _contents(out, command, is_app):
        sections.append(Section("Contents", contents))
    if pages:
        sections.append(
            Section("Pages", [Links([(page, page.removesuffix(".html"), _about_page(out, page)) for page in pages])])
        )
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
        title = (
            "Participants and group"
            if is_app
            else str(dict(read_json(out / "dataset_description.json")).get("Name") or title)
        )
        origin = read_origin(out)
    elif command == "train" and list_checkpoints(out):
        origin = read_card(find_model_dir(out)).origin
    page = Page(
        title,
        f"Everything in this folder, written by {'the BIDS App' if is_app else f'fmrisynth {command}'}.",
        sections,
        banner=banner_of(origin) if origin else None,
    )
    write_text(out / INDEX, render_page(page, timestamp=False))


def _about_page(out: Path, page: str) -> str:
    """What a page shows, by its name and by the command that began its folder."""
    name, folder = Path(page).name, (out / page).parent
    if name == INDEX:
        return _FOLDERS.get(_command(folder), "")
    return _PAGES.get(name, "maps of this participant" if name.startswith("sub-") else "")

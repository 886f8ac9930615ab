"""Reference pages that are written from the code when the documentation is built: the command line, the settings.

The pages go to ``docs/reference/`` (not kept in git). `command_line` and `settings` return their text, so that tests
can read it too.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import typer.models
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

STAGES = ("simulate", "prepare", "tokenize", "train", "sample", "glm", "evaluate", "embed")


def command_line() -> str:
    """The page of all commands, from the functions of the Typer application."""
    from fmrisynth.cli.app import app

    commands = {info.name or info.callback.__name__: info for info in app.registered_commands}
    parts = [
        "# Command line",
        "Written from the program itself. Every command answers `--help`, `fmrisynth --version` shows the version, and options "
        "may be spelt with underscores. Exit status: 0 all done; 1 something failed, and everything else was written; 2 the "
        "request was wrong; 70 a bug; 130 interrupted.",
    ]
    for name in (*STAGES, "conditions", "check", "bids-app"):
        parts += _command(name, commands[name].callback, commands[name].epilog)
    return "\n\n".join(parts) + "\n"


def _command(name: str, function: Callable[..., Any], example: str) -> Iterator[str]:
    arguments, options = [], []
    hints = typing.get_type_hints(function, include_extras=True)
    for parameter in inspect.signature(function).parameters.values():
        kind, info = typing.get_args(hints[parameter.name])
        if info.hidden:
            continue
        if isinstance(info, typer.models.ArgumentInfo):
            arguments.append((info.metavar or parameter.name.upper(), _sentence(info.help)))
            continue
        # In `Annotated[..., typer.Option("--n", "-n")]` the first spelling lands in `default`.
        spelt = [text for text in (info.default, *(info.param_decls or ())) if str(text).startswith("-")]
        names = spelt or [f"--{parameter.name.strip('_').replace('_', '-')}"]
        required = parameter.default is inspect.Parameter.empty
        shown = info.show_default if isinstance(info.show_default, str) else parameter.default
        default = "" if required or shown in (None, False, True, 0) else f" Default: {_sentence(str(shown))}."
        spelling = ", ".join(f"`{text}`" for text in "/".join(names).split("/"))
        takes = "" if info.count else f"`{info.metavar}`" if info.metavar else _takes(kind)
        options.append((spelling, takes, _sentence(info.help) + " (required)" * required + default))
    app = name == "bids-app"
    usage = "BIDS_DIR OUT_DIR {participant|group}" if app else " ".join([name, *(place for place, _ in arguments)])
    yield f"## {'As a BIDS App' if app else name}"
    yield _sentence(function.__doc__)
    yield f"```text\nfmrisynth {usage} [OPTIONS]\n```"
    yield f"Example: `{example.removeprefix('Example: ')}`"
    if arguments and not app:
        yield _table(("argument", ""), [(f"`{place}`", about) for place, about in arguments])
    yield _table(("option", "takes", ""), options)
    if name in STAGES:
        yield f"All settings of this command: [configuration](configuration.md#{name})."


def _takes(annotation: Any) -> str:
    parts = [part for part in (typing.get_args(annotation) or (annotation,)) if part is not type(None)]
    inner = typing.get_args(parts[0]) or parts
    return {int: "whole number", float: "number", str: "text", Path: "path", bool: ""}[inner[0]]


def settings() -> str:
    """The page of all settings, from the pydantic models of the stages."""
    parts = [
        "# Configuration",
        "Written from the models that check the settings. A value comes from, in rising order of precedence: the default, a "
        "preset (`--preset NAME`), a YAML file (`--config FILE`), `--set key=value` (dots go down: `--set window.delay_s=2`), "
        "and the command's own options. Unknown keys are refused. `--dry-run` prints the result, and every output keeps it in "
        "`logs/`.",
    ]
    for stage in STAGES:
        model = _model(stage)
        parts += [f"## {stage}", _prose(model.__doc__), *_model_tables(model, "")]
        presets = list(_presets(stage))
        if presets:
            parts += ["**Presets**", _table(("preset", "what it is"), presets)]
    return "\n\n".join(parts) + "\n"


def _model(stage: str) -> type[BaseModel]:
    module = __import__(f"fmrisynth.config.{stage}", fromlist=["config"])
    return getattr(module, f"{stage.capitalize()}Config")


def _model_tables(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """A table of a model's own values, then those of the models inside it."""
    rows, inner = [], []
    for name, field in model.model_fields.items():
        found = list(_models_in(field.annotation))
        if name == "kind":
            continue  # the heading names it
        if found:
            inner.append((name, field, found))
        else:
            default = field.get_default(call_default_factory=True)
            shown = "required" if default is PydanticUndefined else f"`{_value(default)}`"
            rows.append((f"`{prefix}{name}`", f"{_type(field)} ({shown})", _sentence(field.description)))
    if rows:
        yield _table(("setting", "value (default)", ""), rows)
    for name, field, models in inner:
        for choice in models:
            kind = choice.model_fields.get("kind")
            which = f", with `{prefix}{name}.kind: {kind.default}`" if kind is not None and len(models) > 1 else ""
            yield f"**`{prefix}{name}`**{which}: {_prose(choice.__doc__)} {_sentence(field.description)}".rstrip()
            yield from _model_tables(choice, f"{prefix}{name}.")


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in (typing.Annotated, typing.Union, types.UnionType):
        for part in typing.get_args(annotation):
            yield from _models_in(part)


def _type(field: Any) -> str:
    return _limited(_type_name(field.annotation), field.metadata)


def _limited(text: str, metadata: Iterable[Any]) -> str:
    limits = []
    for item in metadata:
        for name, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤")):
            if getattr(item, name, None) is not None:
                limits.append(f"{sign} {getattr(item, name):g}")
    return f"{text}, {' and '.join(limits)}" if limits else text


def _type_name(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return ", or ".join("empty" if part is type(None) else _type_name(part) for part in arguments)
    if origin is typing.Annotated:
        return _limited(
            _type_name(arguments[0]), (m for extra in arguments[1:] for m in getattr(extra, "metadata", ()))
        )
    if origin is tuple:
        inner = [_type_name(part) for part in arguments if part is not Ellipsis]
        return f"list of {inner[0]}" if Ellipsis in arguments else f"[{', '.join(inner)}]"
    if origin is dict:
        return f"mapping of {_type_name(arguments[0])} to {_type_name(arguments[1])}"
    names = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _value(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    text = yaml.safe_dump(_plain(value), default_flow_style=True, width=1000).strip()
    return text.removesuffix("...").strip()


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _presets(stage: str) -> Iterator[tuple[str, str]]:
    from importlib import resources

    from fmrisynth.config.load import preset_names

    for name in preset_names(stage):
        text = (resources.files("fmrisynth.config") / "presets" / stage / f"{name}.yaml").read_text()
        comment = re.match(r"((?:#.*\n)*)", text)
        about = " ".join(line.lstrip("# ") for line in comment[1].splitlines()) if comment else ""
        yield f"`{name}`", about or "(no comment)"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [cell.replace("|", "\\|").replace("\n", " ") for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _sentence(text: str | None) -> str:
    return " ".join((text or "").split()).replace("<", "&lt;")


def _prose(text: str | None) -> str:
    """A docstring's paragraphs as Markdown: its double backticks are code in both."""
    paragraphs = re.split(r"\n\s*\n", (text or "").strip())
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def write_pages(docs: Path) -> None:
    """Write the pages, and leave those that did not change."""
    folder = docs / "reference"
    folder.mkdir(exist_ok=True)
    for name, text in (("cli.md", command_line()), ("configuration.md", settings())):
        path = folder / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def setup(app: Any) -> dict[str, bool]:
    """Sphinx calls this."""
    write_pages(Path(app.srcdir))
    return {"parallel_read_safe": True}

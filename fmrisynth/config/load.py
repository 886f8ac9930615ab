"""Resolve a configuration: preset < YAML file < ``--set key=value`` < explicit flags."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from fmrisynth.config.base import StageConfig
from fmrisynth.errors import UsageError
from fmrisynth.parse import parse_yaml

C = TypeVar("C", bound=StageConfig)


def preset_names(stage: str) -> list[str]:
    """Names of the presets of a stage (``train`` -> ``hybrid-38m``, ...)."""
    folder = resources.files("fmrisynth.config") / "presets" / stage
    if not folder.is_dir():
        return []
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_config(
    model: type[C],
    stage: str,
    *,
    preset: str | None = None,
    file: Path | None = None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> C:
    """Build the configuration of one stage.

    Parameters
    ----------
    model : type
        The configuration class.
    stage : str
        The command's name; presets are looked up under it.
    preset : str, optional
        Name of a packaged preset.
    file : Path, optional
        A user's YAML file.
    overrides : sequence of str
        ``a.b=value`` pairs; the value is read as YAML.
    flags : mapping, optional
        Dotted key -> value of explicit command-line flags; ``None`` values are skipped.

    Raises
    ------
    UsageError
        Unknown preset or key, unreadable file, value out of range.
    """
    values: dict[str, Any] = {}
    if preset is not None:
        _merge(values, _load_preset(stage, preset))
    if file is not None:
        _merge(values, _load_file(file))
    for item in sorted(overrides, key=lambda item: not item.partition("=")[0].strip().endswith(".kind")):
        key, separator, text = item.partition("=")
        if not separator or not key:
            raise UsageError(f"--set {item!r}: expected key=value, for example --set seed=1.")
        try:
            _put(values, key.strip(), parse_yaml(text))
        except ValueError as error:
            raise UsageError(f"--set {item!r}: the value is not valid YAML ({error}).") from None
    for key, value in sorted((flags or {}).items(), key=lambda item: not item[0].endswith(".kind")):
        if value is not None:
            _put(values, key, value)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UsageError(_explain(model, stage, values, error)) from None


def dump_yaml(config: StageConfig) -> str:
    """The resolved configuration as YAML text."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _load_preset(stage: str, name: str) -> dict[str, Any]:
    known = preset_names(stage)
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known) or 'none'}."
        raise UsageError(f"There is no {stage} preset named {name!r}: {hint}")
    return yaml.safe_load((resources.files("fmrisynth.config") / "presets" / stage / f"{name}.yaml").read_text()) or {}


def _load_file(path: Path) -> dict[str, Any]:
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: the configuration cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise UsageError(f"{path}: expected a YAML configuration, found text that is not YAML ({error}).") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected a YAML mapping of settings, found {type(content).__name__}.")
    return content


def _merge(into: dict[str, Any], new: Mapping[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            if value.get("kind") not in (None, into[key].get("kind")):
                into[key] = {}  # settings of one kind of model mean nothing to another
            _merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _put(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        child = values.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UsageError(f"--set {dotted}: {parent!r} is a value, not a group of settings.")
        values = child
    if last == "kind" and values.get(last) not in (None, value):
        values.clear()  # as in `_merge`
    values[last] = value


def _explain(model: type[StageConfig], stage: str, values: Mapping[str, Any], error: ValidationError) -> str:
    """One sentence about all problems, in words of ours."""
    problems = error.errors()
    inner = {problem["loc"][:-1] for problem in problems}  # a list also counts as too short for a wrong value in it
    problems = [p for p in problems if p["type"] != "too_short" or p["loc"] not in inner]
    told = "; ".join(_problem(model, values, problem) for problem in problems)
    return f"{stage}: {told}{'' if told.endswith('?') else '.'}"


def _problem(model: type[StageConfig], values: Mapping[str, Any], problem: Any) -> str:
    key = _key(problem["loc"], values)
    if problem["type"] == "extra_forbidden":
        return f"there is no setting named {key!r}; {_other_name(dict(_groups(model)), problem['loc'])}"
    wording = explain_value(problem)
    if not key:
        return wording
    if isinstance(problem.get("input"), Mapping):
        return f"{key}: {wording}"
    return f"setting {key!r} = {problem.get('input')!r} is not usable: {wording}"


def _other_name(groups: Mapping[tuple[str, ...], type[BaseModel]], place: tuple[int | str, ...]) -> str:
    """What to write in place of an unknown setting: of the group it stands in, not of others."""
    *parents, name = map(str, place)
    group = tuple(parents)
    others = [p[-1] for p, fields in groups.items() if p and p[:-1] == group[:-1] and name in fields.model_fields]
    if group and others:
        return f"{name} belongs to kind {' and '.join(others)}"
    own = list(groups[group].model_fields) if group in groups else []
    near = get_close_matches(name, own, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(own) or 'none'}"


def _key(places: Sequence[int | str], values: Any) -> str:
    """Dotted key of a problem; the kinds that stand for a choice between models are no part of it."""
    parts = []
    for number, part in enumerate(places):
        inside = isinstance(values, Mapping) and part in values
        if isinstance(values, Mapping) and not inside and number < len(places) - 1:
            continue
        parts.append(str(part))
        if inside:
            values = values[part]
    return ".".join(parts)


def _groups(annotation: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], type[BaseModel]]]:
    """The groups of settings inside a model and their places; the kind of one that others can replace is part of its place."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield place, annotation
        for name, field in annotation.model_fields.items():
            yield from _groups(field.annotation, (*place, name))
    parts = get_args(annotation)
    for part in parts:
        kind = getattr((get_args(part) or (part,))[0], "model_fields", {}).get("kind")
        one_of_several = len(parts) > 1 and get_origin(annotation) is not Annotated
        yield from _groups(part, (*place, kind.default) if kind is not None and one_of_several else place)


_EXPECTED = {
    "int": "a whole number", "float": "a number", "finite": "a finite number", "bool": "true or false", "string": "a text",
    "tuple": "a list", "list": "a list", "dict": "a group of settings (key: value)", "model": "a group of settings (key: value)",
    "mapping": "a group of settings (key: value)", "path": "a path",
}  # fmt: skip
_LIMITS = {
    "greater_than": ("a number above", "gt"), "greater_than_equal": ("at least", "ge"),
    "less_than": ("a number below", "lt"), "less_than_equal": ("at most", "le"),
    "too_short": ("a list of at least", "min_length"), "too_long": ("a list of at most", "max_length"),
}  # fmt: skip


def explain_value(problem: Any) -> str:
    """What a value should have been, of one of pydantic's errors."""
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "value_error":
        return str(context["error"]).rstrip(".")
    if kind == "missing":
        return "it has to be given"
    if kind in _LIMITS:
        words, name = _LIMITS[kind]
        return f"expected {words} {context[name]:g}"
    if kind == "literal_error":
        return f"expected {context['expected']}"
    if kind.startswith("union_tag"):
        return f"expected kind to be one of {context.get('expected_tags', 'those of the reference')}"
    return f"expected {_EXPECTED.get(kind.partition('_')[0], 'another kind of value')}"

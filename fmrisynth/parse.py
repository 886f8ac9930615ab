"""JSON and YAML of unknown origin: whatever is wrong with the text is an OSError or a ValueError."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml


def read_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises
    ------
    OSError, ValueError
        The file cannot be read; it is not JSON, or nested too deeply to be any of ours.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_yaml(text: str) -> Any:
    """Plain values of a YAML text; tags that would construct objects are refused.

    Raises
    ------
    ValueError
        Not YAML, a date or number that does not exist, nested too deeply, or references that unfold to more
        than a settings file ever holds.
    """
    try:
        content = yaml.safe_load(text)
        _check_size(content)
        return content
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _check_size(content: Any, limit: int = 100_000) -> None:
    """Count every value as often as it is referred to; a few lines of references can stand for billions."""
    left = limit
    open_items = [content]
    while open_items:
        item = open_items.pop()
        left -= 1
        if left < 0:
            raise ValueError("its references unfold to more than a hundred thousand values")
        if isinstance(item, dict):
            open_items += [*item.keys(), *item.values()]
        elif isinstance(item, list | set | tuple):
            open_items += item

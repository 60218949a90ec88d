"""Write the tables of docs/config.md from the settings classes: key, meaning, type and range, default.

    python docs/config_tables.py

Each table stands between `<!-- settings: NAME … -->` and `<!-- end of settings -->`; the names are those of its
sections. The text around the tables is written by hand.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from lbitcls.settings.learning_rate import POLICIES, Warmup
from lbitcls.settings.parse import describe, doc_of, section_fields
from lbitcls.settings.sections import Settings
from lbitcls.settings.training_sections import ParamwiseConfig
from lbitcls.utils.config_text import format_config, with_lists

PAGE = Path(__file__).resolve().parent / "config.md"
BLOCK = re.compile(r"(<!-- settings: ([\w .]+) -->\n).*?(<!-- end of settings -->)", re.DOTALL)
HEAD = "| key | meaning | type | default |\n|---|---|---|---|\n"
Row = tuple[str, str, str, str]
"""Key, type and range, default, meaning."""


def table(names: list[str]) -> str:
    """Return the table of some sections, in Markdown."""
    rows = [(key, about, kind, value) for name in names for key, kind, value, about in section_rows(name)]
    return HEAD + "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in rows)


def section_rows(name: str) -> Iterator[Row]:
    """Yield the rows of a section and of everything in it."""
    if name == "optimizer.paramwise_cfg":
        yield from inner_rows(ParamwiseConfig, name)
        return
    field = next(field for field in dataclasses.fields(Settings) if field.name == name)
    yield from field_rows(name, section_fields(Settings)[name], field)
    if name == "lr_config":
        yield from inner_rows(Warmup, name)
        for policy, kind in POLICIES.items():
            yield (f"`lr_config.policy='{policy}'`", "", "", (kind.__doc__ or "").strip())
            yield from inner_rows(kind, name, beside=Warmup)


def inner_rows(kind: Any, owner: str, beside: Any = None) -> Iterator[Row]:
    """Yield the rows of a settings class's fields, without those of the class `beside`."""
    known = section_fields(beside) if beside is not None else {}
    hints = section_fields(kind)
    for field in dataclasses.fields(kind):
        if field.name not in known and field.name != "policy":
            yield from field_rows(f"{owner}.{field.name}", hints[field.name], field)


def field_rows(key: str, hint: Any, field: Any) -> Iterator[Row]:
    """Yield the row of a field, then those of the settings class in it."""
    yield (f"`{key}`", said(hint), default(field), doc_of(hint))
    for below, kind in held(hint):
        yield from inner_rows(kind, key + below)


def said(hint: Any) -> str:
    """Return the type and range of a field."""
    words = describe(hint)
    return re.sub(r"\[\(.*?\)\]|'[^' ]+'|\bdict\([^)]*\)|\bTrue\b|\bFalse\b", lambda match: f"`{match[0]}`", words)


def held(hint: Any, below: str = "") -> list[tuple[str, Any]]:
    """Return the settings classes in a field, each with the key between; none if a tag distinguishes several."""
    if dataclasses.is_dataclass(hint):
        return [(below, hint)]
    inner = typing.get_args(hint)
    if typing.get_origin(hint) is dict:
        return held(inner[1], ".NAME")
    options = inner[:1] if typing.get_origin(hint) is Annotated else inner
    found = [pair for option in options for pair in held(option, below)]
    return found if len(found) == 1 else []


def default(field: Any) -> str:
    """Return the default of a field as written in a config."""
    if field.default_factory not in (dataclasses.MISSING, dict):
        return "its defaults"
    if field.default is dataclasses.MISSING:
        return "needed"
    return f"`{format_config({'x': with_lists(field.default)}).removeprefix('x = ').strip()}`"


def written(text: str) -> str:
    """Return a page with its tables updated from the classes."""
    return BLOCK.sub(lambda match: f"{match[1]}\n{table(match[2].split())}\n{match[3]}", text)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

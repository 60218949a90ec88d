"""Building blocks of settings classes: strict field types and their documentation.

A field is `name: Annotated[Count, Doc("What it sets, with its unit.")] = default`. The markers in this module tell
pydantic how to read and describe a field; pydantic itself is imported only when a value is read.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Le

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST = 10**9
"""Largest count that a config may set, unless a field has a lower limit: no real run needs more."""
_STATE = threading.local()


@dataclass(frozen=True)
class Doc:
    """Documentation of a field: one sentence, with the unit."""

    text: str

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {**handler(schema), "description": self.text}


@dataclass(frozen=True)
class Says:
    """Description of a field in messages: `{place} must be {text}; got …`."""

    text: str


@dataclass(frozen=True)
class Exact:
    """Marker of a field that accepts exactly its type, after `prepare` has converted other spellings."""

    prepare: Callable[[Any], Any] | None = None
    infinite: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        schema = {**handler(source), "strict": True}
        if schema["type"] == "float":
            schema["allow_inf_nan"] = self.infinite
        return schema if self.prepare is None else _before(self.prepare, schema)


@dataclass(frozen=True)
class Shorthand:
    """Short forms of a section: `True` for its defaults, or a string for the field that `text` names."""

    true: bool = True
    text: str | None = None

    def expand(self, value: Any) -> Any:
        """Return the section in full; any other value unchanged."""
        if value is True and self.true:
            return {}
        return {self.text: value} if self.text is not None and isinstance(value, str) else value

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return _before(self.expand, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        full = handler(schema)
        short = ([{"type": "boolean"}] if self.true else []) + ([{"type": "string"}] if self.text else [])
        return {"anyOf": [*full.get("anyOf", [full]), *short]}


@dataclass(frozen=True)
class Tagged:
    """Union of section classes, selected by the value of the field `key`; letter case does not matter."""

    key: str
    names: tuple[str, ...]

    def expand(self, value: Any) -> Any:
        """Return the section with its tag spelled as in its class."""
        tag = value.get(self.key) if isinstance(value, Mapping) else None
        by_lower = {name.lower(): name for name in self.names}
        known = by_lower.get(tag.lower()) if isinstance(tag, str) else None
        return value if known is None else {**value, self.key: known}

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic import Field

        return _before(self.expand, handler(Annotated[source, Field(discriminator=self.key)]))


def _before(prepare: Callable[[Any], Any], schema: Any) -> dict[str, Any]:
    """Return a pydantic core schema that prepares a value before `schema` checks it."""
    return {"type": "function-before", "function": {"type": "no-info", "function": prepare}, "schema": schema}


def _switch(value: Any) -> Any:
    return bool(value) if type(value) is int and value in (0, 1) else value


def _text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _number(value: Any) -> Any:
    """Convert a numeric string (YAML reads `1e-3` as one) to a float, and an int too large for a float to a string."""
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        return value
    too_large = isinstance(number, int) and abs(number) > sys.float_info.max
    return str(value) if too_large else number


def _items(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple, range)) else value


INTEGER, NUMBER, SWITCH, TEXT, ITEMS = Exact(), Exact(_number), Exact(_switch), Exact(_text), Exact(_items)
Count = Annotated[int, INTEGER, Ge(1), Le(MOST)]
Index = Annotated[int, INTEGER, Ge(0), Le(MOST)]
Number = Annotated[float, NUMBER]
Factor = Annotated[float, Ge(0), NUMBER]
Switch = Annotated[bool, SWITCH]
Text = Annotated[str, TEXT]
Component = dict[str, Any]
"""Component of a registry: `dict(type='NAME', …)`; its arguments are checked when it is built."""


def being_read() -> bool:
    """Return True while pydantic creates the objects, after it has checked each field."""
    return getattr(_STATE, "reading", False)


@contextmanager
def reading() -> Iterator[None]:
    """Mark the time during which pydantic creates the objects."""
    before, _STATE.reading = being_read(), True
    try:
        yield
    finally:
        _STATE.reading = before

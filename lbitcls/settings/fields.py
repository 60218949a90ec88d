"""Building blocks of settings classes: strict field types and their documentation.

A field is `name: Annotated[Count, Doc("What it sets, with its unit.")] = default`. The markers in this module tell
pydantic how to read and describe a field; pydantic itself is imported only when a value is read.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Le

MOST = 10**9
"""Largest count that a config may set, unless a field has a lower limit: no real run needs more."""


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
    """Marker of a field that accepts exactly its type, after `prepare` has converted other spellings.

    Attributes:
        prepare: Function that converts other spellings, and returns any other value unchanged.
        infinite: True: infinity is a number too.
        other: JSON Schema of the other spellings.
    """

    prepare: Callable[[Any], Any] | None = None
    infinite: bool = False
    other: tuple[tuple[str, Any], ...] = ()

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        schema = {**handler(source), "strict": True}
        if schema["type"] == "float":
            schema["allow_inf_nan"] = self.infinite
        return schema if self.prepare is None else _before(self.prepare, schema)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        full = handler(schema)
        return {"anyOf": [full, dict(self.other)]} if self.other else full


@dataclass(frozen=True)
class Unset:
    """Another spelling of "not set" in a config: `spelled` (None or False) stands for `value`."""

    spelled: bool | None
    value: Any

    def expand(self, value: Any) -> Any:
        """Return `self.value` for the other spelling; any other value unchanged."""
        return self.value if value is self.spelled else value

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return _before(self.expand, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        full = handler(schema)
        return {"anyOf": [*full.get("anyOf", [full]), {"const": self.spelled}]}


@dataclass(frozen=True)
class Shorthand:
    """Short forms of a section: `True` for its defaults, or a value of the field that `text` names."""

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
        short = [{"type": "boolean"}] if self.true else []
        short += [self._of_text(schema, handler)] if self.text else []
        return {"anyOf": [*full.get("anyOf", [full]), *short]}

    def _of_text(self, schema: Any, handler: Any) -> dict[str, Any]:
        """Return the JSON schema of the strings that the field `text` accepts."""
        section = handler.resolve_ref_schema(handler({**schema["schema"]["schema"]}))
        field = section["properties"][self.text]
        return next(option for option in field.get("anyOf", [field]) if option.get("type") == "string")


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


def copied(value: Any, leaf: Callable[[Any], Any] = lambda value: value) -> Any:
    """Return a copy of nested dicts, lists and tuples, with `leaf(item)` for anything else in them."""
    if type(value) in (list, tuple):
        return type(value)(copied(item, leaf) for item in value)
    if not isinstance(value, dict):
        return leaf(value)
    new = copy.copy(value)  # also of a subclass, such as a config's
    for key, item in value.items():
        new[key] = copied(item, leaf)
    return new


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


def _device(value: Any) -> Any:
    return str(value) if type(value) is int and value >= 0 else _text(value)


INTEGER, NUMBER, TEXT, ITEMS = Exact(), Exact(_number), Exact(_text), Exact(_items)
SWITCH = Exact(_switch, other=(("type", "integer"), ("minimum", 0), ("maximum", 1)))
DEVICE = Exact(_device, other=(("type", "integer"), ("minimum", 0)))
Count = Annotated[int, INTEGER, Ge(1), Le(MOST)]
Index = Annotated[int, INTEGER, Ge(0), Le(MOST)]
Number = Annotated[float, NUMBER]
Factor = Annotated[float, Ge(0), NUMBER]
Switch = Annotated[bool, SWITCH]
OptIn = Annotated[Switch, Unset(None, False)]
Text = Annotated[str, TEXT]
Component = dict[str, Any]
"""Component of a registry: `dict(type='NAME', …)`; its arguments are checked when it is built."""

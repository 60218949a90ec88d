"""Base of the settings classes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar

from lbitcls.settings.parse import parse
from lbitcls.utils.errors import ConfigError, shown


class _Parsed(type):
    """Metaclass of the settings classes: a call parses its keywords as a section of a config is parsed."""

    def __call__(cls, *unnamed: Any, **given: Any) -> Any:
        if unnamed:
            raise ConfigError(f"{cls.__name__} accepts its values by name only; got {shown(unnamed[0])}.")
        return parse(cls, given, getattr(cls, "PLACE", ""))

    @property
    def __signature__(cls) -> inspect.Signature:
        """Signature of the fields, for `help` and editors."""
        own = inspect.signature(cls.__init__)  # type: ignore[misc]
        return own.replace(parameters=list(own.parameters.values())[1:])


class Section(metaclass=_Parsed):
    """Base of the settings classes: a wrong key or value raises `ConfigError`, however the object is created.

    Equal settings have equal hashes; a component in them must not change while the hash is in use.

    Attributes:
        PLACE: Section name in messages; `--` if its fields are options of a command.
    """

    PLACE: ClassVar[str] = ""
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def __init_subclass__(cls) -> None:
        cls.__hash__ = Section.__hash__  # type: ignore[method-assign]  # that of a dataclass rejects dicts

    def __post_init__(self) -> None:
        self.check()

    def __hash__(self) -> int:
        return hash((type(self).__name__, *(_hashable(getattr(self, item.name)) for item in fields(self))))  # type: ignore[arg-type]

    def check(self) -> None:
        """Raise `ValueError` if fields that are valid by themselves do not fit together."""


def _hashable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return frozenset((key, _hashable(item)) for key, item in value.items())
    return tuple(map(_hashable, value)) if isinstance(value, (list, tuple)) else value

"""Base of the settings classes."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar

from lbitcls.settings.fields import being_read
from lbitcls.settings.parse import parse


class Section:
    """Base of the settings classes: a wrong value raises `ConfigError`, however the object is created.

    Attributes:
        PLACE: Section name in messages; `--` if its fields are options of a command.
    """

    PLACE: ClassVar[str] = ""
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if not being_read():
            given = {field.name: getattr(self, field.name) for field in fields(self) if field.init}  # type: ignore[arg-type]
            checked: Any = parse(type(self), given, self.PLACE)
            for name in given:
                object.__setattr__(self, name, getattr(checked, name))
        else:
            self.check()

    def check(self) -> None:
        """Raise `ValueError` if fields that are valid by themselves do not fit together."""

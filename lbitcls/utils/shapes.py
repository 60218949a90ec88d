"""Checks of a config before it is used: its texts, and the modules that it imports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lbitcls.utils.errors import ConfigError, shown


def check_texts(sections: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for a text that no file and no log can hold, or no modules' names in `custom_imports`."""
    _check_texts("", sections)
    _check_imports(sections.get("custom_imports") or {})


def _check_texts(place: str, value: Any) -> None:
    """Raise `ConfigError` for strings that no file or log can contain."""
    if isinstance(value, str) and ("\0" in value or (not value.isascii() and _broken(value))):
        raise ConfigError(f"{place} = {value!a} contains a NUL or half of a surrogate pair, which no file can contain.")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_texts(f"{place}.{key}".lstrip("."), inner)
    elif isinstance(value, (list, tuple)):
        for position, inner in enumerate(value):
            _check_texts(f"{place}.{position}", inner)


def _broken(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _check_imports(section: Any) -> None:
    if not isinstance(section, Mapping):
        raise ConfigError(f"custom_imports must be a dict, custom_imports = dict(imports=[…]); got {shown(section)}.")
    names = section.get("imports") or []
    given = [names] if isinstance(names, str) else names
    if not isinstance(given, Sequence) or not all(isinstance(name, str) and name and name[0] != "." for name in given):
        raise ConfigError(f"custom_imports.imports must be a list of module names; got {shown(names)}.")

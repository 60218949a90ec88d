"""Configs that run no code: plain YAML values, and the safe mode, which refuses configs that run code."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml

from lbitcls.utils.errors import ConfigError

VARIABLE = "LBITCLS_SAFE"
_MOST_VALUES = 100_000  # that aliases and merges make, those below an alias counted for each use


def is_safe_mode() -> bool:
    """Return True if configs may not run code: `LBITCLS_SAFE` is set to anything but an empty string or 0."""
    return os.environ.get(VARIABLE, "") not in ("", "0")


@contextmanager
def safe_mode(on: bool = True) -> Iterator[None]:
    """Refuse configs that run code, in this process and those it starts; `on=False` changes nothing."""
    before = os.environ.get(VARIABLE)
    if on:
        os.environ[VARIABLE] = "1"
    try:
        yield
    finally:
        if on and before is None:
            del os.environ[VARIABLE]
        elif on and before is not None:
            os.environ[VARIABLE] = before


def refuse_code(what: str) -> None:
    """Raise `ConfigError` in safe mode, because `what` would run code."""
    if is_safe_mode():
        raise ConfigError(
            f"{what} would run code, which --safe ({VARIABLE}=1) refuses; write the config and its bases in YAML or "
            "JSON, without custom_imports, or leave --safe out if you trust it."
        )


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, plus the tuples of dumped configs and a limit on what `<<` merges."""

    _merged = 0

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge the mappings named by `<<`; nested merges would multiply content before it can be counted."""
        for key, value in node.value:
            if key.tag != "tag:yaml.org,2002:merge":
                continue
            for inner in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if isinstance(inner, yaml.MappingNode) and inner is not node:
                    self.flatten_mapping(inner)
                    self._merged += len(inner.value)
                    if self._merged > _MOST_VALUES:
                        raise ValueError(f"its merges (<<) produce more than {_MOST_VALUES:,} values")
        super().flatten_mapping(node)


_Loader.add_constructor(
    "tag:yaml.org,2002:python/tuple", lambda loader, node: tuple(loader.construct_sequence(node, deep=True))
)


def read_yaml(text: Any) -> Any:
    """Return the plain values in a YAML text or file. Nothing in it is executed.

    Raises:
        yaml.YAMLError: It is not YAML, or names Python objects.
        ValueError: Its aliases expand to far more than is written, or form a cycle.
    """
    text = text.read() if hasattr(text, "read") else text
    value = yaml.load(text, Loader=_Loader)  # nosec B506
    _count(value, {}, (), max(_MOST_VALUES, len(text)))  # a value that is written out has a character at least
    return value


def _count(value: Any, known: dict[int, int], above: tuple[int, ...], most: int) -> int:
    """Return the number of values in `value`, those below an alias counted for each use."""
    if not isinstance(value, (dict, list, tuple)):
        return 1
    if id(value) in above:
        raise ValueError("an alias refers back to itself")
    if id(value) not in known:
        inside = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count(item, known, (*above, id(value)), most) for item in inside)
        if known[id(value)] > most:
            raise ValueError(f"with its aliases expanded, it has more than {most:,} values")
    return known[id(value)]

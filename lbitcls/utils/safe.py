"""Configs that run nothing: YAML's plain values, and the safe mode, which refuses what runs code."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml

from lbitcls.utils.errors import ConfigError

VARIABLE = "LBITCLS_SAFE"
_MOST_VALUES = 1_000_000  # of a config, each counted as often as aliases name it


def is_safe_mode() -> bool:
    """Whether configs may not run code: `LBITCLS_SAFE` is set, to anything but nothing or 0."""
    return os.environ.get(VARIABLE, "") not in ("", "0")


@contextmanager
def safe_mode(on: bool = True) -> Iterator[None]:
    """Refuse, in this process and those that it starts, configs that run code; `on=False` changes nothing."""
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
    """Raise `ConfigError` in safe mode: `what` would run code."""
    if is_safe_mode():
        raise ConfigError(
            f"{what} would run code, which --safe ({VARIABLE}=1) refuses; write the config in YAML or JSON with bases "
            "that are, and without custom_imports, or leave --safe out where you trust it."
        )


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with tuples as a dumped config may have them, and a bound on what `<<` merges."""

    _merged = 0

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Copy what `<<` names into a mapping; nested merges would multiply it before there is a value to count."""
        for key, value in node.value:
            if key.tag != "tag:yaml.org,2002:merge":
                continue
            for inner in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if isinstance(inner, yaml.MappingNode) and inner is not node:
                    self.flatten_mapping(inner)
                    self._merged += len(inner.value)
                    if self._merged > _MOST_VALUES:
                        raise ValueError(f"its merges (<<) make more than {_MOST_VALUES:,} values")
        super().flatten_mapping(node)


_Loader.add_constructor(
    "tag:yaml.org,2002:python/tuple", lambda loader, node: tuple(loader.construct_sequence(node, deep=True))
)


def read_yaml(text: Any) -> Any:
    """The plain values in a YAML text or file. Nothing in it is run.

    Raises:
        yaml.YAMLError: it is no YAML, or names objects of Python.
        ValueError: its aliases make far more of it than is written, or lead back to themselves.
    """
    value = yaml.load(text, Loader=_Loader)
    _count(value, {}, ())
    return value


def _count(value: Any, known: dict[int, int], above: tuple[int, ...]) -> int:
    """The number of values in `value`, those below an alias again for each place that names it."""
    if not isinstance(value, (dict, list, tuple)):
        return 1
    if id(value) in above:
        raise ValueError("an alias leads back to itself")
    if id(value) not in known:
        inside = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count(item, known, (*above, id(value))) for item in inside)
        if known[id(value)] > _MOST_VALUES:
            raise ValueError(f"with its aliases it has more than {_MOST_VALUES:,} values")
    return known[id(value)]

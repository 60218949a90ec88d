"""Overrides of config values by dotted keys: check of the keys, and conversion to mmengine's form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mmengine.config import ConfigDict

from lbitcls.utils.errors import ConfigError, suggest


def mergeable(root: ConfigDict, dotted: str, value: Any) -> tuple[str, Any]:
    """Return an override in a form that mmengine can merge: no plain value into a list, and no dict over None.

    A list item, `a.b.1=x`, becomes `a.b=[…, x, …]`; a dict replaces a None.
    """
    parent, _, last = dotted.rpartition(".")
    node: Any = root
    for part in parent.split(".") if parent else ():
        if isinstance(node, (list, tuple)) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        else:
            node = node.get(part) if isinstance(node, dict) else node
    if node is None:
        return mergeable(root, parent, {last: value})
    if isinstance(node, dict) and isinstance(value, dict) and last in node and node[last] is None:
        return dotted, {**value, "_delete_": True}
    if isinstance(node, (list, tuple)) and last.isdigit() and int(last) < len(node) and not isinstance(value, dict):
        return mergeable(root, parent, [*node[: int(last)], value, *node[int(last) + 1 :]])
    return dotted, value


def check_override(root: ConfigDict, dotted: str, sections: Iterable[str]) -> None:
    """Raise unless every part of `dotted` exists, or its section is a known one that the config lacks."""
    node: Any = root
    parts = dotted.split(".")
    if parts[0] not in root and parts[0] in sections:
        return
    for depth, part in enumerate(parts):
        known = [str(i) for i in range(len(node))] if isinstance(node, (list, tuple)) else list(node or ())
        if depth == 0:
            known += sections
        if isinstance(node, (list, tuple)) and part not in known:
            raise ConfigError(
                f"the option '{dotted}': '{'.'.join(parts[:depth])}' is a list of length {len(node)}, "
                f"numbered from 0; it has no item '{part}'. To extend it, give the whole list."
            )
        if part not in known:
            full = ".".join((*parts[:depth], part))
            hint = suggest(part, known)
            raise ConfigError(
                f"the option '{dotted}' overrides a key that does not exist: '{full}'{hint} "
                f"To add a new key, write +{dotted}=…"
            )
        node = node[int(part)] if isinstance(node, (list, tuple)) else node.get(part)
        if depth + 1 < len(parts) and not isinstance(node, (dict, list, tuple)):
            if depth == 0 and node is None:
                return
            raise ConfigError(
                f"the option '{dotted}' goes into '{'.'.join(parts[: depth + 1])}', which is the value {node!r}; "
                "only a dict or a list has keys."
            )

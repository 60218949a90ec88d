"""Overrides of config values by dotted keys: check and search of the keys, and conversion to mmengine's form."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from mmengine.config import ConfigDict

from lbitcls.utils.errors import ConfigError, nearest, suggest

DELETE = "_delete_"
"""Key with which a dict replaces the base's value instead of changing it."""
_LISTED = 3  # suggestions in one message
_OTHER_NAMES = {
    "batch": "data.samples_per_gpu",
    "batch_size": "data.samples_per_gpu",
    "epochs": "total_epochs",
    "max_epochs": "total_epochs",
    "num_epochs": "total_epochs",
    "learning_rate": "optimizer.lr",
    "num_workers": "data.workers_per_gpu",
    "workers": "data.workers_per_gpu",
}
"""Names that other frameworks give to keys of a config."""


def mergeable(root: ConfigDict, dotted: str, value: Any) -> tuple[str, Any]:
    """Return an override in a form that mmengine can merge: no plain value into a list, and no dict over a plain value.

    A list item, `a.b.1=x`, becomes `a.b=[…, x, …]`; a dict replaces a plain value, such as None or a string.
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
    if isinstance(node, dict) and isinstance(value, dict) and last in node and is_plain(node[last]):
        return dotted, {**value, DELETE: True}
    if isinstance(node, (list, tuple)) and last.isdigit() and int(last) < len(node) and not isinstance(value, dict):
        return mergeable(root, parent, [*node[: int(last)], value, *node[int(last) + 1 :]])
    return dotted, value


def is_plain(value: Any) -> bool:
    """Return True for a value without keys of its own, which a dict replaces: not a dict or a list."""
    return not isinstance(value, (dict, list, tuple))


def check_override(root: ConfigDict, dotted: str, sections: Collection[str]) -> None:
    """Check the key of an override.

    Args:
        root: Sections of the config.
        dotted: Key; a leading `+` allows the last part, or all below a section, to be new.
        sections: Names of all sections.

    Raises:
        ConfigError: Nothing would read the value, since its first part names no section; or, without `+`, a part does
            not exist, unless the config lacks the whole section.
    """
    parts, added = dotted.lstrip("+").split("."), dotted.startswith("+")
    if parts[0] not in sections:
        raise ConfigError(_no_section(root, dotted, sections))
    if parts[0] not in root:
        return
    node: Any = root
    for depth, part in enumerate(parts):
        known = [str(i) for i in range(len(node))] if isinstance(node, (list, tuple)) else list(node or ())
        if isinstance(node, (list, tuple)) and part not in known:
            raise ConfigError(
                f"the option '{dotted}': '{'.'.join(parts[:depth])}' is a list of length {len(node)}, "
                f"numbered from 0; it has no item '{part}'. To extend it, give the whole list."
            )
        if part not in known and added:
            return
        if part not in known:
            full = ".".join((*parts[:depth], part))
            near = nearest(part, known, cutoff=0.75)
            elsewhere = [] if near else keys_named(root, part, sections, exactly=nearest(part, known) is not None)
            hint = _did_you_mean(elsewhere) if elsewhere else suggest(part, known)
            raise ConfigError(
                f"the option '{dotted}' overrides a key that does not exist: '{full}'{hint} "
                f"To add a new key, write +{dotted}=…"
            )
        node = node[int(part)] if isinstance(node, (list, tuple)) else node.get(part)
        if depth + 1 < len(parts) and not isinstance(node, (dict, list, tuple)):
            if node is None and (depth == 0 or added):
                return
            raise ConfigError(
                f"the option '{dotted}' goes into '{'.'.join(parts[: depth + 1])}', which is the value {node!r}; "
                f"only a dict or a list has keys. To replace it, give '{'.'.join(parts[: depth + 1])}' as a whole."
            )


def _no_section(root: ConfigDict, dotted: str, sections: Collection[str]) -> str:
    """Return the message about a key whose first part is not a section."""
    first, *rest = dotted.lstrip("+").split(".")
    near = nearest(first, sections)
    found = [] if near and rest else keys_named(root, (rest or [first])[-1], sections, exactly=near is not None)
    found = found or ([near] if near else [])
    if first in root:
        return (
            f"the option '{dotted}' changes '{first}', a helper variable of the config's file, which has been read "
            f"already: nothing would change. Override the keys that were set from it{_did_you_mean(found)}"
        )
    known = "" if found else f" A config has the sections {', '.join(sorted(sections))}."
    does = "adds a key that nothing reads" if dotted.startswith("+") else "overrides a key that does not exist"
    return f"the option '{dotted}' {does}: '{first}'{_did_you_mean(found)}{known}"


def keys_named(root: Mapping[str, Any], name: str, sections: Collection[str], exactly: bool = False) -> list[str]:
    """Return the config's keys whose last part is `name`, or else the nearest to it: full, dotted, shortest first.

    Args:
        root: Sections of the config.
        name: Last part of a key, or another framework's name for it; letter case and `-` for `_` do not matter.
        sections: Names of all sections; other names of `root` are helper variables.
        exactly: Search for no similar names.

    Example:
        >>> keys_named({"optimizer": {"lr": 0.1, "momentum": 0.9}}, "momentun", ["optimizer"])
        ['optimizer.momentum']
    """
    name = name.lower().replace("-", "_")
    if name in _OTHER_NAMES:
        return [_OTHER_NAMES[name]]
    places: dict[str, list[str]] = {}
    for key in _keys({section: value for section, value in root.items() if section in sections}):
        places.setdefault(key.rpartition(".")[2], []).append(key)
    places.pop("type", None)
    found = name if name in places else None if exactly else nearest(name, places, cutoff=0.75)
    return sorted(places.get(found or "", []), key=lambda key: key.count("."))[:_LISTED]


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted key of each value in a dict, in its dicts and in its lists."""
    items = enumerate(node) if isinstance(node, (list, tuple)) else node.items() if isinstance(node, Mapping) else ()
    for key, value in items:
        if not isinstance(key, int):
            yield f"{prefix}{key}"
        yield from _keys(value, f"{prefix}{key}.")


def _did_you_mean(keys: list[str]) -> str:
    """Return the end of a sentence about an unknown key."""
    named = [f"'{key}'" for key in keys]
    return f". Did you mean {' or '.join(filter(None, (', '.join(named[:-1]), named[-1])))}?" if named else "."

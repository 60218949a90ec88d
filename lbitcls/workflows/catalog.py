"""Lists of what a config can use: the package's configs, methods, backbones, datasets and targets: `lbitcls list`."""

from __future__ import annotations

import ast
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lbitcls.utils.errors import ConfigError, suggest
from lbitcls.utils.library import NAME, config_library

if TYPE_CHECKING:
    from lbitcls.registry import Registry

Entries = list[tuple[str, str]]
_COLUMN = 32  # maximum width of the names' column, in characters


def print_entries(kind: str, words: Sequence[str] = ()) -> Entries:
    """Print an entry per line, its name and a sentence about it; on a terminal a line is cut to its width.

    Args:
        kind: `configs`, `methods`, `backbones`, `datasets` or `targets`.
        words: Words that an entry must contain, in either part; letter case does not matter.

    Returns:
        Printed entries, (name, sentence).

    Raises:
        ConfigError: There is no such kind, or no such entry.
    """
    found = list_entries(kind)
    chosen = [entry for entry in found if all(word.lower() in " ".join(entry).lower() for word in words)]
    if not chosen:
        names = [part for name, _ in found for part in name.replace("_", "/").split("/")]
        near = suggest(words[-1], names) if words else "."
        raise ConfigError(f"none of the {len(found)} {kind} has {' and '.join(map(repr, words))}{near}")
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    column = min(_COLUMN, max(len(name) for name, _ in chosen))
    for name, about in chosen:
        line = f"{name:<{column}}  {about}".rstrip()
        print(line if width is None or len(line) <= width or not about else f"{line[: max(width - 1, len(name))]}…")
    return chosen


def list_entries(kind: str) -> Entries:
    """Return all entries of a kind, (name, sentence), sorted by name.

    Raises:
        ConfigError: There is no such kind.
    """
    if kind not in KINDS:
        raise ConfigError(f"there is no list of '{kind}'{suggest(kind, KINDS)} Known: {', '.join(KINDS)}.")
    return sorted(KINDS[kind]())


def _configs() -> Entries:
    library = config_library()
    files = [path for path in library.rglob("*.py") if "_base_" not in path.parts]
    return [
        (f"{NAME}/{path.relative_to(library).as_posix()}", _sentence(ast.get_docstring(ast.parse(path.read_bytes()))))
        for path in files
    ]


def _methods() -> Entries:
    from lbitcls.quant.methods import METHODS, LayerEntry
    from lbitcls.registry import QUANT_LAYERS

    registered = [QUANT_LAYERS.module_dict[name] for name in QUANT_LAYERS.names()]
    layers = [entry for entry in registered if isinstance(entry, LayerEntry)]
    return [
        (
            name,
            f"{_sentence((method.input or method.weight).__doc__)} "
            f"({', '.join(entry.name for entry in layers if entry.method is method)})",
        )
        for name, method in METHODS.items()
    ]


def _backbones() -> Entries:
    from lbitcls.registry import BACKBONES

    return _registered(BACKBONES)


def _datasets() -> Entries:
    from lbitcls.registry import DATASETS

    return _registered(DATASETS)


def _targets() -> Entries:
    from lbitcls.registry import TARGETS

    return _registered(TARGETS)


def _registered(registry: Registry) -> Entries:
    return [(name, _sentence(registry.module_dict[name].__doc__)) for name in registry.names()]


def _sentence(doc: str | None) -> str:
    """Return the first line of a docstring."""
    return (doc or "").strip().partition("\n")[0].strip()


KINDS: dict[str, Callable[[], Entries]] = {
    "configs": _configs,
    "methods": _methods,
    "backbones": _backbones,
    "datasets": _datasets,
    "targets": _targets,
}
"""Functions that return all entries, by kind."""

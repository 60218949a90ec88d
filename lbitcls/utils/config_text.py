"""Configs as Python text, written so that it reads back equal, and read as plain values without executing it.

Every value is a number, string, bytes, None, a list, tuple, set, range or dict, or composed of those. Paths are written
as strings, NumPy's numbers and arrays as Python's.
"""

from __future__ import annotations

import ast
import keyword
import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lbitcls.utils.errors import ConfigError

WIDTH = 120  # of a line, if its values allow
_CALLED = ("dict", "float", "globals", "range", "set")  # names that the text itself uses
_REST = "globals().update"  # sets the names that an assignment cannot


def format_config(sections: Mapping[Any, Any]) -> str:
    """Return the text of a config: `name = value` for each section, long values over several lines.

    Raises:
        ConfigError: A value cannot be written as text (a class, a function, …); the message gives its place.
    """
    try:
        named = {name: value for name, value in sections.items() if _assignable(name)}
        rest = {name: value for name, value in sections.items() if name not in named}
        lines = [f"{name} = {_text(value, name, len(name) + 3, 0)}" for name, value in named.items()]
        if rest:
            lines.append(f"{_REST}({_text(rest, 'the config', len(_REST) + 2, 0)})")
    except RecursionError:
        raise ConfigError("a value of the config contains itself, or is nested too deeply to be written.") from None
    return "\n".join(lines) + "\n"


def _assignable(name: Any) -> bool:
    return _is_name(name) and name not in _CALLED


def _is_name(key: Any) -> bool:
    if not isinstance(key, str) or not key.isascii() or key == "__debug__":  # `__debug__` is a constant
        return False
    return key.isidentifier() and not keyword.iskeyword(key)


def _text(value: Any, where: str, column: int, indent: int) -> str:
    """Return `value` as text starting at `column`; what does not fit continues at `indent` and deeper."""
    flat, parts = _flat(value, where), _parts(value, where)
    if parts is None or column + len(flat) < WIDTH:
        return flat
    opening, items, closing = parts
    deeper = indent + 4
    lines = [f"{' ' * deeper}{p}{_text(item, at, deeper + len(p), deeper)},\n" for p, item, at in items]
    return f"{opening}\n{''.join(lines)}{' ' * indent}{closing.lstrip(',')}"


def _flat(value: Any, where: str) -> str:
    """Return `value` on one line."""
    parts = _parts(value, where)
    if parts is None:
        return _scalar(plain(value), where)
    opening, items, closing = parts
    return opening + ", ".join(prefix + _flat(item, at) for prefix, item, at in items) + closing


def _parts(value: Any, where: str) -> tuple[str, list[tuple[str, Any, str]], str] | None:
    """Return a container's opening, its items (text before it, item, its place) and closing; None for other values."""
    value = plain(value)
    if isinstance(value, Mapping):
        if all(map(_is_name, value)):
            return "dict(", [(f"{key}=", item, f"{where}.{key}") for key, item in value.items()], ")"
        return "{", [(f"{_flat(k, where)}: ", item, f"{where}[{k!r}]") for k, item in value.items()], "}"
    if isinstance(value, (list, tuple)):
        items = [("", item, f"{where}[{number}]") for number, item in enumerate(value)]
        return ("[", items, "]") if isinstance(value, list) else ("(", items, ",)" if len(items) == 1 else ")")
    if isinstance(value, set):
        items = [("", item, where) for item in sorted(value, key=repr)]
        return ("{", items, "}") if items else ("set(", [], ")")
    return None


def plain(value: Any) -> Any:
    """Return a path as a string and NumPy numbers and arrays as Python's; anything else unchanged."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    return value


def plain_values(value: Any) -> Any:
    """Apply `plain` to everything in `value`'s dicts, lists and tuples, which keep their types."""
    if isinstance(value, dict):
        return type(value)({plain(key): plain_values(item) for key, item in value.items()})
    if type(value) in (list, tuple):
        return type(value)(map(plain_values, value))
    return plain(value)


def with_lists(value: Any) -> Any:
    """Return `value` for YAML and JSON, with lists in place of tuples, ranges and sets."""
    value = plain(value)
    if isinstance(value, Mapping):
        return {plain(key): with_lists(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, range, set)):
        return [with_lists(item) for item in value]
    return value


def _scalar(value: Any, where: str) -> str:
    if value is None or isinstance(value, (bool, range)):
        return repr(value)
    for kind, write in _SCALARS.items():
        if isinstance(value, kind):
            try:
                return write(value)
            except ValueError:  # Python refuses to write an int of more than a few thousand digits
                break
    raise ConfigError(f"{where} is {_described(value)}; config values must be plain: numbers, strings, lists, dicts.")


def _described(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__qualname__}, for which its name is written, '{value.__name__}'"
    if isinstance(value, int):
        return f"an integer of {value.bit_length():,} bits"
    return f"an object, {value!r:.80}"


def _float(value: float) -> str:
    return float.__repr__(value) if math.isfinite(value) else f"float('{float(value)}')"


def _quoted(literal: str) -> str:
    return literal.replace("{{", "{\\x7b")  # otherwise a reader would take it for a placeholder


_SCALARS: dict[type, Callable[[Any], str]] = {
    int: int.__repr__,
    float: _float,
    str: lambda value: _quoted(str.__repr__(value)),
    bytes: lambda value: _quoted(bytes.__repr__(value)),
}


def read_sections(text: str) -> dict[str, Any]:
    """Return the values of a config's text; it may come from an untrusted file, so it is parsed, not executed.

    Raises:
        ConfigError: It contains more than `format_config` writes.
    """
    sections: dict[str, Any] = {}
    try:
        for node in ast.parse(text).body:
            sections.update(_assigned(node))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise ConfigError(f"the text of this config cannot be read: {error}.") from error
    return sections


def _assigned(node: ast.stmt) -> dict[str, Any]:
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return {node.targets[0].id: _value(node.value)}
    call = node.value if isinstance(node, ast.Expr) else None
    if isinstance(call, ast.Call) and ast.unparse(call.func) == _REST and len(call.args) == 1 and not call.keywords:
        return dict(_value(call.args[0]))
    raise ValueError(f"line {node.lineno} is not a plain value")


def _value(node: ast.expr) -> Any:
    """Return the value of an expression made of literals and calls of `dict`, `range`, `float` or `set`."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return _called(node.func.id, node)
    if isinstance(node, ast.List):
        return _values(node.elts)
    if isinstance(node, ast.Tuple):
        return tuple(_values(node.elts))
    if isinstance(node, ast.Set):
        return set(_values(node.elts))
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {_value(k): _value(v) for k, v in zip(node.keys, node.values, strict=True) if k is not None}
    return ast.literal_eval(node)


def _values(nodes: Iterable[ast.expr]) -> list[Any]:
    return [_value(node) for node in nodes]


def _called(name: str, node: ast.Call) -> Any:
    keywords: dict[Any, Any] = {}
    for word in node.keywords:
        value = _value(word.value)
        keywords.update({word.arg: value} if word.arg is not None else value)
    if name == "dict" and not node.args:
        return keywords
    made: dict[str, Callable[..., Any]] = {"range": range, "float": float, "set": set}
    if name in made and not keywords:
        return made[name](*_values(node.args))
    raise ValueError(f"line {node.lineno} calls {name}")

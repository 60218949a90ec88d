"""Checks of a config's arguments against a signature: their names, and their values by the annotations.

Annotations are taken literally: `int` does not accept a string or True, `float` not NaN, `dict` not a list. A list and
a tuple count as the same, since YAML and JSON have only lists; annotations of other classes (`Path`, `torch.dtype`) are
not checked.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lbitcls.utils.errors import ConfigError, LbitclsError, reject_unknown_keys, shown

_LOOSE = ("torch", "torchvision", "timm", "mmcv")  # their annotations omit some accepted types
_UNIONS = (typing.Union, types.UnionType)
_TEXT = (str, bytes)
_WORDS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "True or False",
    str: "a string",
    dict: "a dict(…)",
    list: "a list",
    type(None): "None",
}


def construct(target: Callable, arguments: Mapping[str, Any], owner: str = "") -> Any:
    """Call `target(**arguments)` with arguments from a config.

    `target`'s own messages take precedence; then the annotations are checked. Any other error in one of the package's
    classes is the config's fault too, and its message shows the values; in a custom class it keeps its type and
    traceback.

    Args:
        target: Class or function.
        arguments: Arguments by name.
        owner: Name of their section in messages; the name of `target` by default.

    Raises:
        ConfigError: An unknown or missing key, or a wrong value.
    """
    owner = owner or _name(target)
    check_names(target, arguments)
    try:
        built = target(**arguments)
    except LbitclsError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        _explain(owner, target, arguments, error)
        raise
    check_values(owner, target, arguments)
    return built


def _explain(owner: str, target: Callable, arguments: Mapping[str, Any], error: Exception) -> None:
    """Raise `ConfigError` if a wrong value caused `error`."""
    try:
        check_values(owner, target, arguments)
    except ConfigError as wrong:
        raise wrong from error
    if str(target.__module__).partition(".")[0] == "lbitcls" and not isinstance(error, NotImplementedError):
        given = ", ".join(f"{name}={shown(value)}" for name, value in arguments.items())
        raise ConfigError(f"{owner}({given}) cannot be built: {type(error).__name__}: {error}") from error


def check_names(target: Callable, arguments: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for an argument that `target` does not accept, or a required one that is missing."""
    parameters = inspect.signature(target).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    owner = _name(target)
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        reject_unknown_keys(owner, arguments, names)
    missing = [p.name for p in parameters if p.name in names and p.default is p.empty and p.name not in arguments]
    if missing:
        raise ConfigError(f"{owner} needs {', '.join(repr(name) for name in missing)}, which the config does not set.")


def check_values(owner: str, target: Callable, arguments: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for a value that does not match its parameter's annotation.

    Args:
        owner: Name of the arguments' section in the message.
        target: Class or function; a parameter without an annotation, or of another name, accepts everything.
        arguments: Values by name. A parameter's default is always accepted.
    """
    hints = annotations_of(target)
    defaults = {p.name: p.default for p in inspect.signature(target).parameters.values()}
    for name, value in arguments.items():
        if name in hints and not _is_default(value, defaults.get(name)) and not fits(value, hints[name]):
            raise ConfigError(f"{owner}: {name} must be {described(hints[name])}; got {shown(value)}.")


def _name(target: Callable) -> str:
    return getattr(target, "__name__", str(target))


@functools.cache
def annotations_of(target: Callable) -> dict[str, Any]:
    """Return the annotations of a class's or function's arguments; empty if they cannot be resolved."""
    function = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    if getattr(function, "__module__", "").partition(".")[0] in _LOOSE:
        return {}
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):  # names imported only for the type checker
        return {}


def _is_default(value: Any, default: Any) -> bool:
    return value is default or (type(value) is type(default) and isinstance(value, _TEXT) and value == default)


def fits(value: Any, hint: Any) -> bool:
    """Return True if `value` matches the annotation `hint`, as far as the hint restricts plain values."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in _UNIONS:
        return any(fits(value, option) for option in inner)
    if origin is typing.Literal:
        return any(value is option or (type(value) is type(option) and value == option) for option in inner)
    kind = origin or hint
    if kind in (collections.abc.Mapping, dict):
        return isinstance(value, Mapping)
    if kind in (collections.abc.Sequence, collections.abc.Iterable, list, tuple):
        return _fits_sequence(value, kind, inner)
    return _fits_scalar(value, kind)


def _fits_scalar(value: Any, kind: Any) -> bool:
    if kind in (None, type(None)):
        return value is None
    if kind is bool:
        return isinstance(value, bool) or (isinstance(value, int) and value in (0, 1))
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
    return not isinstance(kind, type) or kind not in (str, bytes) or isinstance(value, kind)


def _fits_sequence(value: Any, kind: Any, inner: tuple[Any, ...]) -> bool:
    if not isinstance(value, (Sequence, collections.abc.Set)) or isinstance(value, _TEXT):
        # an iterable that is not a list (a tensor, a loader) comes from code, not from a config
        return kind is collections.abc.Iterable and isinstance(value, collections.abc.Iterable) and _no_plain(value)
    if kind is tuple and inner and inner[-1] is not Ellipsis:
        return len(value) == len(inner) and all(fits(item, hint) for item, hint in zip(value, inner))
    return not inner or all(fits(item, inner[0]) for item in value)


def _no_plain(value: Any) -> bool:
    return not isinstance(value, (*_TEXT, Mapping))


def described(hint: Any) -> str:
    """Return the annotation in words, such as `a list (each a number) or None`."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in _UNIONS:
        words = list(dict.fromkeys(described(option) for option in inner))
        return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, inner))
    kind = origin or hint
    if kind in (collections.abc.Mapping, dict):
        return _WORDS[dict]
    if kind in (collections.abc.Sequence, collections.abc.Iterable, list, tuple):
        fixed = kind is tuple and inner and inner[-1] is not Ellipsis
        count = f"{len(inner)} values" if fixed else ""
        each = f"each {described(inner[0])}" if inner and inner[0] is not Any else ""
        details = ", ".join(part for part in (count, each) if part)
        return f"a list ({details})" if details else "a list"
    return _WORDS.get(kind, getattr(kind, "__name__", str(kind)))

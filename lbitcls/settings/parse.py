"""Parsing of values into settings by pydantic, with errors that name the location and suggest a correction."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

from annotated_types import Ge, Gt, Le, Lt, MinLen

from lbitcls.settings.fields import Doc, Says, Shorthand, Tagged, copied
from lbitcls.utils.errors import ConfigError, shown, suggest

T = TypeVar("T")
_UNIONS = (typing.Union, types.UnionType)
_DICT = "a dict(…)"
_OWNERS = {"": "a config", "--": "an export"}  # owners of keys outside of sections
_REMOTE = 1000  # upper bounds from here on are named only if a value exceeds them
TOO_DEEP = "a value of the config contains itself, or is nested too deeply."
_ABOUT_KEYS = ("missing", "unexpected_keyword_argument", "invalid_key")


def parse(kind: Any, value: Any, place: str = "") -> Any:
    """Parse `value` as `kind`, a settings class or the annotation of a field.

    The result shares no dict or list with `value`.

    Args:
        kind: Settings class or annotation to parse by.
        value: Value from a config.
        place: Location in the config, for messages.

    Raises:
        ConfigError: Parts of the value are wrong; the message names all of them, one per line.
    """
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_python(copied(value))
    except RecursionError:
        raise ConfigError(TOO_DEEP) from None
    except ValidationError as error:
        details = error.errors(include_url=False)
    raise ConfigError("\n".join(_messages(kind, value, place, details)))


def problems(kind: Any, value: Any, place: str = "") -> list[str]:
    """Return a message for each wrong part of `value`; an empty list if `parse` accepts it."""
    try:
        parse(kind, value, place)
    except ConfigError as error:
        return str(error).splitlines()
    return []


@functools.cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _messages(kind: Any, value: Any, place: str, details: Sequence[Mapping[str, Any]]) -> list[str]:
    found: dict[str, str] = {}
    for detail in details:
        where, message = _message(kind, value, place, detail)
        found.setdefault(where, message)
    inner = [where for where in found if where]
    return [text for where, text in found.items() if not any(place.startswith(f"{where}.") for place in inner)]


def _message(kind: Any, value: Any, place: str, detail: Mapping[str, Any]) -> tuple[str, str]:
    """Return the location of a pydantic error and the message for it."""
    about_key = detail["type"] in _ABOUT_KEYS
    where, annotation, given = list(_walk(kind, value, place, detail["loc"][:-1] if about_key else detail["loc"]))[-1]
    if detail["loc"] and detail["loc"][-1] == "[key]" and _marker(annotation, Says) is None:
        owner = ".".join(map(str, (*([place] if place else []), *detail["loc"][:-2])))
        return f"{owner}.[key]", f"{owner}: keys must be strings; got {detail['loc'][-2]}."
    known = section_fields(annotation)
    if about_key and known and _marker(annotation, Says) is None:
        owner, last = _OWNERS.get(where, where), detail["loc"][-1]
        if detail["type"] == "missing":
            return f"{where}.{last}", f"{owner} needs '{last}', which is not given."
        takes = ", ".join(sorted(known)) or "nothing"
        return f"{where}.{last}", f"{owner} does not accept '{last}'{suggest(str(last), known)} It accepts: {takes}."
    if detail["type"] == "value_error":
        text = str(detail["ctx"]["error"])
        separator = "." if text.partition(":")[0] in known else ": "
        return f"{where}:{text}", f"{where}{separator}{text}" if where else text
    if detail["type"].startswith("union_tag"):
        return where, _unknown_tag(where, annotation, given)
    return where, _wrong_value(where, annotation, given)


def _walk(kind: Any, value: Any, place: str, loc: Sequence[Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield (place, annotation, value) at each level that exists in both the annotation and `loc`.

    Of alternatives, the list is meant by a list.
    """
    yield place, kind, value
    for step in loc:
        if _marker(kind, Says) is not None:
            return
        items = _list_option(kind) if isinstance(value, (list, tuple)) else None
        if items is not None and not isinstance(step, int):
            kind = items
            continue
        inner = _inner(kind, step)
        if inner is None:
            return
        if inner[1]:
            place, value = _joined(place, step), _item(_expanded(kind, value), step)
        kind = inner[0]
        yield place, kind, value


def _inner(kind: Any, step: Any) -> tuple[Any, bool] | None:
    """Return a part's annotation and True if `step` is a key of the config; None if the step is pydantic's own."""
    base = _without_none(kind)
    tagged = _marker(kind, Tagged)
    if tagged is not None:
        chosen = [option for option in _options(base) if tag_of(option, tagged.key) == step]
        return (chosen[0], False) if chosen else None
    fields = section_fields(base)
    if step in fields:
        return fields[step], True
    origin, arguments = typing.get_origin(base), typing.get_args(base)
    if origin is tuple and isinstance(step, int):
        return (arguments[0] if arguments[-1] is Ellipsis else arguments[step]), True
    if origin is dict:
        return (arguments[1], True) if len(arguments) == 2 and step != "[key]" else None
    return None


def _list_option(kind: Any) -> Any:
    """Return the list among several alternatives; None if there is none, or nothing else."""
    options = [option for option in _options(_without_none(kind)) if option is not type(None)]
    lists = [option for option in options if typing.get_origin(_without_none(option)) is tuple]
    return lists[0] if len(options) > 1 and len(lists) == 1 else None


def _joined(place: str, step: Any) -> str:
    if place == "--":
        return f"--{str(step).replace('_', '-')}"
    return f"{place}.{step}" if place else str(step)


def _item(value: Any, step: Any) -> Any:
    try:
        return getattr(value, step) if dataclasses.is_dataclass(value) else value[step]
    except (TypeError, LookupError, AttributeError):
        return None


def _expanded(kind: Any, value: Any) -> Any:
    short = _marker(kind, Shorthand)
    return value if short is None else short.expand(value)


def _unknown_tag(where: str, annotation: Any, given: Any) -> str:
    tagged = _marker(annotation, Tagged)
    assert tagged is not None
    if not isinstance(given, Mapping):
        return _wrong_value(where, annotation, given)
    known = tagged.names
    if tagged.key not in given:
        return f"{where} needs '{tagged.key}', which is not given. Known: {', '.join(known)}."
    name = given[tagged.key]
    return f"{where}: unknown {tagged.key} '{name}'{suggest(str(name), known)} Known: {', '.join(known)}."


def _wrong_value(where: str, annotation: Any, given: Any) -> str:
    says = _marker(annotation, Says)
    said = describe(annotation, given) if says is None else says.text
    if said == _DICT and "." not in where:
        said = f"a dict, {where} = {_DICT.removeprefix('a ')}"
    names = [option for option in _names(annotation) if isinstance(option, str)]
    wrong = [given] if isinstance(given, str) else given if isinstance(given, (list, tuple)) else []
    unknown = next((name for name in wrong if isinstance(name, str) and name not in names), None)
    hint = "." if unknown is None or not names else suggest(unknown, names)
    written = f"the string '{given}'" if is_number(annotation) and isinstance(given, str) else shown(given)
    return f"{where} must be {said}; got {written}{hint}"


def describe(annotation: Any, given: Any = None) -> str:
    """Describe an annotation in words: `an integer from 1 to 8`, `one of 'a', 'b'`; an alternative None is left out.

    Args:
        annotation: Annotation of a field.
        given: Wrong value; a very high upper bound is named only if the value exceeds it.
    """
    says = _marker(annotation, Says)
    if says is not None:
        return says.text
    base, marks = _split(annotation)
    short = _marker(annotation, Shorthand)
    options = [option for option in _options(base) if option is not type(None)]
    if _marker(annotation, Tagged) is not None:
        return _DICT
    if len(options) > 1:
        words = list(dict.fromkeys(describe(option, given) for option in options))
        words = [word.replace(f"list, each {words[0]}", "list of them") for word in words]
        return _listed(words)
    if short is not None:
        return _listed(
            [*(["True"] if short.true else []), *([f"a string ({short.text})"] if short.text else []), _DICT]
        )
    if options[0] is not base:
        return describe(options[0], given)
    return _described(base, marks, given)


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


def _described(base: Any, marks: Sequence[Any], given: Any) -> str:
    if base in (int, float):
        endless = isinstance(given, float) and not math.isfinite(given)
        return ("an integer" if base is int else f"a {'finite ' if endless else ''}number") + _bounds(marks, given)
    if typing.get_origin(base) is Literal:
        values = ", ".join(repr(value) for value in typing.get_args(base))
        return values if len(typing.get_args(base)) == 1 else f"one of {values}"
    if typing.get_origin(base) is tuple:
        least = "non-empty " if any(isinstance(mark, MinLen) for mark in marks) else ""
        return f"a {least}list, each {describe(typing.get_args(base)[0], given)}"
    if base is dict or typing.get_origin(base) is dict or section_fields(base):
        return _DICT
    return {bool: "True or False", str: "a string", Any: "a value"}.get(base, getattr(base, "__name__", str(base)))


def _bounds(marks: Sequence[Any], given: Any) -> str:
    """Return ` from 1 to 8`, ` ≥ 1`, ` > 0`, ` > 0 and ≤ 1`; a very high upper bound only if `given` exceeds it."""
    least = next((mark for mark in marks if isinstance(mark, (Ge, Gt))), None)
    most = next((mark for mark in marks if isinstance(mark, (Le, Lt)) and not _is_beside(mark, given)), None)
    if isinstance(least, Ge) and isinstance(most, Le):
        return f" from {least.ge} to {most.le:,}"
    signs = {Ge: "≥", Gt: ">", Le: "≤", Lt: "<"}
    words = [f"{signs[type(mark)]} {dataclasses.astuple(mark)[0]:,}" for mark in (least, most) if mark is not None]
    return f" {' and '.join(words)}" if words else ""


def _is_beside(mark: Any, given: Any) -> bool:
    """Return True for an upper bound so high that a message names it only for a value above it."""
    most: Any = mark.le if isinstance(mark, Le) else mark.lt
    return most >= _REMOTE and not (isinstance(given, (int, float)) and given > most)


def section_fields(kind: Any) -> dict[str, Any]:
    """Return the annotations of a settings class's fields, by name; an empty dict for anything else."""
    base = _without_none(kind)
    if not (isinstance(base, type) and dataclasses.is_dataclass(base)):
        return {}
    hints = _hints(base)
    return {field.name: hints[field.name] for field in dataclasses.fields(base)}


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def tag_of(kind: Any, key: str) -> str | None:
    """Return the value of the field `key` that selects this class in a tagged union."""
    hint = section_fields(kind).get(key)
    return typing.get_args(hint)[0] if hint is not None else None


def doc_of(annotation: Any) -> str:
    """Return the sentence that documents a field."""
    mark = _marker(annotation, Doc)
    return "" if mark is None else mark.text


def _marker(annotation: Any, kind: type[T]) -> T | None:
    """Return the marker of an annotation, or of its only alternative to None."""
    base, marks = _split(annotation)
    found = [mark for mark in marks if isinstance(mark, kind)]
    if found:
        return found[-1]
    alone = [option for option in _options(base) if option is not type(None)]
    return _marker(alone[0], kind) if len(alone) == 1 and alone[0] is not base else None


def _split(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return the type in an annotation, and its markers."""
    if typing.get_origin(annotation) is typing.Annotated:
        base, *marks = typing.get_args(annotation)
        return base, tuple(marks)
    return annotation, ()


def _options(base: Any) -> tuple[Any, ...]:
    return typing.get_args(base) if typing.get_origin(base) in _UNIONS else (base,)


def _without_none(annotation: Any) -> Any:
    """Return the type in an annotation, without markers and without an alternative None."""
    base, _ = _split(annotation)
    alone = [option for option in _options(base) if option is not type(None)]
    return _without_none(alone[0]) if len(alone) == 1 and alone[0] is not base else base


def _names(annotation: Any) -> Iterator[Any]:
    """Yield the values that an annotation lists."""
    base, _ = _split(annotation)
    if typing.get_origin(base) is Literal:
        yield from typing.get_args(base)
    elif typing.get_origin(base) in (*_UNIONS, tuple):
        for option in typing.get_args(base):
            yield from _names(option)


def is_number(annotation: Any) -> bool:
    """Return True if a field accepts numbers only, or None."""
    base = _without_none(annotation)
    values = typing.get_args(base) if typing.get_origin(base) is Literal else ()
    return base in (int, float) or (bool(values) and all(type(value) is int for value in values))

"""User errors whose messages say what was given, what was expected, and what to do.

The command line prints the message of a `LbitclsError` without a traceback and exits with `exit_code`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """Return `text` with escapes instead of characters that control a terminal or reorder its text.

    Names in files, and of files, may contain any of them. Newlines and tabs stay.

    Example:
        >>> visible("\x1b[2J.png")
        '\\\\x1b[2J.png'
    """
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


class LbitclsError(Exception):
    """Base class of errors that the user can fix; their texts are `visible`."""

    exit_code = 1

    def __str__(self) -> str:
        return visible(super().__str__())


class ConfigError(LbitclsError):
    """A config, an option or an argument is wrong."""

    exit_code = 2


class DataError(LbitclsError):
    """Data is missing, corrupt, or does not match the config."""


class CheckpointError(LbitclsError):
    """A checkpoint is missing, unreadable, or does not match the model."""


class DependencyError(LbitclsError):
    """An optional package is not installed; the message names the extra that installs it."""


class TrainingError(LbitclsError):
    """Training cannot continue (for example, the loss is not finite)."""


class ResourceError(LbitclsError):
    """The machine failed: a full disk, a file-size limit, too little memory, a killed process."""

    exit_code = 71  # EX_OSERR of sysexits.h


def nearest(name: str, candidates: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the candidate most similar to `name`, ignoring case, or None if none is similar."""
    by_lower = {str(c).lower(): str(c) for c in candidates}
    found = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[found[0]] if found else None


def suggest(name: str, candidates: Iterable[str]) -> str:
    """Return the end of a sentence about an unknown name: `". Did you mean 'fc'?"`, or `"."` if none is similar.

    Example:
        >>> suggest("head.fc1", ["head.fc", "neck"])
        ". Did you mean 'head.fc'?"
    """
    best = nearest(name, candidates)
    return f". Did you mean '{best}'?" if best is not None else "."


def reject_unknown_keys(owner: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise `ConfigError` for the first key of `given` that is not in `known`.

    Args:
        owner: Name of the section or class in the message (`"lr_config"`, `"LSQConv"`).
        given: Keys that the user wrote.
        known: Accepted keys.
    """
    known = sorted(known)
    for key in given:
        if key not in known:
            accepted = ", ".join(known) or "nothing"
            raise ConfigError(f"{owner} does not accept '{key}'{suggest(key, known)} It accepts: {accepted}.")


def require_dict(name: str, value: Any) -> dict[str, Any]:
    """Return a copy of the section `value`, empty for None; raise `ConfigError` if it is not a dict."""
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(f"{name} must be a dict(…); got {value!r}.")
    return dict(value or {})


def require_list(name: str, value: Any) -> list[Any]:
    """Return a copy of the list (or tuple) `value`, empty for None; raise `ConfigError` if it is neither."""
    if value is not None and not isinstance(value, (list, tuple)):
        raise ConfigError(f"{name} must be a list, […]; got {value!r}.")
    return list(value or [])


MOST = 10**9
"""Largest count in a config, unless a lower limit is given; no real one is larger."""


def require_count(name: str, value: Any, least: int, most: int = MOST) -> int:
    """Return `value`; raise `ConfigError` unless it is an integer from `least` to `most`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} must be an integer ≥ {least}; got {shown(value)}.")
    if value > most:
        raise ConfigError(f"{name} must be an integer from {least} to {most:,}; got {shown(value)}.")
    return value


def shown(value: Any) -> str:
    """Return the `repr` of `value`, truncated if long; Python refuses to format an int of 5,000 digits."""
    try:
        text = repr(value)
    except ValueError:
        return f"a number of {value.bit_length():,} bits" if isinstance(value, int) else f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:76]} ..."


def reason_of(error: BaseException) -> str:
    """Return the first line of an error's cause, or of itself; its type and place if that is empty."""
    cause = error.__cause__ or error
    lines = str(cause).strip().splitlines()
    return lines[0] if lines else f"{type(cause).__name__} without a message{_place(cause)}"


def _place(error: BaseException) -> str:
    """Return the place in the code where an error was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f" ({trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno})"

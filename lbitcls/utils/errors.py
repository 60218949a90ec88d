"""Errors that speak to the user: what was given, what was expected, what to do.

The command line prints the message of a `LbitclsError` without a traceback and exits with `exit_code`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class LbitclsError(Exception):
    """Base of every error that is the user's to mend."""

    exit_code = 1


class ConfigError(LbitclsError):
    """A config, an option or an argument is wrong."""

    exit_code = 2


class DataError(LbitclsError):
    """Data is missing, corrupt, or not what the config says."""


class CheckpointError(LbitclsError):
    """A checkpoint is missing, unreadable, or of another model."""


class DependencyError(LbitclsError):
    """An optional package is not installed; the message names the extra that brings it."""


class TrainingError(LbitclsError):
    """Training cannot go on (a loss that is not finite, say)."""


class ResourceError(LbitclsError):
    """The machine gave out: a disk is full, a file-size limit is reached, memory is short, a process was killed."""


def nearest(name: str, candidates: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The candidate most like `name`, or None when none is similar (case does not count)."""
    by_lower = {str(c).lower(): str(c) for c in candidates}
    found = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[found[0]] if found else None


def suggest(name: str, candidates: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: `"; did you mean 'fc'?"`, or `"."` when none is similar.

    Example:
        >>> suggest("head.fc1", ["head.fc", "neck"])
        "; did you mean 'head.fc'?"
    """
    best = nearest(name, candidates)
    return f"; did you mean '{best}'?" if best is not None else "."


def reject_unknown_keys(owner: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise `ConfigError` for the first key of `given` that `known` does not hold.

    Args:
        owner: what the keys belong to, as the message names it (`"lr_config"`, `"LSQConv"`).
        given: keys the user wrote.
        known: keys that have a meaning.
    """
    known = sorted(known)
    for key in given:
        if key not in known:
            takes = ", ".join(known) or "nothing"
            raise ConfigError(f"{owner} takes no '{key}'{suggest(key, known)} It takes: {takes}.")


def require_dict(name: str, value: Any) -> dict[str, Any]:
    """A copy of the section `value`, empty for None; `ConfigError` when it is no dict."""
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(f"{name} is written as a dict(…); got {value!r}.")
    return dict(value or {})


def require_list(name: str, value: Any) -> list[Any]:
    """A copy of the list (or tuple) `value`, empty for None; `ConfigError` when it is none."""
    if value is not None and not isinstance(value, (list, tuple)):
        raise ConfigError(f"{name} is written as a list, […]; got {value!r}.")
    return list(value or [])


MOST = 10**9
"""The largest count that a config may hold, where no lower bound is given: nothing real is longer."""


def require_count(name: str, value: Any, least: int, most: int = MOST) -> int:
    """`value`, an int from `least` to `most`; `ConfigError` when it is none."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} is an int from {least}; got {shown(value)}.")
    if value > most:
        raise ConfigError(f"{name} is an int from {least} to {most:,}; got {shown(value)}.")
    return value


def shown(value: Any) -> str:
    """`value` as a message shows it: its `repr`, cut where it is long; Python writes out no int of 5,000 digits."""
    try:
        text = repr(value)
    except ValueError:
        return f"a number of {value.bit_length():,} bits" if isinstance(value, int) else f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:76]} ..."


def reason_of(error: BaseException) -> str:
    """The first line of what the cause of an error says, or it itself; its kind and place where that is empty."""
    cause = error.__cause__ or error
    lines = str(cause).strip().splitlines()
    return lines[0] if lines else f"{type(cause).__name__} without a message{_place(cause)}"


def _place(error: BaseException) -> str:
    """Where in the code an error was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f" ({trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno})"

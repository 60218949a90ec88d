"""Durations as a user types them: `90m`, `5h30m`, `1-00:00:00` (Slurm's form), or a number of minutes."""

from __future__ import annotations

import re

from lbitcls.utils.errors import ConfigError

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_WITH_UNITS = re.compile("".join(rf"(?:(\d+(?:\.\d+)?){unit})?" for unit in _UNITS))
_MINUTES = re.compile(r"\d+(?:\.\d+)?")
_SLURM = re.compile(r"(?:(\d+)-)?(\d+(?::\d+){0,2})")


def read_duration(text: str, option: str) -> float:
    """Return a duration in seconds.

    Args:
        text: `90m`, `1.5h`, `5h30m`, `45s`; a number of minutes; or as in Slurm `minutes:seconds`,
            `hours:minutes:seconds`, `days-hours`, `days-hours:minutes`, `days-hours:minutes:seconds`.
        option: Name of the option, for the message.

    Raises:
        ConfigError: It is none of these, or 0.

    Example:
        >>> read_duration("5h30m", "--time-limit"), read_duration("1-00:00:00", "--time-limit")
        (19800.0, 86400.0)
    """
    seconds = _seconds(text.strip().lower())
    if not seconds:
        raise ConfigError(
            f"{option} must be a duration > 0, such as 90m, 5h30m, 1-00:00:00 (days-hours:minutes:seconds) or a number "
            f"of minutes; got '{text}'."
        )
    return seconds


def _seconds(text: str) -> float:
    """Return the seconds; 0 if `text` is no duration."""
    if _MINUTES.fullmatch(text):
        return 60 * float(text)
    if text and (found := _WITH_UNITS.fullmatch(text)):
        return sum(float(number or 0) * unit for number, unit in zip(found.groups(), _UNITS.values(), strict=True))
    if found := _SLURM.fullmatch(text):
        days, parts = found[1], [float(part) for part in found[2].split(":")]
        first = 3600 if days is not None or len(parts) == 3 else 60
        return 86400 * float(days or 0) + sum(part * first / 60**place for place, part in enumerate(parts))
    return 0.0

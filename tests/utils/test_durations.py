"""Durations as they are typed."""

from __future__ import annotations

import pytest

from lbitcls.utils.durations import read_duration
from lbitcls.utils.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("90", 5400), ("0.5", 30), ("90m", 5400), ("5h30m", 19800), ("1.5h", 5400), ("45s", 45), ("2d", 172800)),
        *(("90:30", 5430), ("02:00:05", 7205), ("1-00:00:00", 86400), ("1-12", 129600), ("1-00:30", 88200)),
        ("1D2H", 93600),
    ],
)
def test_forms(text: str, seconds: float) -> None:
    assert read_duration(text, "--time-limit") == seconds


@pytest.mark.parametrize("text", ["", "0", "0m", "h", "-5", "5x", "1:2:3:4", "m5", "5h30", "inf", "nan", "1e3", "1--2"])
def test_what_is_none(text: str) -> None:
    with pytest.raises(ConfigError, match="--time-limit must be a duration > 0, such as 90m"):
        read_duration(text, "--time-limit")

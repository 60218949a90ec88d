"""Standard JSON: NaN and infinity, which JSON does not allow, are never written to a file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from lbitcls.utils.errors import DataError


def json_text(value: Any, **options: Any) -> str:
    """Return `value` as JSON.

    Args:
        value: Plain data.
        options: Options of `json.dumps`.

    Raises:
        DataError: It contains a number that is not finite; the message gives the place.

    Example:
        >>> json_text({"top-1": 97.5})
        '{"top-1": 97.5}'
    """
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError as error:
        if "not JSON compliant" not in str(error):
            raise
        place, number = next(_not_finite(value, ""))
        raise DataError(
            f"{place or 'a result'} is {number}, which JSON cannot represent; nothing is written."
        ) from error


def with_nulls(value: Any) -> Any:
    """Return `value` with numbers that are not finite replaced by None, for logs, whose records must be written.

    Example:
        >>> json_text(with_nulls({"loss": 0.5, "grad_norm": float("inf")}))
        '{"loss": 0.5, "grad_norm": null}'
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: with_nulls(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [with_nulls(item) for item in value]
    return value


def _not_finite(value: Any, place: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, float) and not math.isfinite(value):
        yield place, value
    elif isinstance(value, (Mapping, list, tuple)):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _not_finite(item, f"{place}.{key}" if place else str(key))

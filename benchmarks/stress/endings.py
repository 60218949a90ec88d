"""Runs that were ended and resumed: how each went, and the tables of the parts `kills` and `storage`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from stress.judge import fault_of_message
from stress.verdicts import Loss, Result

HEAD = "| what happens | cases | bit-identical | told | losses | slowest, s | s |\n|---|--:|--:|--:|--:|--:|--:|"
_MOST_LINES = 4  # of standard error: the error, and that the log or the heartbeat could not be written
_ERROR = re.compile(r"\w+: .+|process \d+.+|stopped\.|.* cannot be written.*")
_WARNING = re.compile(r"^.*Warning: .*\n  .*\n", re.MULTILINE)  # of Python, with the line that warns


@dataclass(frozen=True)
class Ending:
    """Outcome of one case.

    Attributes:
        row: Row of the table that it counts for.
        number: Number of the case.
        said: The case in words.
        loss: What went wrong, or an empty string.
        told: True if the result differs, or there is none, and a message says so.
        seconds: Time of the case.
    """

    row: str
    number: int
    said: str
    loss: str
    told: bool
    seconds: float


def tabulated(endings: Collection[Ending], rows: Iterable[str], seconds: float) -> list[Result]:
    """Return a result for each row that has cases, in the order of `rows`; the others follow.

    Args:
        endings: Outcomes of all cases.
        rows: Names of rows.
        seconds: Wall-clock time of all, of which each row gets its share.
    """
    results = {row: Result(row) for row in rows}
    for ending in endings:
        result = results.setdefault(ending.row, Result(ending.row))
        if ending.loss:
            result.losses.append(Loss(ending.number, ending.said, ending.loss))
        elif ending.told:
            result.refused += 1
        else:
            result.accepted += 1
        result.slowest = max(result.slowest, ending.seconds)
        result.seconds += ending.seconds
    whole = sum(result.seconds for result in results.values()) or 1.0
    for result in results.values():
        result.seconds *= seconds / whole
    return [result for result in results.values() if result.total]


def line(result: Result) -> str:
    """Return a result as a row of the table."""
    cells = (
        *(result.name, f"{result.total:,}", f"{result.accepted:,}", f"{result.refused:,}", len(result.losses)),
        *(f"{result.slowest:.1f}", f"{result.seconds:.0f}"),
    )
    return f"| {' | '.join(map(str, cells))} |"


def fault_of_end(code: int | None, errors: str, allowed: Collection[int], folder: str) -> str:
    """Return what is wrong with how a command ended, or an empty string.

    Args:
        code: Its exit code, negative for a signal; None: it hung.
        errors: Standard error: an error is one line, after lines on what else could not be written.
        allowed: Exit codes that are right.
        folder: Folder of the case, whose name does not count in a message.
    """
    if code is None:
        return "hang"
    errors = _WARNING.sub("", errors)
    lines = [text for text in errors.splitlines() if text.strip()]
    if code not in allowed:
        return f"exit code {code}: {' / '.join(lines[-3:])[-400:]}"
    if 0 < code < 128 and not lines:  # signals need no words
        return f"exit code {code} without a message"
    if fault := fault_of_message(errors or "-", folder):
        return fault
    if len(lines) > _MOST_LINES or (code > 0 and lines and not _ERROR.fullmatch(lines[-1])):
        return f"not one line: {' / '.join(lines)[:400]}"
    return ""

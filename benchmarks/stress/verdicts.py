"""Cases, and what became of them: the words that all parts of the stress run share."""

from __future__ import annotations

import collections
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

SECONDS = 10
"""Longest time of one case; a longer one is a hang."""
LONGEST = 5000
"""Characters of a message, beside those of the paths in it."""


@dataclass(frozen=True)
class Loss:
    """A case that went wrong.

    Attributes:
        number: Number of the case, which alone determines it.
        said: The case in words.
        what: What happened: a traceback's end, `hang`, `memory`, a file outside the folder.
    """

    number: int
    said: str
    what: str


class NotJudged(Exception):
    """A case that says nothing about the package: a network that did not learn, for example."""


@dataclass
class Result:
    """Outcome of one kind of input.

    Attributes:
        name: Name of the kind.
        accepted: Cases that were read, trained, or run.
        refused: Cases that ended in a message of the package.
        losses: Cases that went wrong.
        unjudged: Cases that say nothing.
        seconds: Wall-clock time.
        slowest: Seconds of the slowest case.
        mib: Largest growth of a process's memory during one case, in MiB.
    """

    name: str
    accepted: int = 0
    refused: int = 0
    losses: list[Loss] = field(default_factory=list)
    unjudged: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    mib: float = 0.0

    @property
    def total(self) -> int:
        """Cases that ran."""
        return self.accepted + self.refused + self.unjudged + len(self.losses)

    def add(self, other: Result) -> None:
        """Add the cases of another process."""
        self.accepted += other.accepted
        self.refused += other.refused
        self.unjudged += other.unjudged
        self.losses += other.losses
        self.slowest, self.mib = max(self.slowest, other.slowest), max(self.mib, other.mib)

    def summary(self) -> list[str]:
        """Return a text for each place where cases went wrong: how many, and the first one with its number."""
        kinds = collections.defaultdict(list)
        for loss in self.losses:
            kinds[loss.what.splitlines()[-1][-160:]].append(loss)
        return [
            f"{self.name}: {len(found)} × {found[0].what}\n    case {found[0].number}: {found[0].said}{_others(found)}"
            for found in kinds.values()
        ]


def _others(found: Sequence[Loss]) -> str:
    """Return the numbers of the losses after the first, up to 20."""
    numbers = ", ".join(str(loss.number) for loss in found[1:21])
    return f"\n    also: {numbers}" if numbers else ""


@dataclass
class Measured:
    """One measurement of a part that has no cases.

    Attributes:
        name: First cell of its row.
        cells: Other cells, without the last two: the number of losses, and the seconds.
        losses: What exceeds its bound.
        seconds: Wall-clock time.
    """

    name: str
    cells: Sequence[object]
    losses: list[str] = field(default_factory=list)
    seconds: float = 0.0
    total: int = 1

    def summary(self) -> list[str]:
        """Return a text for each loss."""
        return [f"{self.name}: {loss}" for loss in self.losses]

    def row(self) -> str:
        """Return the row of the table."""
        cells = (self.name, *self.cells, len(self.losses), f"{self.seconds:.0f}")
        return f"| {' | '.join(map(str, cells))} |"


class Kind(ABC):
    """A kind of input: draws cases by number, and reads each by the function that commands call for it.

    Attributes:
        name: Name in the table.
        count: Number of cases at scale 1.
        most_mib: MiB by which a case may raise the memory of its process.
        seconds: Longest time of a case.
    """

    name: str
    count: int
    most_mib: float = 256
    seconds: int = SECONDS

    def prepare(self, folder: Path) -> None:  # noqa: B027  # most kinds need nothing
        """Make, once and in `folder`, what all cases start from."""

    @abstractmethod
    def draw(self, number: int, folder: Path) -> str:
        """Write case `number` into the empty `folder`; return it in words."""

    @abstractmethod
    def read(self, number: int, folder: Path) -> object:
        """Read the case; a `LbitclsError` refuses it."""


@contextmanager
def timed(result: Result) -> Iterator[None]:
    """Add the wall-clock time of the block to a result."""
    start = time.perf_counter()
    try:
        yield
    finally:
        result.seconds += time.perf_counter() - start

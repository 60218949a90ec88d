"""Section `progressive`: bits that decrease during a run."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Le, MinLen

from lbitcls.settings.base import Section
from lbitcls.settings.fields import INTEGER, ITEMS, Count, Doc, Says

Bits = Annotated[int, INTEGER, Ge(1), Le(8)]
Pair = tuple[int, int]
"""Bits of weights and of inputs."""


@dataclass(frozen=True, kw_only=True)
class ProgressiveConfig(Section):
    """Bits that decrease from stage to stage of a run."""

    PLACE: ClassVar[str] = "progressive"

    bits: Annotated[
        tuple[Bits | Annotated[tuple[Bits, Bits], ITEMS], ...],
        MinLen(2),
        ITEMS,
        Says("a list of two or more bits from 1 to 8, such as [8, 4, 2], or of pairs [(8, 8), (4, 8), (2, 4)]"),
        Doc("Bits of each stage, or pairs (weights, inputs); the last are the fewest in quant_transformer."),
    ]
    epochs: Annotated[
        tuple[Count, ...],
        ITEMS,
        Says("a list of integers ≥ 1, such as [10, 10]"),
        Doc("Duration of each stage but the last in epochs; the last stage lasts to the end of the run."),
    ]
    ranges: Annotated[
        Literal["new", "keep"],
        Doc("new: each grid is initialized again when its bits change, as by calibration; keep: it keeps its range."),
    ] = "new"

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Bits (weights, inputs) of each stage."""
        return tuple((given, given) if isinstance(given, int) else given for given in self.bits)

    def check(self) -> None:
        stages = len(self.bits)
        if len(self.epochs) != stages - 1:
            raise ValueError(
                f"epochs must be {stages - 1} durations for {stages} stages: one for each but the last, which lasts to "
                f"the end of the run; got {list(self.epochs)!r}."
            )
        for before, after in pairwise(self.pairs):
            if before == after or before[0] < after[0] or before[1] < after[1]:
                raise ValueError(f"bits must decrease from stage to stage; got {list(self.bits)!r}.")

"""Section `not_finite`: the reaction to a loss that is not finite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from lbitcls.settings.base import Section
from lbitcls.settings.fields import Count, Doc, Index


@dataclass(frozen=True, kw_only=True)
class NotFiniteConfig(Section):
    """Reaction to a loss that is not finite."""

    PLACE: ClassVar[str] = "not_finite"

    action: Annotated[
        Literal["stop", "skip", "rewind"],
        Doc(
            "stop: end the run. skip: leave out the step, also if a gradient is not finite. rewind: reload the last "
            "checkpoint and leave out the batches up to the bad one."
        ),
    ] = "stop"
    max_skipped: Annotated[Index, Doc("Of skip: number of steps that a run may leave out.")] = 20
    max_in_a_row: Annotated[Count, Doc("Of skip: number of consecutive steps that it may leave out.")] = 3
    max_rewinds: Annotated[Count, Doc("Of rewind: number of times that a run may reload a checkpoint.")] = 3

    def check(self) -> None:
        """Raise `ValueError` for an option of another action."""
        options = {"max_skipped": "skip", "max_in_a_row": "skip", "max_rewinds": "rewind"}
        for name, action in options.items():
            value = getattr(self, name)
            if action != self.action and value != getattr(type(self), name):
                raise ValueError(f"{name}={value} is for the action '{action}'; action is '{self.action}'. Remove it.")

"""Learning rate policies (`lr_config`), one class each, and the warmup that they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le

from lbitcls.settings.base import Section
from lbitcls.settings.fields import ITEMS, MOST, NUMBER, Count, Doc, Factor, Switch, Tagged


@dataclass(frozen=True, kw_only=True)
class Warmup(Section):
    """Options of every policy: the unit of its progress, the warmup at its start, and its restarts."""

    PLACE: ClassVar[str] = "lr_config"

    by_epoch: Annotated[Switch, Doc("Measure the policy's progress in epochs; False: in iterations.")] = True
    warmup: Annotated[
        Literal["linear", "constant", "exp"] | None,
        Doc("Shape of the warmup at the start of a run; None: no warmup."),
    ] = None
    warmup_iters: Annotated[
        float, Ge(0), Le(MOST), NUMBER, Doc("Length of the warmup in iterations (in epochs with warmup_by_epoch).")
    ] = 0
    warmup_ratio: Annotated[
        float, Ge(0), Le(1), NUMBER, Doc("Initial learning rate of the warmup as a fraction of the policy's.")
    ] = 0.1
    warmup_by_epoch: Annotated[Switch, Doc("Measure warmup_iters in epochs; False: in iterations.")] = False
    restarts: Annotated[
        Annotated[tuple[Count, ...], ITEMS],
        Doc("Epochs (from 0) at which policy and warmup start again, each time for the epochs up to the next restart."),
    ] = ()

    def check(self) -> None:
        if list(self.restarts) != sorted(set(self.restarts)):
            raise ValueError(f"restarts must be in ascending order; got {list(self.restarts)}.")
        if self.warmup is not None and self.warmup_iters == 0:
            raise ValueError("warmup needs warmup_iters > 0.")
        if self.warmup is not None and self.warmup_ratio == 0:
            raise ValueError("warmup needs warmup_ratio > 0.")


@dataclass(frozen=True, kw_only=True)
class FixedPolicy(Warmup):
    """Constant base learning rate."""

    policy: Literal["fixed"] = "fixed"


@dataclass(frozen=True, kw_only=True)
class StepPolicy(Warmup):
    """Base rate multiplied by `gamma` at every step."""

    policy: Literal["step"] = "step"
    step: Annotated[
        Count | Annotated[tuple[Count, ...], ITEMS],
        Doc("Epochs (iterations without by_epoch) between two steps, or a list of the epochs at which they occur."),
    ]
    gamma: Annotated[Factor, Doc("Factor on the learning rate at each step.")] = 0.1
    min_lr: Annotated[Factor | None, Doc("Lower limit of the learning rate; None: no limit.")] = None


@dataclass(frozen=True, kw_only=True)
class CosineAnnealingPolicy(Warmup):
    """Half a cosine from the base rate to `min_lr`, or to `min_lr_ratio` times the base rate."""

    policy: Literal["CosineAnnealing"] = "CosineAnnealing"
    min_lr: Annotated[Factor | None, Doc("Final learning rate; None: min_lr_ratio sets it.")] = None
    min_lr_ratio: Annotated[
        Factor | None, Doc("Final learning rate as a fraction of the base rate; None: min_lr sets it.")
    ] = None

    def check(self) -> None:
        super().check()
        if (self.min_lr is None) == (self.min_lr_ratio is None):
            raise ValueError("CosineAnnealing accepts either min_lr or min_lr_ratio.")


@dataclass(frozen=True, kw_only=True)
class PolyPolicy(Warmup):
    """A polynomial from the base rate to `min_lr`."""

    policy: Literal["poly"] = "poly"
    power: Annotated[Factor, Doc("Exponent of the polynomial.")] = 1.0
    min_lr: Annotated[Factor, Doc("Final learning rate.")] = 0.0


@dataclass(frozen=True, kw_only=True)
class ExpPolicy(Warmup):
    """Base rate multiplied by `gamma` in each epoch (iteration without `by_epoch`)."""

    policy: Literal["exp"] = "exp"
    gamma: Annotated[Factor, Doc("Factor on the learning rate in each epoch (iteration without by_epoch).")]


@dataclass(frozen=True, kw_only=True)
class OneCyclePolicy(Warmup):
    """Rise to the base rate, then fall far below the first (arXiv:1708.07120); `by_epoch` is False by default."""

    policy: Literal["OneCycle"] = "OneCycle"
    by_epoch: Annotated[Switch, Doc("Measure the policy's progress in epochs; False: in iterations.")] = False
    pct_start: Annotated[
        float, Ge(0), Le(1), NUMBER, Doc("Fraction of the run, or between restarts, in which the rate rises.")
    ] = 0.3
    div_factor: Annotated[float, Ge(1), NUMBER, Doc("The first learning rate is the base rate divided by this.")] = 25.0
    final_div_factor: Annotated[
        float, Ge(1), NUMBER, Doc("The final learning rate is the first one divided by this.")
    ] = 1e4
    anneal_strategy: Annotated[Literal["cos", "linear"], Doc("Shape of rise and fall.")] = "cos"

    def check(self) -> None:
        super().check()
        if self.warmup is not None:
            raise ValueError("OneCycle rises from a low rate by itself; leave out warmup, and set pct_start.")


POLICIES: dict[str, type[Warmup]] = {
    "step": StepPolicy,
    "CosineAnnealing": CosineAnnealingPolicy,
    "poly": PolyPolicy,
    "exp": ExpPolicy,
    "OneCycle": OneCyclePolicy,
    "fixed": FixedPolicy,
}
LrConfig = Annotated[
    StepPolicy | CosineAnnealingPolicy | PolyPolicy | ExpPolicy | OneCyclePolicy | FixedPolicy,
    Tagged("policy", tuple(POLICIES)),
]


def read_policy(given: Mapping[str, Any]) -> Warmup:
    """Return the settings for a section `lr_config`.

    Raises:
        ConfigError: A policy or key is unknown, or a value is out of range.
    """
    from lbitcls.settings.parse import parse

    return parse(LrConfig, given, "lr_config")

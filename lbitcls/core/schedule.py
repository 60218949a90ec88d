"""The learning rate, a pure function of (iteration, epoch): nothing to save, nothing to get out of step.

The policies and warm-ups are mmcv's, formula by formula (`lr_config` of the tutorial).
"""

from __future__ import annotations

import contextlib
import inspect
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lbitcls.utils.arguments import check_values, construct
from lbitcls.utils.errors import MOST, ConfigError, shown, suggest


class Policy(Protocol):
    """A learning rate from its base value and the progress (epochs or iterations done)."""

    def __call__(self, base_lr: float, progress: int, length: int) -> float: ...


@dataclass(frozen=True)
class Fixed:
    """The base learning rate, always."""

    def __call__(self, base_lr: float, progress: int, length: int) -> float:
        return base_lr


@dataclass(frozen=True)
class Step:
    """`base · gamma^n`, n the steps passed: every `step`, or the milestones in it; not below `min_lr`."""

    step: int | Sequence[int]
    gamma: float = 0.1
    min_lr: float | None = None

    def __post_init__(self) -> None:
        steps = self.step if isinstance(self.step, (list, tuple)) else [self.step]
        if not all(isinstance(s, int) and 0 < s <= MOST for s in steps):
            raise ConfigError(
                f"lr_config: step is a positive int or a list of them, none above {MOST:,}; got {shown(self.step)}."
            )

    def __call__(self, base_lr: float, progress: int, length: int) -> float:
        if isinstance(self.step, int):
            passed = progress // self.step
        else:
            passed = sum(progress >= milestone for milestone in self.step)
        lr = base_lr * self.gamma**passed
        return lr if self.min_lr is None else max(lr, self.min_lr)


@dataclass(frozen=True)
class Exponential:
    """`base · gamma^progress`."""

    gamma: float

    def __call__(self, base_lr: float, progress: int, length: int) -> float:
        return base_lr * self.gamma**progress


@dataclass(frozen=True)
class Poly:
    """`(base - min_lr) · (1 - progress/length)^power + min_lr`."""

    power: float = 1.0
    min_lr: float = 0.0

    def __call__(self, base_lr: float, progress: int, length: int) -> float:
        return (base_lr - self.min_lr) * (1 - progress / length) ** self.power + self.min_lr


@dataclass(frozen=True)
class CosineAnnealing:
    """Half a cosine from the base to `min_lr` (or `base · min_lr_ratio`)."""

    min_lr: float | None = None
    min_lr_ratio: float | None = None

    def __post_init__(self) -> None:
        if (self.min_lr is None) == (self.min_lr_ratio is None):
            raise ConfigError("lr_config: CosineAnnealing takes either min_lr or min_lr_ratio.")

    def __call__(self, base_lr: float, progress: int, length: int) -> float:
        end = base_lr * self.min_lr_ratio if self.min_lr_ratio is not None else float(self.min_lr or 0.0)
        return end + 0.5 * (base_lr - end) * (math.cos(math.pi * progress / length) + 1)


_POLICIES: dict[str, type] = {
    "step": Step,
    "CosineAnnealing": CosineAnnealing,
    "poly": Poly,
    "exp": Exponential,
    "fixed": Fixed,
}
_WARMUPS = ("linear", "constant", "exp")


@dataclass(frozen=True)
class Schedule:
    """A policy with a warm-up, for a run of known length.

    Args:
        policy: the learning rate after the warm-up.
        epoch_len: iterations in an epoch.
        max_epochs: epochs of the run.
        by_epoch: the policy sees epochs; False: iterations.
        warmup: `linear`, `constant`, `exp` or None.
        warmup_iters: iterations that it lasts (epochs when `warmup_by_epoch`).
        warmup_ratio: the first learning rate, as a part of the policy's.

    Example:
        >>> Schedule(Step([2]), epoch_len=10, max_epochs=3)(1.0, iteration=25, epoch=2)
        0.1
    """

    policy: Policy
    epoch_len: int
    max_epochs: int
    by_epoch: bool = True
    warmup: str | None = None
    warmup_iters: float = 0
    warmup_ratio: float = 0.1
    warmup_by_epoch: bool = False

    def __post_init__(self) -> None:
        if self.warmup is None:
            return
        if self.warmup not in _WARMUPS:
            hint = suggest(self.warmup, _WARMUPS)
            raise ConfigError(f"lr_config: there is no warmup '{self.warmup}'{hint} Known: {', '.join(_WARMUPS)}.")
        if not 0 < self.warmup_iters <= MOST or not 0 < self.warmup_ratio <= 1:
            raise ConfigError(
                f"lr_config: a warm-up needs warmup_iters above 0 and up to {MOST:,}, and a warmup_ratio in (0, 1]; "
                f"got {shown(self.warmup_iters)} and {self.warmup_ratio}."
            )

    def __call__(self, base_lr: float, iteration: int, epoch: int) -> float:
        """The learning rate of iteration `iteration` (of the run, from 0), which belongs to `epoch` (from 0)."""
        if self.by_epoch:
            lr = self.policy(base_lr, epoch, self.max_epochs)
        else:
            lr = self.policy(base_lr, iteration, self.max_epochs * self.epoch_len)
        length = self.warmup_iters * (self.epoch_len if self.warmup_by_epoch else 1)
        if self.warmup is None or iteration >= length:
            return lr
        return lr * self._warmup_factor(iteration / length)

    def _warmup_factor(self, done: float) -> float:
        if self.warmup == "constant":
            return self.warmup_ratio
        if self.warmup == "linear":
            return 1 - (1 - done) * (1 - self.warmup_ratio)
        return self.warmup_ratio ** (1 - done)


def build_schedule(cfg: dict[str, Any] | None, *, epoch_len: int, max_epochs: int) -> Schedule:
    """The schedule that `lr_config` describes; None is a fixed rate.

    Raises:
        ConfigError: an unknown policy or key, or a value out of range.
    """
    given = dict(cfg or {"policy": "fixed"})
    name = str(given.pop("policy", None))
    if name not in _POLICIES:
        by_lower = {known.lower(): known for known in _POLICIES}
        if name.lower() not in by_lower:
            hint = suggest(name, _POLICIES)
            raise ConfigError(f"lr_config: there is no policy '{name}'{hint} Known: {', '.join(_POLICIES)}.")
        name = by_lower[name.lower()]
    shared = {key: given.pop(key) for key in list(given) if key in Schedule.__dataclass_fields__ and key != "policy"}
    for fixed in ("epoch_len", "max_epochs"):
        if fixed in shared:
            raise ConfigError(f"lr_config takes no '{fixed}'; it follows from the data and total_epochs.")
    shared = _numbers(shared, Schedule)
    check_values("lr_config", Schedule, shared)
    given = _numbers(given, _POLICIES[name])
    policy = construct(_POLICIES[name], given, "lr_config")
    _check_ranges(given)
    schedule = Schedule(policy, epoch_len=epoch_len, max_epochs=max_epochs, **shared)
    try:
        schedule(1.0, max_epochs * epoch_len - 1, max_epochs - 1)
    except OverflowError:
        raise ConfigError(f"lr_config: by the end of the run the learning rate of '{name}' is too large.") from None
    return schedule


def _numbers(given: dict[str, Any], kind: type) -> dict[str, Any]:
    """`given` with every value that is to be a number as one; those that `kind` does not take as they are."""
    own = ("step", "warmup", "by_epoch", "warmup_by_epoch")  # no numbers; None of the others: as if not given
    known = inspect.signature(kind).parameters
    plain = {key for key, v in given.items() if key in own or v is None or key not in known}
    return {key: v if key in plain else as_number(f"lr_config.{key}", v) for key, v in given.items()}


def _check_ranges(given: dict[str, Any]) -> None:
    for key in ("gamma", "min_lr", "power", "min_lr_ratio"):
        if given.get(key) is not None and given[key] < 0:
            raise ConfigError(f"lr_config.{key} is a number from 0; got {given[key]!r}.")


def as_number(name: str, value: Any, infinite: bool = False) -> float:
    """`value` as a number; a string that is one (YAML's `1e-3`) becomes one.

    Args:
        name: of the setting, for the message.
        value: as the config gives it.
        infinite: whether infinity has a meaning.

    Raises:
        ConfigError: it is no number, is NaN, or infinite without a meaning.
    """
    number = value
    with contextlib.suppress(ValueError):
        number = float(value) if isinstance(value, str) else value
    if not isinstance(number, (int, float)) or isinstance(number, bool):
        said = f"the text '{value}'" if isinstance(value, str) else shown(value)
        raise ConfigError(f"{name} is a number; got {said}.")
    if not (abs(number) <= sys.float_info.max or (infinite and number == math.inf)):
        raise ConfigError(f"{name} is a finite number; got {shown(value)}.")
    return number

"""Learning rate as a pure function of (iteration, epoch): there is no state to save or to get out of sync.

The policies and warmups are mmcv's, formula by formula (`lr_config` of the tutorial).
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
    """Learning rate as a function of its base value and the progress (epochs or iterations done)."""

    def __call__(self, base_lr: float, progress: int, length: int) -> float: ...


@dataclass(frozen=True)
class Fixed:
    """Constant base learning rate."""

    def __call__(self, base_lr: float, progress: int, length: int) -> float:
        return base_lr


@dataclass(frozen=True)
class Step:
    """`base · gamma^n`, n steps passed: every `step`, or the milestones in it; at least `min_lr`."""

    step: int | Sequence[int]
    gamma: float = 0.1
    min_lr: float | None = None

    def __post_init__(self) -> None:
        steps = self.step if isinstance(self.step, (list, tuple)) else [self.step]
        if not all(isinstance(s, int) and 0 < s <= MOST for s in steps):
            raise ConfigError(
                f"lr_config: step must be an integer from 1 to {MOST:,}, or a list of them; got {shown(self.step)}."
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
            raise ConfigError("lr_config: CosineAnnealing needs either min_lr or min_lr_ratio, not both.")

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
    """Policy with a warmup, for a run of known length.

    Args:
        policy: Learning rate after the warmup.
        epoch_len: Iterations per epoch.
        max_epochs: Epochs of the run.
        by_epoch: Progress of the policy in epochs; False: in iterations.
        warmup: Form of the warmup, `linear`, `constant`, `exp` or None.
        warmup_iters: Length of the warmup in iterations (in epochs if `warmup_by_epoch`).
        warmup_ratio: Initial learning rate, as a fraction of the policy's.

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
            raise ConfigError(f"lr_config: unknown warmup '{self.warmup}'{hint} Known: {', '.join(_WARMUPS)}.")
        if not 0 < self.warmup_iters <= MOST or not 0 < self.warmup_ratio <= 1:
            raise ConfigError(
                f"lr_config: a warmup needs warmup_iters above 0 and up to {MOST:,}, and a warmup_ratio in (0, 1]; "
                f"got {shown(self.warmup_iters)} and {self.warmup_ratio}."
            )

    def __call__(self, base_lr: float, iteration: int, epoch: int) -> float:
        """Return the learning rate of iteration `iteration` (of the run, from 0), in epoch `epoch` (from 0)."""
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
    """Build the schedule described by `lr_config`; None is a fixed rate.

    Raises:
        ConfigError: A policy or key is unknown, or a value is out of range.
    """
    given = dict(cfg or {"policy": "fixed"})
    name = str(given.pop("policy", None))
    if name not in _POLICIES:
        by_lower = {known.lower(): known for known in _POLICIES}
        if name.lower() not in by_lower:
            hint = suggest(name, _POLICIES)
            raise ConfigError(f"lr_config: unknown policy '{name}'{hint} Known: {', '.join(_POLICIES)}.")
        name = by_lower[name.lower()]
    shared = {key: given.pop(key) for key in list(given) if key in Schedule.__dataclass_fields__ and key != "policy"}
    for fixed in ("epoch_len", "max_epochs"):
        if fixed in shared:
            raise ConfigError(f"lr_config does not accept '{fixed}'; it follows from the data and total_epochs.")
    shared = _numbers(shared, Schedule)
    check_values("lr_config", Schedule, shared)
    given = _numbers(given, _POLICIES[name])
    policy = construct(_POLICIES[name], given, "lr_config")
    _check_ranges(given)
    schedule = Schedule(policy, epoch_len=epoch_len, max_epochs=max_epochs, **shared)
    try:
        schedule(1.0, max_epochs * epoch_len - 1, max_epochs - 1)
    except OverflowError:
        raise ConfigError(f"lr_config: the learning rate of '{name}' overflows by the end of the run.") from None
    return schedule


def _numbers(given: dict[str, Any], kind: type) -> dict[str, Any]:
    """Return `given` with all numeric values as numbers; keys unknown to `kind` stay unchanged."""
    own = ("step", "warmup", "by_epoch", "warmup_by_epoch")  # not numbers; None for other keys: not set
    known = inspect.signature(kind).parameters
    plain = {key for key, v in given.items() if key in own or v is None or key not in known}
    return {key: v if key in plain else as_number(f"lr_config.{key}", v) for key, v in given.items()}


def _check_ranges(given: dict[str, Any]) -> None:
    for key in ("gamma", "min_lr", "power", "min_lr_ratio"):
        if given.get(key) is not None and given[key] < 0:
            raise ConfigError(f"lr_config.{key} must be a number ≥ 0; got {given[key]!r}.")


def as_number(name: str, value: Any, infinite: bool = False) -> float:
    """Return `value` as a number; a string with a number (YAML's `1e-3`) is converted.

    Args:
        name: Name of the setting in the message.
        value: Value from the config.
        infinite: Accept infinity.

    Raises:
        ConfigError: The value is not a number, is NaN, or is infinite without `infinite`.
    """
    number = value
    with contextlib.suppress(ValueError):
        number = float(value) if isinstance(value, str) else value
    if not isinstance(number, (int, float)) or isinstance(number, bool):
        said = f"the string '{value}'" if isinstance(value, str) else shown(value)
        raise ConfigError(f"{name} must be a number; got {said}.")
    if not (abs(number) <= sys.float_info.max or (infinite and number == math.inf)):
        raise ConfigError(f"{name} must be a finite number; got {shown(value)}.")
    return number

"""Learning rate as a pure function of (iteration, epoch): there is no state to save or to get out of sync.

The policies and warmups are mmcv's, formula by formula (`lr_config` of the tutorial); OneCycle is torch's.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from lbitcls.settings.learning_rate import (
    CosineAnnealingPolicy,
    ExpPolicy,
    FixedPolicy,
    OneCyclePolicy,
    PolyPolicy,
    StepPolicy,
    Warmup,
    read_policy,
)
from lbitcls.utils.errors import ConfigError, shown


def _fixed(policy: FixedPolicy, base_lr: float, progress: int, length: int) -> float:
    return base_lr


def _step(policy: StepPolicy, base_lr: float, progress: int, length: int) -> float:
    if isinstance(policy.step, int):
        passed = progress // policy.step
    else:
        passed = sum(progress >= milestone for milestone in policy.step)
    lr = base_lr * policy.gamma**passed
    return lr if policy.min_lr is None else max(lr, policy.min_lr)


def _exponential(policy: ExpPolicy, base_lr: float, progress: int, length: int) -> float:
    return base_lr * policy.gamma**progress


def _poly(policy: PolyPolicy, base_lr: float, progress: int, length: int) -> float:
    return (base_lr - policy.min_lr) * (1 - progress / length) ** policy.power + policy.min_lr


def _cosine(policy: CosineAnnealingPolicy, base_lr: float, progress: int, length: int) -> float:
    end = base_lr * policy.min_lr_ratio if policy.min_lr_ratio is not None else float(policy.min_lr or 0.0)
    return end + 0.5 * (base_lr - end) * (math.cos(math.pi * progress / length) + 1)


def _one_cycle(policy: OneCyclePolicy, base_lr: float, progress: int, length: int) -> float:
    first = base_lr / policy.div_factor
    top, last = policy.pct_start * length - 1, length - 1  # steps that have the base rate, and the final one
    if progress <= top and top > 0:
        return _between(policy, first, base_lr, progress / top)
    done = (progress - top) / (last - top) if last > top else 0.0
    return _between(policy, base_lr, first / policy.final_div_factor, min(max(done, 0.0), 1.0))


def _between(policy: OneCyclePolicy, start: float, end: float, done: float) -> float:
    return end + (start - end) * (
        1 - done if policy.anneal_strategy == "linear" else (math.cos(math.pi * done) + 1) / 2
    )


_FORMULAS: dict[type[Warmup], Callable[..., float]] = {
    StepPolicy: _step,
    CosineAnnealingPolicy: _cosine,
    PolyPolicy: _poly,
    ExpPolicy: _exponential,
    OneCyclePolicy: _one_cycle,
    FixedPolicy: _fixed,
}
"""Formula of each policy: the learning rate from the base rate, the completed epochs or iterations, and their total."""


@dataclass(frozen=True)
class Schedule:
    """Policy with its warmup, for a run of known length.

    Args:
        settings: Policy.
        epoch_len: Number of iterations per epoch.
        max_epochs: Number of epochs of the run.

    Example:
        >>> Schedule(StepPolicy(step=[2]), epoch_len=10, max_epochs=3)(1.0, iteration=25, epoch=2)
        0.1
    """

    settings: Warmup
    epoch_len: int
    max_epochs: int

    @property
    def parts(self) -> list[tuple[int, int]]:
        """First epoch and end (exclusive) of each part of the run; the policy starts again in each."""
        return list(pairwise((0, *self.settings.restarts, self.max_epochs)))

    def __call__(self, base_lr: float, iteration: int, epoch: int) -> float:
        """Return the learning rate of `iteration` (of the run, from 0), which belongs to `epoch` (from 0)."""
        own, formula = self.settings, _FORMULAS[type(self.settings)]
        begin, end = next((begin, end) for begin, end in reversed(self.parts) if begin <= epoch)
        epoch, iteration = epoch - begin, iteration - begin * self.epoch_len
        if own.by_epoch:
            lr = formula(own, base_lr, epoch, end - begin)
        else:
            lr = formula(own, base_lr, iteration, (end - begin) * self.epoch_len)
        length = own.warmup_iters * (self.epoch_len if own.warmup_by_epoch else 1)
        if own.warmup is None or iteration >= length:
            return lr
        return lr * _warmup_factor(own, iteration / length)


def _warmup_factor(policy: Warmup, done: float) -> float:
    if policy.warmup == "constant":
        return policy.warmup_ratio
    if policy.warmup == "linear":
        return 1 - (1 - done) * (1 - policy.warmup_ratio)
    return policy.warmup_ratio ** (1 - done)


def build_schedule(cfg: Warmup | Mapping[str, Any] | None, *, epoch_len: int, max_epochs: int) -> Schedule:
    """Build the learning rate schedule of a run.

    Args:
        cfg: Policy, or a config's section `lr_config`; None: a fixed learning rate.
        epoch_len: Number of iterations per epoch.
        max_epochs: Number of epochs of the run.

    Raises:
        ConfigError: A policy or key is unknown, a value is out of range, or the run ends before a restart.
    """
    policy = cfg if isinstance(cfg, Warmup) else FixedPolicy() if not cfg else read_policy(cfg)
    if policy.restarts and policy.restarts[-1] >= max_epochs:
        raise ConfigError(
            f"lr_config.restarts: epoch {policy.restarts[-1]}, but the run has only {max_epochs} epochs. Remove the "
            "restart, or train for more epochs."
        )
    schedule = Schedule(policy, epoch_len=epoch_len, max_epochs=max_epochs)
    try:
        for _, end in schedule.parts:
            schedule(1.0, end * epoch_len - 1, end - 1)
    except OverflowError:
        raise ConfigError("lr_config: the learning rate becomes too large by the end of the run.") from None
    return schedule


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

"""Learning-rate range test: trains for a few steps with a growing rate, and suggests a rate from the losses.

The rate of step i of N is `least · (most / least)^(i / (N - 1))`; the test ends early when the running mean of the loss
exceeds four times its lowest value. Source: L. N. Smith, "Cyclical Learning Rates for Training Neural Networks"
(arXiv:1506.01186, section 3.3); growth and early end as in fast.ai and PyTorch Lightning.

The suggestion is the rate at which the loss has fallen half of its way, from the highest to the lowest value: the
middle of the valley's slope, as in fast.ai's `valley`. The losses are smoothed with a Gaussian window that looks to
both sides, so that the curve does not lag behind the rate. A derivative (the steepest descent) would follow the noise
of single batches; the lowest point is where training already becomes unstable.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from lbitcls.utils.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from lbitcls.core.runner import EpochRunner
    from lbitcls.core.step import Batch

LEAST, MOST, STEPS = 1e-7, 10.0, 100
_EXPLODED = 4.0  # times the lowest running mean
_DECAY = 0.9  # of the running mean
_WIDTH = 0.03  # standard deviation of the smoothing window, as a fraction of the steps
_CLEAR, _LITTLE = 2.0, 0.05  # a loss that falls by less (of its noise's deviation; of its value) has not fallen


@dataclass(frozen=True)
class RangeTest:
    """Result of a range test.

    Attributes:
        rates: Learning rate of each step, as `optimizer.lr`.
        losses: Loss of each step, a mean over its batches.
        smooth: Losses smoothed over neighboring steps.
        suggestion: Suggested `optimizer.lr`; None: the loss did not fall.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smooth: tuple[float, ...]
    suggestion: float | None


def range_test(runner: EpochRunner, *, least: float = LEAST, most: float = MOST, steps: int = STEPS) -> RangeTest:
    """Train from the runner's position with a growing rate, then restore everything that changed.

    Rates of parameter groups keep their ratios, frozen parts stay frozen, and no hook is called.

    Args:
        runner: Runner, ready to train (its model is calibrated if it is quantized).
        least: Rate of the first step, > 0.
        most: Rate of the last step, greater than `least`.
        steps: Number of optimizer steps, at least 10.

    Raises:
        ConfigError: An argument is out of range, or the optimizer has no positive learning rate.
        TrainingError: The loss is not finite at the lowest rate.
    """
    _check(least, most, steps)
    base = runner.step.optimizer.defaults["lr"]
    if not base > 0:
        raise ConfigError(f"a range test scales optimizer.lr, which must be > 0; got {base}.")
    factors = [group["initial_lr"] / base for group in runner.step.optimizer.param_groups]
    rates = np.geomspace(least, most, steps).tolist()
    losses: list[float] = []
    with _unchanged(runner), closing(_batches(runner)) as batches:
        runner.model.train()
        for rate in rates:
            loss = _train(runner, batches, [rate * factor for factor in factors])
            if not math.isfinite(loss):
                break
            losses.append(loss)
            if _exploded(losses):
                break
    if not losses:
        raise TrainingError(f"the loss is not finite at the first rate of the range test, {least:g}; check the data.")
    smooth = smoothed(losses, _WIDTH * steps)
    tried = rates[: len(losses)]
    return RangeTest(tuple(tried), tuple(losses), tuple(smooth), suggest(tried, losses, smooth))


def _check(least: float, most: float, steps: int) -> None:
    if not 0 < least < most < math.inf or steps < 10:
        raise ConfigError(
            "a range test needs at least 10 steps and two learning rates 0 < MIN < MAX; got "
            f"{steps} steps, {least:g} and {most:g}. Change --find-lr-steps or --find-lr-range."
        )


def _train(runner: EpochRunner, batches: Iterator[Batch], rates: list[float]) -> float:
    """Make one optimizer step with these rates of the groups; return the mean loss of its batches."""
    for group, rate in zip(runner.step.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    size, losses = runner.step.cumulative_iters, []
    for index in range(size):
        runner.seed_iteration()
        losses.append(runner.step(runner.model, runner.to_device(next(batches)), index, size)["loss"])
        runner.iter += 1
    return torch.stack(losses).mean().item()


def _batches(runner: EpochRunner) -> Generator[Batch, None, None]:
    """Yield training batches from the runner's position on, epoch after epoch."""
    while True:
        yield from runner.features.batches(runner, runner.loader, training=True, start=runner.inner_iter)
        runner.epoch, runner.inner_iter = runner.epoch + 1, 0


@contextmanager
def _unchanged(runner: EpochRunner) -> Iterator[None]:
    """Restore weights, optimizer, position and random numbers afterwards."""
    step, position = runner.step, (runner.epoch, runner.iter, runner.inner_iter)
    states = copy.deepcopy((runner.module.state_dict(), step.optimizer.state_dict(), step.scaler.state_dict()))
    training = {name: module.training for name, module in runner.module.named_modules()}
    devices = [step.device] if step.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        runner.module.load_state_dict(states[0])
        step.optimizer.load_state_dict(states[1])
        if states[2]:
            step.scaler.load_state_dict(states[2])
        step.optimizer.zero_grad()
        for name, module in runner.module.named_modules():
            module.training = training[name]
        runner.epoch, runner.iter, runner.inner_iter = position


def _exploded(losses: list[float]) -> bool:
    """Return True if the running mean of the losses is far above its lowest value."""
    mean, lowest = 0.0, math.inf
    for number, loss in enumerate(losses, 1):
        mean = _DECAY * mean + (1 - _DECAY) * loss
        unbiased = mean / (1 - _DECAY**number)
        lowest = min(lowest, unbiased)
    return unbiased > _EXPLODED * lowest


def smoothed(losses: list[float], width: float) -> list[float]:
    """Return the losses (N,) averaged with Gaussian weights of standard deviation `width`, in steps."""
    places = np.arange(len(losses))
    weights = np.exp(-0.5 * ((places[:, None] - places) / max(width, 1e-9)) ** 2)
    return (weights @ np.array(losses) / weights.sum(axis=1)).tolist()


def suggest(rates: list[float], losses: list[float], smooth: list[float]) -> float | None:
    """Return the rate at which the smoothed loss last crosses the middle of its fall; None if it does not fall.

    Example:
        >>> suggest([1e-3, 1e-2, 1e-1, 1.0], [2.0, 1.6, 0.4, 3.0], [2.0, 1.6, 0.4, 3.0])
        0.01
    """
    lowest = int(np.argmin(smooth))
    high, low = max(smooth[: lowest + 1]), smooth[lowest]
    noise = float(np.std(np.subtract(losses[: lowest + 1], smooth[: lowest + 1])))
    if high - low <= max(_CLEAR * noise, _LITTLE * high):
        return None
    return rates[max(place for place in range(lowest + 1) if smooth[place] >= (high + low) / 2)]

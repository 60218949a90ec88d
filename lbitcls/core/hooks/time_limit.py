"""End of a run before its job's time limit (`--time-limit`): it stops while there is time to save.

    margin = longest recent time until the run can stop · (iterations of a step + 2) + 2 · time of a save + 2 s

The run can stop after each iteration that ends a step of the optimizer. In one process it can also stop between the
batches of a validation; with several it cannot, so a whole validation belongs to the margin at the end of an epoch.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from lbitcls.core.guard import TIME_LIMIT
from lbitcls.core.hooks.evaluation_hook import EvaluationHook
from lbitcls.core.hooks.hook import PRIORITIES, Hook
from lbitcls.utils.dist import is_main, world_size

if TYPE_CHECKING:
    from lbitcls.core.runner import EpochRunner

_RECENT = 50  # iterations whose times count
_SPARE = 2.0  # seconds: the agreement of the processes, the end of those that read data
_SPEED = 50 * 2**20  # bytes per second of the first save, which is not measured yet
_COPIES = 3  # first save's size in sizes of the model: with Adam's two moments


class TimeLimitHook(Hook):
    """Hook that ends the run with `Interrupted` in time before `deadline`, on all ranks after the same iteration.

    Args:
        deadline: Time by which the process must have ended, on the clock `now`.
        now: Function that returns the time in seconds.
    """

    priority = PRIORITIES["LOWEST"]

    def __init__(self, deadline: float, now: Callable[[], float] = time.monotonic) -> None:
        self.deadline = deadline
        self._now = now
        self._steps: deque[float] = deque(maxlen=_RECENT)
        self._pause: float | None = None  # longest time between two epochs without a chance to stop
        self._last = now()
        self._in_epoch = False

    def before_run(self, runner: EpochRunner) -> None:
        self._last = self._now()

    def after_iter(self, runner: EpochRunner) -> None:
        gap = self._gap()
        if self._in_epoch:
            self._steps.append(gap)
        self._in_epoch = runner.inner_iter < len(runner.loader)
        self._check(runner, ends_epoch=not self._in_epoch)

    def during_validation(self, runner: EpochRunner) -> None:
        if world_size() == 1:
            self._pause = max(self._pause or 0.0, self._gap())
            self._check(runner, ends_epoch=True)

    def after_epoch(self, runner: EpochRunner) -> None:
        self._pause = max(self._pause or 0.0, self._gap())
        self._in_epoch = False

    def margin(self, runner: EpochRunner, ends_epoch: bool = False) -> float:
        """Return the time in seconds before the deadline at which the run must stop."""
        step = max(self._steps, default=0.0)
        chance = step * (runner.step.cumulative_iters + 2)
        if ends_epoch:
            chance = max(chance, self._expected_pause(runner) if self._pause is None else self._pause)
        save = runner.writer.seconds
        return chance + 2 * (_first_save(runner) if save is None else save) + _SPARE

    def _gap(self) -> float:
        before, self._last = self._last, self._now()
        return self._last - before

    def _check(self, runner: EpochRunner, ends_epoch: bool) -> None:
        if is_main() and self._now() + self.margin(runner, ends_epoch) >= self.deadline:
            runner.guard.stop(TIME_LIMIT)

    def _expected_pause(self, runner: EpochRunner) -> float:
        """Return the time of the first validation with several processes: a batch takes no longer than an iteration."""
        validation = runner.find(EvaluationHook)
        number = 0 if validation is None or world_size() == 1 else len(validation.loader)
        return number * max(self._steps, default=0.0)


def _first_save(runner: EpochRunner) -> float:
    tensors = runner.module.state_dict().values()
    return _COPIES * sum(tensor.numel() * tensor.element_size() for tensor in tensors) / _SPEED

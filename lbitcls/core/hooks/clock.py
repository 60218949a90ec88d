"""Estimate of a run's remaining time, from the times between its iterations.

The time left is the sum of the iterations left and of the breaks after each epoch (validation, checkpoints). Both are
averages over this process, recent epochs counting more, kept apart by what determines them: float or quantized; with
cached features or with features that are computed; a break with or without validation. What has not happened yet is
derived from what has: a quantized iteration from a float one, an iteration on cached features from the time that an
iteration takes after its batch is fetched, a first validation from its number of batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lbitcls.core.hooks.calibration_hook import CalibrationHook
from lbitcls.core.hooks.evaluation_hook import EvaluationHook

if TYPE_CHECKING:
    from lbitcls.core.runner import EpochRunner

QUANTIZED = 1.5  # expected time of a quantized iteration, relative to a float one
FORWARD = 1 / 3  # expected time of a batch in validation, relative to one in training: no backward pass


@dataclass
class _Mean:
    """Mean of durations in seconds; recent ones count more, and a weight below 1 counts until there is another."""

    weight: float = 0.0
    total: float = 0.0

    def add(self, seconds: float, weight: float = 1.0) -> None:
        if self.weight < 1:
            self.weight = self.total = 0.0
        self.weight += weight
        self.total += weight * seconds

    def fade(self) -> None:
        if self.weight >= 2:
            self.weight, self.total = self.weight / 2, self.total / 2

    @property
    def value(self) -> float:
        return self.total / self.weight


Step = tuple[str, bool]  # phase; True: on cached features
Break = tuple[str, bool, bool]  # phase; validates; on cached features


class Clock:
    """Estimator of the time until a run's last epoch ends.

    Args:
        now: Function that returns the time in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._steps: dict[Step, _Mean] = {}
        self._waits: dict[Step, _Mean] = {}  # for a batch, with its features if they are cached
        self._breaks: dict[Break, _Mean] = {}
        self._began = now()
        self._last: float | None = None
        self._place = (0, 0)  # epochs complete and iterations of the next one, at the last tick
        self._kind: Step = ("float", False)
        self._computed = {"train": 0, "val": 0}  # batches whose features were computed
        self._left: float | None = None

    def start(self) -> None:
        """Note that an epoch starts: the first iteration is measured from here."""
        if self._last is None:
            self._began = self._now()

    def tick(self, runner: EpochRunner) -> None:
        """Measure the iteration that ended; call it after each one."""
        now, before = self._now(), self._kind
        computed, caching = dict(runner.features.computed), runner.features.enabled
        self._kind = kind = (_phase(runner), caching and computed["train"] == self._computed["train"])
        if self._last is None:
            self._add(kind, now - self._began, runner.data_time, weight=0.5)
        elif runner.epoch == self._place[0]:
            self._add(kind, now - self._last, runner.data_time)
        elif before[0] == kind[0]:
            for mean in (*self._steps.values(), *self._waits.values()):
                mean.fade()
            validation = runner.find(EvaluationHook)
            validated = validation is not None and validation.validates(runner.epoch, runner.max_epochs)
            known = caching and computed["val"] == self._computed["val"]
            mean = self._breaks.setdefault((kind[0], validated, known), _Mean())
            mean.fade()
            weight = 1.0 if mean.weight else 0.5  # the first may open files and load packages
            mean.add(max(0.0, now - self._last - self._step(kind)), weight)
        self._last, self._place, self._computed = now, (runner.epoch, runner.inner_iter), computed
        self._left = None

    def remaining(self, runner: EpochRunner) -> float:
        """Return the estimated time in seconds until the last epoch ends; 0 before the first iteration."""
        if self._last is None:
            return 0.0
        if self._left is None:
            self._left = self._estimate(runner)
        return max(0.0, self._left - (self._now() - self._last))

    def _add(self, kind: Step, seconds: float, wait: float, weight: float = 1.0) -> None:
        self._steps.setdefault(kind, _Mean()).add(seconds, weight)
        self._waits.setdefault(kind, _Mean()).add(wait, weight)

    def _estimate(self, runner: EpochRunner) -> float:
        first, done = self._place
        length = len(runner.loader)
        validation = runner.find(EvaluationHook)
        batches = 0 if validation is None else len(validation.loader) + len(validation.train or ())
        caching = runner.features.enabled
        computed = {phase for phase, validated, _ in self._breaks if validated}  # phases that cached their validation
        total, phase = 0.0, self._kind[0]
        for epoch in range(first, runner.max_epochs):
            if epoch == first:
                total += (length - done) * self._step(self._kind)
            else:
                before, phase = phase, _phase_of(runner, epoch)
                total += length * self._step((phase, caching and phase == before))
            validated = validation is not None and validation.validates(epoch + 1, runner.max_epochs)
            total += self._break((phase, validated, caching and phase in computed), batches)
            if validated:
                computed.add(phase)
        return total

    def _step(self, kind: Step) -> float:
        """Return the time of an iteration in seconds."""
        phase, cached = kind
        if kind in self._steps:
            return self._steps[kind].value
        if cached and (phase, False) in self._steps:
            return max(0.0, self._steps[phase, False].value - self._wait((phase, False)))
        if phase == "quantized":
            step, wait = self._step(("float", cached)), self._wait(("float", cached))
            return wait + QUANTIZED * max(0.0, step - wait)
        return 0.0

    def _wait(self, kind: Step) -> float:
        """Return the time in seconds until an iteration has its batch."""
        return self._waits[kind].value if kind in self._waits else 0.0

    def _break(self, kind: Break, batches: int) -> float:
        """Return the time between two epochs in seconds; a validation has `batches` batches."""
        phase, validates, cached = kind
        if kind in self._breaks:
            return self._breaks[kind].value
        if not validates:
            return 0.0
        step = self._step((phase, cached))
        for other, mean in sorted(self._breaks.items(), key=lambda item: item[0][2] != cached):
            if other[1] and self._step((other[0], other[2])) > 0:
                return mean.value * step / self._step((other[0], other[2]))
        wait = self._wait((phase, cached))
        return batches * (wait + FORWARD * max(0.0, step - wait))


def _phase(runner: EpochRunner) -> str:
    """Return the phase, `float` or `quantized`: a step takes as long with any number of bits."""
    return "float" if runner.phase == "float" else "quantized"


def _phase_of(runner: EpochRunner, epoch: int) -> str:
    """Return the phase of an epoch, counted from 0, that has not begun."""
    calibration = runner.find(CalibrationHook)
    if calibration is None:
        return _phase(runner)
    return "quantized" if calibration.done or epoch >= calibration.epoch else "float"

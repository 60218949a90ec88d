"""The estimate of the time left: simulated runs whose true times are known."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from lbitcls.core.hooks.calibration_hook import CalibrationHook
from lbitcls.core.hooks.clock import Clock
from lbitcls.core.hooks.evaluation_hook import EvaluationHook
from lbitcls.settings.training_sections import EvaluationConfig


@dataclass
class Run:
    """A run on a clock of its own; it yields after each iteration."""

    max_epochs: int = 12
    length: int = 8
    step: float = 1.0  # seconds, in float
    slower: float = 1.5  # quantized, relative to float
    wait: float = 0.1  # for a batch
    backbone: float = 0.0  # more, where features are computed; with a cache if it is above 0
    validation: float = 5.0
    interval: int = 1
    quantized_from: int | None = None
    start: int = 0
    now: float = 0.0
    phase: str = "float"
    inner_iter: int = 0
    data_time: float = 0.0
    hooks: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.loader, self.epoch = range(self.length), self.start
        self.features = SimpleNamespace(enabled=self.backbone > 0, computed={"train": 0, "val": 0})
        self.hooks = [EvaluationHook(range(4), EvaluationConfig(interval=self.interval))]  # type: ignore[arg-type]
        if self.quantized_from is not None:
            self.hooks.append(CalibrationHook(self.quantized_from))
        self.clock = Clock(lambda: self.now)

    def find(self, kind: type) -> Any:
        return next((hook for hook in self.hooks if isinstance(hook, kind)), None)

    def iterations(self) -> Iterator[int]:
        filled: set[tuple[str, str]] = set()
        while self.epoch < self.max_epochs:
            if self.epoch == self.quantized_from:
                self.phase, self.hooks[-1].done = "quantized", True
            self.clock.start()
            factor = self.slower if self.phase == "quantized" else 1.0
            for _ in range(self.length):
                self.data_time = self.wait + self.computes(filled, "train", 1)
                self.now += self.data_time + factor * self.step
                self.inner_iter += 1
                self.clock.tick(self)  # type: ignore[arg-type]
                yield self.epoch
            filled.add((self.phase, "train"))
            self.epoch, self.inner_iter = self.epoch + 1, 0
            if self.hooks[0].validates(self.epoch, self.max_epochs):
                self.now += factor * self.validation + self.computes(filled, "val", 4)
                filled.add((self.phase, "val"))

    def computes(self, filled: set[tuple[str, str]], split: str, batches: int) -> float:
        if not self.features.enabled or (self.phase, split) in filled:
            return 0.0
        self.features.computed[split] += batches
        return batches * self.backbone

    def estimates(self) -> list[tuple[int, float, float]]:
        """The epoch, the estimate and the true time left, after each iteration."""
        seen = [(epoch, self.now, self.clock.remaining(self)) for epoch in self.iterations()]  # type: ignore[arg-type]
        return [(epoch, told, self.now - at) for epoch, at, told in seen]


def errors(run: Run, first: int) -> list[float]:
    """Errors relative to the truth, from epoch `first` on."""
    return [abs(told - left) / left for epoch, told, left in run.estimates() if epoch >= first]


@pytest.mark.parametrize("seed", range(30))
def test_it_is_right_once_everything_happened(seed: int) -> None:
    draw = random.Random(seed)
    quantized_from = draw.choice([None, 0, 3])
    interval = draw.choice([1, 1, 2])
    run = Run(
        length=draw.randint(1, 30),
        step=draw.uniform(0.01, 2),
        slower=draw.uniform(1, 3),
        wait=draw.uniform(0, 0.5),
        backbone=draw.choice([0.0, draw.uniform(0.1, 5)]),
        validation=draw.uniform(0.1, 50),
        interval=interval,
        quantized_from=quantized_from,
    )
    known = (quantized_from or 0) + 2 * interval + 2
    assert max(errors(run, known)) < 0.02


@pytest.mark.parametrize("seed", range(30))
def test_it_is_close_before(seed: int) -> None:
    """Within an epoch, for a validation, a cache and quantizers that are as costly as usual."""
    draw = random.Random(seed)
    step = draw.uniform(0.01, 2)
    run = Run(
        length=30,
        step=step,
        slower=draw.uniform(1.2, 1.9),
        wait=0.1 * step,
        backbone=draw.choice([0.0, 20 * step]),
        validation=4 * draw.uniform(0.2, 0.5) * step,
        quantized_from=draw.choice([None, 6]),
    )
    told = errors(run, 0)
    assert max(told[5:-1]) < 0.35


def test_a_resumed_run_counts_what_is_left() -> None:
    run = Run(start=10)
    epoch, told, left = run.estimates()[-9]
    assert epoch == 10 and told == pytest.approx(left, rel=0.5) and left < 20


def test_it_goes_down_during_validation() -> None:
    run = Run(max_epochs=2)
    rounds = run.iterations()
    for _ in range(run.length):
        next(rounds)
    before = run.clock.remaining(run)  # type: ignore[arg-type]
    run.now += 0.5
    assert run.clock.remaining(run) == pytest.approx(before - 0.5)  # type: ignore[arg-type]
    run.now += 1000
    assert run.clock.remaining(run) == 0  # type: ignore[arg-type]

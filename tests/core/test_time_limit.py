"""Margin before a time limit, and the run's sign of life, on a clock of the test's."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lbitcls.core.guard import TIME_LIMIT, Guard, Interrupted
from lbitcls.core.hooks.checkpoint_hook import CheckpointHook
from lbitcls.core.hooks.heartbeat import HeartbeatHook
from lbitcls.core.hooks.time_limit import TimeLimitHook


class Time:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run_of(tmp_path: Path, **given: Any) -> Any:
    """What the hooks use of a runner, ten iterations an epoch."""
    values: dict[str, Any] = dict(
        guard=Guard(),
        loader=range(10),
        step=SimpleNamespace(cumulative_iters=1),
        writer=SimpleNamespace(seconds=3.0),
        module=torch.nn.Linear(2, 2),
        work_dir=tmp_path,
        meta={"run": "r"},
        logger=logging.getLogger("test"),
        state="running",
        completed=False,
        find=lambda kind: None,
        epoch=0,
        inner_iter=0,
        iter=0,
        max_epochs=3,
        between_steps=True,
    )
    return SimpleNamespace(**{**values, **given})


def iterate(hook: Any, runner: Any, clock: Time, seconds: float) -> None:
    clock.now += seconds
    runner.inner_iter, runner.iter = runner.inner_iter + 1, runner.iter + 1
    hook.after_iter(runner)


def test_it_stops_while_there_is_time_for_a_save(tmp_path: Path) -> None:
    """Steps of up to 2 s, saves of 3 s: margin 3 · 2 + 2 · 3 + 2 = 14 s; the first iteration may compile."""
    clock, runner = Time(), run_of(tmp_path)
    hook = TimeLimitHook(100.0, clock)
    hook.before_run(runner)
    for seconds in (60, 1, 2, 1, 21):
        assert not runner.guard.signalled
        iterate(hook, runner, clock, seconds)
    assert hook.margin(runner) == 3 * 21 + 2 * 3 + 2 and runner.guard.signalled == TIME_LIMIT
    runner, clock = run_of(tmp_path), Time()
    hook = TimeLimitHook(100.0, clock)
    hook.before_run(runner)
    for seconds in (80, 2, 2, 1.9):
        iterate(hook, runner, clock, seconds)
        assert not runner.guard.signalled
    iterate(hook, runner, clock, 0.2)
    assert hook.margin(runner) == 14.0 and runner.guard.signalled == TIME_LIMIT


def test_it_stops_between_the_batches_of_a_validation(tmp_path: Path) -> None:
    clock, runner = Time(), run_of(tmp_path, inner_iter=8)
    hook = TimeLimitHook(100.0, clock)
    hook.before_run(runner)
    for seconds in (80, 1):
        iterate(hook, runner, clock, seconds)
    for seconds in (1, 1, 1, 0.5):
        assert not runner.guard.signalled
        clock.now += seconds
        hook.during_validation(runner)
    clock.now += 5
    hook.during_validation(runner)
    with pytest.raises(Interrupted) as caught:
        runner.guard.raise_if_signalled()
    assert caught.value.exit_code == 75 and caught.value.cause == "the time limit"


def test_with_several_processes_a_whole_validation_must_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They cannot stop inside: at the end of an epoch, what the pause after the last one took is left."""
    monkeypatch.setattr("lbitcls.core.hooks.time_limit.world_size", lambda: 2)
    validation = SimpleNamespace(loader=range(30))
    clock, runner = Time(), run_of(tmp_path, inner_iter=7, find=lambda kind: validation)
    hook = TimeLimitHook(200.0, clock)
    hook.before_run(runner)
    for seconds in (1, 1):
        iterate(hook, runner, clock, seconds)
    assert hook.margin(runner, ends_epoch=True) == 30 + 8, "the first one: no batch takes longer than an iteration"
    iterate(hook, runner, clock, 1)
    clock.now += 50
    hook.after_epoch(runner)
    assert hook.margin(runner) == 3 + 8 and hook.margin(runner, ends_epoch=True) == 50 + 8


def test_minutes_count_from_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, saved = Time(), []
    runner = run_of(tmp_path, save=lambda path, then: saved.append((path.name, clock.now)))
    monkeypatch.setattr(CheckpointHook, "_now", staticmethod(clock))
    hook = CheckpointHook(minutes=0.5)
    hook.before_run(runner)
    for _ in range(9):
        iterate(hook, runner, clock, 10)
    runner.inner_iter, runner.epoch = 0, 1
    hook.after_epoch(runner)
    iterate(hook, runner, clock, 20)
    iterate(hook, runner, clock, 10)
    assert saved == [
        ("iter_3.pth", 30),
        ("iter_6.pth", 60),
        ("iter_9.pth", 90),
        ("epoch_1.pth", 90),
        ("iter_11.pth", 120),
    ]


def test_heartbeat(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock, runner, path = Time(), run_of(tmp_path, epoch=2), tmp_path / "heartbeat.json"
    hook = HeartbeatHook(clock)
    hook.after_run(runner)
    assert not path.exists(), "a run that fails before its first iteration writes nothing"
    for seconds, written in ((0, 0), (4, 0), (5.9, 0), (0.2, 10.1), (0.1, 10.1)):
        iterate(hook, runner, clock, seconds)
        assert json.loads(path.read_text())["time"] == pytest.approx(written)
    clock.now += 10
    hook.during_validation(runner)
    runner.state = "stopped"
    hook.after_run(runner)
    content = json.loads(path.read_text())
    assert content["state"] == "stopped" and content["pid"] == os.getpid() and content["run"] == "r"
    assert (content["epoch"], content["iter"], content["iterations"]) == (2, 5, 5)
    runner.work_dir = tmp_path / "heartbeat.json"
    for _ in range(2):
        clock.now += 20
        hook.during_validation(runner)
    assert caplog.text.count("cannot be written") == 1

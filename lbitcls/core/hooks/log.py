"""What a run reports (`log_config`): records of training at an interval, and who writes them where.

`LogHook` averages what the iterations gave since the last record and publishes it; `TextLoggerHook` writes the line of
the text log, `JsonLoggerHook` a line of `log.jsonl`; TensorBoard's is `lbitcls.apis.tensorboard`. In a record `epoch`
counts from 1 and `iter` is the iteration within it, from 1. `memory` is in MB: the most that the GPU held, or on a CPU
the largest resident size of the process.
"""

from __future__ import annotations

import datetime
import json
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lbitcls.core.hooks.hook import PRIORITIES, Hook
from lbitcls.registry import HOOKS
from lbitcls.utils.dist import is_main, sum_over_ranks, world_size
from lbitcls.utils.errors import ConfigError
from lbitcls.utils.files import write_whole
from lbitcls.utils.jsontext import json_text, with_nulls

if TYPE_CHECKING:
    from lbitcls.core.runner import EpochRunner

POSITION = ("mode", "epoch", "iter")


class LogHook(Hook):
    """Publishes a record every `interval` iterations of an epoch and after its last one.

    The values are means over the iterations since the last record, and over the ranks. Nothing waits for the device
    in between.
    """

    def __init__(self, interval: int = 100) -> None:
        if not isinstance(interval, int) or interval < 1:
            raise ConfigError(f"log_config.interval is an int from 1; got {interval!r}.")
        self.interval = interval
        self._pending: dict[str, list[torch.Tensor]] = {}
        self._data_time = 0.0
        self._iterations = 0
        self._since = 0.0
        self._trained = [0, 0.0]  # iterations and seconds of this process, for the ETA

    def before_epoch(self, runner: EpochRunner) -> None:
        self._restart()

    def after_iter(self, runner: EpochRunner) -> None:
        for name, value in runner.outputs.items():
            self._pending.setdefault(name, []).append(value)
        self._data_time += runner.data_time
        self._iterations += 1
        if runner.inner_iter % self.interval == 0 or runner.inner_iter == len(runner.loader):
            runner.publish(self._record(runner))
            self._pending.clear()
            self._restart()

    def _restart(self) -> None:
        self._data_time, self._iterations = 0.0, 0
        self._since = time.perf_counter()

    def _record(self, runner: EpochRunner) -> dict[str, Any]:
        means = self._means()  # waits for the device, so the time below is complete
        seconds = time.perf_counter() - self._since
        self._trained[0] += self._iterations
        self._trained[1] += seconds
        left = runner.max_epochs * len(runner.loader) - runner.iter
        return {
            "mode": "train",
            "epoch": runner.epoch + 1,
            "iter": runner.inner_iter,
            "lr": runner.step.optimizer.param_groups[0]["lr"],
            "eta": self._trained[1] / self._trained[0] * left,
            "time": seconds / self._iterations,
            "data_time": self._data_time / self._iterations,
            "memory": used_memory(runner.step.device),
            **means,
        }

    def _means(self) -> dict[str, float]:
        means = torch.stack([torch.stack(values).double().mean() for values in self._pending.values()])
        means = sum_over_ranks(means) / world_size()
        return dict(sorted(zip(self._pending, means.tolist(), strict=True), key=lambda item: _order(item[0])))

    def state_dict(self) -> dict[str, Any]:
        return {"pending": {name: torch.stack(values).cpu() for name, values in self._pending.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._pending = {name: list(values) for name, values in state["pending"].items()}


def _order(name: str) -> tuple[int, str]:
    """The loss first, then its parts, then the accuracies."""
    return (0 if name == "loss" else 2 if name.startswith("top-") else 1), name


def used_memory(device: torch.device) -> int:
    """MB: the most that `device` held for tensors; for a CPU the process's largest resident size."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device) / 2**20)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)


class Writer(Hook):
    """A hook that writes records, on rank 0 alone."""

    priority = PRIORITIES["LOW"]

    def on_record(self, runner: EpochRunner, record: dict[str, Any]) -> None:
        if is_main():
            self.write(runner, record)

    def write(self, runner: EpochRunner, record: dict[str, Any]) -> None:
        """Write one record."""
        raise NotImplementedError


@HOOKS.register_module()
class TextLoggerHook(Writer):
    """Writes `Epoch [1][200/626] lr: 1.000e-03, eta: 1 day, 1:32:11, time: 1.473, …` to the text log."""

    def write(self, runner: EpochRunner, record: dict[str, Any]) -> None:
        runner.logger.info(text_line(record, len(runner.loader)))


def text_line(record: dict[str, Any], epoch_len: int) -> str:
    """The line of the text log for a record of an epoch of `epoch_len` iterations."""
    results = {name: value for name, value in record.items() if name not in POSITION}
    if record["mode"] == "val":
        head, first = f"Epoch(val) [{record['epoch']}][{record['iter']}] ", []
    else:
        head = f"Epoch [{record['epoch']}][{record['iter']}/{epoch_len}] "
        eta = datetime.timedelta(seconds=int(results.pop("eta")))
        first = [f"lr: {results.pop('lr'):.3e}", f"eta: {eta}"]
        first += [f"{name}: {results.pop(name):.3f}" for name in ("time", "data_time")]
    rest = [f"{name}: {_text(value)}" for name, value in results.items() if name != "confusion"]
    return head + ", ".join([*first, *rest])


def _text(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


@HOOKS.register_module()
class JsonLoggerHook(Writer):
    """Appends each record to `log.jsonl`, with `images`, the number of images that were learned from so far.

    What is not finite (the norm of gradients that overflowed in float16) is `null`.

    A run that goes on drops, with its first record, what came after its start.
    """

    def __init__(self) -> None:
        self._start: tuple[int, int] | None = None

    def before_run(self, runner: EpochRunner) -> None:
        self._start = runner.epoch, runner.inner_iter

    def write(self, runner: EpochRunner, record: dict[str, Any]) -> None:
        if self._start is not None:
            kept = [line for line in _lines(_path(runner)) if _is_before(line, *self._start)]
            text = "".join(line + "\n" for line in kept)
            write_whole(_path(runner), lambda temporary: temporary.write_text(text, encoding="utf-8"))
            self._start = None
        with _path(runner).open("a", encoding="utf-8") as file:
            file.write(json_text(with_nulls({**record, "images": runner.images})) + "\n")


def _path(runner: EpochRunner) -> Path:
    return runner.work_dir / "log.jsonl"


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _is_before(line: str, epoch: int, inner_iter: int) -> bool:
    """Whether a record belongs to what was done when `epoch` epochs and `inner_iter` more iterations were."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError:  # cut off when the run was killed
        return False
    if record["epoch"] <= epoch:
        return True
    return record["mode"] == "train" and record["epoch"] == epoch + 1 and record["iter"] <= inner_iter

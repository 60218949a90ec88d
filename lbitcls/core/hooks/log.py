"""Logging of a run (`log_config`): training records at an interval, and the hooks that write them.

`LogHook` averages the outputs of the iterations since the last record and publishes them; `TextLoggerHook` writes a
line of the text log, `JsonLoggerHook` a line of `log.jsonl`; `lbitcls.tracking.tensorboard` writes TensorBoard's files,
`lbitcls.tracking.loggers` has the others.
In a record, `epoch` counts from 1 and `iter` is the iteration within it, from 1. `memory` is in MB: the peak GPU
memory, or on a CPU the peak resident size of the process.
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

from lbitcls.core.hooks.clock import Clock
from lbitcls.core.hooks.hook import PRIORITIES, Hook
from lbitcls.core.hooks.not_finite_hook import NotFiniteHook
from lbitcls.core.run_files import noted_run
from lbitcls.registry import HOOKS
from lbitcls.settings.training_sections import LogConfig
from lbitcls.utils.dist import is_main, sum_over_ranks, world_size
from lbitcls.utils.files import open_regular, write_whole
from lbitcls.utils.jsontext import json_text, with_nulls
from lbitcls.utils.logging import DETAIL

if TYPE_CHECKING:
    from lbitcls.core.runner import EpochRunner

UNREADABLE = "log_unreadable.txt"  # lines of `log.jsonl` that are not records, in the work directory
LOG_TABLE = "log.csv"  # `log.jsonl` as a table, if the run writes it
TRACKED = "trackers.json"  # ids that tracking services gave to the run
POSITION = ("mode", "epoch", "iter")
QUANTIZERS = "quantizers"
"""Mode of records of quantizers (`lbitcls.tracking.quant_stats`), for `log.jsonl` and TensorBoard only."""
_MOST, _LEAST = 100, 10  # defaults: iterations between two records; records per epoch


class LogHook(Hook):
    """Hook that publishes a record every `interval` iterations of an epoch and after its last iteration.

    The values are means over the iterations since the last record, and over the samples of all ranks. Between records
    nothing waits for the device.

    Args:
        interval: Iterations between two records; None: 100, or fewer in a short epoch, for at least ten records.

    Attributes:
        clock: Estimate of the time left, which records, the progress bar and notebooks show.
    """

    def __init__(self, interval: int | None = None) -> None:
        self.interval = LogConfig(interval=interval).interval
        self._every = self.interval or _MOST
        self._pending: dict[str, list[torch.Tensor]] = {}
        self._counts: dict[str, list[int]] = {}  # images of this rank in each of these iterations
        self._data_time = 0.0
        self._iterations = 0
        self._since = 0.0
        self.clock = Clock()

    def before_epoch(self, runner: EpochRunner) -> None:
        self._every = self.interval or max(1, min(_MOST, len(runner.loader) // _LEAST))
        self.clock.start()
        self._restart()

    def after_iter(self, runner: EpochRunner) -> None:
        self.clock.tick(runner)
        for name, value in runner.outputs.items():
            self._pending.setdefault(name, []).append(value)
            self._counts.setdefault(name, []).append(runner.batch_count)
        self._data_time += runner.data_time
        self._iterations += 1
        if runner.inner_iter % self._every == 0 or runner.inner_iter == len(runner.loader):
            runner.publish(self._record(runner))
            self._pending.clear()
            self._counts.clear()
            self._restart()

    def _restart(self) -> None:
        self._data_time, self._iterations = 0.0, 0
        self._since = time.perf_counter()

    def _record(self, runner: EpochRunner) -> dict[str, Any]:
        means = self._means()  # waits for the device, so the time below is complete
        seconds = time.perf_counter() - self._since
        return {
            "mode": "train",
            "epoch": runner.epoch + 1,
            "iter": runner.inner_iter,
            **_rates(runner.step.optimizer),
            "eta": self.clock.remaining(runner),
            "time": seconds / self._iterations,
            "data_time": self._data_time / self._iterations,
            "memory": used_memory(runner.step.device),
            **means,
            **(irregular.counts() if (irregular := runner.find(NotFiniteHook)) is not None else {}),
        }

    def _means(self) -> dict[str, float]:
        if not self._pending:  # all steps were skipped
            return {}
        means = torch.stack([self._mean(name, torch.stack(values).double()) for name, values in self._pending.items()])
        return dict(sorted(zip(self._pending, means.tolist(), strict=True), key=lambda item: _order(item[0])))

    def _mean(self, name: str, values: torch.Tensor) -> torch.Tensor:
        if world_size() > 1:  # ranks may differ in their numbers of images: an epoch's last batch, images left out
            counts = values.new_tensor(self._counts[name])
            sums = sum_over_ranks(torch.stack([values * counts, counts]))
            values = sums[0] / sums[1]
        return values.mean()

    def state_dict(self) -> dict[str, Any]:
        pending = {name: torch.stack(values).cpu() for name, values in self._pending.items()}
        return {"pending": pending, "counts": {name: list(counts) for name, counts in self._counts.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._pending = {name: list(values) for name, values in state["pending"].items()}
        saved = state.get("counts", {})
        self._counts = {
            name: [int(count) for count in saved.get(name, ())] or [1] * len(values)
            for name, values in self._pending.items()
        }


def _rates(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return `lr`, the first group's rate, and, if rates differ, `lrs`: the distinct rates in group order."""
    rates = list(dict.fromkeys(float(group["lr"]) for group in optimizer.param_groups))
    return {"lr": rates[0], **({"lrs": rates} if len(rates) > 1 else {})}


def _order(name: str) -> tuple[int, str]:
    """Return the sort key: the loss first, then its parts, then the accuracies."""
    return (0 if name == "loss" else 2 if name.startswith("top-") else 1), name


def used_memory(device: torch.device) -> int:
    """Return the peak memory in MB: of tensors on a GPU; on a CPU the resident size of the process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device) / 2**20)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)


class Writer(Hook):
    """Base class of hooks that write records, on rank 0 only."""

    priority = PRIORITIES["LOW"]

    def on_record(self, runner: EpochRunner, record: dict[str, Any]) -> None:
        if is_main():
            self.write(runner, record)

    def write(self, runner: EpochRunner, record: dict[str, Any]) -> None:
        """Write one record."""
        raise NotImplementedError


@HOOKS.register_module()
class TextLoggerHook(Writer):
    """Hook that logs `Epoch [1][200/626]`, a tab, `lr: 1.000e-03, eta: 1 day, 1:32:11, time: 1.473, …`.

    If parameter groups have several rates, the line contains each distinct one: `lr: 1.000e-04/1.000e-03`.
    """

    def write(self, runner: EpochRunner, record: dict[str, Any]) -> None:
        if record["mode"] != QUANTIZERS:
            runner.logger.info(text_line(record, len(runner.loader)), extra=DETAIL)


def text_line(record: dict[str, Any], epoch_len: int) -> str:
    """Return the text log's line for a record of an epoch of `epoch_len` iterations."""
    results = {name: value for name, value in record.items() if name not in POSITION}
    if record["mode"] != "train":
        head, first = f"Epoch({record['mode']}) [{record['epoch']}][{record['iter']}]\t", []
    else:
        head = f"Epoch [{record['epoch']}][{record['iter']}/{epoch_len}]\t"
        eta = datetime.timedelta(seconds=int(results.pop("eta")))
        rates = results.pop("lrs", [results["lr"]])
        del results["lr"]
        first = ["lr: " + "/".join(f"{rate:.3e}" for rate in rates), f"eta: {eta}"]
        first += [f"{name}: {results.pop(name):.3f}" for name in ("time", "data_time")]
    rest = [f"{name}: {_text(value)}" for name, value in results.items() if name != "confusion"]
    return head + ", ".join([*first, *rest])


def _text(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


@HOOKS.register_module()
class JsonLoggerHook(Writer):
    """Hook that appends each record to `log.jsonl`, with `images`, the number of images trained on so far.

    Values that are not finite (a gradient norm that overflowed in float16) become `null`.

    With its first record, a resumed run drops the records from after its starting point. Checkpoints count the records
    before it, so that a warning tells of those that a power failure has taken from the file.
    """

    def __init__(self) -> None:
        self._start: tuple[int, int, int] | None = None
        self._records = 0

    def before_run(self, runner: EpochRunner) -> None:
        self._start = runner.epoch, runner.inner_iter, runner.images
        noted = noted_run(runner.work_dir)
        if noted != runner.meta.get("run") and (noted is not None or not _path(runner).exists()):
            self._records = 0  # a run that continues in another folder starts a log there

    def write(self, runner: EpochRunner, record: dict[str, Any]) -> None:
        if self._start is not None:
            self._go_on(runner, *self._start)
            self._start = None
        path = _path(runner)
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json_text(logged(record, runner.images)) + "\n")
        except OSError as error:
            error.filename = str(path)
            raise
        self._records += 1

    def state_dict(self) -> dict[str, Any]:
        return {"records": self._records}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._records = int(state["records"])

    def _go_on(self, runner: EpochRunner, epoch: int, inner_iter: int, images: int) -> None:
        """Keep records from before the start; move other lines to a separate file, except a truncated last line."""
        path = _path(runner)
        lines: list[bytes] = []
        if path.exists():
            with open_regular(path) as file:  # a pipe with that name would block forever
                lines = file.readall().splitlines(keepends=True)
        foreign, kept = [], []
        for line in lines:
            record = read_record(line)
            if record is not None and _is_before(record, epoch, inner_iter, images):
                kept.append(line.rstrip(b"\r\n") + b"\n")
            elif record is None and line.strip() and (line.endswith(b"\n") or line is not lines[-1]):
                foreign.append(line)
        if foreign:
            with path.with_name(UNREADABLE).open("ab") as file:
                file.writelines(foreign)
            runner.logger.warning(
                "%s had lines that are not records of a run: moved %d to %s.",
                *(path, len(foreign), path.with_name(UNREADABLE)),
            )
        if (lost := self._records - len(kept)) > 0:
            runner.logger.warning("%s has lost %d of the %d records before this point.", path, lost, self._records)
        self._records = len(kept)
        write_whole(path, lambda temporary: temporary.write_bytes(b"".join(kept)))


def _path(runner: EpochRunner) -> Path:
    return runner.work_dir / "log.jsonl"


def logged(record: dict[str, Any], images: int) -> dict[str, Any]:
    """Return a record as `log.jsonl` contains it, with the number of images trained on so far."""
    return with_nulls({**record, "images": images})


def read_records(work_dir: Path) -> list[dict[str, Any]]:
    """Return the records in a work directory's `log.jsonl`; lines that are not records are left out."""
    with open_regular(work_dir / "log.jsonl") as file:
        lines = file.readall().splitlines()
    return [record for line in lines if (record := read_record(line)) is not None]


def read_record(line: bytes) -> dict[str, Any] | None:
    """Return the record in a line of `log.jsonl`, or None if there is none."""
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):  # also for bytes that are not UTF-8
        return None
    if not isinstance(record, dict) or not isinstance(record.get("mode"), str):
        return None
    return record if all(type(record.get(key)) is int for key in ("epoch", "iter")) else None


def _is_before(record: dict[str, Any], epoch: int, inner_iter: int, images: int) -> bool:
    """Return True if a record is from the first `epoch` epochs and `inner_iter` iterations, `images` in total."""
    if record["epoch"] <= epoch:
        return True
    if record["mode"] not in ("train", QUANTIZERS) or record["epoch"] != epoch + 1:
        return False
    done = record.get("images")  # iterations are numbered anew when another number of processes resumes
    return done <= images if type(done) is int else record["iter"] <= inner_iter

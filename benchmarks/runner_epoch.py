"""Epoch of the runner on CIFAR-10: ResNet-20 quantized by LSQ W4A4 with `kernels='auto'`, against eager float32.

    python benchmarks/runner_epoch.py --data-root FOLDER [--iterations N] [--threads N] [--kernels auto] [--json FILE]

`FOLDER` contains `cifar10_jpg.tar.gz` (or the folder). Both runs are those of `lbitcls train`, with their data, hooks
and loggers, each in its own process. They take turns, iteration by iteration, so only one of them computes at a time.
Times are from one iteration to the next, data included; calibration and validation are not counted.

`epoch` is the ratio of the sums, which contains the compilation of kernels in the first iterations; `later`, without
the first three; `median`, the median ratio of adjacent iterations.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from contextlib import redirect_stdout
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from accuracy_cifar10 import CONFIG, transformer

from lbitcls.apis import train_classifier
from lbitcls.core.hooks import Hook
from lbitcls.registry import HOOKS
from lbitcls.utils.config import Config

WARMUP = 3


class EnoughError(Exception):
    """Raised to end a run after the iterations to measure."""


@HOOKS.register_module()
class TakeTurns(Hook):
    """Hook that reports the time of each iteration, and waits for the next turn."""

    priority = 100
    connection: Connection
    processor_time: bool

    def before_epoch(self, runner: Any) -> None:
        self.connection.send(len(runner.loader))
        self._wait()

    def after_iter(self, runner: Any) -> None:
        self.connection.send(self._now() - self._since)
        self._wait()

    def _wait(self) -> None:
        if not self.connection.recv():
            raise EnoughError
        self._since = self._now()

    def _now(self) -> float:
        return time.process_time() if self.processor_time else time.perf_counter()


def options(args: argparse.Namespace, quantized: bool, work_dir: Path) -> dict[str, Any]:
    """Return what a run changes in the float config."""
    common = dict(work_dir=str(work_dir), num_threads=args.threads, total_epochs=1, log_level="ERROR")
    common["custom_hooks"] = [dict(type="TakeTurns", priority=100)]
    if not quantized:
        return common
    calibration = dict(epoch=0, num_batches=16)
    return {**common, "quant_transformer": transformer("LSQ-4"), "calibration": calibration, "kernels": args.kernels}


def train(connection: Connection, changes: dict[str, Any], data_root: str, processor_time: bool) -> None:
    """Train in this process until the other end of `connection` has seen enough."""
    TakeTurns.connection, TakeTurns.processor_time = connection, processor_time
    cfg = Config.fromfile(CONFIG)
    cfg.merge_from_dict(changes)
    try:
        with redirect_stdout(io.StringIO()):
            train_classifier(cfg, validate=False, data_root=data_root)
    except EnoughError:
        pass


def start(args: argparse.Namespace, quantized: bool, work_dir: Path) -> Connection:
    """Start a run in a new process, and return the connection to it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    arguments = (theirs, options(args, quantized, work_dir), str(args.data_root), args.threads == 1)
    context.Process(target=train, args=arguments).start()
    theirs.close()
    return ours


def alternate(runs: dict[str, Connection], iterations: int | None) -> dict[str, list[float]]:
    """Return the seconds of each run's iterations, which take turns; None: those of a whole epoch."""
    length = min(run.recv() for run in runs.values())
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(min(length, iterations or length)):
        for name, run in runs.items():
            run.send(True)
            times[name].append(run.recv())
    for run in runs.values():
        run.send(False)
    return times


def summary(times: dict[str, list[float]]) -> dict[str, Any]:
    """Return the ratios of the quantized run's times to the float run's."""
    quantized, base = times["quantized"], times["float"]
    later = slice(min(WARMUP, len(base) - 1), None)
    pairs = zip(quantized[later], base[later], strict=True)
    return {
        "iterations": len(base),
        "quantized_s": sum(quantized),
        "float_s": sum(base),
        "epoch": sum(quantized) / sum(base),
        "later": sum(quantized[later]) / sum(base[later]),
        "median": statistics.median(a / b for a, b in pairs),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--iterations", type=int, help="iterations to measure (default: the whole epoch)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kernels", default="auto", help="of the quantized run (default: auto)")
    parser.add_argument("--json", type=Path, help="JSON file to write the result to")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: start(args, name == "quantized", Path(folder, name)) for name in ("quantized", "float")}
        try:
            found = summary(alternate(runs, args.iterations))
        except EOFError:
            raise SystemExit("a run ended before its last iteration; its error is printed above.") from None
        finally:
            for run in runs.values():
                run.close()
            for child in multiprocessing.active_children():
                child.join()
    print(f"{found['iterations']} iterations: quantized {found['quantized_s']:.1f} s, float {found['float_s']:.1f} s")
    print(f"ratio: epoch {found['epoch']:.3f}, later {found['later']:.3f}, median {found['median']:.3f}")
    if args.json:
        args.json.write_text(json.dumps(dict(arguments=vars(args), **found), default=str))


if __name__ == "__main__":
    main()

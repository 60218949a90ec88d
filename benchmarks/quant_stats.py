"""Cost of `QuantStatsHook`: its share of the training time of a run, measured within the run.

    python benchmarks/quant_stats.py [--iterations N] [--batch N] [--interval N] [--device NAME] [--json FILE]

ResNet-20 on 3×32×32, LSQ W4A4, in the package's runner. The time that the hook's own methods take is divided by the
time of the rest of the training: processor time on a CPU, so that other work on the machine does not count. The first
10 iterations and an inspection are not measured.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lbitcls.core.hooks.calibration_hook import CalibrationHook
from lbitcls.core.hooks.log import JsonLoggerHook, LogHook
from lbitcls.core.runner import EpochRunner
from lbitcls.core.schedule import build_schedule
from lbitcls.core.step import OptimizerStep
from lbitcls.datasets import build_dataloader
from lbitcls.datasets.base import MemoryDataset
from lbitcls.models import build_classifier
from lbitcls.quant import build_mtransformer
from lbitcls.tracking.quant_stats import QuantStatsHook
from lbitcls.utils.device import parse_device
from lbitcls.utils.logging import setup_logger

WARMUP = 10
MODEL = dict(
    type="ImageClassifier",
    backbone=dict(type="ResNetCIFAROptionA", depth=20),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", num_classes=10, in_channels=64, topk=(1,)),
)
ENTRY = dict(num_bit_w=4, num_bit_a=4)
TRANSFORMER = dict(
    type="ModelTransformer",
    quan_policy=dict(Conv2d=dict(type="LSQConv", **ENTRY), Linear=dict(type="LSQLinear", **ENTRY)),
)
PIPELINE = [
    dict(type="Normalize", mean=[125.3, 123.0, 113.9], std=[63.0, 62.1, 66.7]),
    dict(type="Collect", keys=["img", "gt_label"]),
]


class TimedStats(QuantStatsHook):
    """The hook, with a clock around the methods that work during training."""

    def __init__(self, device: torch.device, **options: Any) -> None:
        super().__init__(**options)
        self.device, self.seconds, self.began = device, 0.0, 0.0

    def after_step(self, runner: EpochRunner) -> None:
        self._timed(super().after_step, runner)

    def after_iter(self, runner: EpochRunner) -> None:
        self._timed(super().after_iter, runner)
        if runner.iter == WARMUP:  # until now kernels were compiled, and images read
            self._inspect(runner)
            self.seconds, self.began = 0.0, now(self.device)

    def _timed(self, method: Callable[[EpochRunner], None], runner: EpochRunner) -> None:
        began = now(self.device)
        method(runner)
        self.seconds += now(self.device) - began


def now(device: torch.device) -> float:
    """Return the time in seconds: on a CPU the processor's, since other work may delay any part."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def measure(iterations: int, batch: int, interval: int, device: torch.device, work_dir: Path) -> dict[str, float]:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (batch * iterations, 3, 32, 32), dtype=torch.uint8)
    loader: Any = build_dataloader(MemoryDataset(images, [i % 10 for i in range(len(images))], PIPELINE), batch)
    model = build_mtransformer(TRANSFORMER)(build_classifier(MODEL)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    stats = TimedStats(device, interval=interval)
    hooks = [CalibrationHook(num_batches=1), LogHook(), JsonLoggerHook(), stats]
    schedule = build_schedule(dict(policy="fixed"), epoch_len=len(loader), max_epochs=1)
    step = OptimizerStep(optimizer, device)
    runner = EpochRunner(model, step, loader, schedule, max_epochs=1, work_dir=work_dir, hooks=hooks)
    runner.run()
    rest = now(device) - stats.began - stats.seconds
    return {"training_s": rest, "hook_s": stats.seconds, "share": stats.seconds / rest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--iterations", type=int, default=100, help="the first 10 are not measured")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--interval", type=int, default=100)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--json", type=Path, help="JSON file to write the result to")
    args = parser.parse_args()
    setup_logger("ERROR")
    with tempfile.TemporaryDirectory() as folder:
        given = args.iterations, args.batch, args.interval, parse_device(args.device), Path(folder)
        result = measure(*given)
    print(f"training {result['training_s']:.1f} s, hook {result['hook_s']:.2f} s: {100 * result['share']:.2f} %")
    if args.json:
        setting = {"iterations": args.iterations, "batch": args.batch, "interval": args.interval}
        args.json.write_text(json.dumps({**setting, "device": args.device, **result}, indent=2) + "\n")


if __name__ == "__main__":
    main()

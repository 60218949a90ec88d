"""Overhead of the runner: its iteration against a bare PyTorch loop with the same model, batch and optimizer.

    python benchmarks/runner_overhead.py [--iterations N] [--batch N] [--threads N] [--device NAME] [--json FILE]

Two ratios of medians, ResNet-20 on 3×32×32: `loop`, the runner with its hooks and loggers fed ready tensors;
`data`, the runner with images in memory, shuffled, cropped, flipped and normalized. The bare loop gets ready tensors in
both. In one process, runner and bare loop take turns, iteration by iteration.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lbitcls.core.hooks import Hook
from lbitcls.core.hooks.log import JsonLoggerHook, LogHook, TextLoggerHook
from lbitcls.core.runner import EpochRunner
from lbitcls.core.schedule import build_schedule
from lbitcls.core.step import OptimizerStep
from lbitcls.datasets import build_dataloader
from lbitcls.datasets.base import MemoryDataset
from lbitcls.models import build_classifier
from lbitcls.utils.device import parse_device
from lbitcls.utils.logging import setup_logger

WARMUP = 3
MODEL = dict(
    type="ImageClassifier",
    backbone=dict(type="ResNetCIFAROptionA", depth=20),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", num_classes=10, in_channels=64, topk=(1, 5)),
)
PIPELINE = [
    dict(type="RandomCrop", size=32, padding=4),
    dict(type="RandomFlip", flip_prob=0.5),
    dict(type="Normalize", mean=[125.3, 123.0, 113.9], std=[63.0, 62.1, 66.7]),
    dict(type="Collect", keys=["img", "gt_label"]),
]


class ReadyBatches:
    """Loader that returns the same batch repeatedly."""

    def __init__(self, batch: dict[str, Tensor], length: int) -> None:
        self.batch, self.length = batch, length

    def __len__(self) -> int:
        return self.length

    def iterate(self, epoch: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        return iter([self.batch] * (self.length - start))


class BareLoop:
    """Same model, trained with PyTorch only."""

    def __init__(self, batch: dict[str, Tensor], device: torch.device) -> None:
        torch.manual_seed(0)
        self.model = build_classifier(MODEL).to(device).train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
        self.img, self.label = batch["img"].to(device), batch["gt_label"].to(device)

    def iteration(self) -> None:
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model.predict(self.img), self.label)  # type: ignore[operator]
        loss.backward()
        self.optimizer.step()


class TakeTurns(Hook):
    """Hook that runs the bare loop after each iteration of the runner, and records the time of each."""

    priority = 100

    def __init__(self, bare: BareLoop, device: torch.device) -> None:
        self.bare, self.device = bare, device
        self.times: tuple[list[float], list[float]] = ([], [])
        self._since = 0.0

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def before_epoch(self, runner: EpochRunner) -> None:
        self._since = self._now()

    def after_iter(self, runner: EpochRunner) -> None:
        middle = self._now()
        self.bare.iteration()
        end = self._now()
        self.times[0].append(middle - self._since)
        self.times[1].append(end - middle)
        self._since = self._now()


def ready_batch(size: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"img": torch.randn(size, 3, 32, 32), "gt_label": torch.randint(10, (size,))}


def memory_loader(batch: int, iterations: int) -> Any:
    images = torch.randint(0, 256, (batch * iterations, 3, 32, 32), dtype=torch.uint8)
    dataset = MemoryDataset(images, [i % 10 for i in range(len(images))], PIPELINE)
    return build_dataloader(dataset, batch, shuffle=True)


def compare(loader: Any, batch: dict[str, Tensor], device: torch.device, work_dir: Path) -> dict[str, float]:
    torch.manual_seed(0)
    model = build_classifier(MODEL).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    turns = TakeTurns(BareLoop(batch, device), device)
    schedule = build_schedule(dict(policy="CosineAnnealing", min_lr=0), epoch_len=len(loader), max_epochs=1)
    hooks = [LogHook(10), JsonLoggerHook(), TextLoggerHook(), turns]
    step = OptimizerStep(optimizer, device)
    EpochRunner(model, step, loader, schedule, max_epochs=1, work_dir=work_dir, hooks=hooks).run()
    ours, bare = (statistics.median(times[WARMUP:]) for times in turns.times)
    return {"runner_ms": 1000 * ours, "bare_ms": 1000 * bare, "ratio": ours / bare}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--json", type=Path, help="JSON file to write the result to")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = parse_device(args.device)
    setup_logger("ERROR")
    length, batch = WARMUP + args.iterations, ready_batch(args.batch)
    with tempfile.TemporaryDirectory() as folder:
        results = {
            "loop": compare(ReadyBatches(batch, length), batch, device, Path(folder)),
            "data": compare(memory_loader(args.batch, length), batch, device, Path(folder)),
        }
    for name, row in results.items():
        print(f"{name}: runner {row['runner_ms']:.1f} ms, bare {row['bare_ms']:.1f} ms, ratio {row['ratio']:.3f}")
    if args.json:
        setting = {"threads": args.threads, "batch": args.batch, "iterations": args.iterations}
        args.json.write_text(json.dumps({**setting, "device": str(device), **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()

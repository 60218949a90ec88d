"""Part `flat`: memory, open files, threads and processes of a real training stay flat over 2,000 iterations.

A process trains ResNet-8 on the digits, as PNG files, with all that a run may have: integer kernels where the machine
runs them, checkpoints in the background, TensorBoard, logs, a validation after each epoch. A hook measures after each
epoch. The first ones are a warm-up, in which kernels are compiled and pools of memory filled.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lbitcls.core.hooks.hook import Hook
from lbitcls.registry import HOOKS
from stress.verdicts import Measured

EPOCHS, WARM_UP, ITERATIONS = 50, 10, 40
"""Measured epochs, epochs before these, and iterations of each."""
MOST_MIB = 8.0
"""Largest drift of resident memory over all measured epochs: of the training's process, and of its readers."""
MOST_TRACKED = {"objects": 1.0, "tensors": 0.0}
"""Largest drift per iteration: of blocks of memory that Python's objects have, and of the number of tensors."""
HEAD = (
    "| training | iterations | validations | memory, MiB | readers' memory, MiB | objects | tensors | files | "
    "threads | processes | losses | s |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
)
_BATCH, _HELD_OUT = 32, 320
_MIB = ("memory", "readers")
_COUNTS = ("files", "threads", "processes")


@HOOKS.register_module()
class MeasureHook(Hook):
    """Writes what this process holds into a file, after each validation."""

    priority = 95

    def __init__(self, path: str) -> None:
        self.path = path

    def after_epoch(self, runner: Any) -> None:
        runner.writer.wait()
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(_measured()) + "\n")


def _measured() -> dict[str, float]:
    """Return the memory of this process and of its children in MiB, and the numbers of what this process holds."""
    gc.collect()
    children = [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    return {
        "memory": _resident("self"),
        "readers": sum(_resident(child) for child in children),
        "objects": sys.getallocatedblocks(),
        "tensors": sum(issubclass(type(held), torch.Tensor) for held in gc.get_objects()),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "processes": len(children),
    }


def _resident(process: int | str) -> float:
    """Return the resident memory of a process in MiB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def drift(values: Sequence[float]) -> float:
    """Return the change from the first to the last value by the median slope of all pairs (Theil-Sen)."""
    first, last = np.triu_indices(len(values), 1)
    given = np.asarray(values, float)
    return float(np.median((given[last] - given[first]) / (last - first)) * (len(values) - 1))


def judged(rows: Sequence[dict[str, float]]) -> tuple[dict[str, float], list[str]]:
    """Return the drift of each measure, and what drifts more than it may.

    Args:
        rows: Measurements after the warm-up, in order.
    """
    found = {name: drift([row[name] for row in rows]) for name in rows[0]}
    grown = [name for name in _MIB if found[name] > MOST_MIB]
    losses = [f"{name}: {found[name]:+.1f} MiB; at most {MOST_MIB:g} may be" for name in grown]
    for name, most in MOST_TRACKED.items():
        if found[name] > most * ITERATIONS * len(rows):
            losses.append(f"{name}: {found[name]:+.0f}; at most {most:g} for each iteration may be")
    third = max(1, len(rows) // 3)
    for name in _COUNTS:
        before, after = (float(np.median([row[name] for row in part])) for part in (rows[:third], rows[-third:]))
        if after != before:
            losses.append(f"{name}: {before:g} at first, {after:g} at last")
    return found, losses


def run(args: argparse.Namespace) -> list[Measured]:
    """Train without and with processes that read images; `args.scale` scales the number of measured epochs."""
    results = []
    epochs = max(6, round(EPOCHS * args.scale))
    for workers in (0, 2):
        with tempfile.TemporaryDirectory(prefix="lbitcls-stress-") as folder:
            results.append(_trained(workers, epochs, Path(folder)))
        print(line(results[-1]), flush=True)
    return results


def _trained(workers: int, epochs: int, folder: Path) -> Measured:
    start = time.monotonic()
    warm_up = min(WARM_UP, epochs)
    child = multiprocessing.get_context("spawn").Process(target=train, args=(workers, epochs + warm_up, str(folder)))
    child.start()
    child.join()
    name = f"{workers or 'no'} worker processes"
    if child.exitcode:
        return Measured(name, (0, 0, *"–––––––"), [f"the training ended with exit code {child.exitcode}"])
    rows = [json.loads(text) for text in (folder / "measured").read_text().splitlines()][warm_up:]
    found, losses = judged(rows)
    kernels = (folder / "kernels").read_text()
    cells = (f"{ITERATIONS * len(rows):,}", len(rows), *(f"{found[key]:+.2f}" for key in _MIB))
    counts = (f"{found[key]:+.0f}" for key in (*MOST_TRACKED, *_COUNTS))
    return Measured(f"{name}, {kernels} kernels", (*cells, *counts), losses, time.monotonic() - start)


def train(workers: int, epochs: int, folder: str) -> None:
    """Train in this process; write `measured` and `kernels` into the folder."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from lbitcls.apis import train_classifier
    from lbitcls.quant.kernels.selection import check_kernels
    from lbitcls.utils.errors import DependencyError

    kernels = "integer"
    try:
        check_kernels(kernels, torch.device("cpu"))
    except DependencyError:
        kernels = "auto"
    Path(folder, "kernels").write_text(kernels)
    write_digits(Path(folder))
    os.chdir(folder)
    train_classifier(config(workers, epochs, kernels))


def write_digits(folder: Path) -> None:
    """Write the images of the digits as PNG files into class folders in `train` and `val`."""
    from PIL import Image

    from lbitcls.datasets.digits import Digits

    for split, source, count in (("train", "train", _BATCH * ITERATIONS), ("val", "test", _HELD_OUT)):
        digits = Digits(split=source)
        assert digits.images is not None
        for index in range(count):
            place = folder / split / str(int(digits.labels[index]))
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(digits.images[index, 0].numpy()).save(place / f"{index}.png")


def config(workers: int, epochs: int, kernels: str) -> dict[str, Any]:
    """Return the config of the training."""
    steps = [
        dict(type="LoadImageFromFile", color_type="grayscale"),
        dict(type="Normalize", mean=[0.305], std=[0.376]),
        dict(type="ImageToTensor", keys=["img"]),
        dict(type="Collect", keys=["img", "gt_label"]),
    ]
    part = dict(type="ImageFolder", pipeline=steps)
    layer = dict(num_bit_w=4, num_bit_a=4)
    return dict(
        model=dict(
            type="ImageClassifier",
            backbone=dict(type="ResNetCIFAROptionA", depth=8, in_channels=1, base_channels=8),
            neck=dict(type="GlobalAveragePooling"),
            head=dict(type="LinearClsHead", num_classes=10, in_channels=32, topk=(1,)),
        ),
        data=dict(
            samples_per_gpu=_BATCH,
            workers_per_gpu=workers,
            train=dict(part, data_prefix="train"),
            val=dict(part, data_prefix="val"),
        ),
        quant_transformer=dict(
            type="ModelTransformer",
            quan_policy=dict(Conv2d=dict(type="LSQConv", **layer), Linear=dict(type="LSQLinear", **layer)),
        ),
        optimizer=dict(type="SGD", lr=0.05, momentum=0.9),
        lr_config=dict(policy="CosineAnnealing", min_lr=0.0),
        evaluation=dict(interval=1),
        checkpoint_config=dict(interval=1, max_keep_ckpts=2),
        log_config=dict(interval=10, hooks=[dict(type="TextLoggerHook"), dict(type="TensorboardLoggerHook")]),
        custom_hooks=[dict(type="MeasureHook", path="measured")],
        total_epochs=epochs,
        kernels=kernels,
        work_dir="run",
        num_threads=1,
        seed=0,
        cpu_only=True,
    )


def line(result: Measured) -> str:
    """Return a result as a row of the table."""
    return result.row()

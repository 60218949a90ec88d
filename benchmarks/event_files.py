"""Cost of `TensorboardLoggerHook`: core seconds per inspection of the layers, and bytes of its event file.

    python benchmarks/event_files.py [--model resnet20|resnet50] [--looks N] [--threads N] [--json FILE]

The model is W4A4 LSQ (`resnet20`: on 3×32×32, 22 layers; `resnet50`: on 3×224×224, 54 layers) on random images; the
options are the defaults, and those without histograms or predictions. Seconds are processor time, so that other
programs matter little; the first inspection, which loads libraries, is left out. `run_mb` is the event file of a run
whose config sets no interval.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from lbitcls.core.hooks.evaluation_hook import EvaluationHook
from lbitcls.core.runner import EpochRunner
from lbitcls.core.schedule import build_schedule
from lbitcls.core.step import OptimizerStep
from lbitcls.datasets import build_dataloader
from lbitcls.datasets.base import MemoryDataset
from lbitcls.models import build_classifier
from lbitcls.quant import build_mtransformer, calibrate
from lbitcls.tracking.tensorboard import LOOKS, TensorboardLoggerHook
from lbitcls.utils.logging import print_table, setup_logger

NECK = dict(type="GlobalAveragePooling")
MODELS: dict[str, tuple[int, dict[str, Any], int, int]] = {  # side of an image, backbone, channels, classes
    "resnet20": (32, dict(type="ResNetCIFAROptionA", depth=20), 64, 10),
    "resnet50": (224, dict(type="ResNet", depth=50), 2048, 1000),
}
KINDS = (("Conv2d", "Conv"), ("Linear", "Linear"))
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "histograms=False": dict(histograms=False),
    "predictions=False": dict(predictions=False),
}


def build(name: str) -> tuple[torch.nn.Module, MemoryDataset]:
    """Return the quantized model and 32 random images."""
    side, backbone, channels, classes = MODELS[name]
    head = dict(type="LinearClsHead", num_classes=classes, in_channels=channels)
    model = build_classifier(dict(type="ImageClassifier", backbone=backbone, neck=NECK, head=head))
    policy = {kind: dict(type=f"LSQ{end}", num_bit_w=4, num_bit_a=4) for kind, end in KINDS}
    model = build_mtransformer(dict(type="ModelTransformer", quan_policy=policy))(model)
    coarse = torch.rand(32, 3, side // 8, side // 8)  # smooth and grainy, so that they pack like photos
    images = F.interpolate(coarse, size=side, mode="bicubic") + 0.03 * torch.randn(32, 3, side, side)
    images = (255 * images).clamp(0, 255).to(torch.uint8)
    pipeline = [dict(type="Normalize", mean=[128.0] * 3, std=[64.0] * 3)]
    dataset = MemoryDataset(images, [i % classes for i in range(32)], pipeline)
    calibrate(model, [torch.stack([dataset[i]["img"] for i in range(4)])])
    return model, dataset


def measure(model: torch.nn.Module, dataset: MemoryDataset, looks: int, options: dict[str, Any]) -> dict[str, float]:
    """Return the median seconds of an inspection, and the KiB that it adds to the event file."""
    loader = build_dataloader(dataset, 16)
    step = OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1), torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        hook = TensorboardLoggerHook(interval=1, **options)
        hooks = [EvaluationHook(loader), hook]
        schedule = build_schedule(None, epoch_len=len(loader), max_epochs=looks + 1)
        runner = EpochRunner(model, step, loader, schedule, max_epochs=looks + 1, work_dir=Path(folder), hooks=hooks)
        hook.before_run(runner)
        seconds, sizes = [], []
        for _ in range(looks + 1):
            runner.epoch, runner.iter = runner.epoch + 1, runner.iter + 100
            start = time.process_time()
            hook.after_epoch(runner)
            hook.close()
            seconds.append(time.process_time() - start)
            sizes.append(sum(path.stat().st_size for path in (Path(folder) / "tf_logs").iterdir()))
    size = (sizes[-1] - sizes[0]) / looks
    return {"seconds": statistics.median(seconds[1:]), "kib": size / 1024, "run_mb": LOOKS * size / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="resnet20")
    parser.add_argument("--looks", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    setup_logger("WARNING")
    model, dataset = build(args.model)
    found = {name: measure(model, dataset, args.looks, options) for name, options in OPTIONS.items()}
    rows = [(name, f"{f['seconds']:.2f}", f"{f['kib']:.0f}", f"{f['run_mb']:.1f}") for name, f in found.items()]
    print_table(args.model, ("options", "s per look", "KiB per look", f"MB of {LOOKS} looks"), rows)
    if args.json:
        args.json.write_text(json.dumps({"model": args.model, **found}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

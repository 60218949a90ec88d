"""TensorBoard, and the results of trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from blocks import Page

SHORT = (
    "--options calibration.epoch=0 total_epochs=2 kernels=plain export=none lr_config.warmup_iters=4 "
    "+log_config.pictures=false"
)


def steady(names: dict[str, Any], said: str) -> None:
    """Weights froze, the loss got its term, and the average is that of two epochs."""
    frozen = [float(line.split()[1]) for line in said.splitlines() if line.startswith('"frozen": ')]
    assert len(frozen) == 2 and 0 < frozen[1] < 100
    assert '"loss_dampening": ' in Path("work_dirs/dampened/log.jsonl").read_text(encoding="utf-8")
    checkpoint = torch.load("work_dirs/averaged/latest.pth", weights_only=True)
    assert checkpoint["ema"]["averaged"] == 2


PAGES = {
    "docs/steady_weights.md": Page(
        words={
            "train frozen.py": f"train frozen.py {SHORT} custom_hooks.0.threshold=0.005",
            "train dampened.py": f"train dampened.py {SHORT}",
            "train averaged.py": f"train averaged.py {SHORT} ema.start=0",
        },
        check=steady,
        slow=True,
    ),
    "docs/tensorboard.md": Page(not_run={"tensorboard --logdir work_dirs": "server"}),
    "docs/results/cifar10_transfer.md": Page(
        not_run={
            "python tools/train.py configs/cifar10/mobilenet_v2_transfer_features.py --data-root FOLDER": "data",
            "python tools/train.py held_out.py --data-root FOLDER --options optimizer.lr=0.003": "data",
        },
    ),
}

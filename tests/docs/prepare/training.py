"""TensorBoard, distillation, and the results of trainings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from blocks import Page

SHORT = "--options total_epochs=2 kernels=plain +log_config.pictures=false"


def taught(names: dict[str, Any], said: str) -> None:
    """The student's run named its teacher and recorded both parts of its loss."""
    assert "teacher work_dirs/teacher/best_top-1.pth" in said
    first = json.loads(Path("work_dirs/student/log.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert abs(0.9 * first["loss_distill"] + 0.1 * first["loss_label"] - first["loss"]) < 1e-4


PAGES = {
    "docs/distillation.md": Page(
        words={
            "train teacher.py": f"train teacher.py {SHORT}",
            "train student.py": f"train student.py {SHORT} export=",
        },
        check=taught,
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

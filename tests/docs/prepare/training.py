"""TensorBoard, distillation, and the results of trainings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from blocks import Page

SHORT = "--options total_epochs=2 kernels=plain +log_config.pictures=false"
STEADY = (
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


def taught(names: dict[str, Any], said: str) -> None:
    """The student's run named its teacher and recorded both parts of its loss."""
    assert "teacher work_dirs/teacher/best_top-1.pth" in said
    first = json.loads(Path("work_dirs/student/log.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert abs(0.9 * first["loss_distill"] + 0.1 * first["loss_label"] - first["loss"]) < 1e-4


def examined(names: dict[str, Any], said: str) -> None:
    """The hook wrote its records, the check-up its file, and each layer got its bits."""
    assert '"mode": "quantizers"' in Path("work_dirs/watched/log.jsonl").read_text(encoding="utf-8")
    assert "findings" in json.loads(Path("check.json").read_text(encoding="utf-8"))
    assert [layer.name for layer in names["report"].layers][::7] == ["backbone.conv1", "head.fc"]


def saved(names: dict[str, Any], said: str) -> None:
    """The run started from scratch, the other left two checkpoints in mid-epoch, and its heartbeat was read."""
    assert "starting from scratch" in said and said.count("work_dirs/often/iter_") == 2
    assert names["hangs"]("work_dirs/often", -1) is False


COMPARED = "tools/dist_train.sh configs/quickstart/digits_lsq_4w4f.py"
PAGES = {
    "docs/distillation.md": Page(
        words={
            "train teacher.py": f"train teacher.py {SHORT}",
            "train student.py": f"train student.py {SHORT} export=",
        },
        check=taught,
        slow=True,
    ),
    "docs/steady_weights.md": Page(
        words={
            "train frozen.py": f"train frozen.py {STEADY} custom_hooks.0.threshold=0.005",
            "train dampened.py": f"train dampened.py {STEADY}",
            "train averaged.py": f"train averaged.py {STEADY} ema.start=0",
        },
        check=steady,
        slow=True,
    ),
    "docs/doctor.md": Page(
        words={"train watched.py": f"train watched.py {SHORT} calibration.epoch=1 export="},
        check=examined,
        slow=True,
    ),
    "docs/preemption.md": Page(
        words={
            "23h50m": f"23h50m {SHORT} calibration.epoch=1 export=",
            "train often.py": f"train often.py {SHORT} calibration.epoch=1 export=",
        },
        check=saved,
        slow=True,
    ),
    "docs/distributed.md": Page(
        not_run={
            "GPUS_PER_NODE=8 SRUN_ARGS='--time 24:00:00' tools/slurm_train.sh PARTITION JOB_NAME \\": "machines",
            f"{COMPARED} 1 --work-dir work_dirs/one --seed 1 \\": "machines",
        }
    ),
    "docs/tensorboard.md": Page(not_run={"tensorboard --logdir work_dirs": "server"}),
    "docs/results/cifar10_transfer.md": Page(
        not_run={
            "python tools/train.py configs/cifar10/mobilenet_v2_transfer_features.py --data-root FOLDER": "data",
            "python tools/train.py held_out.py --data-root FOLDER --options optimizer.lr=0.003": "data",
        },
    ),
}

"""Configs whose global batch is the same on any number of processes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for ranks and scenes, here as in the ranks

PIPELINE = [dict(type="Normalize", mean=[0.305], std=[0.376]), dict(type="Collect", keys=["img", "gt_label"])]
GLOBAL = 64  # images per step, on all processes

MakeRun = Callable[..., dict[str, Any]]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """`make_run('name', ranks, backbone='TinyNet', size=…, **sections)`: a config of one epoch of 23 steps."""

    def make(name: str, ranks: int, backbone: str = "PlainNet", size: int | None = None, **sections: Any) -> Any:
        digits = {split: dict(type="Digits", split=part, pipeline=PIPELINE) for split, part in SPLITS.items()}
        head = dict(type="LinearClsHead", num_classes=10, in_channels=16)
        return dict(
            model=dict(
                type="ImageClassifier", backbone=dict(type=backbone), neck=dict(type="GlobalAveragePooling"), head=head
            ),
            data=dict(samples_per_gpu=size or GLOBAL // ranks, workers_per_gpu=0, **digits),
            optimizer=dict(type="SGD", lr=0.05, momentum=0.9),
            lr_config=dict(policy="CosineAnnealing", min_lr=0, by_epoch=False),
            evaluation=dict(interval=1),
            total_epochs=1,
            checkpoint_config=dict(interval=1),
            log_config=dict(interval=5, pictures=False),
            seed=3,
            cpu_only=True,
            work_dir=str(tmp_path / f"{name}_{ranks}"),
            **sections,
        )

    return make


SPLITS = {"train": "train", "val": "test"}

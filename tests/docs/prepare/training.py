"""TensorBoard, and the results of trainings."""

from __future__ import annotations

from blocks import Page

PAGES = {
    "docs/tensorboard.md": Page(not_run={"tensorboard --logdir work_dirs": "server"}),
    "docs/results/cifar10_transfer.md": Page(
        not_run={
            "python tools/train.py configs/cifar10/mobilenet_v2_transfer_features.py --data-root FOLDER": "data",
            "python tools/train.py held_out.py --data-root FOLDER --options optimizer.lr=0.003": "data",
        },
    ),
}

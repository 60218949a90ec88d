"""A config that trains in a second, and models that are made of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lbitcls.utils.config import Config

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for calls and tiny_parts, here as in processes of tests
from calls import ROOT, Delivered, command

PIPELINE = [dict(type="Normalize", mean=[0.305], std=[0.376]), dict(type="Collect", keys=["img", "gt_label"])]
# RandomRotation has no batch form here, so that worker processes are used when asked for.
TRAIN_PIPELINE = [dict(type="v2.RandomRotation", degrees=10), *PIPELINE]


def base_config() -> dict[str, Any]:
    return dict(
        custom_imports=dict(imports=["tiny_parts"]),
        model=dict(
            type="ImageClassifier",
            backbone=dict(type="TinyNet"),
            neck=dict(type="GlobalAveragePooling"),
            head=dict(type="LinearClsHead", num_classes=10, in_channels=16, dropout=0.1),
        ),
        data=dict(
            samples_per_gpu=128,
            workers_per_gpu=0,
            train=dict(type="Digits", split="train", pipeline=PIPELINE),
            val=dict(type="Digits", split="test", pipeline=PIPELINE),
            test=dict(type="Digits", split="test", pipeline=PIPELINE),
        ),
        evaluation=dict(interval=1, metric="accuracy"),
        optimizer=dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=1e-4),
        optimizer_config=dict(grad_clip=None),
        lr_config=dict(policy="CosineAnnealing", min_lr=0, warmup="linear", warmup_iters=5, by_epoch=False),
        total_epochs=2,
        checkpoint_config=dict(interval=1),
        log_config=dict(interval=5, hooks=[dict(type="TextLoggerHook")], pictures=False),
        log_level="INFO",
        seed=3,
    )


@pytest.fixture(scope="session")
def tiny_sections() -> dict[str, Any]:
    """The base config's sections."""
    return base_config()


MakeConfig = Callable[..., Config]


@pytest.fixture
def make_config(tmp_path: Path) -> MakeConfig:
    """`make_config(total_epochs=3, options={'optimizer.lr': 0.1})`: the base config with sections or keys set."""

    def make(
        work: str = "work", options: dict[str, Any] | None = None, workers: int | None = None, **sections: Any
    ) -> Config:
        cfg = Config({**base_config(), "work_dir": str(tmp_path / work), **sections})
        if workers is not None:
            cfg.data.workers_per_gpu = workers
            cfg.data.train.pipeline = TRAIN_PIPELINE
        cfg.merge_from_dict({f"+{key}": value for key, value in (options or {}).items()})
        return cfg

    return make


@pytest.fixture
def write_config(make_config: MakeConfig, tmp_path: Path) -> Callable[..., Path]:
    """Like `make_config`, but the path of a file."""

    def write(name: str = "tiny.py", **given: Any) -> Path:
        path = tmp_path / name
        make_config(**given).dump(path)
        return path

    return write


@pytest.fixture(scope="session")
def delivered(tmp_path_factory: pytest.TempPathFactory) -> Delivered:
    import torch

    from lbitcls.models import build_classifier
    from lbitcls.utils import save_checkpoint
    from lbitcls.workflows.calibrating import calibrate_checkpoint
    from lbitcls.workflows.exporting import export_checkpoint

    folder = tmp_path_factory.mktemp("delivered")
    cfg = Config.fromfile(ROOT / "configs" / "quickstart" / "digits_lsq_4w4f.py")
    cfg.model.backbone.base_channels, cfg.model.head.in_channels = 8, 32
    cfg.dump(folder / "config.py")
    torch.manual_seed(0)
    model = build_classifier(cfg.model)
    torch.nn.init.normal_(model.head.fc.weight)
    model.CLASSES = tuple(f"digit {number}" for number in range(10))
    save_checkpoint(model, folder / "float.pth")
    calibrate_checkpoint(cfg, folder / "float.pth", folder / "model.pth", num_images=100, test=False)
    export_checkpoint(cfg, folder / "model.pth", folder / "model.onnx")
    return Delivered(folder / "config.py", folder / "model.pth", folder / "model.onnx")


@pytest.fixture
def run_tool() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_tool('train', config, '--resume')`: a tool in a process of its own."""

    def run(verb: str, *arguments: Any, timeout: float = 120, **environment: str) -> Any:
        call = command(ROOT / "tools" / f"{verb}.py", *arguments, **environment)
        return subprocess.run(**call, capture_output=True, timeout=timeout, check=False)

    return run

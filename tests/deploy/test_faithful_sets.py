"""Real data sets: the exported model has the checkpoint's accuracy, in both engines, within 0.1 points or one image.

On ImageNet, within as many images as change their class when the checkpoint itself runs in float64 instead of float32.

8-bit models are calibrated, 4-bit models are trained briefly. The exported model is compared with the checkpoint, so
any accuracy would do, but each must be well above chance.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from lbitcls.deploy.targets.cpu import CPU
from lbitcls.utils.config import Config
from lbitcls.workflows.calibrating import calibrate_checkpoint
from lbitcls.workflows.converting import convert_checkpoint
from lbitcls.workflows.exporting import export_checkpoint
from lbitcls.workflows.testing import test_classifier as measure
from lbitcls.workflows.training import train_classifier

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def policy(bits: int, ends: dict[str, str] | None = None) -> dict[str, Any]:
    """Return LSQ with per-channel weights; `ends` maps the names of the layers with 8 bits to their kinds."""

    def entry(kind: str, bits: int) -> dict[str, Any]:
        return dict(type=f"LSQ{kind}", num_bit_w=bits, num_bit_a=bits, per_channel=True)

    section = dict(type="ModelTransformer", quan_policy=dict(Conv2d=entry("Conv", bits), Linear=entry("Linear", bits)))
    if ends is not None:
        eight = [entry(kind, 8) for kind in ends.values()]
        section["special_layers"] = dict(layers_name=list(ends), convert_type=eight)
    return section


def assert_faithful(
    cfg: Config, checkpoint: Any, folder: Path, root: Path, images: int, above: float, steadiness: bool = False
) -> None:
    """Check that the exported model has the checkpoint's accuracy on `images` test images."""
    path, data = folder / "model.onnx", dict(data_root=str(root))
    report = export_checkpoint(cfg, checkpoint, path, verify=steadiness, **data)
    assert report.info.bits != "float"
    bound = max(0.1, 100 / images)
    if steadiness:
        verification = json.loads(path.with_suffix(".report.json").read_text())["verification"]
        assert verification["images"] == images
        bound = max(bound, 100 - verification["yardstick"][0]["agreement"])
    expected = measure(cfg, checkpoint, **data)["top-1"]
    assert expected > above
    for engine in CPU.engines:
        given = measure(cfg, path, engine=engine, threads=1, **data)["top-1"]
        assert given == pytest.approx(expected, abs=bound + 1e-6), engine


def test_a_calibrated_lenet_on_mnist(repo_root: Path, work_dir: Path, shared_data: Path) -> None:
    cfg = Config.fromfile(repo_root / "configs/mnist/lenet5_lsq_4w4f.py")
    cfg.merge_from_dict(dict(total_epochs=1, work_dir=str(work_dir), log_config=dict(pictures=False)))
    float_cfg = copy.deepcopy(cfg)
    float_cfg.pop("quant_transformer")
    checkpoint = train_classifier(float_cfg, data_root=str(shared_data))["checkpoint"]
    cfg.quant_transformer = policy(8)
    calibrated = work_dir / "calibrated.pth"
    calibrate_checkpoint(cfg, checkpoint, calibrated, test=False, data_root=str(shared_data))
    assert_faithful(cfg, calibrated, work_dir, shared_data, images=10_000, above=95)


@pytest.fixture
def resnet20(repo_root: Path, work_dir: Path, shared_data: Path) -> tuple[Config, Path]:
    """Return a CIFAR-10 config with 2,000 test, 2,560 training and 200 calibration images, and published weights."""
    checkpoint = work_dir / "published.pth"
    convert_checkpoint(shared_data / "weights/resnet20-12fca82f.th", checkpoint)
    cfg = Config.fromfile(repo_root / "configs/cifar10/resnet20.py")
    cfg.data.test.pipeline.insert(1, dict(type="Resize", size=(32, 32)))  # the export needs the size
    cfg.data.test.indices = list(range(0, 10_000, 5))
    cfg.data.calibration = dict(cfg.data.test, data_prefix="cifar10_jpg/train", indices=list(range(0, 50_000, 250)))
    cfg.data.train.pop("exclude_indices")
    cfg.data.train.indices = list(range(0, 50_000, 20))
    cfg.merge_from_dict(dict(work_dir=str(work_dir), log_config=dict(pictures=False)))
    return cfg, checkpoint


def test_a_calibrated_resnet20_on_cifar10(resnet20: tuple[Config, Path], work_dir: Path, shared_data: Path) -> None:
    cfg, checkpoint = resnet20
    cfg.quant_transformer = policy(8)
    calibrated = work_dir / "calibrated.pth"
    calibrate_checkpoint(cfg, checkpoint, calibrated, test=False, data_root=str(shared_data))
    assert_faithful(cfg, calibrated, work_dir, shared_data, images=2000, above=78)


def test_a_4_bit_resnet20_on_cifar10(resnet20: tuple[Config, Path], work_dir: Path, shared_data: Path) -> None:
    cfg, checkpoint = resnet20
    cfg.quant_transformer = policy(4, {"backbone.conv1": "Conv", "head.fc": "Linear"})
    cfg.merge_from_dict(dict(load_from=str(checkpoint), total_epochs=1, kernels="plain"))
    trained = train_classifier(cfg, validate=False, data_root=str(shared_data))["checkpoint"]
    assert_faithful(cfg, trained, work_dir, shared_data, images=2000, above=60)


NORMALIZE = dict(type="Normalize", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
PHOTOS = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", size=(256, -1)),
    dict(type="CenterCrop", crop_size=224),
    NORMALIZE,
    dict(type="ImageToTensor", keys=["img"]),
    dict(type="Collect", keys=["img", "gt_label"]),
]


def ants_and_bees(backbone: dict[str, Any], head: dict[str, Any], work_dir: Path, **rest: Any) -> Config:
    """Return a classifier initialized from ImageNet weights."""
    sets = {split: dict(type="Hymenoptera", split=split, pipeline=PHOTOS) for split in ("train", "val")}
    neck = dict(type="GlobalAveragePooling") if head["type"] == "LinearClsHead" else None
    return Config(
        dict(
            model=dict(
                type="ImageClassifier", backbone=backbone, neck=neck, head=dict(num_classes=2, topk=(1,), **head)
            ),
            data=dict(samples_per_gpu=32, workers_per_gpu=0, **sets),
            log_config=dict(pictures=False),
            seed=0,
            work_dir=str(work_dir),
            **rest,
        )
    )


def test_a_calibrated_mobilenet_on_ants_and_bees(work_dir: Path, shared_data: Path) -> None:
    """Only the head is trained, in float, on features computed once."""
    weights, data_root = shared_data / "weights/mobilenet_v2_tf2_int8deq_flipw.pth", str(shared_data)
    cfg = ants_and_bees(
        dict(type="MobileNetV2", frozen=True, pretrained=str(weights)),
        dict(type="LinearClsHead", in_channels=1280),
        work_dir,
        optimizer=dict(type="SGD", lr=0.02, momentum=0.9),
        total_epochs=10,
        feature_cache=True,
    )
    checkpoint = train_classifier(cfg, validate=False, data_root=data_root)["checkpoint"]
    cfg.quant_transformer = policy(8)
    calibrated = work_dir / "calibrated.pth"
    calibrate_checkpoint(cfg, checkpoint, calibrated, num_images=64, split="train", test=False, data_root=data_root)
    assert_faithful(cfg, calibrated, work_dir, shared_data, images=153, above=85)


def test_a_4_bit_squeezenet_on_ants_and_bees(work_dir: Path, shared_data: Path) -> None:
    """The whole model is trained at 4 bits."""
    weights = shared_data / "weights/squeezenet1_1_caffe_fp16.pth"
    cfg = ants_and_bees(
        dict(type="SqueezeNet", version="1_1", pretrained=str(weights)),
        dict(type="ConvClsHead", in_channels=512),
        work_dir,
        quant_transformer=policy(4, {"backbone.features.0": "Conv", "head.conv": "Conv"}),
        optimizer=dict(type="Adam", lr=1e-4),
        total_epochs=3,
        kernels="plain",
    )
    checkpoint = train_classifier(cfg, validate=False, data_root=str(shared_data))["checkpoint"]
    assert_faithful(cfg, checkpoint, work_dir, shared_data, images=153, above=75)


@pytest.mark.parametrize(
    ("config", "weights", "above"),
    [
        ("mobilenet_v2_8w8f", "mobilenet_v2_tf2_int8deq_flipw.pth", 75),
        ("squeezenet1_1_8w8f", "squeezenet1_1_caffe_fp16.pth", 50),
    ],
)
def test_calibrated_models_on_imagenet(
    config: str, weights: str, above: float, repo_root: Path, work_dir: Path, shared_data: Path
) -> None:
    """200 calibration images and 200 other test images."""
    cfg = Config.fromfile(repo_root / f"configs/calibration/{config}.py")
    cfg.data.test.indices = list(range(2, 1000, 5))
    calibrated = work_dir / "calibrated.pth"
    calibrate_checkpoint(cfg, shared_data / "weights" / weights, calibrated, test=False, data_root=str(shared_data))
    assert_faithful(cfg, calibrated, work_dir, shared_data, images=200, above=above, steadiness=True)

"""Published weights: names, wrappers, the real files, and the conversion of the CIFAR ResNets."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from lbitcls.commands.main import main
from lbitcls.models import build_classifier, convert_cifar_resnet
from lbitcls.utils import load_checkpoint
from lbitcls.utils.errors import CheckpointError

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
POOL = dict(type="GlobalAveragePooling")


def batched(items: list, size: int) -> Iterator[list]:
    return (items[start : start + size] for start in range(0, len(items), size))


def classifier(backbone: dict, features: int, num_classes: int = 1000) -> torch.nn.Module:
    head = dict(type="LinearClsHead", num_classes=num_classes, in_channels=features)
    return build_classifier(dict(type="ImageClassifier", backbone=backbone, neck=POOL, head=head))


MOBILENET = dict(
    type="ImageClassifier",
    backbone=dict(type="MobileNetV2"),
    neck=POOL,
    head=dict(type="LinearClsHead", num_classes=1000, in_channels=1280),
)
SQUEEZENET = dict(
    type="ImageClassifier",
    backbone=dict(type="SqueezeNet", version="1_1"),
    head=dict(type="ConvClsHead", num_classes=1000),
)
REAL = [
    (MOBILENET, "mobilenet_v2", "mobilenet_v2_tf2_int8deq_flipw.pth"),
    (SQUEEZENET, "squeezenet1_1", "squeezenet1_1_caffe_fp16.pth"),
]


def wrap(state: dict, how: str) -> dict:
    wrapped = {
        "plain": state,
        "module": {f"module.{key}": value for key, value in state.items()},
        "compiled": {f"module._orig_mod.{key}": value for key, value in state.items()},
        "state_dict": {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3},
        "model": {"model": state, "optimizer": {}},
    }
    return wrapped[how]


@pytest.mark.parametrize("how", ["plain", "module", "compiled", "state_dict", "model"])
def test_wrappers_come_off(how: str) -> None:
    published = torchvision.models.resnet18(weights=None).state_dict()
    model = classifier(dict(type="ResNet", depth=18), 512)
    adapted = model.adapt_state_dict(wrap(published, how))
    assert set(adapted) == set(model.state_dict())
    assert adapted["head.fc.bias"] is published["fc.bias"]
    assert adapted["backbone.layer1.0.conv1.weight"] is published["layer1.0.conv1.weight"]


def test_our_own_names_stay() -> None:
    model = classifier(dict(type="ResNet", depth=18), 512)
    own = model.state_dict()
    assert model.adapt_state_dict(own) is own
    quantized = {"backbone.conv1.weight_quantizer.scale": torch.ones(1)}
    assert model.adapt_state_dict(quantized) is quantized


def test_published_layer_named_head_is_no_sign_of_ours() -> None:
    model = classifier(dict(type="TorchvisionBackbone", name="swin_t"), 768)
    adapted = model.adapt_state_dict({"features.0.0.bias": 1, "head.weight": 2})
    assert adapted == {"backbone.model.features.0.0.bias": 1, "head.fc.weight": 2}


def test_backbone_takes_its_part() -> None:
    published = torchvision.models.resnet18(weights=None).state_dict()
    model = classifier(dict(type="ResNet", depth=18), 512)
    for state in (published, model.state_dict()):
        assert set(model.backbone.adapt_state_dict(state)) == set(model.backbone.state_dict())


def test_classifier_of_other_size_is_left_to_the_report(work_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    published = torchvision.models.mobilenet_v2(weights=None)
    torch.save(published.state_dict(), work_dir / "published.pth")
    model = classifier(dict(type="MobileNetV2"), 1280, num_classes=3)
    load_checkpoint(model, work_dir / "published.pth")
    assert torch.equal(model.backbone.features[0][0].weight, published.features[0][0].weight)
    assert model.head.fc.weight.shape == (3, 1280)


def images(archive: Path, folder: str = "", count: int | None = None) -> list[tuple[str, torch.Tensor]]:
    """Return JPEG files of an archive in `folder`, the first `count`, as (name, normalized image)."""
    found: list[tuple[str, torch.Tensor]] = []
    with tarfile.open(archive) as tar:
        for member in tar:
            if len(found) == count:
                break
            if member.name.endswith(".jpg") and folder in member.name:
                with Image.open(tar.extractfile(member)) as image:
                    pixels = pil_to_tensor(image.convert("RGB"))
                found.append((member.name, (pixels / 255 - MEAN) / STD))
    return found


@pytest.mark.parametrize("config, name, weights", REAL)
def test_real_weights_give_torchvisions_logits(config: dict, name: str, weights: str, shared_data: Path) -> None:
    path = shared_data / "weights" / weights
    published = torchvision.models.get_model(name, weights=None).eval()
    published.load_state_dict(torch.load(path, weights_only=True))
    model = build_classifier(config).eval()
    load_checkpoint(model, path, strict=True)
    with torch.no_grad():
        for _, img in images(shared_data / "imagenet1000_256.tar.gz", count=4):
            assert torch.equal(model.predict(img[None]), published(img[None]))


CIFAR_FILES = {20: "resnet20-12fca82f.th", 32: "resnet32-d509ac18.th", 56: "resnet56-4bfd9763.th"}


@pytest.mark.parametrize("depth", CIFAR_FILES)
def test_conversion_of_published_cifar_resnets(depth: int, shared_data: Path, work_dir: Path) -> None:
    source = shared_data / "weights" / CIFAR_FILES[depth]
    config = convert_cifar_resnet(source, work_dir / "converted.pth")
    assert config["backbone"] == dict(type="ResNetCIFAROptionA", depth=depth, in_channels=3, base_channels=16)
    model = build_classifier(config)
    checkpoint = load_checkpoint(model, work_dir / "converted.pth", strict=True)
    assert checkpoint["meta"]["CLASSES"][3] == "cat"
    direct = build_classifier(config)
    load_checkpoint(direct, source, strict=True)
    img = torch.rand(2, 3, 32, 32)
    assert torch.equal(direct.eval().predict(img), model.eval().predict(img))


def test_conversion_by_command(shared_data: Path, work_dir: Path, capsys: pytest.CaptureFixture) -> None:
    source, target = shared_data / "weights" / CIFAR_FILES[20], work_dir / "resnet20.pth"
    assert main(["convert", str(source), str(target)]) == 0
    assert target.is_file()
    assert "'depth': 20" in capsys.readouterr().out
    assert main(["convert", str(source), str(target), "--format", "cifar-resnets"]) == 2
    assert "Did you mean 'cifar-resnet'" in capsys.readouterr().err


def test_conversion_refuses_other_networks(work_dir: Path) -> None:
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), work_dir / "other.pth")
    with pytest.raises(CheckpointError, match="is not a CIFAR ResNet with option-A shortcuts"):
        convert_cifar_resnet(work_dir / "other.pth", work_dir / "out.pth")
    assert not (work_dir / "out.pth").exists()


def test_conversion_executes_nothing(work_dir: Path) -> None:
    torch.save({"state_dict": {"linear.weight": torch.ones(1)}, "trap": pytest.raises}, work_dir / "trap.th")
    with pytest.raises(CheckpointError, match="cannot be read as plain weights"):
        convert_cifar_resnet(work_dir / "trap.th", work_dir / "out.pth")


@pytest.mark.slow
def test_published_resnet20_on_real_images(shared_data: Path, work_dir: Path) -> None:
    """81.0 % on the 10,000 test images, which are lossy; the file itself records 91.8 % on lossless ones."""
    model = build_classifier(convert_cifar_resnet(shared_data / "weights" / CIFAR_FILES[20], work_dir / "x.pth"))
    classes = load_checkpoint(model.eval(), work_dir / "x.pth", strict=True)["meta"]["CLASSES"]
    test = images(shared_data / "cifar10_jpg.tar.gz", folder="/test/")
    assert len(test) == 10000
    labels = torch.tensor([classes.index(name.split("/")[-2]) for name, _ in test])
    with torch.no_grad():
        logits = torch.cat([model.predict(torch.stack(part)) for part in batched([img for _, img in test], 250)])
    assert model.loss(logits, labels)["top-1"].item() == pytest.approx(81.0, abs=0.1)

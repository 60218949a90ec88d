"""torchvision's integer networks as frozen extractors."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch

from lbitcls.models import build_backbone, build_classifier
from lbitcls.models.backbones import torchvision_quantized
from lbitcls.utils import load_checkpoint, save_checkpoint
from lbitcls.utils.errors import CheckpointError, ConfigError, DependencyError

CONFIG = dict(type="TorchvisionQuantizedBackbone", name="resnet18", pretrained=False)


@pytest.fixture(scope="module")
def backbone() -> Any:
    return build_backbone(CONFIG)


def network(backbone: Any) -> torch.nn.Module:
    return backbone._network.module


@pytest.fixture(scope="module")
def file(backbone: Any, tmp_path_factory: Any) -> str:
    path = tmp_path_factory.mktemp("weights") / "quantized.pth"
    torch.save(network(backbone).state_dict(), path)
    return str(path)


def classifier(**keys: Any) -> Any:
    head = dict(type="LinearClsHead", num_classes=2, in_channels=512)
    neck = dict(type="GlobalAveragePooling")
    return build_classifier(dict(type="ImageClassifier", backbone={**CONFIG, **keys}, neck=neck, head=head))


def test_features_are_those_of_the_network(backbone: Any) -> None:
    img = torch.rand(2, 3, 64, 64)
    feature = backbone(img)[-1]
    assert feature.shape == (2, 512, 1, 1) and backbone.num_features == 512
    assert feature.dtype == torch.float32 and not feature.requires_grad
    assert len(feature.unique()) <= 256  # dequantized bytes
    logits = network(backbone)(img)
    linear = network(backbone).fc
    scale = next(m for m in network(backbone).modules() if type(m).__name__ == "Quantize").scale.dtype
    assert scale == torch.float32
    packed = torch.quantize_per_tensor(feature.flatten(1), *_grid(backbone), torch.quint8)
    assert torch.equal(linear(packed).dequantize(), logits)
    assert torch.equal(copy.deepcopy(backbone)(img)[-1], feature)


def _grid(backbone: Any) -> tuple[float, int]:
    """Return scale and zero point of the feature."""
    found = []
    layer = network(backbone).layer4[1].add_relu
    found.append((float(layer.scale), int(layer.zero_point)))
    return found[0]


def test_random_weights_are_always_the_same_and_draw_nothing(backbone: Any) -> None:
    engine, state = torch.backends.quantized.engine, torch.get_rng_state()
    other = build_backbone({**CONFIG, "out_layer": "layer1"})
    assert other.num_features == 64 and other._digest == backbone._digest
    assert torch.backends.quantized.engine == engine and torch.equal(torch.get_rng_state(), state)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # raised when a quantized tensor is read
def test_a_local_file(backbone: Any, file: str, tmp_path: Path) -> None:
    changed = torch.load(file, weights_only=True)
    changed["conv1.scale"] = changed["conv1.scale"] * 2
    torch.save(changed, tmp_path / "changed.pth")
    same, other = (build_backbone({**CONFIG, "pretrained": name}) for name in (file, str(tmp_path / "changed.pth")))
    assert same._digest == backbone._digest != other._digest
    img = torch.rand(1, 3, 64, 64)
    assert torch.equal(same(img)[-1], backbone(img)[-1]) and not torch.equal(other(img)[-1], backbone(img)[-1])


def test_only_the_head_trains_and_is_saved(file: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = classifier(pretrained=file, frozen=True).train()
    assert model.moving_parts == []
    model(torch.rand(2, 3, 64, 64), gt_label=torch.tensor([0, 1]))["loss"].backward()
    assert {name for name, _ in model.named_parameters()} == {"head.fc.weight", "head.fc.bias"}
    save_checkpoint(model, tmp_path / "head.pth")
    assert (tmp_path / "head.pth").stat().st_size < 50_000
    again = classifier(pretrained=file)
    with caplog.at_level(logging.WARNING, logger="lbitcls"):
        load_checkpoint(again, tmp_path / "head.pth", strict=True)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    again.backbone._digest = bytes(32)
    load_checkpoint(again, tmp_path / "head.pth", strict=True)
    assert "trained on the features of other weights" in caplog.text


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (dict(name="resnet19"), "no quantized 'resnet19'. Did you mean 'resnet18'"),
        (dict(out_layer="averagepool"), "no layer 'averagepool'. Did you mean 'avgpool'.*layer4, avgpool"),
        (dict(pretrained=5), "pretrained must be True, False or a file"),
    ],
)
def test_mistakes(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_backbone({**CONFIG, **keys})


def test_files_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: Any) -> None:
    monkeypatch.setattr(torchvision_quantized, "_build", _built_once(backbone))
    torch.save({"conv1.weight": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other.pth cannot be read as the state dict of the quantized network"):
        build_backbone({**CONFIG, "pretrained": str(tmp_path / "other.pth")})


def _built_once(backbone: Any) -> Any:
    """Do as `_build`, without the slow quantization."""

    def build(name: str, pretrained: str) -> torch.nn.Module:
        torchvision_quantized._load(copy.deepcopy(network(backbone)), pretrained)
        return network(backbone)

    return build


def test_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    with pytest.raises(CheckpointError, match="put a copy of resnet18_fbgemm_16fa66dd.pth.*into .*checkpoints"):
        build_backbone({**CONFIG, "pretrained": True})


def test_when_pytorch_has_it_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.models.quantization as quantized

    def gone(**kwargs: Any) -> None:
        raise NotImplementedError("quantized engines were removed")

    monkeypatch.setattr(quantized, "resnet18", gone)
    with pytest.raises(DependencyError, match="do not work with torch .*; use IntegerBackbone"):
        build_backbone(CONFIG)

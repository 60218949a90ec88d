"""Weights by torchvision's names: loaded from the cache, else downloaded, or the message says where to put them."""

from __future__ import annotations

import hashlib
import logging
import socket
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision

from lbitcls.models import build_classifier
from lbitcls.utils.checkpoint import read_checkpoint
from lbitcls.utils.errors import CheckpointError, ConfigError
from lbitcls.utils.published import fetch_weights, find_weights, is_published

NAME = "torchvision://squeezenet1_1"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's cache, in a folder of the test."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("torch.hub.urlopen", refuse)


def place(folder: Path, name: str = NAME) -> torch.nn.Module:
    """Put random weights in place of the published file."""
    model = torchvision.models.squeezenet1_1(weights=None)
    torch.save(model.state_dict(), folder / Path(find_weights(name).url).name)
    return model


def config(classes: int = 1000, **keys: Any) -> dict[str, Any]:
    head = dict(type="ConvClsHead", num_classes=classes)
    return dict(type="ImageClassifier", backbone=dict(type="SqueezeNet"), head=head, **keys)


def test_names() -> None:
    assert is_published(NAME) and not is_published("weights.pth") and not is_published(None)
    best = find_weights("torchvision://resnet50")
    assert best is torchvision.models.ResNet50_Weights.DEFAULT
    assert find_weights("torchvision://resnet50.DEFAULT") is best
    assert find_weights("torchvision://resnet50.IMAGENET1K_V1") is torchvision.models.ResNet50_Weights.IMAGENET1K_V1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision://resnet19", "no model 'resnet19'. Did you mean 'resnet1"),
        ("torchvision://resnet18.IMAGENET1K_V9", "no weights 'IMAGENET1K_V9'. Did you mean 'IMAGENET1K_V1'"),
        ("torchvision://mnasnet1_3.V", "no weights 'V'"),
    ],
)
def test_wrong_names(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_weights(name)


def test_file_in_the_cache(hub: Path, offline: None, caplog: pytest.LogCaptureFixture) -> None:
    source = place(hub)
    with caplog.at_level(logging.INFO, logger="lbitcls"):
        model = build_classifier(config(pretrained=NAME))
    assert torch.equal(model.head.conv.weight, source.classifier[1].weight)
    assert "is not the published file (its checksum differs)" in caplog.text  # random weights, in its place
    assert torch.equal(model.backbone.features[0].weight, source.features[0].weight)


def test_backbone_alone_and_a_head_for_other_classes(hub: Path, offline: None, caplog: Any) -> None:
    source = place(hub)
    with caplog.at_level(logging.INFO, logger="lbitcls"):
        whole = build_classifier(config(classes=2, pretrained=NAME))
    record = next(r for r in caplog.records if "load checkpoint from" in r.getMessage())
    assert record.levelno == logging.INFO
    assert ": 50 of 52 tensors" in record.getMessage() and "the head starts from scratch" in record.getMessage()
    assert torch.equal(whole.backbone.features[0].weight, source.features[0].weight)
    caplog.clear()
    for keys in (dict(pretrained=NAME), dict(init_cfg=dict(type="Pretrained", checkpoint=NAME))):
        cfg = config(classes=2)
        cfg["backbone"] |= keys
        with caplog.at_level(logging.INFO, logger="lbitcls"):
            alone = build_classifier(cfg)
        assert torch.equal(alone.backbone.features[0].weight, source.features[0].weight)
        assert ": 50 of 50 tensors" in caplog.text


def test_no_network(hub: Path, offline: None) -> None:
    with pytest.raises(CheckpointError) as error:
        build_classifier(config(pretrained=NAME))
    text = str(error.value)
    assert "put a copy of squeezenet1_1-b8a52dc0.pth" in text and str(hub) in text and "TORCH_HOME" in text
    assert not list(hub.glob("*.pth"))
    assert socket.getdefaulttimeout() is None


def test_fetched_once_with_its_checksum(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def download(url: str, dst: str, hash_prefix: str | None = None, progress: bool = True) -> None:
        asked.append((url, hash_prefix))
        place(hub)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    assert "features.0.weight" in read_checkpoint(NAME)["state_dict"]
    fetch_weights(NAME)
    assert asked == [("https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth", "b8a52dc0")]


def test_a_download_with_another_checksum_is_refused(
    hub: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    served = tmp_path / "served"
    served.write_bytes(b"not the file")
    monkeypatch.setattr("torch.hub.urlopen", lambda request: _open(served))
    with pytest.raises(CheckpointError, match="invalid hash value"):
        fetch_weights(NAME)
    assert not list(hub.glob("*.pth"))


def _open(path: Path) -> Any:
    from urllib.request import urlopen

    return urlopen(path.as_uri())


def test_the_published_file_brings_no_warning(hub: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    content = b"weights"
    name = f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (hub / name).write_bytes(content)
    entry = type("Entry", (), {"url": f"https://example.org/{name}"})
    monkeypatch.setattr("lbitcls.utils.published.find_weights", lambda name: entry)
    assert fetch_weights("torchvision://net") == hub / name
    assert not caplog.records


@pytest.mark.parametrize("given", ["https://example.org/x.pth", 5, True])
def test_neither_file_nor_name(given: Any) -> None:
    with pytest.raises(ConfigError, match="neither a local file nor 'torchvision://NAME'"):
        build_classifier(config(pretrained=given))


def test_left_out_where_a_checkpoint_follows(hub: Path, offline: None) -> None:
    cfg = config(pretrained=NAME)
    cfg["backbone"]["pretrained"] = NAME
    build_classifier(cfg, pretrained=False)
    assert cfg["pretrained"] == cfg["backbone"]["pretrained"] == NAME

"""timm's networks: weights from files, quantization, messages without timm or without a network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lbitcls.models import build_backbone, build_classifier
from lbitcls.quant import build_mtransformer
from lbitcls.utils.errors import CheckpointError, DependencyError

timm = pytest.importorskip("timm")
NAME = "resnet10t"


def classifier(**backbone: Any) -> Any:
    head = dict(type="LinearClsHead", num_classes=1000, in_channels=512)
    return build_classifier(
        dict(type="ImageClassifier", backbone=dict(type="TimmBackbone", name=NAME, **backbone), head=head)
    )


def test_a_file_of_timm_gives_timms_logits(tmp_path: Path) -> None:
    published = timm.create_model(NAME).eval()
    torch.save(published.state_dict(), tmp_path / "weights.pth")
    img = torch.rand(2, 3, 64, 64)
    whole = classifier()
    whole.load_state_dict(whole.adapt_state_dict(published.state_dict()))
    assert torch.equal(whole.eval().predict(img), published(img))
    alone = classifier(pretrained=str(tmp_path / "weights.pth"), frozen=True)
    assert torch.equal(alone.eval().backbone(img)[-1], published.forward_head(published.forward_features(img), True))


def test_it_is_quantized_like_any_other() -> None:
    policy = {kind: dict(type=f"LSQ{name}", num_bit_w=4, num_bit_a=4) for kind, name in (("Conv2d", "Conv"),)}
    model = build_mtransformer(dict(type="ModelTransformer", quan_policy=policy))(classifier())
    assert type(model.backbone.model.layer1[0].conv1).__name__ == "QuantConv2d"


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(DependencyError, match=r"pip install 'lbitcls\[timm\]'"):
        build_backbone(dict(type="TimmBackbone", name=NAME))


def test_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(CheckpointError, match="weights of 'resnet10t' cannot be downloaded .*give pretrained=FILE"):
        build_backbone(dict(type="TimmBackbone", name=NAME, pretrained=True))


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "resnet10t"])
def test_the_number_of_features_is_that_of_the_classifiers_input(name: str) -> None:
    backbone = build_backbone(dict(type="TimmBackbone", name=name)).eval()
    with torch.no_grad():
        assert backbone(torch.rand(1, 3, 32, 32))[-1].shape == (1, backbone.num_features)

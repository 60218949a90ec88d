"""Frozen parts of a model: no gradients, eval mode, and their former state when they are unfrozen."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lbitcls.models import build_classifier
from lbitcls.quant import build_mtransformer
from lbitcls.utils.errors import ConfigError


def classifier(frozen: bool = False, **keys: Any) -> Any:
    backbone = dict(type="ResNetCIFAROptionA", depth=8, in_channels=1, base_channels=4, frozen=frozen, **keys)
    head = dict(type="LinearClsHead", num_classes=3, in_channels=16, dropout=0.5)
    return build_classifier(
        dict(type="ImageClassifier", backbone=backbone, neck=dict(type="GlobalAveragePooling"), head=head)
    )


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def modes(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if module.training}


def test_frozen_backbone_stays_and_the_head_learns() -> None:
    model = classifier(frozen=True).train()
    assert trained(model) == {"head.fc.weight", "head.fc.bias"}
    assert not any(name.startswith("backbone") for name in modes(model))
    assert model.head.dropout.training and model.training
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.1)
    loss = model(torch.rand(4, 1, 8, 8), gt_label=torch.tensor([0, 1, 2, 0]))["loss"]
    loss.backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"head.fc.weight", "head.fc.bias"}
    assert not model.backbone(torch.rand(1, 1, 8, 8))[-1].requires_grad  # nothing is kept for a backward pass


def test_part_after_part() -> None:
    model = classifier(frozen=True)
    everything = trained(classifier())
    model.unfreeze("backbone.layer3")
    assert trained(model.train()) == {n for n in everything if n.startswith(("backbone.layer3.", "head."))}
    assert model.backbone.layer3[0].bn1.training and not model.backbone.layer2[0].bn1.training
    model.unfreeze("backbone")
    assert trained(model.train()) == everything and modes(model) == modes(classifier().train())
    model.freeze("backbone.layer1")
    model.freeze("backbone")
    assert trained(model) == {"head.fc.weight", "head.fc.bias"}


def test_frozen_stages_and_norm_eval_hold_when_unfrozen() -> None:
    model = classifier(frozen=True, frozen_stages=1, norm_eval=True)
    model.unfreeze("backbone")
    plain = classifier(frozen_stages=1, norm_eval=True)
    assert trained(model) == trained(plain)
    assert modes(model.train()) == modes(plain.train())


def test_quantizers_are_frozen_with_their_layer() -> None:
    from lbitcls.quant import set_quantization

    model = classifier(frozen=True)
    policy = dict(Conv2d=dict(type="LSQConv", num_bit_w=4, num_bit_a=4))
    build_mtransformer(dict(type="ModelTransformer", quan_policy=policy))(model)
    set_quantization(model, True)
    model.hold_frozen()
    assert trained(model) == {"head.fc.weight", "head.fc.bias"}
    assert not any(name.startswith("backbone") for name in modes(model.train()))
    model.unfreeze("backbone.conv1")
    own = {name for name in trained(model) if name.startswith("backbone")}
    assert own == {name for name, _ in model.named_parameters() if name.startswith("backbone.conv1.")} and len(own) > 1


def test_moving_parts() -> None:
    assert classifier(frozen=True).moving_parts == []
    model = classifier(frozen=True)
    model.unfreeze("backbone.layer3")
    assert model.moving_parts and all(name.startswith("backbone.layer3.") for name in model.moving_parts)


def test_features_in_the_place_of_images() -> None:
    model = classifier(frozen=True).eval()
    img, label = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    features = model.fixed_features(img)
    assert features.shape == (4, 16)
    assert torch.equal(model.predict_features(features), model.predict(img))
    assert torch.equal(model(features=features, gt_label=label)["loss"], model(img, gt_label=label)["loss"])


def test_names_and_patterns() -> None:
    model = classifier()
    assert model.find_parts(["backbone.layer[23]", "backbone.layer2.0"], "here") == [
        "backbone.layer2",
        "backbone.layer3",
    ]
    message = "here: 'backbone.layr3' matches no part of the model. Did you mean 'backbone"
    with pytest.raises(ConfigError, match=message):
        model.find_parts(["backbone.layr3"], "here")


def test_frozen_is_true_or_false() -> None:
    with pytest.raises(ConfigError, match="frozen must be True or False; got 2. See also frozen_stages"):
        classifier(frozen=2)

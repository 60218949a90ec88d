"""Additions as modules: torchvision's blocks compute the same, bit for bit, forward and backward."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models import mobilenetv2, mobilenetv3, resnet

from lbitcls.models.backbones.additions import Add, name_additions
from lbitcls.models.builder import build_backbone
from lbitcls.protocols import Addition

V3 = mobilenetv3.InvertedResidualConfig(8, 3, 16, 8, True, "HS", 1, 1, 1.0)
BLOCKS = {
    "basic": lambda: resnet.BasicBlock(8, 8),
    "basic, downsample": lambda: resnet.BasicBlock(8, 16, 2, nn.Sequential(nn.Conv2d(8, 16, 1, 2), nn.BatchNorm2d(16))),
    "bottleneck": lambda: resnet.Bottleneck(8, 2),
    "inverted": lambda: mobilenetv2.InvertedResidual(8, 8, 1, 6),
    "inverted, v3": lambda: mobilenetv3.InvertedResidual(V3, nn.BatchNorm2d),
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_block_with_a_named_addition_computes_the_same(kind: str) -> None:
    torch.manual_seed(0)
    block = nn.Sequential(BLOCKS[kind]())
    named = copy.deepcopy(block)
    name_additions(named)
    assert isinstance(named[0].add, Addition) and not hasattr(block[0], "add")
    assert named.state_dict().keys() == block.state_dict().keys()
    for reader in named[0].add.readers:
        assert isinstance(named[0].get_submodule(reader), nn.Conv2d)
    x = torch.randn(2, 8, 6, 6)
    results = []
    for model in (block, named):
        image = x.clone().requires_grad_()
        y = model(image)
        y.square().sum().backward()
        results.append((y, image.grad, *(p.grad for p in model.parameters())))
    assert all(torch.equal(left, right) for left, right in zip(*results, strict=True))


def test_blocks_without_a_skip_connection_stay_as_they_are() -> None:
    block = nn.Sequential(mobilenetv2.InvertedResidual(8, 8, 2, 6))
    name_additions(block)
    assert type(block[0]) is mobilenetv2.InvertedResidual


@pytest.mark.parametrize(
    "backbone, count",
    [
        (dict(type="ResNet_CIFAR", depth=18, base_channels=4), 8),
        (dict(type="ResNet", depth=50, base_channels=4), 16),
        (dict(type="ResNetCIFAROptionA", depth=8), 3),
        (dict(type="ResNetCIFAROptionB", depth=8), 3),
        (dict(type="MobileNetV2", widen_factor=0.25), 11),
        (dict(type="TorchvisionBackbone", name="mobilenet_v3_small"), 6),
        (dict(type="SqueezeNet"), 0),
    ],
)
def test_families(backbone: dict, count: int) -> None:
    assert sum(isinstance(module, Add) for module in build_backbone(backbone).modules()) == count

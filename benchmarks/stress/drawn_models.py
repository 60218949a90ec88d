"""Random classifiers for the part `networks`: configs of small models from every family of backbones, by number."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lbitcls.models.backbones.base import BaseBackbone
from lbitcls.registry import BACKBONES
from stress.layouts import ENDINGS
from stress.structures import STRUCTURES

Shape = tuple[int, int, int]
Drawn = tuple[dict[str, Any], Shape]
"""Config of a backbone, and the shape (C, H, W) of its images."""


@BACKBONES.register_module()
class RandomGraph(BaseBackbone):
    """A few random structures and an ending, as somebody writes them in plain PyTorch; returns logits (N, K).

    Args:
        seed: Determines the structures and their parameters; one of the structures takes turns with it.
        shape: (C, H, W) of an image.
        num_classes: K.
    """

    def __init__(self, seed: int, shape: Shape, num_classes: int) -> None:
        super().__init__()
        self.in_channels, self.num_classes, self.out_channels = shape[0], num_classes, (num_classes,)
        draw = random.Random(f"graph {seed}")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.parts = _graph(draw, seed, shape, num_classes)

    def forward(self, img: Tensor) -> tuple[Tensor, ...]:
        return (self.parts(img),)


def _graph(draw: random.Random, seed: int, shape: Shape, classes: int) -> nn.Sequential:
    width = draw.choice((6, 8, 12, shape[1]))
    first = nn.Conv2d(shape[0], width, 3, stride=draw.choice((1, 2)), padding=1)
    parts: list[nn.Module] = [nn.Sequential(first, nn.BatchNorm2d(width), nn.ReLU())]
    names = [list(STRUCTURES)[seed % len(STRUCTURES)], *draw.sample(list(STRUCTURES), draw.choice((0, 1, 1, 2)))]
    draw.shuffle(names)
    for name in names:
        parts.append(STRUCTURES[name](draw, *_shape_after(parts, shape)))
    last = list(ENDINGS)[seed // 3 % len(ENDINGS)]
    return nn.Sequential(*parts, ENDINGS[last](draw, *_shape_after(parts, shape), classes))


def _shape_after(parts: list[nn.Module], shape: Shape) -> Shape:
    with torch.no_grad():
        return tuple(nn.Sequential(*parts).train()(torch.zeros(2, *shape)).shape[1:])


def _side(draw: random.Random, least: int = 16) -> int:
    return draw.choice([side for side in (16, 16, 20, 24, 28, 32) if side >= least])


def residual(draw: random.Random, number: int, classes: int) -> Drawn:
    """ResNets for CIFAR and for ImageNet, basic blocks and bottlenecks."""
    kind = draw.choice(("ResNetCIFAROptionA", "ResNetCIFAROptionB", "ResNet", "ResNet_CIFAR"))
    images = draw.choice((1, 3))
    if kind.startswith("ResNetCIFAR"):
        depth, width, stages = draw.choice((8, 8, 14)), draw.choice((4, 6, 8, 16)), draw.choice((1, 2, 3, 3))
        given: dict[str, Any] = dict(depth=depth, base_channels=width, out_indices=(stages - 1,))
    else:
        depth, width, stages = draw.choice((18, 18, 50)), draw.choice((4, 6, 8)), draw.choice((1, 2, 3))
        given = dict(depth=depth, base_channels=width, num_stages=stages, out_indices=(stages - 1,))
        given |= dict(style=draw.choice(("pytorch", "caffe")), zero_init_residual=draw.random() < 0.2)
        given |= dict(strides=tuple(draw.choice((1, 2)) for _ in range(stages)))
    return dict(type=kind, in_channels=images, **given), (images, *[_side(draw)] * 2)  # type: ignore[return-value]


def mobile(draw: random.Random, number: int, classes: int) -> Drawn:
    """MobileNetV2, its first stages."""
    given = dict(widen_factor=draw.choice((0.1, 0.2, 0.35, 0.5)), out_indices=(draw.choice((1, 2, 2, 3)),))
    return dict(type="MobileNetV2", **given), (3, *[_side(draw)] * 2)  # type: ignore[return-value]


def plain(draw: random.Random, number: int, classes: int) -> Drawn:
    """Networks without skip connections: LeNet, VGG, SqueezeNet."""
    kind = draw.choice(("LeNet5", "LeNet5", "VGG", "SqueezeNet"))
    if kind == "LeNet5":
        images, side, own = draw.choice((1, 3)), draw.choice((28, 32)), draw.choice((classes, None))
        return dict(type=kind, in_channels=images, num_classes=own), (images, side, side)
    side = _side(draw)
    if kind == "SqueezeNet":
        return dict(type=kind, version=draw.choice(("1_0", "1_1"))), (3, max(side, 24), max(side, 24))
    given: dict[str, Any] = dict(depth=draw.choice((11, 13)), out_indices=(draw.choice((0, 1)),))
    return dict(type=kind, norm_cfg=draw.choice((None, dict(type="BN"))), **given), (3, min(side, 20), min(side, 20))


def library(draw: random.Random, number: int, classes: int) -> Drawn:
    """Networks of torchvision and timm, the smallest ones."""
    kind, name = draw.choice(
        (
            *(("TorchvisionBackbone", "shufflenet_v2_x0_5"), ("TorchvisionBackbone", "mobilenet_v3_small")),
            *(("TorchvisionBackbone", "mnasnet0_5"), ("TimmBackbone", "mobilenetv3_small_050")),
            *(("TimmBackbone", "resnet10t"), ("TimmBackbone", "ghostnet_050"), ("TimmBackbone", "test_convnext")),
            *(("TimmBackbone", "test_efficientnet"), ("TimmBackbone", "test_resnet")),
            *(("TimmBackbone", "test_byobnet"), ("TimmBackbone", "test_nfnet"), ("TimmBackbone", "test_mambaout")),
        )
    )
    return dict(type=kind, name=name), (3, 32, 32)


def graph(draw: random.Random, number: int, classes: int) -> Drawn:
    """Random graphs of plain PyTorch."""
    side = draw.choice(((16, 16), (16, 20), (18, 16), (24, 24)))
    shape = (draw.choice((1, 3)), *side)
    return dict(type="RandomGraph", seed=number, shape=shape, num_classes=classes), shape


FAMILIES: dict[str, Callable[[random.Random, int, int], Drawn]] = {
    **dict(residual=residual, mobile=mobile, plain=plain, library=library, graph=graph)
}
"""Functions of a generator, the number of a case, and the number of classes."""


def classifier(backbone: dict[str, Any], classes: int, draw: random.Random) -> dict[str, Any]:
    """Return the config of a classifier with this backbone, and the neck and head that fit it."""
    if backbone.get("num_classes"):
        return dict(type="ImageClassifier", backbone=backbone, head=dict(type="ClsHead", topk=(1,)))
    built: Any = BACKBONES.build(dict(backbone))
    head: dict[str, Any] = dict(num_classes=classes, in_channels=built.num_features, topk=(1,))
    head["dropout"] = draw.choice((0.0, 0.0, 0.1))
    if backbone["type"] not in ("TorchvisionBackbone", "TimmBackbone") and draw.random() < 0.1:
        return dict(type="ImageClassifier", backbone=backbone, head=dict(type="ConvClsHead", **head))
    neck = dict(type="GlobalAveragePooling")
    return dict(type="ImageClassifier", backbone=backbone, neck=neck, head=dict(type="LinearClsHead", **head))

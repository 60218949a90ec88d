"""ResNet (He et al., arXiv:1512.03385), built from torchvision's blocks with torchvision's layer names.

`style='pytorch'` puts the stride of a bottleneck on its 3x3 convolution, as torchvision and its published
weights do; `style='caffe'` puts it on the first 1x1 convolution, as the paper does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from lbitcls.models.backbones.additions import name_additions
from lbitcls.models.backbones.base import (
    StagedBackbone,
    check_choice,
    checked_indices,
    init_weights,
    norm_layer,
    refuse,
)
from lbitcls.registry import BACKBONES
from lbitcls.utils.errors import ConfigError

_BLOCKS: dict[int, tuple[Any, tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


@BACKBONES.register_module()
class ResNet(StagedBackbone):
    """ResNet for images of ImageNet's size: layers `conv1`, `bn1`, `layer1` … `layer4`.

    Args:
        depth: 18, 34, 50, 101 or 152.
        in_channels: Channels of the image.
        base_channels: Channels of the stem; 64 in the published networks.
        num_stages: Number of stages, 1 to 4.
        strides: Stride of each stage's first block.
        out_indices: Stages whose features are returned, from 0. Later stages are not built, since nothing would
            train them.
        style: Position of a bottleneck's stride, 'pytorch' (3x3) or 'caffe' (first 1x1).
        frozen_stages: Last frozen stage: -1 none, 0 the stem, n the stem and the first n stages.
        norm_eval: Keep every normalization in eval mode during training.
        norm_cfg: `dict(type='BN', requires_grad=True, eps=…, momentum=…)`.
        zero_init_residual: Initialize each residual branch to zero (False as in torchvision).
        conv_cfg: Only None is supported.
        deep_stem: Only False is supported.
        avg_down: Only False is supported.
        with_cp: Only False is supported.

    Example:
        >>> import torch
        >>> ResNet(depth=18)(torch.rand(1, 3, 64, 64))[-1].shape
        torch.Size([1, 512, 2, 2])
    """

    published_classifier = "fc"

    def __init__(
        self,
        depth: int,
        in_channels: int = 3,
        base_channels: int = 64,
        num_stages: int = 4,
        strides: Sequence[int] = (1, 2, 2, 2),
        out_indices: Sequence[int] = (3,),
        style: str = "pytorch",
        frozen_stages: int = -1,
        norm_eval: bool = False,
        norm_cfg: dict | None = None,
        zero_init_residual: bool = False,
        conv_cfg: Any = None,
        deep_stem: bool = False,
        avg_down: bool = False,
        with_cp: bool = False,
    ) -> None:
        super().__init__(frozen_stages, norm_eval)
        owner = type(self).__name__
        check_choice(owner, "depth", depth, [*_BLOCKS])
        check_choice(owner, "style", style, ["pytorch", "caffe"])
        check_choice(owner, "num_stages", num_stages, [1, 2, 3, 4])
        refuse(owner, conv_cfg=conv_cfg, deep_stem=deep_stem, avg_down=avg_down, with_cp=with_cp)
        if len(strides) < num_stages:
            raise ConfigError(f"{owner}: strides must have {num_stages} values, one per stage; got {tuple(strides)}.")
        self.in_channels = in_channels
        self.out_indices = checked_indices(owner, out_indices, num_stages)
        block, counts = _BLOCKS[depth]
        norm = norm_layer(owner, norm_cfg)
        self._add_stem(in_channels, base_channels, norm)
        channels = base_channels
        for index in range(self.out_indices[-1] + 1):
            width = base_channels * 2**index
            stage = _stage(block, channels, width, counts[index], strides[index], norm)
            self.add_module(f"layer{index + 1}", stage)
            channels = width * block.expansion
        self.out_channels = tuple(base_channels * 2**index * block.expansion for index in self.out_indices)
        init_weights(self)
        if style == "caffe":
            _move_strides(self)
        if zero_init_residual:
            _zero_residuals(self)
        name_additions(self)
        self.freeze()

    def _add_stem(self, images: int, channels: int, norm: Callable[[int], nn.Module]) -> None:
        self.conv1 = nn.Conv2d(images, channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)

    def stem(self, img: Tensor) -> Tensor:
        return self.maxpool(self.relu(self.bn1(self.conv1(img))))


@BACKBONES.register_module()
class ResNet_CIFAR(ResNet):
    """ResNet for images of 32x32: the stem is a 3x3 convolution without stride or max pooling.

    The arguments are those of `ResNet`. For the paper's own CIFAR networks, of 20 to 110 layers, see
    `ResNetCIFAROptionA`.

    Example:
        >>> import torch
        >>> ResNet_CIFAR(depth=18)(torch.rand(1, 3, 32, 32))[-1].shape
        torch.Size([1, 512, 4, 4])
    """

    def _add_stem(self, images: int, channels: int, norm: Callable[[int], nn.Module]) -> None:
        self.conv1 = nn.Conv2d(images, channels, 3, padding=1, bias=False)
        self.bn1 = norm(channels)
        self.relu = nn.ReLU(inplace=True)

    def stem(self, img: Tensor) -> Tensor:
        return self.relu(self.bn1(self.conv1(img)))


def _stage(
    block: Any, in_channels: int, channels: int, count: int, stride: int, norm: Callable[[int], nn.Module]
) -> nn.Sequential:
    out_channels = channels * block.expansion
    downsample = None
    if stride != 1 or in_channels != out_channels:
        conv = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
        downsample = nn.Sequential(conv, norm(out_channels))
    blocks = [block(in_channels, channels, stride, downsample, norm_layer=norm)]
    blocks += [block(out_channels, channels, norm_layer=norm) for _ in range(1, count)]
    return nn.Sequential(*blocks)


def _move_strides(backbone: nn.Module) -> None:
    for block in backbone.modules():
        if isinstance(block, Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


def _zero_residuals(backbone: nn.Module) -> None:
    for block in backbone.modules():
        if isinstance(block, Bottleneck):
            nn.init.zeros_(block.bn3.weight)
        elif isinstance(block, BasicBlock):
            nn.init.zeros_(block.bn2.weight)

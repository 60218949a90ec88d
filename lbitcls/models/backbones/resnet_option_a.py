"""CIFAR ResNets of He et al., arXiv:1512.03385, section 4.2, with shortcuts of option A or option B.

Three stages of n blocks of two 3x3 convolutions, 6n + 2 layers in all: 20, 32, 44, 56 and 110 in the paper.
Where a stage halves the map and doubles the channels, the shortcut has two forms:

- Option A, the paper's for CIFAR, has no parameters: it takes every second pixel and appends channels of zeros, half
  of them before and half after. The layer names are those of the published `resnet20-*.th` files
  (github.com/akamaster/pytorch_resnet_cifar10), whose `linear` is the head's `fc` here.
- Option B is a 1x1 convolution of stride 2 and BatchNorm, `downsample.0` and `downsample.1` as in torchvision. The APoT
  authors' networks (github.com/yhhhli/APoT_Quantization) have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from lbitcls.models.backbones.additions import Add
from lbitcls.models.backbones.base import StagedBackbone, checked_indices, init_weights
from lbitcls.protocols import Addition
from lbitcls.registry import BACKBONES
from lbitcls.utils.errors import ConfigError


class OptionABlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (N, C, H, W) -> (N, O, H/stride, W/stride), O >= C."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.stride = stride
        self.new_channels = channels - in_channels
        self.add: Addition = Add("conv1")

    def forward(self, x: Tensor) -> Tensor:
        x = self.add.enter(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(self.add(out, self.shortcut(x)))

    def shortcut(self, x: Tensor) -> Tensor:
        """Return every `stride`-th pixel of `x`, with the new channels as zeros around the old ones."""
        if self.stride == 1 and self.new_channels == 0:
            return x
        before = self.new_channels // 2
        kept = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(kept, (0, 0, 0, 0, before, self.new_channels - before))


class OptionBBlock(OptionABlock):
    """Block whose shortcut is a 1x1 convolution with BatchNorm where the stride or the number of channels changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__(in_channels, channels, stride)
        if stride != 1 or in_channels != channels:
            conv = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(channels))
            self.add = Add("conv1", "downsample.0", of_input=False)

    def shortcut(self, x: Tensor) -> Tensor:
        """Return `x`, or its projection (N, O, H/stride, W/stride) where the shapes differ."""
        return self.downsample(x) if hasattr(self, "downsample") else x


@BACKBONES.register_module()
class ResNetCIFAROptionA(StagedBackbone):
    """ResNet-20 to -110 for small images (32x32, or 8x8): layers `conv1`, `bn1`, `layer1` … `layer3`.

    Args:
        depth: 6n + 2: 20, 32, 44, 56 or 110 in the paper; 8 and 14 for small data sets.
        in_channels: Channels of the image.
        base_channels: Channels of the first stage; the others have twice and four times as many.
        out_indices: Stages whose features are returned, 0 to 2. Later stages are not built.
        frozen_stages: Last frozen stage: -1 none, 0 the stem, n the stem and the first n stages.
        norm_eval: Keep every normalization in eval mode during training.

    Example:
        >>> import torch
        >>> ResNetCIFAROptionA(depth=8, in_channels=1)(torch.rand(1, 1, 8, 8))[-1].shape
        torch.Size([1, 64, 2, 2])
    """

    published_classifier = "linear"
    block: ClassVar[type[OptionABlock]] = OptionABlock

    def __init__(
        self,
        depth: int,
        in_channels: int = 3,
        base_channels: int = 16,
        out_indices: Sequence[int] = (2,),
        frozen_stages: int = -1,
        norm_eval: bool = False,
    ) -> None:
        super().__init__(frozen_stages, norm_eval)
        if depth < 8 or depth % 6 != 2:
            raise ConfigError(f"{type(self).__name__}: depth must be 6n + 2, such as 20, 32, 44, 56, 110; got {depth}.")
        self.in_channels = in_channels
        self.out_indices = checked_indices(type(self).__name__, out_indices, 3)
        self.conv1 = nn.Conv2d(in_channels, base_channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(base_channels)
        self.relu = nn.ReLU(inplace=True)
        channels = base_channels
        for index in range(self.out_indices[-1] + 1):
            width = base_channels * 2**index
            first = self.block(channels, width, stride=1 if index == 0 else 2)
            rest = [self.block(width, width, stride=1) for _ in range(1, (depth - 2) // 6)]
            self.add_module(f"layer{index + 1}", nn.Sequential(first, *rest))
            channels = width
        self.out_channels = tuple(base_channels * 2**index for index in self.out_indices)
        init_weights(self)
        self.freeze()

    def stem(self, img: Tensor) -> Tensor:
        return self.relu(self.bn1(self.conv1(img)))


@BACKBONES.register_module()
class ResNetCIFAROptionB(ResNetCIFAROptionA):
    """ResNet-20 to -110 for small images whose shortcuts between stages are convolutions with BatchNorm.

    The arguments are those of `ResNetCIFAROptionA`. A policy for `Conv2d` quantizes the shortcuts as well.

    Example:
        >>> import torch
        >>> backbone = ResNetCIFAROptionB(depth=8, in_channels=1)
        >>> backbone(torch.rand(1, 1, 8, 8))[-1].shape, tuple(backbone.layer2[0].downsample[0].weight.shape)
        (torch.Size([1, 64, 2, 2]), (32, 16, 1, 1))
    """

    published_classifier = "fc"
    block = OptionBBlock

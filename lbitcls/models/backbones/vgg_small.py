"""VGG-small, the CIFAR-10 network of LQ-Nets (Zhang et al., arXiv:1807.10029) and of papers that compare with it.

Six 3x3 convolutions of 128, 128, 256, 256, 512 and 512 channels, each with BatchNorm and ReLU; after every second one a
2x2 max pooling, which comes before its BatchNorm, as in `cifar10-vgg-small.py` of microsoft/LQ-Nets. One linear layer,
the head's, takes all 512 x 4 x 4 features.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from lbitcls.models.backbones.base import BaseBackbone, init_weights
from lbitcls.registry import BACKBONES
from lbitcls.utils.errors import DataError

_CHANNELS = (128, 128, 256, 256, 512, 512)


@BACKBONES.register_module()
class VGGSmall(BaseBackbone):
    """VGG-small for images of 32x32 pixels: features (N, 8192), for a `LinearClsHead` without a neck.

    Args:
        frozen_stages: Last frozen stage, each of two convolutions: -1 none; 0, 1, 2: up to that one.
        norm_eval: Keep every normalization in eval mode during training.

    Example:
        >>> import torch
        >>> VGGSmall()(torch.rand(2, 3, 32, 32))[-1].shape
        torch.Size([2, 8192])
    """

    in_channels: int = 3

    layer_aliases: Mapping[str, str] = {"conv1": "features.0"}
    out_channels = (_CHANNELS[-1] * 4 * 4,)

    def __init__(self, frozen_stages: int = -1, norm_eval: bool = False) -> None:
        super().__init__(frozen_stages, norm_eval)
        layers: list[nn.Module] = []
        for position, (inputs, outputs) in enumerate(zip((self.in_channels, *_CHANNELS), _CHANNELS)):
            layers.append(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
            if position % 2:
                layers.append(nn.MaxPool2d(2))
            layers += [nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        init_weights(self)
        self.freeze()

    def stages(self) -> list[list[str]]:
        names = [f"features.{position}" for position in range(len(self.features))]
        size = len(names) // 3
        return [names[start : start + size] for start in range(0, len(names), size)]

    def forward(self, img: Tensor) -> tuple[Tensor, ...]:
        size = tuple(img.shape[-2:])
        if size != (32, 32):
            raise DataError(f"VGGSmall needs images of 32x32 pixels; got {size[0]}x{size[1]}. Resize them.")
        return (self.features(img).flatten(1),)

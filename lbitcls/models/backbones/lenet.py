"""LeNet-5 (LeCun et al., "Gradient-based learning applied to document recognition", 1998), in mmcls's form.

Three 5x5 convolutions with tanh, two average poolings, two linear layers. As in the paper, the input is
32x32: images of 28x28 (original MNIST) are padded with two zero pixels on each side.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from lbitcls.models.backbones.base import BaseBackbone, split_stages
from lbitcls.registry import BACKBONES
from lbitcls.utils.errors import DataError


@BACKBONES.register_module()
class LeNet5(BaseBackbone):
    """LeNet-5 for images of 32x32 or 28x28 pixels.

    Args:
        num_classes: K; the backbone then returns logits (N, K), for a `ClsHead`. None (or -1): features
            (N, 120, 1, 1), for `GlobalAveragePooling` and a `LinearClsHead` with 120 channels.
        in_channels: Channels of the image.
        frozen_stages: Last frozen stage: -1 none; 0, 1, 2: up to that convolution.
        norm_eval: Accepted as by every backbone; LeNet has no normalization.

    Example:
        >>> import torch
        >>> LeNet5(num_classes=10)(torch.rand(2, 1, 28, 28))[-1].shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int | None = None,
        in_channels: int = 1,
        frozen_stages: int = -1,
        norm_eval: bool = False,
    ) -> None:
        super().__init__(frozen_stages, norm_eval)
        self.in_channels = in_channels
        self.num_classes = None if num_classes in (None, -1) else num_classes
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 6, kernel_size=5),
            nn.Tanh(),
            nn.AvgPool2d(kernel_size=2),
            nn.Conv2d(6, 16, kernel_size=5),
            nn.Tanh(),
            nn.AvgPool2d(kernel_size=2),
            nn.Conv2d(16, 120, kernel_size=5),
            nn.Tanh(),
        )
        self.out_channels: tuple[int, ...] = (120,)
        if self.num_classes is not None:
            self.classifier = nn.Sequential(nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, self.num_classes))
            self.out_channels = (self.num_classes,)
        self.freeze()

    def stages(self) -> list[list[str]]:
        return split_stages("features", self.features, nn.AvgPool2d)

    def forward(self, img: Tensor) -> tuple[Tensor, ...]:
        size = tuple(img.shape[-2:])
        if size == (28, 28):
            img = functional.pad(img, (2, 2, 2, 2))
        elif size != (32, 32):
            raise DataError(f"LeNet5 needs images of 32x32 or 28x28 pixels; got {size[0]}x{size[1]}. Resize them.")
        feature = self.features(img)
        return (feature,) if self.num_classes is None else (self.classifier(feature.flatten(1)),)

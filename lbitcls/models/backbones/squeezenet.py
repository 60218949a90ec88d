"""SqueezeNet (Iandola et al., arXiv:1602.07360), torchvision's, with its names."""

from __future__ import annotations

from torch import Tensor
from torchvision.models import squeezenet

from lbitcls.models.backbones.base import BaseBackbone, check_choice
from lbitcls.registry import BACKBONES


@BACKBONES.register_module()
class SqueezeNet(BaseBackbone):
    """SqueezeNet without its classifier, which is `ConvClsHead` (and no neck).

    Args:
        version: '1_0' or '1_1' ('1.0' and '1.1' are the same).

    Example:
        >>> import torch
        >>> SqueezeNet(version="1_1")(torch.rand(1, 3, 64, 64))[-1].shape
        torch.Size([1, 512, 3, 3])
    """

    published_classifier = "classifier.1"
    out_channels = (512,)

    def __init__(self, version: str = "1_1") -> None:
        super().__init__()
        version = str(version).replace(".", "_")
        check_choice("SqueezeNet", "version", version, ["1_0", "1_1"])
        self.features = squeezenet.SqueezeNet(version, num_classes=1).features

    def forward(self, img: Tensor) -> tuple[Tensor, ...]:
        return (self.features(img),)

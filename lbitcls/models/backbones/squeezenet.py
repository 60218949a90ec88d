"""SqueezeNet (Iandola et al., arXiv:1602.07360), torchvision's implementation and layer names."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models import squeezenet

from lbitcls.models.backbones.base import BaseBackbone, check_choice, split_stages
from lbitcls.registry import BACKBONES


@BACKBONES.register_module()
class SqueezeNet(BaseBackbone):
    """SqueezeNet without its classifier; use it with `ConvClsHead` and no neck.

    Args:
        version: '1_0' or '1_1' ('1.0' and '1.1' are the same).
        frozen_stages: Last frozen stage: -1 none, 0 the stem, n the stem and the first n groups of fire
            modules, 3 in all, each but the last ending in a max pooling.
        norm_eval: Accepted as by every backbone; SqueezeNet has no normalization.

    Example:
        >>> import torch
        >>> SqueezeNet(version="1_1")(torch.rand(1, 3, 64, 64))[-1].shape
        torch.Size([1, 512, 3, 3])
    """

    in_channels: int = 3

    published_classifier = "classifier.1"
    out_channels = (512,)

    def __init__(self, version: str = "1_1", frozen_stages: int = -1, norm_eval: bool = False) -> None:
        super().__init__(frozen_stages, norm_eval)
        version = str(version).replace(".", "_")
        check_choice("SqueezeNet", "version", version, ["1_0", "1_1"])
        self.features = squeezenet.SqueezeNet(version, num_classes=1).features
        self.freeze()

    def stages(self) -> list[list[str]]:
        return split_stages("features", self.features, nn.MaxPool2d)

    def forward(self, img: Tensor) -> tuple[Tensor, ...]:
        return (self.features(img),)

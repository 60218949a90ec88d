"""VGG (Simonyan and Zisserman, arXiv:1409.1556), torchvision's implementation and layer names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models import vgg

from lbitcls.models.backbones.base import (
    SequenceBackbone,
    check_choice,
    checked_indices,
    init_weights,
    refuse,
)
from lbitcls.registry import BACKBONES
from lbitcls.utils.errors import ConfigError

_CHANNELS = {11: "A", 13: "B", 16: "D", 19: "E"}


@BACKBONES.register_module()
class VGG(SequenceBackbone):
    """VGG: the convolutions are `features`; with `num_classes`, three linear layers follow, `classifier`.

    Args:
        depth: 11, 13, 16 or 19.
        num_classes: K; the backbone then returns logits (N, K), for a `ClsHead`. None (or -1): feature maps,
            for `GlobalAveragePooling` and a `LinearClsHead` with 512 channels.
        out_indices: Stages, each ending in a max pooling, whose features are returned, 0 to 4; (4,) by
            default; not together with `num_classes`. Later stages are not built.
        frozen_stages: Number of frozen stages, from the first; 0 and -1: none.
        norm_cfg: `dict(type='BN')` for the networks with batch normalization, None for those without.
        norm_eval: Keep every normalization in eval mode during training.
        conv_cfg: Only None is supported.

    Example:
        >>> import torch
        >>> VGG(depth=11)(torch.rand(1, 3, 32, 32))[-1].shape
        torch.Size([1, 512, 1, 1])
    """

    in_channels: int = 3

    def __init__(
        self,
        depth: int,
        num_classes: int | None = None,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        norm_cfg: dict | None = None,
        norm_eval: bool = False,
        conv_cfg: Any = None,
    ) -> None:
        super().__init__(frozen_stages, norm_eval)
        check_choice("VGG", "depth", depth, [*_CHANNELS])
        check_choice("VGG", "norm_cfg", norm_cfg, [None, {"type": "BN"}])
        refuse("VGG", conv_cfg=conv_cfg)
        self.num_classes = None if num_classes in (None, -1) else num_classes
        if self.num_classes is not None and out_indices is not None:
            raise ConfigError("VGG: with num_classes it returns only logits; leave out out_indices or num_classes.")
        self.out_indices = checked_indices("VGG", out_indices if out_indices is not None else (4,), 5)
        features = vgg.make_layers(vgg.cfgs[_CHANNELS[depth]], batch_norm=norm_cfg is not None)
        self.ends = tuple(i for i, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d))
        self.features = features[: self.ends[self.out_indices[-1]] + 1]
        self.out_channels = tuple((64, 128, 256, 512, 512)[index] for index in self.out_indices)
        if self.num_classes is not None:
            net = vgg.VGG(nn.Identity(), num_classes=self.num_classes, init_weights=False)
            self.avgpool, self.classifier = net.avgpool, net.classifier
            self.out_channels = (self.num_classes,)
        init_weights(self)
        self.freeze()

    def forward(self, img: Tensor) -> tuple[Tensor, ...]:
        features = super().forward(img)
        if self.num_classes is None:
            return features
        return (self.classifier(self.avgpool(features[-1]).flatten(1)),)

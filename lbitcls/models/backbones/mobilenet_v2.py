"""MobileNetV2 (Sandler et al., arXiv:1801.04381), torchvision's implementation and layer names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torchvision.models import mobilenetv2

from lbitcls.models.backbones.additions import name_additions
from lbitcls.models.backbones.base import SequenceBackbone, checked_indices, norm_layer, refuse
from lbitcls.registry import BACKBONES
from lbitcls.utils.errors import ConfigError


@BACKBONES.register_module()
class MobileNetV2(SequenceBackbone):
    """MobileNetV2: the layers are `features.0` … `features.18`.

    Args:
        widen_factor: Factor on the channels of every layer; the last never has fewer than 1280.
        out_indices: Stages whose features are returned: 0 to 6 for the seven groups of inverted residuals, 7 for
            the last 1x1 convolution. Later stages are not built.
        frozen_stages: Last frozen stage: -1 none, 0 the first convolution, n the first convolution and the first
            n stages.
        norm_eval: Keep every normalization in eval mode during training.
        norm_cfg: `dict(type='BN', requires_grad=True, eps=…, momentum=…)`.
        conv_cfg: Only None is supported.
        act_cfg: Only ReLU6 is supported.
        with_cp: Only False is supported.

    Example:
        >>> import torch
        >>> MobileNetV2()(torch.rand(1, 3, 64, 64))[-1].shape
        torch.Size([1, 1280, 2, 2])
    """

    in_channels: int = 3

    published_classifier = "classifier.1"
    # mmcls's name of the first convolution.
    layer_aliases: Mapping[str, str] = {"conv1": "features.0.0", "conv1.conv": "features.0.0"}
    ends = (1, 3, 6, 10, 13, 16, 17, 18)
    num_stem = 1

    def __init__(
        self,
        widen_factor: float = 1.0,
        out_indices: Sequence[int] = (7,),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        norm_cfg: dict | None = None,
        conv_cfg: Any = None,
        act_cfg: dict | None = None,
        with_cp: bool = False,
    ) -> None:
        super().__init__(frozen_stages, norm_eval)
        if not widen_factor > 0:
            raise ConfigError(f"MobileNetV2: widen_factor must be a number above 0; got {widen_factor!r}.")
        if act_cfg is not None and act_cfg != {"type": "ReLU6"}:
            refuse("MobileNetV2", act_cfg=act_cfg)
        refuse("MobileNetV2", conv_cfg=conv_cfg, with_cp=with_cp)
        self.out_indices = checked_indices("MobileNetV2", out_indices, len(self.ends))
        norm = norm_layer("MobileNetV2", norm_cfg)
        net = mobilenetv2.MobileNetV2(num_classes=1, width_mult=widen_factor, norm_layer=norm)
        self.features = net.features[: self.ends[self.out_indices[-1]] + 1]
        name_additions(self)
        last_layers: list[Any] = [self.features[self.ends[index]] for index in self.out_indices]
        self.out_channels = tuple(layer.out_channels for layer in last_layers)
        self.freeze()

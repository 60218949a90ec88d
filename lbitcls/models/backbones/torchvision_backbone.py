"""Any classification network of torchvision, by its torchvision name, without its last linear layer."""

from __future__ import annotations

import torchvision
from torch import Tensor, nn

from lbitcls.models.backbones.additions import name_additions
from lbitcls.models.backbones.base import BaseBackbone, child_stages
from lbitcls.registry import BACKBONES
from lbitcls.utils.errors import ConfigError, suggest

# Their auxiliary branches return a tuple in training.
_WITH_SIDE_BRANCHES = ("googlenet", "inception_v3")


@BACKBONES.register_module()
class TorchvisionBackbone(BaseBackbone):
    """Network of `torchvision.models` that returns the input of its last linear layer, features (N, C).

    The network is the submodule `model`; its last linear layer is replaced by an identity, and a published file's
    weights of that layer go to the head. C is `num_features`; a head for another number of channels is
    refused, and the message gives the right one.

    Args:
        name: Name from `torchvision.models.list_models()`, such as `'shufflenet_v2_x1_0'`. SqueezeNet has no
            linear layer: use the backbone `SqueezeNet`.
        frozen_stages: Last frozen stage, -1 none. Each part of the network is a stage, in order: a submodule with
            parameters, or, if those are in one sequence `features`, a layer of it.
        norm_eval: Keep every normalization in eval mode during training.

    Example:
        >>> TorchvisionBackbone("shufflenet_v2_x1_0").num_features
        1024
    """

    in_channels: int = 3

    state_prefix = "model."

    def __init__(self, name: str, norm_eval: bool = False, frozen_stages: int = -1) -> None:
        super().__init__(frozen_stages, norm_eval)
        known = torchvision.models.list_models(module=torchvision.models)
        if name not in known:
            raise ConfigError(
                f"TorchvisionBackbone: torchvision has no classifier '{name}'{suggest(name, known)} "
                f"Known: {', '.join(known)}."
            )
        options = {"aux_logits": False, "init_weights": True} if name in _WITH_SIDE_BRANCHES else {}
        self.name = name
        self.model = torchvision.models.get_model(name, weights=None, **options)
        linear = [key for key, layer in self.model.named_modules() if isinstance(layer, nn.Linear)]
        if not linear:
            raise ConfigError(
                f"TorchvisionBackbone: '{name}' has no linear layer to remove; use "
                "backbone=dict(type='SqueezeNet', version='1_1') with head=dict(type='ConvClsHead', …)."
            )
        self.published_classifier = linear[-1]
        self.out_channels = (self.model.get_submodule(linear[-1]).in_features,)
        self.model.set_submodule(linear[-1], nn.Identity())
        name_additions(self.model)
        self.freeze()

    def stages(self) -> list[list[str]]:
        return child_stages(self, "model")

    def forward(self, img: Tensor) -> tuple[Tensor, ...]:
        return (self.model(img),)

"""Any network of timm (github.com/huggingface/pytorch-image-models), by its timm name, without its classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lbitcls.models.backbones.base import BaseBackbone, child_stages
from lbitcls.registry import BACKBONES
from lbitcls.utils import load_checkpoint
from lbitcls.utils.errors import CheckpointError, ConfigError, DependencyError, suggest


@BACKBONES.register_module()
class TimmBackbone(BaseBackbone):
    """Network of timm; needs the extra `timm`: `pip install 'lbitcls[timm]'`.

    The network is the submodule `model`. Without `out_indices` it returns its classifier's input, features (N, C), so
    no neck is needed (one does no harm); with them, feature maps (N, C, H, W).

    Args:
        name: Name from `timm.list_models()`: `'resnet18'`, or with a tag of its weights, `'resnet18.a1_in1k'`.
        pretrained: True for the weights that timm downloads, by the tag of `name`; or a local file or
            `'torchvision://…'`, from which everything that matches is loaded.
        in_channels: Channels of the image.
        out_indices: Stages whose feature maps are returned, in timm's numbering.
        frozen_stages: Last frozen stage, -1 none. Each part of the network that has parameters is a stage, in order.
        norm_eval: Keep every normalization in eval mode during training.

    Raises:
        DependencyError: timm is not installed.
        ConfigError: timm has no such network, or cannot build it with these options.
        CheckpointError: The weights cannot be downloaded or read.
    """

    state_prefix = "model."

    def __init__(
        self,
        name: str,
        pretrained: bool | str = False,
        in_channels: int = 3,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
    ) -> None:
        super().__init__(frozen_stages, norm_eval)
        self.name = name
        self.in_channels = in_channels
        self.maps = out_indices is not None
        options = {"features_only": True, "out_indices": tuple(out_indices)} if out_indices else {"num_classes": 0}
        self.model: Any = _create(name, pretrained is True, in_chans=in_channels, **options)
        self.published_classifier = self.model.default_cfg.get("classifier") if not self.maps else None
        self.out_channels = tuple(self.model.feature_info.channels()) if self.maps else (_pooled(self.model),)
        if isinstance(pretrained, str):
            load_checkpoint(self, pretrained)
        self.freeze()

    def stages(self) -> list[list[str]]:
        return child_stages(self, "model")

    def forward(self, img: Tensor) -> tuple[Tensor, ...]:
        features = self.model(img)
        return tuple(features) if self.maps else (features,)


def _pooled(model: Any) -> int:
    """Return the size of the classifier's input: of the last map, unless a layer lies between the two (MobileNetV3)."""
    return int(getattr(model, "head_hidden_size", None) or model.num_features)


def _create(name: str, pretrained: bool, **options: Any) -> Any:
    try:
        import timm
    except ImportError as error:
        raise DependencyError(f"TimmBackbone needs timm: pip install 'lbitcls[timm]' ({error}).") from error
    if not timm.is_model(name):
        known = timm.list_models()
        raise ConfigError(f"TimmBackbone: timm has no network '{name}'{suggest(name, known)} It knows {len(known)}.")
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # timm's errors, and those of the hub that it downloads from
        reason = str(error).strip().partition("\n")[0]
        if pretrained:
            raise CheckpointError(
                f"TimmBackbone: the weights of '{name}' cannot be downloaded ({type(error).__name__}: {reason}). "
                "Without a network, give pretrained=FILE, a state dict of the network."
            ) from error
        raise ConfigError(f"TimmBackbone: timm cannot build '{name}' with {options}: {reason}") from error

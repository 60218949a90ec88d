"""Base classes of backbones: frozen stages, names of layers in published files, checks of keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lbitcls.models.state_dict import to_backbone_names
from lbitcls.utils.errors import ConfigError, reject_unknown_keys

Self = TypeVar("Self", bound="BaseBackbone")


class BaseBackbone(nn.Module):
    """Image (N, in_channels, H, W) -> tuple of features, one for each of the `out_indices`, the deepest last.

    A subclass sets `out_channels`, overrides `stages` if its stages can be frozen, and calls `freeze` at
    the end of its `__init__`. Layers are always found by name, because they may be replaced after the
    backbone was built.

    Attributes:
        in_channels: Channels of the image; None if undefined, and then not checked.
        out_channels: Channels of each feature.
        layer_aliases: Older layer names, each with the name used here.
        published_classifier: Name of the last layer in published state dicts of the whole classifier.
        state_prefix: Prefix of the layers here before their published names.
    """

    in_channels: int | None = None
    out_channels: tuple[int, ...]
    layer_aliases: Mapping[str, str] = {}
    published_classifier: str | None = None
    state_prefix: str = ""

    def __init__(self, frozen_stages: int = -1, norm_eval: bool = False) -> None:
        super().__init__()
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval

    @property
    def num_features(self) -> int:
        """Channels of the last feature: the head's `in_channels`."""
        return self.out_channels[-1]

    def stages(self) -> list[list[str]]:
        """Return the names of the submodules of each stage that can be frozen; stage 0 is the stem."""
        return []

    def freeze(self) -> None:
        """Exclude stages 0 to `frozen_stages` from training; -1 freezes none."""
        last = len(self.stages()) - 1
        if not -1 <= self.frozen_stages <= last:
            raise ConfigError(
                f"{type(self).__name__}: frozen_stages must be from -1 (none) to {last} (0 is the stem alone); "
                f"got {self.frozen_stages}."
            )
        for module in self._frozen():
            module.requires_grad_(False)

    def train(self: Self, mode: bool = True) -> Self:
        """Set the mode; normalizations of frozen stages, or all of them with `norm_eval`, stay in eval mode."""
        super().train(mode)
        if mode:
            for root in [self] if self.norm_eval else self._frozen():
                for module in root.modules():
                    if isinstance(module, _BatchNorm):
                        module.eval()
        return self

    def adapt_state_dict(self, state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the backbone's part of a classifier's state dict, published or our own, under the names used here."""
        return to_backbone_names(state_dict, self)

    def _frozen(self) -> list[nn.Module]:
        return [self.get_submodule(name) for stage in self.stages()[: self.frozen_stages + 1] for name in stage]


class StagedBackbone(BaseBackbone):
    """Stem (`conv1`, `bn1`), then stages `layer1`, `layer2`, …; a subclass adds them and implements `stem`."""

    out_indices: tuple[int, ...]

    def stem(self, img: Tensor) -> Tensor:
        """Return the input of the first stage."""
        raise NotImplementedError

    def layer_names(self) -> list[str]:
        """Return the names of the stages up to the last requested one."""
        return [f"layer{index + 1}" for index in range(self.out_indices[-1] + 1)]

    def stages(self) -> list[list[str]]:
        return [["conv1", "bn1"], *([name] for name in self.layer_names())]

    def forward(self, img: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(img)
        features = []
        for index, name in enumerate(self.layer_names()):
            x = getattr(self, name)(x)
            if index in self.out_indices:
                features.append(x)
        return tuple(features)


class SequenceBackbone(BaseBackbone):
    """One sequence of layers, `features`; stage i ends at its position `ends[i]`.

    The first `num_stem` positions belong to the stem.
    """

    features: nn.Sequential
    ends: tuple[int, ...]
    out_indices: tuple[int, ...]
    num_stem: int = 0

    def stages(self) -> list[list[str]]:
        starts = (0, self.num_stem, *(end + 1 for end in self.ends))
        spans = [range(start, stop) for start, stop in pairwise(starts)]
        built = [span for span in spans if span.stop <= len(self.features)]
        return [[f"features.{position}" for position in span] for span in built]

    def forward(self, img: Tensor) -> tuple[Tensor, ...]:
        wanted = [self.ends[index] for index in self.out_indices]
        x = img
        features = []
        for position, layer in enumerate(self.features):
            x = layer(x)
            if position in wanted:
                features.append(x)
        return tuple(features)


def split_stages(name: str, layers: nn.Sequential, end: type[nn.Module]) -> list[list[str]]:
    """Return the layer names of the sequence `name`, one list per stage; a layer of type `end` ends a stage."""
    stages: list[list[str]] = [[]]
    for position, layer in enumerate(layers):
        stages[-1].append(f"{name}.{position}")
        if isinstance(layer, end) and position + 1 < len(layers):
            stages.append([])
    return stages


def child_stages(backbone: nn.Module, name: str) -> list[list[str]]:
    """Return the children with parameters of the network `name`, each a stage; those of `features` count one by one."""
    children: dict[str, nn.Module] = {}
    for key, child in backbone.get_submodule(name).named_children():
        opened = child.named_children() if key == "features" else [("", child)]
        children.update({f"{name}.{key}.{inner}".rstrip("."): module for inner, module in opened})
    return [[key] for key, child in children.items() if next(child.parameters(), None) is not None]


def init_weights(module: nn.Module) -> None:
    """Initialize weights as torchvision does: He normal (fan out), N(0, 0.01) in linear layers, biases 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)


def check_choice(owner: str, key: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise `ConfigError` unless `value` is one of `choices`."""
    if value not in choices:
        expected = ", ".join(repr(choice) for choice in choices)
        raise ConfigError(f"{owner}: {key} must be one of {expected}; got {value!r}.")


def refuse(owner: str, **given: Any) -> None:
    """Raise `ConfigError` for the first key that requests an unsupported feature (is not None or False)."""
    for key, value in given.items():
        if value is not None and value is not False:
            raise ConfigError(f"{owner}({key}={value!r}) is not supported; leave {key} out of the config.")


def checked_indices(owner: str, out_indices: Sequence[int], count: int) -> tuple[int, ...]:
    """Return `out_indices` in ascending order; raise `ConfigError` if it is empty or one is not in 0 … count - 1."""
    if not isinstance(out_indices, Sequence) or not out_indices:
        raise ConfigError(f"{owner}: out_indices must be a tuple such as ({count - 1},); got {out_indices!r}.")
    if any(not isinstance(index, int) or not 0 <= index < count for index in out_indices):
        raise ConfigError(f"{owner}: out_indices must be integers from 0 to {count - 1}; got {tuple(out_indices)}.")
    return tuple(sorted(set(out_indices)))


def norm_layer(owner: str, norm_cfg: dict | None) -> Callable[[int], nn.Module]:
    """Return the function (channels) -> BatchNorm2d that `norm_cfg` describes.

    Args:
        owner: Name of the backbone, for messages.
        norm_cfg: `dict(type='BN', requires_grad=True, eps=1e-5, momentum=0.1)`, each key optional; None means
            these defaults.
    """
    cfg = {"type": "BN", **(norm_cfg or {})}
    reject_unknown_keys(f"{owner}: norm_cfg", cfg, ("type", "requires_grad", "eps", "momentum"))
    if cfg["type"] not in ("BN", "BN2d"):
        raise ConfigError(
            f"{owner}: norm_cfg type '{cfg['type']}' is not supported, only 'BN' is; for synchronized batch "
            "normalization, set sycbn=True at the top level of the config."
        )

    def make(channels: int) -> nn.Module:
        norm = nn.BatchNorm2d(channels, eps=cfg.get("eps", 1e-5), momentum=cfg.get("momentum", 0.1))
        return norm.requires_grad_(cfg.get("requires_grad", True))

    return make

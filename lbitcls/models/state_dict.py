"""Mapping of the names in a published state dict to those of a classifier.

Published files name the layers of a whole classifier as their own project does (`conv1`, `layer1.0.conv1`,
`fc`); here the same layers are `backbone.conv1`, `backbone.layer1.0.conv1`, `head.fc`. The backbone defines
its file's name of the last layer (`published_classifier`) and the prefix of its own names (`state_prefix`);
the head defines which of its layers receives the last one (`classifier_layer`). Shapes are not compared here:
the loader reports those that differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

# Prefixes that wrappers add to every name: DataParallel and DDP, torch.compile.
_WRAPPERS = ("module.", "_orig_mod.")
# Keys under which training scripts store the state dict in a checkpoint.
_CONTAINERS = ("state_dict", "model")


def plain_state_dict(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the state dict inside `checkpoint`, without the prefixes of DataParallel, DDP and torch.compile.

    Example:
        >>> plain_state_dict({"state_dict": {"module.fc.bias": 0}, "epoch": 3})
        {'fc.bias': 0}
    """
    while (inner := _unwrapped(checkpoint)) is not None:
        checkpoint = inner
    return checkpoint


def _unwrapped(checkpoint: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the content of one container or prefix; None if there is neither."""
    for key in _CONTAINERS:
        if isinstance(checkpoint.get(key), Mapping):
            return checkpoint[key]
    for wrapper in _WRAPPERS:
        if checkpoint and all(key.startswith(wrapper) for key in checkpoint):
            return {key[len(wrapper) :]: value for key, value in checkpoint.items()}
    return None


def to_classifier_names(state_dict: Mapping[str, Any], backbone: nn.Module, head: nn.Module) -> Mapping[str, Any]:
    """Return `state_dict` under the names of a classifier of `backbone` and `head`, if it does not have them yet."""
    state = plain_state_dict(state_dict)
    # Not "head.": torchvision's Swin calls its last layer `head`.
    if any(key.startswith("backbone.") for key in state):
        return state
    last = getattr(backbone, "published_classifier", None)
    layer = getattr(head, "classifier_layer", None)
    prefix = "backbone." + getattr(backbone, "state_prefix", "")
    renamed = {}
    for key, value in state.items():
        owner, _, tensor = key.rpartition(".")
        if last is not None and layer is not None and owner == last:
            renamed[f"head.{layer}.{tensor}"] = value
        else:
            renamed[prefix + key] = value
    return renamed


def to_backbone_names(state_dict: Mapping[str, Any], backbone: nn.Module) -> Mapping[str, Any]:
    """Return `backbone`'s part of `state_dict`, a classifier's or a backbone's, under the backbone's names."""
    state = plain_state_dict(state_dict)
    prefix = "backbone."
    if any(key.startswith(prefix) for key in state):
        return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    own_prefix = getattr(backbone, "state_prefix", "")
    last = getattr(backbone, "published_classifier", None)
    return {own_prefix + key: value for key, value in state.items() if key.rpartition(".")[0] != last}

"""Builders of modules from a config's `model` section, or from one of its parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lbitcls.registry import BACKBONES, CLASSIFIERS, HEADS, LOSSES, NECKS

if TYPE_CHECKING:
    from torch import nn


def build_classifier(cfg: dict, pretrained: bool = True) -> nn.Module:
    """Build the classifier that `cfg.model` describes.

    Args:
        cfg: The section.
        pretrained: False skips loading pretrained weights, for a model whose weights a checkpoint will replace.

    Raises:
        ConfigError: An unknown name or key, or parts that do not match each other.

    Example:
        >>> model = build_classifier(dict(
        ...     type="ImageClassifier",
        ...     backbone=dict(type="ResNet", depth=18),
        ...     neck=dict(type="GlobalAveragePooling"),
        ...     head=dict(type="LinearClsHead", num_classes=10, in_channels=512)))
        >>> type(model.head.fc).__name__
        'Linear'
    """
    return CLASSIFIERS.build(cfg if pretrained else _without_pretrained(cfg))


def _without_pretrained(cfg: dict) -> dict:
    """Return the section without weight files, except those of a backbone whose weights checkpoints do not contain."""
    keys = ("pretrained", "init_cfg")
    plain: dict[str, Any] = {key: value for key, value in cfg.items() if key not in keys}
    backbone = plain.get("backbone")
    if isinstance(backbone, dict) and "type" in backbone:
        kind = BACKBONES.resolve(backbone["type"])
        if getattr(kind, "in_checkpoints", True):
            plain["backbone"] = {key: value for key, value in backbone.items() if key not in keys}
    return plain


def build_backbone(cfg: dict) -> nn.Module:
    """Build a backbone: image (N, C, H, W) -> tuple of features, one for each of its `out_indices`."""
    return BACKBONES.build(cfg)


def build_neck(cfg: dict) -> nn.Module:
    """Build a neck: the backbone's tuple of features -> the head's input."""
    return NECKS.build(cfg)


def build_head(cfg: dict) -> nn.Module:
    """Build a head: features -> logits (N, K), and from logits and labels the losses and top-k."""
    return HEADS.build(cfg)


def build_loss(cfg: dict) -> nn.Module:
    """Build a loss: logits (N, K) and labels, (N,) int64 or (N, K) probabilities -> scalar tensor."""
    return LOSSES.build(cfg)

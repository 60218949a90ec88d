"""From a config's `model` section, or one of its parts, to the module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lbitcls.registry import BACKBONES, CLASSIFIERS, HEADS, LOSSES, NECKS

if TYPE_CHECKING:
    from torch import nn


def build_classifier(cfg: dict) -> nn.Module:
    """Build the classifier that `cfg.model` describes.

    Raises:
        ConfigError: an unknown name or key, or parts that do not fit each other.

    Example:
        >>> model = build_classifier(dict(
        ...     type="ImageClassifier",
        ...     backbone=dict(type="ResNet", depth=18),
        ...     neck=dict(type="GlobalAveragePooling"),
        ...     head=dict(type="LinearClsHead", num_classes=10, in_channels=512)))
        >>> type(model.head.fc).__name__
        'Linear'
    """
    return CLASSIFIERS.build(cfg)


def build_backbone(cfg: dict) -> nn.Module:
    """Build a backbone: image (N, C, H, W) -> tuple of features, one for each of its `out_indices`."""
    return BACKBONES.build(cfg)


def build_neck(cfg: dict) -> nn.Module:
    """Build a neck: the backbone's tuple of features -> what the head takes."""
    return NECKS.build(cfg)


def build_head(cfg: dict) -> nn.Module:
    """Build a head: features -> logits (N, K), and from logits and labels the losses and top-k."""
    return HEADS.build(cfg)


def build_loss(cfg: dict) -> nn.Module:
    """Build a loss: logits (N, K) and labels, (N,) int64 or (N, K) probabilities -> scalar tensor."""
    return LOSSES.build(cfg)

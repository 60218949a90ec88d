"""Heads: from features to logits, and from logits and labels to the losses and top-k."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lbitcls.registry import HEADS, LOSSES
from lbitcls.utils.errors import ConfigError
from lbitcls.utils.logging import ONCE

logger = logging.getLogger("lbitcls")


@torch.no_grad()
def topk_accuracy(logits: Tensor, gt_label: Tensor, topk: Sequence[int]) -> dict[str, Tensor]:
    """Return the percentage of samples whose label is among the k largest logits, for each k up to K.

    Args:
        logits: (N, K).
        gt_label: (N,) labels, or (N, K) probabilities, of which the largest counts.
        topk: Values of k.

    Returns:
        `{"top-1": scalar tensor, …}`, in 0-100.

    Example:
        >>> topk_accuracy(torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([2]), (1, 2))
        {'top-1': tensor(0.), 'top-2': tensor(100.)}
    """
    label = gt_label.argmax(dim=1) if gt_label.dim() == 2 else gt_label
    counted = [k for k in topk if k <= logits.shape[1]]
    if not counted:
        return {}
    hits = logits.topk(max(counted), dim=1).indices == label.unsqueeze(1)
    # The sum times 100 is exact in float32 up to 2^24; a mean times 100 would give 99.99999.
    return {f"top-{k}": hits[:, :k].sum().float() * 100 / len(logits) for k in counted}


def _checked_topk(topk: int | Sequence[int]) -> tuple[int, ...]:
    values = (topk,) if isinstance(topk, int) else tuple(topk)
    if not values or any(type(k) is not int or k < 1 for k in values):
        raise ConfigError(f"topk must be one or more integers ≥ 1, such as (1, 5); got {topk!r}.")
    return values


@HEADS.register_module()
class ClsHead(nn.Module):
    """Head for a backbone that returns logits itself (`LeNet5` and `VGG` with `num_classes`).

    Args:
        loss: Config of the loss; cross entropy by default.
        topk: Values of k of the reported accuracies. A k above the number of classes is not reported: with two
            classes, `(1, 5)` gives `top-1` alone.

    Attributes:
        num_classes: K, or None if the backbone determines it.
        in_channels: Required channels, or None.
    """

    # Name of the layer that receives the weights of a published file's classifier, if the head has one.
    classifier_layer: str | None = None

    def __init__(self, loss: dict | None = None, topk: int | Sequence[int] = (1, 5)) -> None:
        super().__init__()
        self.num_classes: int | None = None
        self.in_channels: int | None = None
        self.topk = _checked_topk(topk)
        self.compute_loss = LOSSES.build(loss if loss is not None else {"type": "CrossEntropyLoss"})

    def forward(self, features: Tensor | tuple[Tensor, ...]) -> Tensor:
        """Return logits (N, K)."""
        logits = self._last(features)
        if logits.dim() != 2:
            raise ConfigError(
                f"{type(self).__name__} needs logits (N, K), but the backbone returns {tuple(logits.shape)}: "
                "give the backbone num_classes, or use a GlobalAveragePooling neck and a LinearClsHead."
            )
        return logits

    def loss(self, logits: Tensor, gt_label: Tensor) -> dict[str, Tensor]:
        """Return `loss` (scalar, to minimize) and the accuracies `top-k` in percent."""
        accuracies = topk_accuracy(logits, gt_label, self.topk)
        return {"loss": self.compute_loss(logits, gt_label), **accuracies}

    @staticmethod
    def _last(features: Tensor | tuple[Tensor, ...]) -> Tensor:
        return features[-1] if isinstance(features, tuple) else features


def _init_normal(layer: nn.Linear | nn.Conv2d) -> None:
    nn.init.normal_(layer.weight, std=0.01)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class _HeadWithClasses(ClsHead):
    """Base of the heads with their own layer: K, the required channels, and dropout."""

    def __init__(
        self, num_classes: int, in_channels: int, loss: dict | None, topk: int | Sequence[int], dropout: float
    ) -> None:
        super().__init__(loss=loss, topk=topk)
        owner = type(self).__name__
        for key, value in (("num_classes", num_classes), ("in_channels", in_channels)):
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{owner}: {key} must be an integer ≥ 1; got {value!r}.")
        if not 0 <= dropout < 1:
            raise ConfigError(f"{owner}: dropout must be a probability, 0 <= dropout < 1; got {dropout}.")
        unreported = [k for k in self.topk if k > num_classes]
        if len(unreported) == len(self.topk):
            raise ConfigError(f"{owner}(topk={topk!r}): every k is above num_classes={num_classes}; use topk=(1,).")
        if unreported:
            names = ", ".join(f"top-{k}" for k in unreported)
            logger.info("Not reporting %s: there are only %d classes.", names, num_classes, extra=ONCE)
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.dropout = nn.Dropout(dropout)


@HEADS.register_module()
class LinearClsHead(_HeadWithClasses):
    """One fully connected layer, `fc`: (N, C) -> (N, K).

    Args:
        num_classes: K.
        in_channels: C, the channels of the backbone's last feature.
        loss: Config of the loss; cross entropy by default.
        topk: Values of k of the reported accuracies; those above K are left out.
        dropout: Probability of zeroing a feature in training, before `fc`.
    """

    classifier_layer = "fc"

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        loss: dict | None = None,
        topk: int | Sequence[int] = (1, 5),
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_classes, in_channels, loss, topk, dropout)
        self.fc = nn.Linear(in_channels, num_classes)
        _init_normal(self.fc)

    def forward(self, features: Tensor | tuple[Tensor, ...]) -> Tensor:
        feature = self._last(features)
        if feature.dim() != 2:
            raise ConfigError(
                f"LinearClsHead needs features (N, C); got {tuple(feature.shape)}. "
                "Add neck=dict(type='GlobalAveragePooling') to the model."
            )
        return self.fc(self.dropout(feature))


@HEADS.register_module()
class ConvClsHead(_HeadWithClasses):
    """SqueezeNet's head: dropout, 1x1 convolution `conv`, ReLU, mean over the map: (N, C, H, W) -> (N, K).

    Its input is the feature map itself, so the model has no neck.

    Args:
        num_classes: K.
        in_channels: C, the channels of the backbone's last feature map.
        loss: Config of the loss; cross entropy by default.
        topk: Values of k of the reported accuracies; those above K are left out.
        dropout: Probability of zeroing a feature in training, before `conv`.
    """

    classifier_layer = "conv"

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 512,
        loss: dict | None = None,
        topk: int | Sequence[int] = (1, 5),
        dropout: float = 0.5,
    ) -> None:
        super().__init__(num_classes, in_channels, loss, topk, dropout)
        self.conv = nn.Conv2d(in_channels, num_classes, kernel_size=1)
        _init_normal(self.conv)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)

    def forward(self, features: Tensor | tuple[Tensor, ...]) -> Tensor:
        feature = self._last(features)
        if feature.dim() != 4:
            raise ConfigError(
                f"ConvClsHead needs a feature map (N, C, H, W); got {tuple(feature.shape)}. "
                "Leave the neck out of the model."
            )
        return self.avgpool(self.relu(self.conv(self.dropout(feature)))).flatten(1)

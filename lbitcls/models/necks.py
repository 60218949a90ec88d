"""Necks: from the backbone's feature maps to the head's input."""

from __future__ import annotations

from torch import Tensor, nn

from lbitcls.registry import NECKS


@NECKS.register_module()
class GlobalAveragePooling(nn.Module):
    """Mean over height and width: (N, C, H, W) -> (N, C). Features (N, C) pass unchanged.

    A tuple of features gives a tuple.
    """

    keeps_channels = True  # lets the classifier compare the backbone's channels with the head's

    def __init__(self) -> None:
        super().__init__()
        self.gap = nn.AdaptiveAvgPool2d(1)

    def forward(self, features: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        if isinstance(features, tuple):
            return tuple(self._pool(feature) for feature in features)
        return self._pool(features)

    def _pool(self, feature: Tensor) -> Tensor:
        return self.gap(feature).flatten(1) if feature.dim() == 4 else feature

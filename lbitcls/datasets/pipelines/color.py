"""Steps that change colors and units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lbitcls.datasets.pipelines.decode import with_channels
from lbitcls.datasets.pipelines.rules import unit_of
from lbitcls.datasets.pipelines.transform import (
    BatchDraw,
    Draw,
    FixedTransform,
    Transform,
    chosen,
    log_once,
    probability,
)
from lbitcls.registry import PIPELINES
from lbitcls.utils.errors import ConfigError, DataError, shown

_MOST = 1e6  # bound for a mean or a standard deviation, which refer to bytes


@PIPELINES.register_module()
class Normalize(FixedTransform):
    """Subtract the mean and divide by the standard deviation, channel by channel; the result is float32.

    The number of means determines the model's input: with one mean an RGB image becomes grayscale, with three a
    grayscale image becomes RGB (three equal channels).

    Args:
        mean: Mean of each channel. In units of 0-1 if every mean and every std is at most 1, else of 0-255; the
            unit is logged.
        std: Standard deviation of each channel, in the same unit.
        to_rgb: True: the model expects RGB, the order of images from the first step on. False: the model
            expects BGR (OpenCV's order), so the channels are reversed; `mean` and `std` are then in the order
            B, G, R.

    An image that is already float (for example after `v2.ToDtype(scale=True)`) is assumed to be in 0-1, torchvision's
    convention.

    Example:
        >>> Normalize(mean=[0.5], std=[0.25]).change(torch.tensor([[[0, 255]]], dtype=torch.uint8))
        tensor([[[-2.,  2.]]])
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], to_rgb: bool = True) -> None:
        self.mean, self.std, self.to_rgb = _numbers("mean", mean), _numbers("std", std), to_rgb
        if len(mean) != len(std):
            raise ConfigError(f"Normalize: mean has {len(mean)} values and std {len(std)}; each channel needs both.")
        if min(self.std) <= 0:
            raise ConfigError(f"Normalize: every std must be above 0; got {self.std}.")
        unit = unit_of(self.mean, self.std)
        log_once(f"Normalize: reading mean {self.mean} and std {self.std} in units of 0-{unit}", detail=True)
        shape = (len(self.mean), 1, 1)
        self._mean = torch.tensor(self.mean, dtype=torch.float32).reshape(shape) * (255 / unit)
        self._std = torch.tensor(self.std, dtype=torch.float32).reshape(shape) * (255 / unit)

    def change(self, img: Tensor) -> Tensor:
        channels = len(self.mean)
        if img.size(-3) != channels:
            img = self._converted(img)
        if not self.to_rgb and channels == 3:
            img = img.flip(-3)
        # Bytes are brought into (C, H, W) order before they become four times as large.
        values = img.contiguous().to(torch.float32) if img.dtype == torch.uint8 else img.to(torch.float32) * 255
        return values.sub_(self._mean).div_(self._std)

    def undo(self, img: Tensor) -> Tensor:
        """Return the images (..., C, H, W) before normalization: float32 RGB or grayscale, in 0-1."""
        values = (img * self._std + self._mean) / 255
        return values if self.to_rgb or len(self.mean) != 3 else values.flip(-3)

    def _converted(self, img: Tensor) -> Tensor:
        channels = len(self.mean)
        if {channels, img.size(-3)} != {1, 3}:
            raise DataError(
                f"Normalize has {channels} means, but the image has {img.size(-3)} channels; give a mean and a std "
                "for each channel of the model's input (1 or 3)."
            )
        return with_channels(img, channels)


def _numbers(key: str, values: Any) -> list[float]:
    numbers = isinstance(values, Sequence) and all(isinstance(v, (int, float)) for v in values)
    if not numbers or not values or not all(abs(v) < _MOST for v in values):  # neither NaN nor infinite
        raise ConfigError(f"Normalize: {key} must be a list with one number per channel; got {shown(values)}.")
    return list(values)


@PIPELINES.register_module()
class RandomGrayscale(Transform):
    """Remove the color from the image with a given probability, without changing the number of channels.

    Args:
        gray_prob: Probability.
    """

    batchwise = True

    def __init__(self, gray_prob: float = 0.5) -> None:
        self.gray_prob = probability("RandomGrayscale", "gray_prob", gray_prob)

    def apply(self, img: Tensor, draw: Draw) -> Tensor:
        return _gray(img) if draw() < self.gray_prob else img

    def apply_batch(self, imgs: Tensor, draw: BatchDraw) -> Tensor:
        gray = chosen(draw, self.gray_prob)
        imgs[gray] = _gray(imgs[gray])
        return imgs


def _gray(img: Tensor) -> Tensor:
    return with_channels(with_channels(img, 1), img.size(-3))

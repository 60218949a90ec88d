"""Preprocessing of published weights, from their metadata."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lbitcls.datasets.pipelines.color import Normalize
from lbitcls.datasets.pipelines.geometry import CenterCrop, Resize
from lbitcls.datasets.pipelines.transform import FixedTransform
from lbitcls.registry import PIPELINES
from lbitcls.utils.errors import ConfigError
from lbitcls.utils.published import SCHEME, find_weights


@PIPELINES.register_module()
class PretrainedPreprocessing(FixedTransform):
    """torchvision's preprocessing for published weights: `Resize`, `CenterCrop` and `Normalize` as one step.

    A pipeline lists the three steps instead of this one, so that each is visible.

    Args:
        weights: Published weights, named as in `model.pretrained`: `'torchvision://mobilenet_v2'`.
        crop: False: `Normalize` alone, after steps that produce images of the right size at random.

    Attributes:
        steps: The steps.
        crop_size: Size (h, w) at which the weights were evaluated.

    Raises:
        ConfigError: Unknown weights.

    Example:
        >>> PretrainedPreprocessing("torchvision://resnet18").steps[0]
        Resize(size=256, interpolation='bilinear')
    """

    def __init__(self, weights: str, crop: bool = True) -> None:
        if not (isinstance(weights, str) and weights.startswith(SCHEME)):
            raise ConfigError(
                f"PretrainedPreprocessing: weights must be published ones, 'torchvision://NAME'; got {weights!r}. For "
                "others, write Resize, CenterCrop and Normalize."
            )
        self.weights, self.crop = weights, crop
        preset = find_weights(weights).transforms()
        crops, sizes = list(preset.crop_size), list(preset.resize_size)
        self.crop_size = (crops[0], crops[-1])
        size = sizes[0] if len(sizes) == 1 else tuple(sizes)
        self.steps: list[FixedTransform] = [Normalize(mean=preset.mean, std=preset.std)]
        if crop:
            shape = CenterCrop(crop_size=crops[0] if len(set(crops)) == 1 else self.crop_size)
            self.steps[:0] = [Resize(size=size, interpolation=preset.interpolation.value), shape]

    def change(self, img: Tensor) -> Tensor:
        for step in self.steps:
            img = step.change(img)
        return img


def written_out(pipeline: Sequence[Any]) -> list[Any]:
    """Return a config's pipeline with each `PretrainedPreprocessing` replaced by its steps, in config form.

    Example:
        >>> written_out([dict(type="PretrainedPreprocessing", weights="torchvision://resnet18")])[1]
        {'type': 'CenterCrop', 'crop_size': (224, 224)}
    """
    steps: list[Any] = []
    for step in pipeline:
        if isinstance(step, dict) and step.get("type") == PretrainedPreprocessing.__name__:
            steps += [_as_config(part) for part in PIPELINES.build(step).steps]
        else:
            steps.append(step)
    return steps


def _as_config(step: FixedTransform) -> dict[str, Any]:
    arguments = {key: value for key, value in vars(step).items() if not key.startswith("_")}
    return {"type": type(step).__name__, **arguments}

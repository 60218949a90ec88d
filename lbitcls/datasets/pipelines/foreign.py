"""Steps of torchvision and mmcv, which draw their random numbers from the global generators.

`Compose` seeds those generators for each sample, for custom steps too: classes registered with
`@PIPELINES.register_module()` whose instances accept a sample's dict and return it.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lbitcls.datasets.pipelines.transform import one_of, probability
from lbitcls.registry import PIPELINES
from lbitcls.utils.arguments import check_names
from lbitcls.utils.errors import ConfigError, DependencyError, require_count, suggest

_WHOLE_BATCH = ("CutMix", "MixUp")
_DETERMINISTIC = ("CenterCrop", "Grayscale", "Normalize", "Pad", "Resize", "ToDtype", "ToImage")  # of v2


class ImageFunction:
    """Step that applies a function of tensors (C, H, W) to the sample's image."""

    def __init__(self, function: Any) -> None:
        self.function = function

    @property
    def deterministic(self) -> bool:
        """True if the function gives the same result for the same image every time."""
        return type(self.function).__name__ in _DETERMINISTIC

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        results["img"] = self.function(results["img"])
        return results

    def __repr__(self) -> str:
        return repr(self.function)


def build_v2(name: str, arguments: dict[str, Any]) -> ImageFunction:
    """Return the transform `name` of `torchvision.transforms.v2`, applied to the image as a tensor.

    Args:
        name: Class name.
        arguments: Arguments of the class; `dtype` and `interpolation` may be strings, nested transforms dicts.

    Raises:
        ConfigError: Unknown class, unknown argument, or a transform of whole batches.
    """
    return ImageFunction(_v2_object(name, arguments))


def _v2_object(name: str, arguments: dict[str, Any]) -> Any:
    from torchvision.transforms import v2

    if name in _WHOLE_BATCH:
        raise ConfigError(f"v2.{name} mixes the images of a batch; a pipeline processes single images.")
    kinds = {k: v for k, v in vars(v2).items() if isinstance(v, type) and issubclass(v, v2.Transform)}
    if name not in kinds:
        raise ConfigError(f"torchvision.transforms.v2 has no transform '{name}'{suggest(name, kinds)}")
    check_names(kinds[name], arguments)
    try:
        return kinds[name](**{key: _v2_value(key, value) for key, value in arguments.items()})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"v2.{name}: {error}") from error


def _v2_value(key: str, value: Any) -> Any:
    from torchvision.transforms.v2 import InterpolationMode

    if isinstance(value, dict) and str(value.get("type", "")).startswith("v2."):
        return _v2_object(value["type"][3:], {k: v for k, v in value.items() if k != "type"})
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], dict):
        return [_v2_value(key, item) for item in value]
    if key == "dtype" and isinstance(value, str):
        return getattr(torch, value.removeprefix("torch."))
    if key == "interpolation" and isinstance(value, str):
        return InterpolationMode(one_of("v2", key, value, tuple(mode.value for mode in InterpolationMode)))
    return value


@PIPELINES.register_module()
class ColorJitter(ImageFunction):
    """Change brightness, contrast, saturation and hue at random (torchvision's `v2.ColorJitter`).

    Args:
        brightness: Bound b of a factor drawn from [1 - b, 1 + b], or its range (lower, upper).
        contrast: Bound or range of the contrast factor, as for brightness.
        saturation: Bound or range of the saturation factor, as for brightness.
        hue: Bound h of a shift drawn from [-h, h], at most 0.5.
    """

    def __init__(
        self,
        brightness: float | Sequence[float] = 0,
        contrast: float | Sequence[float] = 0,
        saturation: float | Sequence[float] = 0,
        hue: float | Sequence[float] = 0,
    ) -> None:
        amounts = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
        super().__init__(_v2_object("ColorJitter", amounts))


@PIPELINES.register_module()
class AutoAugment(ImageFunction):
    """Apply a learned augmentation policy (torchvision's `v2.AutoAugment`).

    Args:
        policy: `'imagenet'`, `'cifar10'` or `'svhn'`.
    """

    def __init__(self, policy: str = "imagenet") -> None:
        from torchvision.transforms.v2 import AutoAugmentPolicy

        one_of("AutoAugment", "policy", policy, tuple(kind.value for kind in AutoAugmentPolicy))
        super().__init__(_v2_object("AutoAugment", {"policy": AutoAugmentPolicy(policy)}))


@PIPELINES.register_module()
class RandAugment(ImageFunction):
    """Apply random augmentations, all of one magnitude (torchvision's `v2.RandAugment`).

    Args:
        num_ops: Number of augmentations per image, 1 to 100.
        magnitude: Magnitude, 0 to `num_magnitude_bins` - 1.
        num_magnitude_bins: Number of magnitudes, 1 to 10,000.
    """

    def __init__(self, num_ops: int = 2, magnitude: int = 9, num_magnitude_bins: int = 31) -> None:
        require_count("RandAugment: num_ops", num_ops, 1, 100)
        require_count("RandAugment: num_magnitude_bins", num_magnitude_bins, 1, 10_000)
        require_count("RandAugment: magnitude", magnitude, 0, num_magnitude_bins - 1)
        given = {"num_ops": num_ops, "magnitude": magnitude, "num_magnitude_bins": num_magnitude_bins}
        super().__init__(_v2_object("RandAugment", given))


@PIPELINES.register_module()
class RandomErasing(ImageFunction):
    """Overwrite a rectangle with a given probability (torchvision's `v2.RandomErasing`).

    Args:
        erase_prob: Probability.
        min_area_ratio: Smallest area, as a fraction of the image's.
        max_area_ratio: Largest area, as a fraction of the image's.
        aspect_range: Bounds of height / width, or one bound b for (b, 1 / b).
        mode: `'const'` fills with `fill_color`, `'rand'` with standard normal noise (for images after `Normalize`).
        fill_color: One value, or one per channel, in the image's units at this step.
    """

    def __init__(
        self,
        erase_prob: float = 0.5,
        min_area_ratio: float = 0.02,
        max_area_ratio: float = 0.4,
        aspect_range: float | Sequence[float] = (3 / 10, 10 / 3),
        mode: str = "const",
        fill_color: float | Sequence[float] = (128, 128, 128),
    ) -> None:
        one_of("RandomErasing", "mode", mode, ("const", "rand"))
        lower, upper = (aspect_range, 1 / aspect_range) if isinstance(aspect_range, float) else tuple(aspect_range)
        constant = list(fill_color) if isinstance(fill_color, Sequence) else fill_color
        arguments = {
            "p": probability("RandomErasing", "erase_prob", erase_prob),
            "scale": (min_area_ratio, max_area_ratio),
            "ratio": (lower, upper),
            "value": "random" if mode == "rand" else constant,
        }
        super().__init__(_v2_object("RandomErasing", arguments))


class MMCVTransform:
    """mmcv 2.x transform as a step among the project's own.

    mmcv's images are NumPy arrays (H, W, C) in BGR, so the image is converted before the transform and back to RGB
    after it; after `mmcv.Normalize` the channels stay in the order given by its `to_rgb`.

    Args:
        name: Class name in `mmcv.transforms`.
        arguments: Arguments of the class.

    Raises:
        DependencyError: mmcv is not installed.
        ConfigError: Unknown class, or a wrong argument.
    """

    def __init__(self, name: str, arguments: dict[str, Any]) -> None:
        if name.startswith("Load"):
            raise ConfigError(f"mmcv.{name} is not supported: use LoadImageFromFile to read files.")
        try:
            transforms = importlib.import_module("mmcv.transforms")
        except ImportError as error:
            raise DependencyError(f"'mmcv.{name}' needs mmcv 2.x: pip install 'lbitcls[mmcv]' ({error}).") from error
        kinds = {k: v for k, v in vars(transforms).items() if isinstance(v, type)}
        if name not in kinds:
            raise ConfigError(f"mmcv.transforms has no '{name}'{suggest(name, kinds)}")
        check_names(kinds[name], arguments)
        self.transform = kinds[name](**arguments)
        self._orders_channels = name == "Normalize"

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        results["img"] = np.ascontiguousarray(_reordered(results["img"]).permute(1, 2, 0).numpy())
        height, width = results["img"].shape[:2]
        results["img_shape"] = (height, width)
        results = self.transform(results)
        image = results["img"]
        img = torch.from_numpy(np.ascontiguousarray(image if image.ndim == 3 else image[:, :, None])).permute(2, 0, 1)
        results["img"] = img if self._orders_channels else _reordered(img)
        return results

    def __repr__(self) -> str:
        return f"mmcv.{self.transform!r}"


def _reordered(img: Tensor) -> Tensor:
    """Swap RGB and BGR."""
    return img.flip(0) if img.size(0) == 3 else img

"""Steps of a test pipeline in the form that the page's script runs, for images of any size and color.

As `lbitcls infer` does, the page first crops and resizes an image to the model's proportions if the pipeline alone does
not give it the model's size, and reads it with the model's number of channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lbitcls.utils.errors import ConfigError, shown

Step = dict[str, Any]
Size = tuple[int, int]

_PROBES: tuple[Size, ...] = ((37, 53), (53, 37))  # sizes (h, w) that no data set has
_MODES = {"color": "rgb", "grayscale": "gray", "unchanged": "rgb"}  # gray files have three equal channels in browsers
_IGNORING = "_ignore_orientation"
_INTERPOLATIONS = ("bilinear", "bicubic", "nearest")
_NO_EFFECT = {"ImageToTensor": {"keys"}, "ToTensor": {"keys"}, "Collect": {"keys", "meta_keys"}}
_MOST_SIDE = 2**14


def page_steps(pipeline: Sequence[Any], input_shape: tuple[int, int, int]) -> tuple[list[Step], bool]:
    """Return the steps of the page's script, and whether it applies a photo's EXIF orientation.

    Args:
        pipeline: Test pipeline, as in a config.
        input_shape: (C, H, W) of the model's input.

    Returns:
        Steps `Gray`, `Fit`, `Resize`, `CenterCrop`, and at the end `Normalize` (mean and std for bytes) or `Scale`
        (to 0-1).

    Raises:
        ConfigError: The page lacks a step, or the result is not the model's input; names the steps and the remedy.

    Example:
        >>> page_steps([dict(type="CenterCrop", crop_size=8)], (1, 8, 8))[0]
        [{'type': 'Gray'}, {'type': 'CenterCrop', 'size': (8, 8)}, {'type': 'Scale', 'channels': 1}]
    """
    channels, *size = input_shape
    load, shapes, finish = _sorted(pipeline)
    given = channels if finish is None else finish["channels"]
    if given != channels or channels not in (1, 3):
        raise ConfigError(
            "a web page prepares images with 1 or 3 channels, as many as Normalize has means; the model expects "
            f"{channels}. Export it for another target."
        )
    mode = load["mode"] if finish is not None else {1: "gray", 3: "rgb"}[channels]
    first = [{"type": "Gray"}] if mode == "gray" else []
    last = finish or {"type": "Scale", "channels": channels}
    return [*first, *_fitted(shapes, (size[0], size[1])), last], load["upright"]


def _sorted(pipeline: Sequence[Any]) -> tuple[Step, list[Step], Step | None]:
    """Return how an image is loaded, the steps that change its size, and `Normalize` if there is one.

    Raises:
        ConfigError: The page lacks a step, or runs it only in another place.
    """
    load: Step = {"mode": "rgb", "upright": True}
    shapes: list[Step] = []
    finish: Step | None = None
    problems = []
    for place, step in enumerate(pipeline):
        try:
            made = _parsed(step)
            kind = made["type"]
            if kind == "Load" and place == 0:
                load = made
            elif kind in ("Resize", "Fit", "CenterCrop") and finish is None:
                shapes.append(made)
            elif kind == "Normalize" and finish is None:
                finish = made
            elif kind != "Nothing":
                raise ValueError("the page loads first, and normalizes last and once")
        except (KeyError, TypeError, ValueError) as error:
            problems.append(f"\n  {_told(step)}: {error.args[0] if error.args else error}")
    if problems:
        raise ConfigError(
            "a web page cannot prepare images as the test pipeline does; replace these steps of data.test.pipeline:"
            + "".join(problems)
        )
    return load, shapes, finish


def _fitted(shapes: list[Step], size: Size) -> list[Step]:
    """Return the steps, after a `Fit` if they do not give every image the model's size (h, w)."""
    if all(_size_after(probe, shapes) == size for probe in _PROBES):
        return shapes
    fitted = [{"type": "Fit", "size": size}, *shapes]
    if (found := _size_after(size, fitted)) != size:
        raise ConfigError(
            f"the test pipeline turns images of {size[0]}×{size[1]} pixels, the size of the model's input, into "
            f"{found[0]}×{found[1]}; end its changes of size with CenterCrop(crop_size={size}) or Resize(size={size})."
        )
    return fitted


def _parsed(step: Any) -> Step:
    """Return a step in the page's form; raise ValueError with the reason if it has none."""
    name = step.get("type") if isinstance(step, Mapping) else None
    if name in _NO_EFFECT:
        if unknown := set(step) - _NO_EFFECT[name] - {"type"}:
            raise ValueError(f"the page does not support {', '.join(sorted(unknown))}")
        return {"type": "Nothing"}
    if name not in _BUILDERS:
        raise ValueError(f"the page has {', '.join([*_BUILDERS, *_NO_EFFECT])}")
    return _BUILDERS[name](**{key: value for key, value in step.items() if key != "type"})


def _load(color_type: str = "color", **ignored: Any) -> Step:
    if unknown := set(ignored) - {"to_float32", "file_client_args", "imdecode_backend"}:
        raise ValueError(f"the page does not support {', '.join(sorted(unknown))}")
    return {
        "type": "Load",
        "mode": _MODES[color_type.removesuffix(_IGNORING)],
        "upright": not color_type.endswith(_IGNORING),
    }


def _resize(size: Any, interpolation: str = "bilinear", backend: str | None = None) -> Step:
    if interpolation not in _INTERPOLATIONS:
        raise ValueError(f"the page interpolates {', '.join(_INTERPOLATIONS)}")
    short = size if isinstance(size, int) else size[0] if len(size) == 2 and size[1] == -1 else None
    target = {"size": _pair(size)} if short is None else {"short": _pair(short)[0]}
    return {"type": "Resize", **target, "interpolation": interpolation}


def _fit(size: Any) -> Step:
    return {"type": "Fit", "size": _pair(size)}


def _center_crop(crop_size: Any) -> Step:
    return {"type": "CenterCrop", "size": _pair(crop_size)}


def _normalize(mean: Sequence[float], std: Sequence[float], to_rgb: bool = True) -> Step:
    if len(mean) != len(std) or not len(mean) or not min(std) > 0:
        raise ValueError("it needs a mean and a std above 0 for each channel")
    scale = np.float32(1 if max(*mean, *std) > 1 else 255)
    center, spread = (np.array(values, np.float32) * scale for values in (mean, std))
    return {
        "type": "Normalize",
        "channels": len(mean),
        "mean": center.astype(float).tolist(),
        "std": spread.astype(float).tolist(),
        "reversed": not to_rgb and len(mean) == 3,
    }


_BUILDERS: dict[str, Callable[..., Step]] = {
    "LoadImageFromFile": _load,
    "Resize": _resize,
    "Fit": _fit,
    "CenterCrop": _center_crop,
    "Normalize": _normalize,
}


def _pair(size: Any) -> Size:
    """Return (h, w) from an int (a square) or a pair."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(type(side) is int and 0 < side <= _MOST_SIDE for side in pair):
        raise ValueError(f"a size must be a number of pixels or (height, width), each from 1 to {_MOST_SIDE}")
    return pair


def _size_after(size: Size, steps: Sequence[Step]) -> Size:
    """Return the size (h, w) of an image after the steps."""
    for step in steps:
        if "size" in step:
            size = step["size"]
        else:
            short, (height, width) = step["short"], size
            size = (short, short * width // height) if height <= width else (short * height // width, short)
    return size


def _told(step: Any) -> str:
    if not isinstance(step, Mapping):
        return shown(step)
    return f"{step.get('type')}({', '.join(f'{k}={v!r}' for k, v in step.items() if k != 'type')})"[:200]

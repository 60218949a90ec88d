"""Convert any image to a model's input: the test pipeline, plus the steps it needs for other sizes and colors.

A test pipeline prepares the images of its data set, which may all be 8×8 and gray. It is tried on images of an unusual
size, in color and gray. If the result does not fit the model's input, images are read with the model's number of
channels; if that is not enough, their largest central part with the model's proportions is resized (`Fit`) before the
pipeline's own steps.

For exported models PyTorch is imported only if a pipeline has a step that `light_pipeline` does not know.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lbitcls.datasets.pipelines.light import light_pipeline
from lbitcls.datasets.pipelines.pillow import not_an_image
from lbitcls.utils.jsontext import json_text

Prepare = Callable[[Any], np.ndarray]
Shape = tuple[int | None, int | None, int | None]
Steps = Sequence[Any]

_LOAD = "LoadImageFromFile"
READING = (_LOAD, "Fit")
"""Steps that `fitting_steps` adds or changes."""
_COLORS = {1: "grayscale", 3: "color"}
_PROBE = (37, 53)  # an (H, W) that no data set has


def preparation(steps: Steps, shape: Shape, natural: tuple[int, int] | None = None, light: bool = True) -> Prepare:
    """Return the function from a path, an array or a Pillow image to a model's input, float32 (C, H, W).

    Args:
        steps: Steps of the test pipeline, as in a config.
        shape: (C, H, W) of the model's input; None for a free dimension.
        natural: (H, W) of the data set's images, for a model that accepts any size and steps that do not resize.
        light: Avoid PyTorch if the steps allow it; False: use the same steps as training and testing.

    Raises:
        ConfigError: The steps cannot be built.
    """
    return _chosen(steps, shape, natural, light)[1]


def fitting_steps(steps: Steps, shape: Shape, natural: tuple[int, int] | None = None) -> Steps:
    """Return the steps that `preparation` uses, including those it adds, for a data set of image files.

    Raises:
        ConfigError: The steps cannot be built.
    """
    return _chosen(steps, shape, natural, light=False)[0]


def test_steps(cfg: Mapping[str, Any] | None) -> Steps | None:
    """Return the pipeline of a config's `data.test`, or of `data.val` if that is missing; None without either."""
    data = (cfg or {}).get("data") or {}
    section = data.get("test") or data.get("val")
    return None if section is None else section.get("pipeline") or []


def same_steps(left: Steps | None, right: Steps | None) -> bool:
    """Return True if two pipelines are equal as plain data (a tuple equals a list)."""
    return json_text(left, sort_keys=True, default=str) == json_text(right, sort_keys=True, default=str)


def _chosen(steps: Steps, shape: Shape, natural: tuple[int, int] | None, light: bool) -> tuple[Steps, Prepare]:
    """Return the first variant that suits any image, and its function; the unchanged steps if none does."""
    variants = _variants(list(steps), shape, natural)
    variant = next(variants)
    first = chosen = variant, _build(variant, light)
    while not _suits(chosen[1], shape, natural):
        following = next(variants, None)
        if following is None:
            return first  # the model gives the clearest error
        chosen = following, _build(following, light)
    return chosen


def _variants(steps: list[Any], shape: Shape, natural: tuple[int, int] | None) -> Iterator[Steps]:
    """Yield pipelines to try, starting with the unchanged steps."""
    at = next((i for i, step in enumerate(steps) if isinstance(step, Mapping) and step.get("type") == _LOAD), None)
    before, after = ([], steps) if at is None else (steps[:at], steps[at + 1 :])
    load = {"type": _LOAD, "color_type": "unchanged"} if at is None else dict(steps[at])
    color = _COLORS.get(shape[0] or 0)
    loads = [load] if color is None else [load, {**load, "color_type": color}]
    size = (shape[1], shape[2]) if shape[1] and shape[2] else natural
    for fit in ([], [{"type": "Fit", "size": size}])[: 1 if size is None else 2]:
        yield from ([*before, first, *fit, *after] for first in loads)


def _suits(prepare: Prepare, shape: Shape, natural: tuple[int, int] | None) -> bool:
    """Return True if images fit the model's input, and are resized if only the data set determines a size."""
    try:
        given = [prepare(np.zeros(size, np.uint8)).shape for size in ((*_PROBE, 3), _PROBE)]
    except Exception:  # a user's own steps may raise anything
        return False
    if natural is not None and given[0][1:] == _PROBE:
        return False
    return all(
        len(sizes) == 3 and all(expected in (None, size) for expected, size in zip(shape, sizes, strict=True))
        for sizes in given
    )


def _build(steps: Steps, light: bool) -> Prepare:
    return (light_pipeline(steps) if light else None) or _compose(steps)


def _compose(steps: Steps) -> Prepare:
    from lbitcls.datasets.pipelines.compose import Compose
    from lbitcls.datasets.pipelines.formatting import to_float

    pipeline = Compose(steps)

    def prepare(picture: Any) -> np.ndarray:
        if isinstance(picture, (str, os.PathLike)):
            start: dict[str, Any] = {"img_info": {"filename": os.fspath(picture)}, "img_prefix": None}
        elif picture is None:
            raise not_an_image(picture)
        else:
            start = {"img": picture, "filename": ""}
        return to_float(pipeline({**start, "gt_label": -1})["img"]).numpy()  # a label for steps that collect one

    return prepare

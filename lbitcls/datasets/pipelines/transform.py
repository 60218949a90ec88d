"""Base classes of pipeline steps, and checks of their arguments."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lbitcls.datasets.rng import global_draw
from lbitcls.utils.logging import DETAIL

Draw = Callable[[], float]
BatchDraw = Callable[[], np.ndarray]

MOST_SIDE = 2**14
"""Largest side that a step may produce, in pixels."""

_logger = logging.getLogger(__name__)


class Transform:
    """Pipeline step: a change of the image, or of the sample's dict.

    A step draws its random numbers from `draw()`, each uniform in [0, 1). They belong to the sample, so
    a step treats the sample in the same way alone (`apply`) and in a batch (`apply_batch`).
    """

    batchwise = False
    """True if the step has a batch form."""
    deterministic = False
    """True if the step gives the same result for the same image every time."""

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Run the step on its own, with random numbers from torch's global generator."""
        return self.process(results, global_draw)

    def process(self, results: dict[str, Any], draw: Draw) -> dict[str, Any]:
        """Change a sample's dict in place and return it."""
        results["img"] = self.apply(results["img"], draw)
        return results

    def apply(self, img: Tensor, draw: Draw) -> Tensor:
        """Return the image (C, H, W) after the step, without changing `img`."""
        raise NotImplementedError

    def apply_batch(self, imgs: Tensor, draw: BatchDraw) -> Tensor:
        """Return the images (N, C, H, W) after the step, which may overwrite `imgs`; `draw()` returns N numbers."""
        raise NotImplementedError

    def __repr__(self) -> str:
        told = ", ".join(f"{key}={value!r}" for key, value in vars(self).items() if not key.startswith("_"))
        return f"{type(self).__name__}({told})"


class FixedTransform(Transform):
    """Step without random numbers, written once for (C, H, W) and (N, C, H, W)."""

    batchwise = True
    deterministic = True

    def change(self, img: Tensor) -> Tensor:
        """Return the image or images (..., C, H, W) after the step."""
        raise NotImplementedError

    def apply(self, img: Tensor, draw: Draw) -> Tensor:
        return self.change(img)

    def apply_batch(self, imgs: Tensor, draw: BatchDraw) -> Tensor:
        return self.change(imgs)


def chosen(draw: BatchDraw, probability: float) -> Tensor:
    """Return the images of a batch that a step with this probability changes, as a mask: bool (N,)."""
    return torch.from_numpy(draw() < probability)


@cache
def log_once(message: str, detail: bool = False) -> None:
    """Log a message at level INFO once per process; a detail is for the log file only."""
    _logger.info(message, extra=DETAIL if detail else None)


def one_of(step: str, key: str, value: Any, choices: tuple[Any, ...]) -> Any:
    """Return `value`; raise `ConfigError` if it is not one of `choices`."""
    from lbitcls.utils.errors import ConfigError, suggest

    if value not in choices:
        listed = ", ".join(map(repr, choices))
        raise ConfigError(
            f"{step}: {key} must be one of {listed}; got {value!r}{suggest(str(value), map(str, choices))}"
        )
    return value


def size_pair(step: str, key: str, value: Any) -> tuple[int, int]:
    """Return (h, w) from an int (a square) or a pair of positive ints."""
    from lbitcls.utils.errors import ConfigError

    pair = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, (list, tuple)) else ()
    if len(pair) != 2 or not all(type(side) is int and 0 < side <= MOST_SIDE for side in pair):
        raise ConfigError(
            f"{step}: {key} must be a number of pixels or (height, width), each from 1 to {MOST_SIDE:,}; got {value!r}."
        )
    return pair


def probability(step: str, key: str, value: Any) -> float:
    """Return `value` if it lies in [0, 1]; else raise `ConfigError`."""
    from lbitcls.utils.errors import ConfigError

    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ConfigError(f"{step}: {key} must be a probability from 0 to 1; got {value!r}.")
    return float(value)

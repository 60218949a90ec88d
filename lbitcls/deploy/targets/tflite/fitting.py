"""Integers of a layer with which an engine's sums fall to the levels of training, although biases are integers.

A channel's products sum up to an integer N, and its result reaches level k if

    N + bias >= (k - 1/2) · level        both in steps of input times weight

Since N is an integer, another bias and another distance of the levels decide the same for every N, if they lie on the
same side of the same integers at each k. An engine computes N · m + b, with the weight's integers times a factor m that
int8 has room for at few bits, and an integer b: a bias of b / m. Of all m and b, and all distances of the levels that
belong to them, those are taken that leave the largest margin to a changed decision. At few levels there nearly always
are some; 256 levels bound the bias so often that there seldom are, and the nearest are taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from lbitcls.deploy.targets.tflite.flatfile import TFLiteGrid

LARGEST_WEIGHT = 127
"""The format excludes -128: two products of it overflow the 16-bit sums of some kernels for Arm."""
_AROUND = range(-3, 4)  # biases that are tried for each factor, around the nearest
_SLACK = 1.0  # integer by which the engine's reference kernels, which round twice, can reach a level early


@dataclass(frozen=True)
class Fit:
    """Numbers of each output channel.

    Attributes:
        factors: Factor of the weight's integers.
        bias: Bias, an integer in steps of input times weight by factor.
        stretch: Factor of the scale, close to 1.
        exact: True where every sum falls to the level of training.
    """

    factors: np.ndarray
    bias: np.ndarray
    stretch: np.ndarray
    exact: np.ndarray


def filled(weight: np.ndarray, fit: Fit) -> np.ndarray:
    """Return a weight's integers times each output channel's factor, as int8."""
    codes = weight * fit.factors.reshape(-1, *[1] * (weight.ndim - 1))
    return np.clip(codes, -LARGEST_WEIGHT, LARGEST_WEIGHT).astype(np.int8)


def fitted(weight: np.ndarray, bias: np.ndarray, level: np.ndarray, grid: TFLiteGrid) -> Fit:
    """Return the numbers with which the most sums fall to the levels of training.

    Args:
        weight: Integers (O, …).
        bias: Bias (O) in steps of input times weight.
        level: Distance (O) of two levels of the result in such steps.
        grid: Levels of the result.
    """
    largest = np.maximum(np.abs(weight.reshape(len(weight), -1)).max(1), 1)
    room = np.maximum(LARGEST_WEIGHT // largest, 1)
    if grid.dtype == "int16":
        return Fit(room, np.rint(bias * room), np.ones(len(room)), np.zeros(len(room), bool))
    ends = np.arange(grid.low, grid.high)[:, None] - grid.zero + 0.5
    first = np.ceil(ends * level - bias)  # smallest sum of products that reaches each level
    best = Fit(room, np.rint(bias * room), np.ones(len(room)), np.zeros(len(room), bool))
    score = np.full(len(room), -np.inf)
    for factor, offset in product(range(1, int(room.max()) + 1), _AROUND):
        integer = np.rint(bias * factor) + offset
        stretch, margins = _margins(ends, level, first, integer / factor, factor)
        found = np.where(factor <= room, _score(margins, factor), -np.inf)
        better = found > score
        score = np.where(better, found, score)
        chosen = (factor, integer, stretch, margins[0] > 0)
        best = Fit(*(np.where(better, new, old) for new, old in zip(chosen, vars(best).values(), strict=True)))
    return best


def _margins(
    ends: np.ndarray, level: np.ndarray, first: np.ndarray, bias: np.ndarray, factor: int
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Return the best stretch of the scale, and the smallest margins of a decision, without and with slack."""
    wanted = level
    for slack in (0, _SLACK):  # the stretch within which both hold, if there is one
        low, high = (first - 1 + bias + slack / factor) / ends, (first + bias) / ends
        low, high = np.minimum(low, high).max(0), np.maximum(low, high).min(0)
        wanted = np.where(low < high, (low + high) / 2, wanted)
    below, above = ends * wanted - (first - 1 + bias), first + bias - ends * wanted
    margins = (np.minimum(below - slack / factor, above).min(0) * factor for slack in (0, _SLACK))
    return level / wanted, tuple(margins)


def _score(margins: tuple[np.ndarray, np.ndarray], factor: int) -> np.ndarray:
    """Return a number that is larger for better margins: exact comes first, then the margin of rounding twice."""
    exact, with_slack = margins
    return np.where(exact > 0, 1000 + with_slack, exact / factor)

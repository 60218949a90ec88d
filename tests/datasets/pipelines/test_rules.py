"""Sizes and positions computed by the steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lbitcls.datasets.pipelines import Compose
from lbitcls.datasets.pipelines.rules import in_proportion, largest_window, middle, unit_of
from lbitcls.utils.errors import DataError

SIDES = st.integers(1, 5000)


@given(SIDES, SIDES, st.tuples(st.integers(1, 300), st.integers(1, 300)))
def test_the_largest_window_lies_in_the_middle_and_touches_a_side(
    height: int, width: int, size: tuple[int, int]
) -> None:
    top, left, high, wide = largest_window(height, width, size)
    assert 0 <= top and 0 <= left and top + high <= height and left + wide <= width
    assert (high == height or wide == width) and high > 0 and wide > 0
    assert abs((height - high) - 2 * top) <= 1 and abs((width - wide) - 2 * left) <= 1
    exact = width * size[0] / size[1]
    assert abs(high - min(height, max(1, exact))) <= 0.5 + 1e-9


def test_middle() -> None:
    assert [middle(10, 4), middle(11, 4), middle(13, 4), middle(4, 10), middle(5, 10)] == [3, 4, 4, -3, -2]


def test_in_proportion() -> None:
    assert in_proportion(20, 35, 50) == (20, 28) and in_proportion(20, 50, 35) == (28, 20)
    for size in ((1, 20_000), (20_000, 1)):
        with pytest.raises(DataError, match=r"too narrow: with a short side of 256 it would become .*; crop it first"):
            in_proportion(256, *size)
    with pytest.raises(DataError, match="too narrow"):
        Compose([dict(type="Resize", size=256)])(np.zeros((1, 20_000), np.uint8))


def test_units() -> None:
    assert unit_of([0.5], [0.2]) == 1 and unit_of([0.5], [1.1]) == 255


def test_fit() -> None:
    image = torch.arange(3 * 6 * 10, dtype=torch.uint8).reshape(3, 6, 10)
    fit = Compose([dict(type="Fit", size=6)])
    assert torch.equal(fit(image)["img"], image[:, :, 2:8])
    assert Compose([dict(type="Fit", size=(4, 3))])(image)["img"].shape == (3, 4, 3)

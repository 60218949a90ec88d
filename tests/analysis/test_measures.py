"""Measures, checked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from lbitcls.analysis.measures import (
    Histogram,
    Similarity,
    entropy_bits,
    output_error,
    step_bins,
    top1,
    value_bins,
)


def test_sqnr_and_cosine_add_up_over_batches() -> None:
    similarity = Similarity()
    similarity.add(torch.tensor([3.0]), torch.tensor([3.0]))
    similarity.add(torch.tensor([[4.0]]), torch.tensor([[3.0]]))
    assert similarity.sqnr_db == pytest.approx(10 * math.log10(25 / 1))
    assert similarity.cosine == pytest.approx(21 / (5 * math.sqrt(18)))


def test_without_error_or_signal_there_is_no_sqnr() -> None:
    same, nothing = Similarity(), Similarity()
    same.add(torch.ones(3), torch.ones(3))
    nothing.add(torch.zeros(3), torch.ones(3))
    assert same.sqnr_db is None and same.cosine == pytest.approx(1)
    assert nothing.sqnr_db is None and nothing.cosine is None


def test_sums_are_exact_where_float32_is_not() -> None:
    similarity = Similarity()
    for _ in range(3):
        similarity.add(torch.full((2**20,), 0.1), torch.full((2**20,), 0.1) + 0.01)
    assert similarity.sqnr_db == pytest.approx(20.0, abs=1e-4)


def test_histogram_keeps_what_is_beyond_its_ends() -> None:
    histogram = Histogram(0.0, 0.5, 4)
    histogram.add(torch.tensor([-9.0, 0.0, 0.49, 0.5, 1.99, 2.0, 70.0]))
    assert histogram.counts.tolist() == [3, 1, 0, 3]
    assert histogram.empty_copy().counts.sum() == 0


def test_bins_of_values_span_them() -> None:
    bins = value_bins(-1.0, 3.0)
    assert bins.start == -1.0 and bins.width * bins.bins == pytest.approx(4.0)
    bins = value_bins(2.0, 2.0)
    bins.add(torch.full((5,), 2.0))
    assert bins.counts.sum() == 5


@pytest.mark.parametrize("limits", [(-8, 7), (0, 3), (-127, 127), (0, 255), (-1000, 1000), (-1, 1)])
@pytest.mark.parametrize("seen", [(0.0, 1.0), (-1e6, 1e6), (-3.2, 9.7)])
def test_bins_of_steps_cover_the_grid_and_half_of_it_beyond(limits: tuple[int, int], seen: tuple[float, float]) -> None:
    low, high = limits
    bins = step_bins(low, high, *seen)
    end = bins.start + bins.width * bins.bins
    assert bins.start <= low - 0.5 and end >= high + 0.5
    assert bins.start >= low - (high - low) / 2 - 2 and end <= high + (high - low) / 2 + 2 + bins.width
    assert 60 <= bins.bins <= 170
    between = (low + 0.5 - bins.start) / bins.width
    assert bins.width > 1 or between == round(between), "a border lies between two integers"


def test_output_error_by_hand() -> None:
    reference = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    logits = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    error = output_error(reference, logits, torch.tensor([0, 1]))
    first = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    q = math.e / (1 + math.e)
    second = 0.5 * math.log(0.5 / (1 - q)) + 0.5 * math.log(0.5 / q)
    assert error.kl == pytest.approx((first + second) / 2, rel=1e-6)
    assert error.changed == 0.5  # among equal logits, the first is the highest
    assert error.top1 == 1.0
    assert error.sqnr_db == pytest.approx(10 * math.log10(math.log(3) ** 2 / (math.log(3) ** 2 + 1)), rel=1e-6)


def test_equal_outputs_have_no_error() -> None:
    logits = torch.randn(5, 10)
    error = output_error(logits, logits.clone())
    assert (error.kl, error.sqnr_db, error.changed, error.top1) == (0.0, None, 0.0, None)
    assert top1(logits, logits.argmax(1)) == 1.0


def test_entropy() -> None:
    assert entropy_bits(torch.tensor([5, 5, 5, 5])) == pytest.approx(2.0)
    assert entropy_bits(torch.tensor([0, 7, 0])) == 0.0
    assert entropy_bits(torch.tensor([1, 3])) == pytest.approx(0.811278, rel=1e-5)

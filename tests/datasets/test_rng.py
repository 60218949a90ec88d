"""Counter-based generator: its two forms agree, its numbers are uniform and uncorrelated."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from lbitcls.datasets.rng import (
    BatchDraws,
    Draws,
    epoch_key,
    fold,
    fold_array,
    sample_key,
    seeded_generators,
    shuffled,
)


def test_fold_is_splitmix64() -> None:
    # The first outputs of the reference implementation seeded with 1234567 (prng.di.unimi.it/splitmix64.c).
    assert [fold(1234567, i) for i in range(3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_one_by_one_and_in_arrays_agree() -> None:
    keys = [sample_key(7, 2, index) for index in range(50)]
    assert fold_array(epoch_key(7, 2), np.arange(50)).tolist() == keys
    single = [Draws(key) for key in keys]
    batch = BatchDraws(np.array(keys, np.uint64))
    for _ in range(5):
        assert batch().tolist() == [draw() for draw in single]


def test_draws_are_uniform_and_unrelated() -> None:
    draws = BatchDraws(fold_array(epoch_key(0, 0), np.arange(100_000)))
    first, second = draws(), draws()
    for numbers in (first, second):
        assert 0 <= numbers.min() and numbers.max() < 1
        # 100 bins of 1,000 each: chi-square with 99 degrees of freedom is below 149 in 99.9 % of cases.
        counts = np.histogram(numbers, 100, (0, 1))[0]
        assert ((counts - 1000) ** 2 / 1000).sum() < 149
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.01
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.01


def test_seed_epoch_and_index_all_matter() -> None:
    keys = {sample_key(seed, epoch, index) for seed in (-1, 0, 1) for epoch in range(10) for index in range(100)}
    assert len(keys) == 3 * 10 * 100


def test_shuffled_is_a_permutation_of_its_own_for_each_epoch() -> None:
    orders = [shuffled(1000, 0, epoch) for epoch in range(3)] + [shuffled(1000, 1, 0)]
    assert all(sorted(order) == list(range(1000)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert (shuffled(1000, 0, 0) == orders[0]).all() and orders[0].dtype == np.int64


def _globals() -> tuple:
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)]


def test_seeded_generators_come_back_to_where_they_were() -> None:
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    expected = _globals()
    torch.set_rng_state(states[0]), np.random.set_state(states[1]), random.setstate(states[2])
    with seeded_generators(5):
        inside = _globals()
    with pytest.raises(KeyError), seeded_generators(6):
        other = _globals()
        raise KeyError
    assert _globals() == expected
    with seeded_generators(5):
        assert _globals() == inside != other

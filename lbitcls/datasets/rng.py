"""Random numbers as a pure function of (seed, epoch, index), the same for one sample and for a batch.

`fold(key, i)` is the i-th number of the SplitMix64 stream seeded with `key` (Steele, Lea, Flood: "Fast
splittable pseudorandom number generators", OOPSLA 2014, doi:10.1145/2660193.2660195). As a function of a
counter, it needs no state: neither the order in which samples are drawn nor the process that draws them
matters, and whole batches are drawn at once with NumPy.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_MIX1 = 0xBF58476D1CE4E5B9
_MIX2 = 0x94D049BB133111EB
_UNIT = 2.0**-53


def fold(key: int, value: int) -> int:
    """Return number `value` of the stream `key`: an integer in [0, 2^64)."""
    z = (key + (value + 1) * _GAMMA) & _MASK
    z = ((z ^ (z >> 30)) * _MIX1) & _MASK
    z = ((z ^ (z >> 27)) * _MIX2) & _MASK
    return z ^ (z >> 31)


def fold_array(keys: np.ndarray | int, values: np.ndarray | int) -> np.ndarray:
    """Apply `fold` element by element to uint64 arrays (one of the two may be an int)."""
    # At least one dimension: NumPy warns of overflow in scalars, and overflow is intended here.
    keys, values = np.atleast_1d(np.asarray(keys, np.uint64)), np.atleast_1d(np.asarray(values, np.uint64))
    z = keys + (values + np.uint64(1)) * np.uint64(_GAMMA)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX2)
    return z ^ (z >> np.uint64(31))


def epoch_key(seed: int, epoch: int) -> int:
    """Return the stream of an epoch, from which its samples' keys are drawn."""
    return fold(fold(0, seed), epoch)


def sample_key(seed: int, epoch: int, index: int) -> int:
    """Return the stream of one sample in one epoch."""
    return fold(epoch_key(seed, epoch), index)


def shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return a permutation of `range(count)`, int64, that depends on (seed, epoch) alone."""
    # A separate stream: the order of the samples must not be correlated with their augmentation.
    stream = fold(epoch_key(seed, epoch), _MASK)
    return np.argsort(fold_array(stream, np.arange(count)), kind="stable")


class Draws:
    """Uniform random numbers in [0, 1) for one pipeline step; each call returns the next one."""

    __slots__ = ("_count", "_key")

    def __init__(self, key: int) -> None:
        self._key = key
        self._count = 0

    def __call__(self) -> float:
        self._count += 1
        return (fold(self._key, self._count) >> 11) * _UNIT


class BatchDraws:
    """`Draws` of N samples at once: each call returns N numbers, equal to those of the samples' own `Draws`."""

    __slots__ = ("_count", "_keys")

    def __init__(self, keys: np.ndarray) -> None:
        self._keys = keys
        self._count = 0

    def __call__(self) -> np.ndarray:
        self._count += 1
        return (fold_array(self._keys, self._count) >> np.uint64(11)) * _UNIT


def global_draw() -> float:
    """Return a number in [0, 1) from torch's global generator, for a step that is called on its own."""
    return float(torch.rand((), dtype=torch.float64))


@contextmanager
def seeded_generators(key: int) -> Iterator[None]:
    """Seed the generators of torch, NumPy and Python for the block, and restore their states afterwards.

    In a worker process nothing else uses them, so the states are not restored there.
    """
    alone = torch.utils.data.get_worker_info() is not None
    states = None if alone else (torch.get_rng_state(), np.random.get_state(), random.getstate())
    torch.default_generator.manual_seed(key >> 1)
    np.random.seed(key & 0xFFFFFFFF)
    random.seed(key)
    try:
        yield
    finally:
        if states is not None:
            torch.set_rng_state(states[0])
            np.random.set_state(states[1])
            random.setstate(states[2])

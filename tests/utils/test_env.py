"""Seeds and the environment in the log's head."""

from __future__ import annotations

import os

import torch

from lbitcls.utils.env import draw_seed, environment, host, mix_seed, seed_everything


def test_mixed_seeds_differ() -> None:
    seeds = {mix_seed(seed, iteration, rank) for seed in range(3) for iteration in range(50) for rank in range(3)}
    assert len(seeds) == 450
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert mix_seed(1, 2) == mix_seed(1, 2) != mix_seed(2, 1)


def test_seed_everything() -> None:
    seed_everything(5)
    first = torch.rand(3)
    seed_everything(5)
    assert torch.equal(first, torch.rand(3))
    assert 0 <= draw_seed() < 2**31


def test_environment_tells_versions_and_no_variables() -> None:
    os.environ["LBITCLS_TEST_SECRET"] = "do not log this"
    told = environment()
    del os.environ["LBITCLS_TEST_SECRET"]
    assert told["PyTorch"] == torch.__version__
    assert "do not log this" not in str(told)
    assert host()

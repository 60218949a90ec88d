"""Place of a process; collectives with a single process."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from lbitcls.utils import dist
from lbitcls.utils.errors import ConfigError


def test_alone() -> None:
    assert dist.find_place("none") == dist.Place(0, 1, None)
    assert (dist.rank(), dist.world_size(), dist.is_main()) == (0, 1, True)
    assert dist.broadcast_object("x") == "x" and dist.gather_objects(3) == [3]
    assert dist.sum_over_ranks(torch.ones(2)).tolist() == [1, 1]
    assert not dist.lost_peer(RuntimeError("Connection closed by peer"))  # there is no peer


def test_place_from_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert dist.find_place("pytorch") == dist.Place(3, 4, 1)


def test_place_from_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"}.items():
        monkeypatch.setenv(name, value)
    assert dist.find_place("slurm") == dist.Place(3, 4, 1)


def test_not_started_by_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match=r"dist_train\.sh"):
        dist.find_place("pytorch")
    with pytest.raises(ConfigError, match="Did you mean 'pytorch'"):
        dist.find_place("pytroch")


def test_nccl_becomes_gloo_on_a_cpu(caplog: Any) -> None:
    with caplog.at_level(logging.INFO):
        dist.init_processes("none", dist.Place(), "nccl", torch.device("cpu"), logging.getLogger("test"))
    assert caplog.text.count("gloo") == 1

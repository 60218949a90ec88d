"""Device names, and the device chosen on a machine."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from lbitcls.utils.device import choose_device, device_or_cpu, parse_device
from lbitcls.utils.errors import ConfigError

LOGGER = logging.getLogger("test")


@pytest.mark.parametrize(
    ("name", "device"),
    [("cpu", "cpu"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("gpu:1", "cuda:1"), ("GPU", "cuda:0"), ("1", "cuda:1")],
)
def test_names(name: str, device: str) -> None:
    assert parse_device(name) == torch.device(device)


@pytest.mark.parametrize("name", ["tpu", "cuda:", "cuda:-1", "cpu:0", "-1", ""])
def test_wrong_names(name: str) -> None:
    with pytest.raises(ConfigError, match="a device must be"):
        parse_device(name)


def gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)


@pytest.mark.parametrize(
    ("name", "gpu_ids", "level"), [(None, None, "INFO"), ("auto", None, "INFO"), (None, [0], "WARNING")]
)
def test_without_a_request_no_gpu_means_the_cpu(
    name: str | None, gpu_ids: list[int] | None, level: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    gpus(monkeypatch, 0)
    with caplog.at_level(logging.INFO):
        assert choose_device(LOGGER, name, gpu_ids=gpu_ids).type == "cpu"
    assert [(record.levelname, "this machine has no GPU" in record.message) for record in caplog.records] == [
        (level, True)
    ]
    assert not logging.getLogger("torch.utils.cpp_extension").isEnabledFor(logging.WARNING)


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "gpu:0", "GPU", "1"])
def test_a_requested_gpu_must_exist(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 0)
    for local_rank in (None, 0):
        with pytest.raises(ConfigError, match=f"{name} is requested, but this machine has no GPU"):
            choose_device(LOGGER, name, local_rank=local_rank)
    assert choose_device(LOGGER, name, cpu_only=True).type == "cpu"


def test_older_interfaces_fall_back_loudly(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    gpus(monkeypatch, 0)
    assert device_or_cpu(LOGGER, "gpu:0") == "cpu"
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "Running on the CPU instead of gpu:0: this machine has no GPU.")
    ]
    assert [device_or_cpu(LOGGER, name) for name in ("cpu", "auto")] == ["cpu", "auto"]
    with pytest.raises(ConfigError, match="a device must be"):
        device_or_cpu(LOGGER, "here.html")
    gpus(monkeypatch, 1)
    assert device_or_cpu(LOGGER, "gpu:0") == "gpu:0" and len(caplog.records) == 1


def test_choice_with_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 2)
    assert choose_device(LOGGER) == choose_device(LOGGER, "auto") == torch.device("cuda:0")
    assert choose_device(LOGGER, "gpu:1") == torch.device("cuda:1")
    assert choose_device(LOGGER, "cuda:1", cpu_only=True) == torch.device("cpu")
    assert choose_device(LOGGER, gpu_ids=[1]) == torch.device("cuda:1")
    assert choose_device(LOGGER, local_rank=1) == torch.device("cuda:1")
    assert choose_device(LOGGER, "cuda", local_rank=1) == torch.device("cuda:1")
    assert choose_device(LOGGER, gpu_ids=[1, 0], local_rank=0) == torch.device("cuda:1")


def test_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 2)
    with pytest.raises(ConfigError, match=r"has 2 GPU"):
        choose_device(LOGGER, "cuda:2")
    with pytest.raises(ConfigError, match=r"dist_train\.sh"):
        choose_device(LOGGER, gpu_ids=[0, 1])
    with pytest.raises(ConfigError, match="needs its own"):
        choose_device(LOGGER, gpu_ids=[0], local_rank=1)

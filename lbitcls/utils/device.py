"""Device names: `auto`, `cpu`, `cuda`, `cuda:1`, and the older spellings `gpu:1` and `1`."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

import torch

from lbitcls.utils.errors import ConfigError
from lbitcls.utils.logging import ONCE

AUTO = "auto"
"""Name for the first GPU, or the CPU if there is none."""
_NAME = re.compile(r"(?:cpu|(?:cuda|gpu)(?::(\d+))?|(\d+))")


def parse_device(name: str) -> torch.device:
    """Return the device named `name`, even if this machine lacks it.

    Raises:
        ConfigError: `name` is neither `cpu`, nor a GPU index, nor `cuda` or `gpu` with or without one.

    Example:
        >>> parse_device("gpu:1")
        device(type='cuda', index=1)
    """
    found = _NAME.fullmatch(name.strip().lower())
    if found is None:
        raise ConfigError(f"a device must be auto, cpu, cuda, cuda:N, gpu:N or N (its index from 0); got '{name}'.")
    if name.strip().lower() == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", int(found[1] or found[2] or 0))


def choose_device(
    logger: logging.Logger,
    name: str | None = None,
    *,
    cpu_only: bool = False,
    gpu_ids: Sequence[int] | None = None,
    local_rank: int | None = None,
) -> torch.device:
    """Return the device to run on: the requested one, or else a GPU, or the CPU (logged) if there is none.

    Args:
        logger: Logger for the choice of the CPU.
        name: Device name; None or `auto`: the first GPU, or the CPU.
        cpu_only: Use the CPU, whatever else is requested.
        gpu_ids: Indices of the GPUs to use; one without a launcher, one per process of a node with one.
        local_rank: This process's index on its node, under a launcher.

    Raises:
        ConfigError: The name is not a device, or the machine has no GPU, or fewer than the index requires.
    """
    explicit = name is not None and name.strip().lower() not in ("", AUTO)
    wanted = parse_device(name) if name and explicit else torch.device("cuda", _index(gpu_ids, local_rank))
    if cpu_only or wanted.type == "cpu":
        return torch.device("cpu")
    if local_rank is not None:
        wanted = torch.device("cuda", _index(gpu_ids, local_rank))
    count = _gpus()
    if count == 0:
        if explicit:
            why = "" if torch.backends.cuda.is_built() else " (this PyTorch is built without CUDA)"
            raise ConfigError(f"{name} is requested, but this machine has no GPU{why}. Use the device cpu, or auto.")
        level = logging.WARNING if gpu_ids else logging.INFO
        logger.log(level, "Running on the CPU: this machine has no GPU.", extra=ONCE)
        # Before it compiles for a CPU, it would warn of CUDA's tools without a GPU.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        return torch.device("cpu")
    if wanted.index >= count:
        raise ConfigError(f"{wanted} is requested, but this machine has {count} GPU(s), numbered from 0.")
    torch.cuda.set_device(wanted)
    return wanted


def device_or_cpu(logger: logging.Logger, name: str) -> str:
    """Return the device name, or `cpu` with a warning if it is a GPU's and this machine has none.

    For the older interfaces, whose documented calls name a GPU; elsewhere such a request is an error.

    Raises:
        ConfigError: The name is not a device.
    """
    if name.strip().lower() == AUTO or parse_device(name).type == "cpu" or _gpus():
        return name
    logger.warning("Running on the CPU instead of %s: this machine has no GPU.", name)
    return "cpu"


def _gpus() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _index(gpu_ids: Sequence[int] | None, local_rank: int | None) -> int:
    rank = local_rank or 0
    if not gpu_ids:
        return rank
    if local_rank is None and len(gpu_ids) > 1:
        raise ConfigError(
            f"gpu_ids names {len(gpu_ids)} GPUs, but one process trains on one GPU: "
            f"run ./tools/dist_train.sh CONFIG {len(gpu_ids)}, or name one GPU."
        )
    if rank >= len(gpu_ids):
        raise ConfigError(f"gpu_ids names {len(gpu_ids)} GPU(s), but process {rank} of this node needs its own.")
    return gpu_ids[rank]

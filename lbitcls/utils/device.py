"""Names of devices: `cpu`, `cuda`, `cuda:1`, and the older spellings `gpu:1` and `1`."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

import torch

from lbitcls.utils.errors import ConfigError

_NAME = re.compile(r"(?:cpu|(?:cuda|gpu)(?::(\d+))?|(\d+))")


def parse_device(name: str) -> torch.device:
    """The device that `name` says, whether this machine has it or not.

    Raises:
        ConfigError: `name` is neither `cpu`, nor a GPU's number, nor `cuda` or `gpu` with or without one.

    Example:
        >>> parse_device("gpu:1")
        device(type='cuda', index=1)
    """
    found = _NAME.fullmatch(name.strip().lower())
    if found is None:
        raise ConfigError(f"'{name}' names no device; a device is cpu, cuda, cuda:N, gpu:N or N (its number from 0).")
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
    """The device to run on: the one asked for, or the CPU (saying so) where there is no GPU.

    Args:
        logger: told when the choice is not what was asked for.
        name: a device's name; None: the first GPU, or the CPU.
        cpu_only: the CPU, whatever else is asked for.
        gpu_ids: numbers of the GPUs to use; one without a launcher, one per process of a node with one.
        local_rank: this process's number on its node, under a launcher.

    Raises:
        ConfigError: the name is no device's, or the machine has fewer GPUs than the number says.
    """
    wanted = parse_device(name) if name else torch.device("cuda", _index(gpu_ids, local_rank))
    if cpu_only or wanted.type == "cpu":
        return torch.device("cpu")
    if local_rank is not None:
        wanted = torch.device("cuda", _index(gpu_ids, local_rank))
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        logger.info("No GPU here: running on the CPU.")
        return torch.device("cpu")
    if wanted.index >= count:
        raise ConfigError(f"{wanted} is asked for, but this machine has {count} GPU(s), numbered from 0.")
    torch.cuda.set_device(wanted)
    return wanted


def _index(gpu_ids: Sequence[int] | None, local_rank: int | None) -> int:
    rank = local_rank or 0
    if not gpu_ids:
        return rank
    if local_rank is None and len(gpu_ids) > 1:
        raise ConfigError(
            f"gpu_ids names {len(gpu_ids)} GPUs, but one process trains on one: "
            f"start ./tools/dist_train.sh CONFIG {len(gpu_ids)}, or name one GPU."
        )
    if rank >= len(gpu_ids):
        raise ConfigError(f"gpu_ids names {len(gpu_ids)} GPU(s), but process {rank} of this node needs one of its own.")
    return gpu_ids[rank]

"""Distributed training: this process's place, and the few collectives that the package uses.

Every function also works without a process group, as if this were its only process.
"""

from __future__ import annotations

import datetime
import logging
import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from lbitcls.utils.errors import ConfigError, DataError, suggest
from lbitcls.utils.shards import is_shard

if TYPE_CHECKING:
    from lbitcls.utils.liveness import Pulse

LAUNCHERS = ("none", "pytorch", "slurm")
LAUNCHED = "LBITCLS_LAUNCHED"
"""Environment variable with the time, in seconds of the epoch, at which `lbitcls.utils.launch` started."""
LONG = 86400.0
"""Default time limit of a collective in seconds: `liveness` notices a process that dies or hangs much sooner."""

_limit = datetime.timedelta(seconds=LONG)
_pulse: Pulse | None = None


@dataclass(frozen=True)
class Place:
    """Place of this process: its rank of `world_size`, and its index on its node (None without a launcher)."""

    rank: int = 0
    world_size: int = 1
    local_rank: int | None = None


def find_place(launcher: str) -> Place:
    """Return this process's place, from the variables set by torchrun or Slurm.

    Raises:
        ConfigError: Unknown launcher, or the process was not started by it.
    """
    if launcher not in LAUNCHERS:
        raise ConfigError(
            f"there is no launcher '{launcher}'{suggest(launcher, LAUNCHERS)} Known: {', '.join(LAUNCHERS)}."
        )
    if launcher == "none":
        return Place()
    names = {
        "pytorch": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        "slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    }[launcher]
    missing = [name for name in names if name not in os.environ]
    if missing:
        start = "./tools/dist_train.sh CONFIG NUM_PROCS" if launcher == "pytorch" else "srun"
        raise ConfigError(f"launcher '{launcher}': {', '.join(missing)} not set; start the processes with {start}.")
    rank, world_size, local_rank = (int(os.environ[name]) for name in names)
    return Place(rank, world_size, local_rank)


def init_processes(
    launcher: str,
    place: Place,
    backend: str | None,
    device: torch.device,
    logger: logging.Logger,
    *,
    timeout: float | None = None,
    hang_after: float = 0.0,
) -> None:
    """Join the process group (nothing to do for launcher `none`), and watch over its processes.

    Args:
        launcher: Launcher that started this process.
        place: Its place.
        backend: Backend of `dist_params`; None: the device's default. On a CPU, gloo replaces NCCL, which is logged.
        device: Device of this process.
        logger: Logger.
        timeout: Seconds that a collective waits for other processes; None: `LONG`.
        hang_after: Seconds without activity after which a process counts as hanging; 0: never.
    """
    global _limit, _pulse
    if backend == "nccl" and device.type == "cpu":
        logger.info("Using gloo: the backend NCCL of dist_params needs GPUs.")
        backend = "gloo"
    if launcher == "none" or dist.is_initialized():
        return
    backend = backend or ("gloo" if device.type == "cpu" else "nccl")
    if backend not in ("nccl", "gloo", "mpi"):
        raise ConfigError(f"dist_params: unknown backend '{backend}'. Known: nccl, gloo, mpi.")
    if launcher == "slurm":
        os.environ.setdefault("MASTER_ADDR", _first_slurm_host())
        os.environ.setdefault("MASTER_PORT", os.environ.get("PORT", "29500"))
        os.environ.update(RANK=str(place.rank), WORLD_SIZE=str(place.world_size))
    _limit = datetime.timedelta(seconds=timeout or LONG)
    store = _store_of_start(launcher, place)
    dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world_size, timeout=_limit)
    if place.world_size > 1 and "MASTER_PORT" in os.environ:
        from lbitcls.utils.liveness import Pulse

        _pulse = Pulse(place.rank, place.world_size, hang_after)


def _store_of_start(launcher: str, place: Place) -> dist.Store | None:
    """Return torchrun's store with names of its own for this start; None: the backend's usual one.

    torchrun keeps the store, with the addresses of the processes that it started before, when it starts others.
    """
    if not restarts(launcher) or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, place.world_size, is_master=False)
    return dist.PrefixStore(f"start_{restarts(launcher)}", store)


def leave_processes() -> None:
    """Leave the process group, if this process is a member."""
    global _pulse
    if _pulse is not None:
        _pulse.stop()
        _pulse = None
    if dist.is_initialized():
        dist.destroy_process_group()


def gloo_group() -> Any:
    """Return a new group of all processes for small tensors on the CPU; None with a single process."""
    return dist.new_group(backend="gloo", timeout=_limit) if world_size() > 1 else None


def restarts(launcher: str) -> int:
    """Return how often torchrun has restarted the processes after a failure (`--max-restarts`)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) if launcher == "pytorch" else 0


def rank() -> int:
    """Return this process's rank, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Return True in the process that writes files and logs."""
    return rank() == 0


def broadcast_object(value: Any) -> Any:
    """Return rank 0's `value` (any plain object) on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Sum `tensor` over all ranks, in place, and return it."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def concatenate_over_ranks(row: torch.Tensor) -> torch.Tensor:
    """Return the vectors (n,) of all ranks, which may differ in length, one after the other."""
    if world_size() == 1:
        return row
    lengths = [torch.zeros(1, dtype=torch.int64, device=row.device) for _ in range(world_size())]
    dist.all_gather(lengths, torch.tensor([len(row)], device=row.device))
    counts = [int(length) for length in lengths]
    padded = torch.cat([row, row.new_zeros(max(counts) - len(row))])
    rows = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(rows, padded)
    return torch.cat([found[:count] for found, count in zip(rows, counts, strict=True)])


def gather_objects(value: Any) -> list[Any]:
    """Return every rank's `value`, in rank order, on rank 0; an empty list on the others."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] | None = [None] * world_size() if is_main() else None
    dist.gather_object(value, gathered, dst=0)
    return gathered or []


def check_equal(name: str, value: int | str) -> None:
    """Raise `DataError` on all ranks unless all have the same `value`, called `name` in the message."""
    if world_size() == 1:
        return
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    if len(set(values)) > 1:
        given = ", ".join(f"{found} on rank {number}" for number, found in enumerate(values))
        raise DataError(f"{name} differs between the processes: {given}. Each needs the same files, all readable.")


def broadcast_module(module: nn.Module, parameters: bool = True, group: Any = None) -> None:
    """Copy rank 0's buffers to every rank, and its parameters too unless `parameters` is False.

    Parameters of which each rank holds a part stay as they are. `group` is another group of all ranks than the default.
    """
    if world_size() == 1:
        return
    tensors = [*module.buffers(), *(module.parameters() if parameters else ())]
    for tensor in (tensor for tensor in tensors if not is_shard(tensor)):
        dist.broadcast(tensor.data, src=0, group=group)
        torch.autograd.graph.increment_version(tensor)  # a collective does not count as a change by itself


def lost_peer(error: BaseException) -> bool:
    """Return True if `error` only reports the end of another process, whose own message gives the cause."""
    text = str(error).lower()
    return dist.is_initialized() and any(
        sign in text for sign in ("connection closed by peer", "connection reset by peer", "broken pipe")
    )


def _first_slurm_host() -> str:
    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST", "")
    command = ["scontrol", "show", "hostnames", nodes]  # from PATH: Slurm decides where its tools are
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode != 0 or not found.stdout.split():
        raise ConfigError(f"slurm: no host in the node list '{nodes}'; set MASTER_ADDR to the first node's address.")
    return found.stdout.split()[0]

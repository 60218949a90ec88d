"""Environment of a run: host, versions, seeds, deterministic kernels."""

from __future__ import annotations

import getpass
import os
import platform
import random
import secrets
import socket
import sys

import numpy as np
import torch

from lbitcls.version import __version__

_MASK = (1 << 64) - 1


def environment() -> dict[str, str]:
    """Return versions and hardware for the head of a log (no environment variables)."""
    import torchvision

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "lbitcls": __version__,
        "Python": sys.version.split()[0],
        "Platform": platform.platform(),
        "CPU": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads for PyTorch",
        "GPU": ", ".join(gpus) or "none",
        "CUDA": str(torch.version.cuda),
        "cuDNN": str(torch.backends.cudnn.version()) if gpus else "-",
        "PyTorch": torch.__version__,
        "TorchVision": torchvision.__version__,
        "NumPy": np.__version__,
    }


def host() -> str:
    """Return `user@machine`, or only the machine if the user has no name."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):
        return socket.gethostname()


def draw_seed() -> int:
    """Return a random seed, for a run whose config sets none."""
    return secrets.randbelow(2**31)


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's global generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def mix_seed(*numbers: int) -> int:
    """Return one 63-bit seed from several numbers; close numbers give unrelated seeds (splitmix64)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def use_deterministic_kernels() -> None:
    """Allow only kernels that give the same bits every time; an operation without one raises."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)

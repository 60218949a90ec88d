"""Memory for intermediate results that are used up before their function returns.

A block of several MiB that is allocated anew for every layer has new pages each time, which the operating system fills
with zeros one by one. So each thread keeps its largest block of a type, and takes it for every layer.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor


class _Blocks(threading.local):
    def __init__(self) -> None:
        self.of_type: dict[torch.dtype, Tensor] = {}


_blocks = _Blocks()


def scratch(like: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor with the shape and memory format of `like`, which is dense; its values are undefined.

    The next call in this thread with this type returns the same memory.
    """
    block = _blocks.of_type.get(dtype)
    if block is None or block.numel() < like.numel():
        block = _blocks.of_type[dtype] = torch.empty(like.numel(), dtype=dtype, device="cpu")
    return block.as_strided(like.shape, like.stride())

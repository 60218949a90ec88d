"""Run by torchrun on two processes: every method trains under DDP with equal parameters (see test_ddp.py)."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lbitcls.quant import calibrate, refresh, select_kernels
from lbitcls.quant.methods import METHODS, build_quant_layer
from lbitcls.registry import QUANT_LAYERS
from lbitcls.utils.dist import broadcast_module


def network(method: str) -> nn.Module:
    """Two quantized convolutions with a BatchNorm."""
    options = dict(num_bit_w=4, num_bit_a=4, per_channel=True)
    return nn.Sequential(
        build_quant_layer(dict(type=f"{method}Conv", **options), nn.Conv2d(3, 4, 3)),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        build_quant_layer(dict(type=f"{method}Conv", **options), nn.Conv2d(4, 4, 3)),
    )


def main() -> None:
    """Train each method for three steps on different data on each rank, then compare all parameters."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    QUANT_LAYERS.names()
    select_kernels("plain")  # nothing to compile for each method
    for method in METHODS:
        torch.manual_seed(0)
        model = network(method)
        torch.manual_seed(1 + rank)
        calibrate(model.train(), [torch.randn(4, 3, 8, 8)])
        broadcast_module(model)
        refresh(model)
        parallel = DistributedDataParallel(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            parallel(torch.randn(4, 3, 8, 8)).square().mean().backward()
            optimizer.step()
        flat = torch.cat([p.detach().flatten() for p in model.parameters()])
        both = [torch.empty_like(flat) for _ in range(2)]
        dist.all_gather(both, flat)
        if not torch.equal(*both) or not flat.isfinite().all():
            raise SystemExit(f"{method}: the ranks differ by {(both[0] - both[1]).abs().max()}")
        if rank == 0:
            print(f"{method} equal", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

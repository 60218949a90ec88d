"""Run by torchrun on two processes: every method trains under DDP with equal parameters (see test_ddp.py).

With the argument `integer`, layers multiply integers, and the parameters are compared with the simulation's as well.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lbitcls.quant import calibrate, refresh
from lbitcls.quant.kernels import machine, selection
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


def trained(method: str, kind: str) -> Tensor:
    """Parameters after three steps, on different data on each rank."""
    selection._active = kind
    rank = dist.get_rank()
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
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def main(kind: str = "plain") -> None:
    """Train each method, then compare all parameters."""
    dist.init_process_group("gloo")
    QUANT_LAYERS.names()
    selection.fused_now = lambda: False  # nothing to compile for each method
    if kind == "integer" and machine.find_obstacle():
        raise SystemExit(machine.find_obstacle())
    for method in METHODS:
        flat = trained(method, kind)
        both = [torch.empty_like(flat) for _ in range(2)]
        dist.all_gather(both, flat)
        if not torch.equal(*both) or not flat.isfinite().all():
            raise SystemExit(f"{method}: the ranks differ by {(both[0] - both[1]).abs().max()}")
        if kind == "integer":
            off = (flat - trained(method, "plain")).norm() / flat.norm()
            if off > 0.01:  # a value next to a tie may differ
                raise SystemExit(f"{method}: integers are off by {off:.1e}")
        if dist.get_rank() == 0:
            print(f"{method} equal", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])

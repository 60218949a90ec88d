"""Run on two processes: steps where the processes left out different images (see test_step.py)."""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lbitcls.core.optimizer_pair import OptimizerPair
from lbitcls.core.step import OptimizerStep

SIZES = ([4, 3, 2, 4, 4], [4, 4, 4, 1, 2])  # of each process's batches
OPTIONS = {
    "accumulated": dict(cumulative_iters=2),
    "each batch": dict(),
    "clipped": dict(cumulative_iters=3, grad_clip=dict(max_norm=0.05)),
    "one group": dict(cumulative_iters=10),
}


class Net(nn.Module):
    """What the step needs of a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(6, 3).double()

    def forward(self, img: Tensor, gt_label: Tensor, return_loss: bool) -> dict[str, Tensor]:
        return {"loss": nn.functional.cross_entropy(self.fc(img), gt_label)}


def batches(rank: int) -> list[dict[str, Tensor]]:
    """Return the images of a process; both processes can compute them."""
    torch.manual_seed(1 + rank)
    return [dict(img=torch.randn(n, 6).double(), gt_label=torch.randint(3, (n,))) for n in SIZES[rank]]


def expected(cumulative_iters: int = 1, grad_clip: Any = None) -> Tensor:
    """The weight after steps along the mean over the group's samples of both processes, as one process makes them."""
    model, data = Net(), [batches(rank) for rank in range(2)]
    optimizer = torch.optim.SGD(model.parameters(), 0.5, 0.9)
    for start in range(0, len(SIZES[0]), cumulative_iters):
        optimizer.zero_grad()
        group = [batch for mine in data for batch in mine[start : start + cumulative_iters]]
        joined = {key: torch.cat([batch[key] for batch in group]) for key in ("img", "gt_label")}
        model(**joined, return_loss=True)["loss"].backward()
        if grad_clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), **grad_clip)
        optimizer.step()
    return model.fc.weight.detach()


def compare(name: str, options: dict[str, Any], pair: bool) -> None:
    """Train on both processes, and compare them with each other and with the formula."""
    model = DistributedDataParallel(Net())
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), 0.5, 0.9)
    if pair:
        optimizer = OptimizerPair(*(torch.optim.SGD([parameter], 0.5, 0.9) for parameter in model.parameters()))
    step = OptimizerStep(optimizer, torch.device("cpu"), uneven=True, **options)
    mine = batches(dist.get_rank())
    for i, batch in enumerate(mine):
        step(model, batch, i, len(mine))
    weight = model.module.fc.weight.detach()
    both = [torch.empty_like(weight) for _ in range(2)]
    dist.all_gather(both, weight)
    if not torch.equal(*both):
        raise SystemExit(f"{name}: the processes differ by {(both[0] - both[1]).abs().max()}")
    torch.testing.assert_close(weight, expected(**options), rtol=1e-12, atol=1e-12, msg=lambda text: f"{name}: {text}")


def main() -> None:
    """Try every setting."""
    dist.init_process_group("gloo")
    for name, options in OPTIONS.items():
        compare(name, options, pair=False)
        compare(f"{name}, pair", options, pair=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

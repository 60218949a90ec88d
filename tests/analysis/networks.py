"""Small networks for the tests of the analysis, and their quantized forms."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lbitcls.quant import build_mtransformer, calibrate


class Network(nn.Module):
    """Two convolutions, defined in reverse order, the second called twice; an unused layer; a head."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.unused = nn.Linear(3, 3)
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4, 5)

    def forward(self, img: Tensor) -> Tensor:
        x = self.first(img).relu()
        x = self.norm(self.second(x)).relu()
        x = self.norm(self.second(x)).relu_()
        return self.fc(x.mean((2, 3)))


def images(number: int = 12, batch: int = 5) -> list[Tensor]:
    return list(torch.rand(number, 3, 6, 6, generator=torch.Generator().manual_seed(7)).split(batch))


def float_network() -> Network:
    torch.manual_seed(3)
    model = Network()
    with torch.no_grad():
        model.norm.running_var.uniform_(0.02, 0.2)
        model.norm.weight.uniform_(-1.0, 2.0)
        model.fc.weight.mul_(6)
    return model.eval()


def quantized(model: nn.Module, entry: str = "LSQ", fold_bn: bool = False, **options: Any) -> Any:
    """Return a calibrated copy; the head has 8 bits."""
    policy = dict(
        Conv2d=dict(type=f"{entry}Conv", **{"num_bit_w": 3, "num_bit_a": 3, **options}),
        Linear=dict(type=f"{entry}Linear", num_bit_w=8, num_bit_a=8),
    )
    transformer = build_mtransformer(
        dict(type="ModelTransformer", quan_policy=policy, exclude_layers=["unused"], fold_bn=fold_bn)
    )
    both = transformer(copy.deepcopy(model))
    calibrate(both, images())
    return both.eval()

"""Networks whose normalizations integer training delays, and the comparison of a step with the simulation."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lbitcls.quant.kernels import selection
from lbitcls.quant.methods import build_quant_layer
from lbitcls.registry import QUANT_LAYERS

QUANT_LAYERS.names()  # imports every method
CHANNELS = 8


KERNELS: dict[str, dict[str, Any]] = {
    "3x3": dict(kernel_size=3, padding=1, bias=False),
    "1x1": dict(kernel_size=1, bias=False),
    "depthwise": dict(kernel_size=3, padding=1, groups=CHANNELS, bias=False),
}


class Unit(nn.Module):
    """Convolution and normalization with affine parameters that are not 1 and 0."""

    def __init__(self, method: str = "LSQ", channels: int = CHANNELS, kernel: str = "3x3") -> None:
        super().__init__()
        layer = nn.Conv2d(channels, CHANNELS, **KERNELS[kernel])
        self.conv = build_quant_layer(dict(type=f"{method}Conv", num_bit_w=4, num_bit_a=4), layer)
        self.norm = nn.BatchNorm2d(CHANNELS)
        with torch.no_grad():
            self.norm.weight.uniform_(0.5, 1.5)
            self.norm.bias.uniform_(-0.5, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Residual(nn.Module):
    """Network with a block of each kind that a residual network has; returns features or, by default, a loss."""

    def __init__(self, method: str = "LSQ") -> None:
        super().__init__()
        self.stem, self.first, self.second = Unit(method, 3), Unit(method), Unit(method)
        self.third, self.fourth, self.down = Unit(method), Unit(method), Unit(method)
        self.relu = nn.ReLU(inplace=True)

    def features(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        out = self.relu(self.first(x))
        out = self.second(out)
        out += x
        out = self.relu(out)
        shortcut = self.down(out)
        out = self.fourth(self.relu(self.third(out)))
        return self.relu(out + shortcut)

    def forward(self, x: Tensor) -> Tensor:
        return weighted(self.features(x))


def prepared(model: nn.Module, x: Tensor) -> nn.Module:
    """Return the model in training, its quantizers initialized."""
    model.train()
    with torch.no_grad():
        copy.deepcopy(model)  # has no state yet that cannot be copied
        model(x)
    return model


def weighted(v: Tensor, seed: int = 0) -> Tensor:
    """Return a sum in which the gradient of no normalization cancels."""
    weights = torch.randn(v.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    return (v * weights.to(v.dtype)).sum()


Result = tuple[Tensor, dict[str, Tensor]]


def step(model: nn.Module, x: Tensor, kind: str, dtype: torch.dtype = torch.float32) -> Result:
    """Return the loss, and gradients and running statistics, of one step of a copy of the model."""
    selection._active = kind
    model = copy.deepcopy(model).to(dtype)
    loss = model(x.to(dtype))
    loss.backward()
    found = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach().double(), {**found, **{name: b.double() for name, b in model.named_buffers()}}


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm().clamp_min(1e-6))


def check(model: nn.Module, x: Tensor) -> None:
    """Compare a step in integers with the float64 simulation."""
    exact, expected = step(model, x, "plain", torch.float64)
    simulated, simulation = step(model, x, "plain")
    loss, got = step(model, x, "integer")
    # Terms of the loss cancel.
    assert (loss - exact).abs() <= max(3e-5, 1e-6 * float(exact.abs()), 3 * float((simulated - exact).abs()))
    assert got.keys() == simulation.keys() == expected.keys()
    for name, value in expected.items():
        # A scale's gradient is a sum in which nearly everything cancels.
        smallest = 1e-3 if "quantizer" in name else 2e-5
        assert distance(got[name], value) <= max(smallest, 3 * distance(simulation[name], value)), name


def reversed_gradient(x: Tensor) -> Any:
    class Reverse(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return -grad

    return Reverse.apply(x)

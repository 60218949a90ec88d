"""Integer training while something changes: quantizers without scales, modes, computed weights, compiled parts."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from delayed import Unit, distance, prepared, weighted
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from lbitcls.quant.kernels import native, selection
from lbitcls.quant.methods import build_quant_layer
from lbitcls.quant.pending import Produced

pytestmark = pytest.mark.usefixtures("integer_kernels")


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = Unit(channels=3), Unit()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.stem(x)))


def gradients(model: nn.Module, kind: str, run: Any) -> dict[str, Tensor]:
    selection._active = kind
    own = copy.deepcopy(model)
    run(own).backward()
    return {name: p.grad for name, p in own.named_parameters() if p.grad is not None}


def check_equal(model: nn.Module, run: Any, limit: float = 1e-4) -> None:
    """The gradients are those of the simulation."""
    expected, got = (gradients(model, kind, run) for kind in ("plain", "integer"))
    assert expected.keys() == got.keys() and "last.conv.weight" in got
    for name, value in expected.items():
        assert value.abs().max() < 1e-4 or distance(got[name], value) < limit, name


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_first_step_takes_scales_before_it_chooses_kernels(reentrant: bool) -> None:
    native.library.cache_clear()  # the trial of the C++ kernels is part of a first step
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8, requires_grad=True)
    check_equal(Chain().train(), lambda model: weighted(checkpoint(model, x, use_reentrant=reentrant)))


def test_the_first_step_runs_in_integers() -> None:
    assert isinstance(Chain().train().stem.conv(torch.randn(4, 3, 8, 8)), Produced)


@pytest.mark.parametrize("modes", [(False, True), (True, False), (True, True)])
@pytest.mark.parametrize("calibrated", [False, True])
def test_two_forward_passes_and_one_backward_pass(calibrated: bool, modes: tuple[bool, bool]) -> None:
    """PyTorch's normalization does not count its changes of running statistics as changes in place."""
    torch.manual_seed(0)
    x, model = torch.randn(2, 4, 3, 8, 8), Chain()
    model = prepared(model, x[0]) if calibrated or not modes[0] else model

    def run(own: nn.Module) -> Tensor:
        return sum(weighted(own.train(mode)(images)) for mode, images in zip(modes, x, strict=True))  # type: ignore[return-value]

    check_equal(model, run)


class Counted(nn.Module):
    calls = 0

    def forward(self, weight: Tensor) -> Tensor:
        type(self).calls += 1
        return weight * 0.5


@pytest.mark.parametrize("kind", ["Conv2d", "Linear"])
def test_a_computed_weight_is_computed_once(kind: str) -> None:
    suffix, layer, x = {
        "Conv2d": ("Conv", nn.Conv2d(3, 4, 3), torch.randn(2, 3, 6, 6)),
        "Linear": ("Linear", nn.Linear(6, 5), torch.randn(3, 6)),
    }[kind]
    parametrize.register_parametrization(layer, "weight", Counted())
    quantized = build_quant_layer(dict(type=f"LSQ{suffix}", num_bit_w=4, num_bit_a=4), layer).train()
    quantized(x)
    found = []
    for name in ("plain", "integer"):
        selection._active, Counted.calls = name, 0
        y = quantized(x)
        assert Counted.calls == 1
        found.append(y.detach())
    assert distance(found[0], found[1]) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_scale_of_another_type_than_the_weight(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 8, 8)
    model: Any = prepared(Chain(), x)
    model.stem.conv.weight_quantizer.to(dtype)
    check_equal(model, lambda own: weighted(own(x)), 1e-2 if dtype is torch.bfloat16 else 1e-4)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo reads it
def test_a_compiled_normalization_of_an_eager_result() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    model: Any = prepared(Chain(), x)
    expected = gradients(model, "integer", lambda own: weighted(own(x)))

    def run(own: Any) -> Tensor:
        part = torch.compile(nn.Sequential(own.stem.norm, nn.ReLU()), backend="aot_eager")
        return weighted(own.last(part(own.stem.conv(x))))

    for name, value in gradients(model, "integer", run).items():
        assert expected[name].abs().max() < 1e-4 or distance(value, expected[name]) < 1e-4, name

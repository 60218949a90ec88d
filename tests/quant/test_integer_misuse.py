"""Integer training where a call does not fit: PyTorch's errors, as in the simulation, and no wrong number."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from delayed import CHANNELS, Unit, prepared
from torch import Tensor, nn

from lbitcls.quant.kernels import selection
from lbitcls.quant.methods import build_quant_layer

pytestmark = pytest.mark.usefixtures("integer_kernels")


def unit() -> Any:
    return prepared(Unit(), torch.randn(2, CHANNELS, 8, 8))


def outcome(kind: str, call: Any) -> Any:
    """Return the value of a call, or its error's type and message."""
    selection._active = kind
    try:
        return call()
    except (RuntimeError, TypeError, ValueError) as error:
        return type(error), str(error)


def linear() -> Any:
    layer = build_quant_layer(dict(type="LSQLinear", num_bit_w=4, num_bit_a=4), nn.Linear(6, 3)).train()
    layer(torch.randn(2, 6))
    return layer


SHAPES: list[tuple[int, ...]] = [(2, 3, 8, 8), (2, 8), (2, 8, 2, 2, 2), (2, 8, 0, 3), (8, 8), (CHANNELS, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8, torch.int64], ids=str)
def test_an_input_that_does_not_fit_is_pytorchs_error(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.ones(shape).to(dtype)
    for layer in (unit().conv, linear()):
        expected, got = outcome("plain", lambda layer=layer: layer(x)), outcome("integer", lambda layer=layer: layer(x))
        if isinstance(expected, Tensor):
            assert got.dtype is expected.dtype and torch.allclose(got, expected, atol=1e-5)
        else:
            assert got == expected


def test_a_kernel_larger_than_the_image() -> None:
    layer = build_quant_layer(dict(type="LSQConv", num_bit_w=4, num_bit_a=4), nn.Conv2d(3, 4, 5)).train()
    layer(torch.randn(2, 3, 8, 8))
    x = torch.randn(2, 3, 4, 8)
    assert outcome("integer", lambda: layer(x)) == outcome("plain", lambda: layer(x))


CALLS: dict[str, Any] = {
    "add, alpha by place": lambda y: torch.add(y, 2, torch.ones_like(y)).sum(),
    "add a scalar": lambda y: (y + 1).sum(),
    "pool, stride 0": lambda y: F.max_pool2d(y.relu(), 2, stride=0),
    "pool, padding -1": lambda y: F.max_pool2d(y.relu(), 2, padding=-1),
    "pool, three sizes": lambda y: F.max_pool2d(y.relu(), [2, 2, 2]),  # type: ignore[arg-type]
    "pool, one size": lambda y: F.max_pool2d(y.relu(), [2]).sum(),  # type: ignore[arg-type]
}


@pytest.mark.filterwarnings("ignore:This overload of add is deprecated")
@pytest.mark.parametrize("name", CALLS)
def test_calls_end_as_in_the_simulation(name: str) -> None:
    model, x = unit(), torch.randn(2, CHANNELS, 8, 8)
    expected, got = (outcome(kind, lambda: CALLS[name](model(x))) for kind in ("plain", "integer"))
    if isinstance(expected, Tensor):
        assert torch.allclose(got, expected, rtol=1e-3)
    else:
        assert got[0] is expected[0]


@pytest.mark.parametrize("name", ["squeeze_", "transpose_", "resize_"])
def test_a_change_of_shape_in_place_is_refused(name: str) -> None:
    y = unit()(torch.randn(2, CHANNELS, 8, 8))
    arguments = {"transpose_": (1, 2), "resize_": (4,)}.get(name, ())
    with pytest.raises(RuntimeError, match=f"{name} changes a tensor's shape in place"):
        getattr(y, name)(*arguments)


def test_an_operation_in_numpy() -> None:
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return torch.from_numpy(x.detach().numpy() * 2)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return 2 * grad

    model, x = unit(), torch.randn(2, CHANNELS, 8, 8)
    y = model(x).relu()
    assert torch.equal(Doubled.apply(y), 2 * y)


def test_two_threads_read_one_activation() -> None:
    model, x = unit(), torch.randn(2, CHANNELS, 8, 8)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            y = torch.relu(model(x) + model(x))
            sums = list(pool.map(lambda _, y=y: float(y.detach().sum()), range(4)))
            y.sum().backward()
            assert len(set(sums)) == 1

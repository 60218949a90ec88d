"""Gradients of integer products in fewer bits: rounded only where the page says so, and without bias."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lbitcls.quant.kernels import machine, product_gradients, selection
from lbitcls.quant.kernels.integer_operators import Geometry
from lbitcls.quant.kernels.product_gradients import ProductGradients
from lbitcls.utils.errors import ConfigError

pytestmark = pytest.mark.skipif(bool(machine.find_obstacle()), reason="this machine multiplies no 8-bit integers")

PRODUCTS = {
    "3 x 3": ((32, 16, 3, 3), Geometry((1, 1), (1, 1), (1, 1), 1)),
    "wide padding": ((8, 16, 3, 3), Geometry((1, 1), (4, 2), (2, 1), 1)),
    "dilated": ((8, 16, 3, 5), Geometry((1, 1), (1, 0), (2, 1), 1)),
    "strided": ((8, 16, 3, 3), Geometry((2, 2), (1, 1), (1, 1), 1)),
    "depthwise": ((16, 1, 3, 3), Geometry((1, 1), (1, 1), (1, 1), 16)),
    "matrix": ((24, 16), None),
}


@pytest.fixture(autouse=True)
def kernels_afterwards() -> Iterator[None]:
    with selection.restored_kernels():
        yield


def product(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Geometry | None]:
    """Return a result's gradient, the steps of the input, the integers of the weight and their scales."""
    shape, geometry = PRODUCTS[name]
    generator = torch.Generator().manual_seed(0)
    steps = torch.randint(-3, 13, (6, 16, 9, 11)[: len(shape)], generator=generator).float()
    integers = torch.randint(-8, 8, shape, generator=generator).to(torch.int8)
    column = torch.rand(shape[0], *[1] * (len(shape) - 1), generator=generator) + 0.5
    y = steps @ integers.float().t() if geometry is None else F.conv2d(steps, integers.float(), None, *geometry)
    # A few large gradients, and many small ones, as in training.
    grad = torch.randn(y.shape, generator=generator) * torch.rand(y.shape, generator=generator) ** 4
    return grad, steps, integers, column, geometry


def expected(name: str) -> tuple[Tensor, Tensor]:
    """Return the gradients of the input and of the weight, by float64's autograd, in units of the steps."""
    grad, steps, integers, column, geometry = product(name)
    x, w = steps.double().requires_grad_(), (integers * column).double().requires_grad_()
    y = x @ w.t() if geometry is None else F.conv2d(x, w, None, *geometry)
    of_input, of_weight = torch.autograd.grad(y, (x, w), grad.double())
    return of_input, of_weight


def got(name: str, gradients: str) -> tuple[Tensor, Tensor]:
    grad, steps, integers, column, geometry = product(name)
    products = ProductGradients(grad, integers, column, geometry, gradients)
    return products.input(steps.shape), products.weight(steps.to(products.operand))


def distance(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other).norm() / other.norm())


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize(("gradients", "bound"), [("float32", 1e-6), ("bf16", 6e-3), ("int8", 0.15)])
def test_gradients_are_close(name: str, gradients: str, bound: float) -> None:
    for gradient, exact in zip(got(name, gradients), expected(name), strict=True):
        assert distance(gradient, exact) < (1e-6 if name == "depthwise" else bound)
        assert gradient.dtype is torch.float32


@pytest.mark.parametrize("name", ["3 x 3", "strided", "matrix"])
@pytest.mark.parametrize("half", [True, False])
def test_rounding_has_no_bias(name: str, half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of n roundings is √n times as close; that of a biased rounding would stay where it is."""
    monkeypatch.setattr(product_gradients, "bf16_is_fast", lambda: half)
    torch.manual_seed(0)
    once, many = got(name, "int8"), [got(name, "int8") for _ in range(100)]
    for index, exact in enumerate(expected(name)):
        mean = sum((gradients[index].double() for gradients in many), torch.zeros(())) / len(many)
        assert distance(mean, exact) < distance(once[index], exact) / 7


def test_int8_rounds_only_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients that lie on the 8-bit grid have the exact products; without bfloat16 to the last bit."""
    monkeypatch.setattr(product_gradients, "bf16_is_fast", lambda: False)
    grad, steps, integers, column, geometry = product("3 x 3")
    whole = torch.randint(-127, 128, grad.shape).float()
    whole[0, 0, 0, 0] = 127  # the largest magnitude is that of one step per unit
    column = torch.ones_like(column)
    products = ProductGradients(whole, integers, column, geometry, "int8")
    x, w = steps.double().requires_grad_(), integers.double().requires_grad_()
    of_input, of_weight = torch.autograd.grad(F.conv2d(x, w, None, *geometry or ()), (x, w), whole.double())
    assert torch.equal(products.input(steps.shape).double(), of_input)
    assert torch.equal(products.weight(steps).double(), of_weight)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("gradients", ["bf16", "int8"])
def test_an_infinite_gradient_stays_visible(bad: float, gradients: str) -> None:
    grad, steps, integers, column, geometry = product("3 x 3")
    grad[1, 2, 3, 4] = bad
    products = ProductGradients(grad, integers, column, geometry, gradients)
    assert not products.input(steps.shape).isfinite().all()
    assert not products.weight(steps.to(products.operand)).isfinite().all()


def test_a_gradient_of_zeros() -> None:
    grad, steps, integers, column, geometry = product("3 x 3")
    products = ProductGradients(torch.zeros_like(grad), integers, column, geometry, "int8")
    assert not products.input(steps.shape).any() and not products.weight(steps.to(products.operand)).any()


def test_rounding_repeats_with_its_seed() -> None:
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(got("3 x 3", "int8")[0])
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_where_integers_are_not_exact_the_gradient_has_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without VNNI products of 8 × 8 bits saturate."""
    monkeypatch.setattr(machine, "_largest_pair", machine.SATURATION)
    called: list[int] = []
    monkeypatch.setattr(product_gradients, "integer_conv2d", lambda *_: called.append(1))
    assert distance(got("3 x 3", "int8")[0], expected("3 x 3")[0]) < 0.15 and not called


def test_selection_of_gradients() -> None:
    selection.select_kernels("plain")
    with pytest.raises(ConfigError, match="gradients='bf16' needs kernels of kind 'integer'; got kind 'fused'"):
        selection.select_kernels("fused", gradients="bf16")
    with pytest.raises(ConfigError, match="must be float32, bf16, int8; got 'bf8'"):
        selection.select_kernels("integer", gradients="bf8")
    assert (selection.active_kind(), selection.active_gradients()) == ("plain", "float32")


def test_the_name_of_a_selection_selects_it_again(compiler: None) -> None:
    name = selection.select_kernels("integer", gradients="int8")
    selection.select_kernels("plain")
    assert name == selection.select_kernels(name) == "integer-int8"
    assert (selection.active_kind(), selection.active_gradients()) == ("integer", "int8")
    assert "gradients in int8" in selection.describe_kernels("cpu")

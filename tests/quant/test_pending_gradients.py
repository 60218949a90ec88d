"""Gradients of delayed tensors themselves: exact if asked for in time, an error where a part of them is elsewhere."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from delayed import Unit, distance, prepared, weighted
from torch import Tensor, nn

from lbitcls.quant.kernels import native, selection
from lbitcls.quant.pending import Pending

pytestmark = pytest.mark.usefixtures("integer_kernels")


class Parts(nn.Module):
    """Parts of a network, which tests put together."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.other, self.layer, self.second = Unit(channels=3), Unit(channels=3), Unit(), Unit()


@pytest.fixture
def parts() -> Any:
    return prepared(_Both(), torch.randn(2, 3, 8, 8))


class _Both(Parts):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.layer(torch.relu(self.stem(x) + self.other(x))))


Part = tuple[Callable[[Any, Tensor], Any], Callable[[Any, Any], Tensor]]
READERS: dict[str, Part] = {
    "layer": (lambda m, x: m.stem(x).relu(), lambda m, y: m.layer(y)),
    "layer, of a sum": (lambda m, x: torch.relu(m.stem(x) + m.other(x)), lambda m, y: m.layer(y)),
    "two layers": (lambda m, x: m.stem(x), lambda m, y: m.layer(y) + m.second(y)),
    "activation": (lambda m, x: m.stem(x), lambda m, y: F.relu6(y)),
    "addition": (lambda m, x: m.stem(x), lambda m, y: y + torch.ones(y.shape, dtype=y.dtype)),
    "pooling": (lambda m, x: m.stem(x).relu(), lambda m, y: F.max_pool2d(y, 2)),
}
ASKED: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "retain_grad": lambda y, loss: y.retain_grad(),
    "register_hook": lambda y, loss: y.register_hook(lambda grad: None),
    "grad": lambda y, loss: torch.autograd.grad(loss, y),
    "grad of a list": lambda y, loss: torch.autograd.grad(outputs=loss, inputs=[y]),
    "backward": lambda y, loss: (loss.backward(inputs=[y]), y.grad),
}


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("reader", READERS)
def test_a_gradient_asked_for_too_late_is_an_error(reader: str, asked: str, parts: Any) -> None:
    if reader == "pooling" and native.library() is None:
        pytest.skip("no C++ compiler: install g++, or name one in CXX")
    make, read = READERS[reader]
    y = make(parts, torch.randn(2, 3, 8, 8))
    assert isinstance(y, Pending)
    loss = weighted(read(parts, y)) + weighted(y)
    with pytest.raises(RuntimeError, match=r"asked for after another layer or function has read.*kernels='fused'"):
        ASKED[asked](y, loss)


@pytest.mark.parametrize("asked", ["retain_grad", "register_hook", "grad"])
@pytest.mark.parametrize("reader", READERS)
def test_a_gradient_asked_for_in_time_is_exact(reader: str, asked: str, parts: Any) -> None:
    make, read = READERS[reader]
    x = torch.randn(2, 3, 8, 8)

    def gradient(kind: str, dtype: torch.dtype) -> Tensor:
        selection._active = kind
        model, found = copy.deepcopy(parts).to(dtype), []
        y = make(model, x.to(dtype))
        if asked == "retain_grad":
            y.retain_grad()
        elif asked == "register_hook":
            y.register_hook(found.append)
        else:
            y = y.clone()  # an ordinary tensor
        loss = weighted(read(model, y)) + weighted(y)
        if asked == "grad":
            return torch.autograd.grad(loss, y)[0]
        loss.backward()
        return y.grad if asked == "retain_grad" else found[0]

    assert distance(gradient("integer", torch.float32), gradient("plain", torch.float64)) < 1e-5


def test_a_change_in_place_starts_anew(parts: Any) -> None:
    """Its gradient is that of the new value, which no layer has read."""
    x = torch.randn(2, 3, 8, 8)

    def gradient(kind: str, dtype: torch.dtype) -> Tensor:
        selection._active = kind
        model = copy.deepcopy(parts).to(dtype)
        y: Any = model.stem(x.to(dtype))
        first = weighted(y + torch.ones(y.shape, dtype=dtype))
        torch.relu_(y)
        y.retain_grad()
        (first + weighted(model.second(y))).backward()
        return y.grad

    assert distance(gradient("integer", torch.float32), gradient("plain", torch.float64)) < 1e-5


class Viewing(torch.autograd.Function):
    """Identity of a user who relies on the order of the memory of values and gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view(len(x), -1).clone().view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.view(len(grad), -1).view(grad.shape)


@pytest.mark.parametrize("where", ["image", "after a layer", "shortcut", "shortcut first", "before a layer"])
def test_a_users_function_receives_a_gradient_in_the_order_of_its_values(where: str, parts: Any) -> None:
    def gradient(kind: str, dtype: torch.dtype) -> Tensor:
        selection._active = kind
        model, x = copy.deepcopy(parts).to(dtype), image.to(dtype, copy=True).requires_grad_(True)
        y: Any = model.stem(Viewing.apply(x) if where == "image" else x)
        if where == "after a layer":
            y = Viewing.apply(y)
        elif where == "shortcut":
            y = y + Viewing.apply(model.other(x))
        elif where == "shortcut first":
            y = Viewing.apply(model.other(x)) + y
        y = y.relu()
        if where == "before a layer":
            y = Viewing.apply(y)
        weighted(model.layer(y)).backward()
        assert x.grad is not None
        return x.grad

    image = torch.randn(2, 3, 8, 8)
    assert distance(gradient("integer", torch.float32), gradient("plain", torch.float64)) < 1e-5


def test_no_gradient_yet_is_no_error(parts: Any) -> None:
    """Tools look at `grad` of whatever they find."""
    y: Any = parts.stem(torch.randn(2, 3, 8, 8))
    parts.layer(y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # y is no leaf
        assert y.grad is None

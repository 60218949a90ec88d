"""Delayed tensors that leave the model, or pass through what PyTorch and users put between modules."""

from __future__ import annotations

import copy
import ctypes
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from delayed import Residual, Unit, distance, prepared, reversed_gradient, step, weighted
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.dlpack import from_dlpack, to_dlpack

from lbitcls.quant.kernels import selection
from lbitcls.quant.pending import Pending, Watched

pytestmark = pytest.mark.usefixtures("integer_kernels")


def scripted_hook(x: Tensor) -> Tensor:
    module = nn.Identity()
    module.register_full_backward_hook(lambda *_: None)
    return module(x)


def saved_and_loaded(v: Tensor) -> Tensor:
    buffer = io.BytesIO()
    torch.save({"features": v}, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)["features"]


def read_in(context: Any, v: Tensor) -> Tensor:
    with context:
        return v * 2


def same_order(one: Tensor, other: Tensor) -> bool:
    return one.is_contiguous() == other.is_contiguous()


READERS: dict[str, Callable[[Tensor], Any]] = {
    "index": lambda v: v[0, 0],
    "numpy": lambda v: torch.from_numpy(v.detach().numpy()),
    "list": lambda v: torch.tensor(v.tolist()),
    "pickle": lambda v: pickle.loads(pickle.dumps(v)),
    "save": lambda v: saved_and_loaded(v),
    "print": repr,
    "data": lambda v: v.data,
    "function": reversed_gradient,
    "hooked module": scripted_hook,
    "clone": torch.clone,
    "iterate": lambda v: torch.stack(list(v)),
    "item": lambda v: v.sum().item(),
    "out": lambda v: torch.add(v.detach(), 1, out=torch.empty(v.shape)),
    "custom operator": lambda v: torch.ops.aten.native_dropout(v, 0.0, True)[0],
    "inference": lambda v: read_in(torch.inference_mode(), v),
    "no_grad": lambda v: read_in(torch.no_grad(), v),
    "view in place": lambda v: v[:, 0].add_(1),
    "list argument": lambda v: torch.cat([v, v]),
    "storage": lambda v: torch.tensor(v.untyped_storage().nbytes()),
    "view": lambda v: v.view(len(v), -1),
    "array": lambda v: torch.from_numpy(np.asarray(v.detach())),
    "array of a gradient's tensor": lambda v: torch.from_numpy(v.numpy(force=True)),
    "DLPack": lambda v: torch.from_dlpack(v.detach()),
    "DLPack, by its function": lambda v: from_dlpack(to_dlpack(v.detach())),
    "parameter": lambda v: nn.Parameter(v.detach()).data,
    "pointer": lambda v: torch.tensor((ctypes.c_float * v.numel()).from_address(v.data_ptr())),
}


@pytest.mark.parametrize("unfinished", [False, True])
@pytest.mark.parametrize("name", READERS)
def test_what_reads_a_pending_tensor_reads_its_values(
    name: str, unfinished: bool, residual: tuple[Residual, Tensor]
) -> None:
    model, x = residual
    if name == "view in place" and not unfinished:
        return  # the ReLU needs its result

    def read(kind: str) -> Any:
        selection._active = kind
        own = copy.deepcopy(model)
        features = own.fourth(own.relu(own.stem(x))) if unfinished else own.features(x)
        assert isinstance(features, Pending) == (kind == "integer")
        found = READERS[name](features)
        assert not isinstance(found, Watched)
        weighted(features).backward()
        return found, own.stem.conv.weight.grad

    (got, grad), (expected, expected_grad) = read("integer"), read("plain")
    if isinstance(got, Tensor) and name != "storage":
        assert type(got) is Tensor and distance(got.detach(), expected.detach()) < 1e-5 and same_order(got, expected)
    elif name == "print":
        assert got.startswith("tensor(") and got.split()[:3] == expected.split()[:3]
    assert distance(grad, expected_grad) < 1e-4


def test_gradients_of_a_pending_tensor(residual: tuple[Residual, Tensor]) -> None:
    """`autograd.grad`, tensor hooks, retained gradients and `backward` of the tensor itself."""
    model, x = residual

    def read(kind: str) -> list[Tensor]:
        selection._active = kind
        own = copy.deepcopy(model)
        features = own.stem(x)
        seen: list[Tensor] = []
        features.register_hook(seen.append)
        features.retain_grad()
        out = own.relu(own.first(features))
        weight = own.first.conv.weight
        found = torch.autograd.grad(out, [weight, features], torch.ones(out.shape), retain_graph=True)
        out.backward(torch.ones(out.shape))
        return [*found, *seen, features.grad, weight.grad]

    got, expected = read("integer"), read("plain")
    assert len(got) == len(expected) == 6
    assert all(distance(a, b) < 1e-4 for a, b in zip(got, expected))


def test_copies(residual: tuple[Residual, Tensor]) -> None:
    model, x = residual
    features = model.features(x)
    with pytest.raises(RuntimeError, match="[Gg]raph leaves"):  # as for every result of an operation
        copy.deepcopy(features)
    assert type(copy.deepcopy(features.detach())) is Tensor and torch.equal(copy.copy(features), features)


def test_a_parameter_needs_a_detached_tensor(residual: tuple[Residual, Tensor]) -> None:
    model, x = residual
    with pytest.raises(RuntimeError, match="Creating a Parameter .* detach"):
        nn.Parameter(model.features(x))


def test_other_values(residual: tuple[Residual, Tensor]) -> None:
    model, x = residual
    features = model.features(x)
    features.data = torch.ones_like(features)
    assert features.sum() == features.numel()
    with torch.no_grad():
        features.copy_(torch.zeros_like(features))
    assert not features.any() and not features.data.any()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("inside", ["second", "first two"])
def test_checkpointed_parts(reentrant: bool, inside: str, residual: tuple[Residual, Tensor]) -> None:
    model, x = residual

    class Checkpointed(Residual):
        def features(self, x: Tensor) -> Tensor:
            x = self.relu(self.stem(x))
            part = self.second if inside == "second" else lambda v: self.relu(self.second(self.first(v)) + v)
            y = checkpoint(part, x, use_reentrant=reentrant)
            y = self.relu(self.third(y) + x)
            return checkpoint(self.fourth, y, use_reentrant=reentrant) + y

    model = copy.deepcopy(model)
    model.__class__ = Checkpointed
    # Statistics run twice: compare the gradients.
    (_, expected), (_, got) = step(model, x, "plain", torch.float64), step(model, x, "integer")
    for name, value in expected.items():
        assert distance(got[name], value) < 1e-3, name


def test_tensors_saved_elsewhere(residual: tuple[Residual, Tensor]) -> None:
    model, x = residual
    expected = step(model, x, "integer")[1]
    with torch.autograd.graph.save_on_cpu():
        got = step(model, x, "integer")[1]
    assert all(distance(got[name], expected[name]) < 1e-5 for name in expected)


def test_watched_modules(residual: tuple[Residual, Tensor]) -> None:
    """Hooks of every kind on every module see values, and change nothing."""
    model, x = residual
    expected = step(model, x, "integer")
    model, means = copy.deepcopy(model), []
    for module in model.modules():
        module.register_forward_hook(lambda module, given, y: means.append(y.mean().item()))
        module.register_forward_pre_hook(lambda module, given: means.append(given[0].mean().item()))
    got = step(model, x, "integer")
    assert means and all(distance(got[1][name], expected[1][name]) < 1e-3 for name in expected[1])
    model.relu = nn.ReLU()  # PyTorch refuses to change what such a hook watches
    for module in model.modules():
        if isinstance(module, nn.ReLU) or module in (model.first.norm, model.first.conv, model.fourth.conv):
            module.register_full_backward_hook(lambda module, given, y: means.append(y[0].mean().item()))
    got = step(model, x, "integer")
    assert all(distance(got[1][name], expected[1][name]) < 1e-3 for name in expected[1])


class Alternating(nn.Module):
    """Stem and head that run compiled, and layers between them that do not, or the other way round."""

    def __init__(self, compiled: str) -> None:
        super().__init__()
        self.stem, self.first, self.second, self.relu = Unit("LSQ", 3), Unit(), Unit(), nn.ReLU(inplace=True)
        self.compiled = compiled

    def part(self, name: str) -> Any:
        run = dict(stem=lambda x: self.relu(self.stem(x)), block=self.block, head=lambda x: x.view(len(x), -1))[name]
        return torch.compile(run, backend="aot_eager") if name in self.compiled else run

    def block(self, x: Tensor) -> Tensor:
        return self.relu(self.second(self.relu(self.first(x))) + x)

    def forward(self, x: Tensor) -> Tensor:
        return weighted(self.part("head")(self.part("block")(self.part("stem")(x))))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # Dynamo reads it, of any subclass of tensors
@pytest.mark.parametrize("compiled", ["stem head", "block", "stem block head", "head"])
def test_parts_that_are_compiled(compiled: str, integer_kernels: None, caplog: pytest.LogCaptureFixture) -> None:
    torch.compiler.reset()
    x = torch.randn(4, 3, 8, 8)
    model: Any = prepared(Alternating(""), x)
    _, expected = step(model, x, "integer")
    model.compiled = compiled
    _, got = step(model, x, "integer")
    assert all(distance(got[name], expected[name]) < 1e-3 for name in expected)
    assert "Graph break" not in caplog.text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # Dynamo reads it, of any subclass of tensors
def test_a_compiled_part_reads_values(compiler: None, residual: tuple[Residual, Tensor]) -> None:
    model, x = residual
    features = model.features(x)
    loss = torch.compile(lambda v: v.mean((2, 3)).square().sum())(features)
    loss.backward()
    assert model.stem.conv.weight.grad is not None
    torch.testing.assert_close(loss, features.mean((2, 3)).square().sum())

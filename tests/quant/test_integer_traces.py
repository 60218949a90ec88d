"""Integer training where PyTorch traces or counts operators, or tensors have no values: as with other kernels."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from delayed import Unit, distance, prepared, weighted
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from lbitcls.quant.kernels import Elementwise, machine, selection
from lbitcls.quant.kernels.integer_operators import Geometry
from lbitcls.quant.methods import build_quant_layer
from lbitcls.quant.quantizer import Quantizer, fill

pytestmark = pytest.mark.usefixtures("integer_kernels")
KINDS = ["plain", "fused", "integer"]


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last, self.relu = Unit(channels=3), Unit(), nn.ReLU(inplace=True)
        layer = nn.Linear(8 * 64, 5)
        self.head = build_quant_layer(dict(type="LSQLinear", num_bit_w=4, num_bit_a=4), layer)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.stem(x))
        y = self.relu(self.last(y) + y)
        return self.head(y.view(len(y), -1))


@pytest.fixture
def model() -> Any:
    return prepared(Classifier(), torch.randn(2, 3, 8, 8))


def operators(graph: torch.fx.Graph) -> list[str]:
    return [str(node.target) for node in graph.nodes if node.op == "call_function"]


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
def test_a_model_in_training_is_exported_as_with_other_kernels(strict: bool, model: Any) -> None:
    found = []
    for kind in KINDS:
        selection._active = kind
        machine._verdict_once.cache_clear()
        exported = torch.export.export(copy.deepcopy(model), (torch.randn(2, 3, 8, 8),), strict=strict)
        found.append(operators(exported.graph))
    assert found[0] and found[0] == found[1] == found[2]


def test_recorded_operators_are_those_of_other_kernels(model: Any) -> None:
    found = []
    for kind in ("plain", "integer"):
        selection._active = kind
        own = copy.deepcopy(model)
        made = make_fx(own, tracing_mode="fake", _allow_non_fake_inputs=True)(torch.randn(2, 3, 8, 8))
        found.append(operators(made.graph))
    assert found[0] and found[0] == found[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_tensors_without_values(kind: str, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # `fused_now` decides
    selection._active = kind
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        y = model(mode.from_tensor(torch.randn(2, 3, 8, 8)))
        y.square().sum().backward()
    assert isinstance(y, FakeTensor) and y.shape == (2, 5)
    assert isinstance(model.stem.conv.weight.grad, FakeTensor)


def test_no_kernels_are_selected_without_values(model: Any) -> None:
    selection._active = None
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        model(mode.from_tensor(torch.randn(2, 3, 8, 8)))
    assert selection.is_open()


def test_a_proof_has_values_wherever_it_runs() -> None:
    kind = machine.Product((4, 4, 3, 3), Geometry((1, 1), (1, 1), (1, 1), 1), 15, 8, False)
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        assert machine._is_exact(kind) and machine._is_exact(kind._replace(weight_shape=(4, 4), geometry=None))
    assert counter.get_total_flops() == 0


@pytest.mark.parametrize("rows", [(3, 6), (2, 3, 6), (6,)])
def test_operations_are_counted_as_in_the_simulation(rows: tuple[int, ...], model: Any) -> None:
    layer = build_quant_layer(dict(type="LSQLinear", num_bit_w=4, num_bit_a=4), nn.Linear(6, 5)).train()
    layer(torch.randn(2, 6))
    x, vectors = torch.randn(2, 3, 8, 8), torch.randn(rows)
    found = []
    for kind in ("plain", "integer"):
        selection._active = kind
        with FlopCounterMode(display=False) as counter:
            (weighted(copy.deepcopy(model)(x)) + weighted(layer(vectors))).backward()
        found.append(counter.get_total_flops())
    assert found[0] == found[1] > 0


def test_counting_changes_no_gradient(model: Any) -> None:
    x, found = torch.randn(2, 3, 8, 8), []
    for counted in (False, True):
        own = copy.deepcopy(model)
        with FlopCounterMode(display=False) if counted else torch.enable_grad():
            weighted(own(x)).backward()
        found.append(own.stem.conv.weight.grad)
    assert distance(found[0], found[1]) < 1e-5


def test_a_compiled_step_is_one_graph(model: Any) -> None:
    x, found = torch.randn(2, 3, 8, 8), []
    for compiled in (False, True):
        own = copy.deepcopy(model)
        weighted((torch.compile(own, backend="aot_eager", fullgraph=True) if compiled else own)(x)).backward()
        found.append(own.stem.conv.weight.grad)
    assert distance(found[0], found[1]) < 1e-5


class Bounded(Quantizer):
    """A user's quantizer, whose grid and formula use the bounds as the tensors that they are."""

    formula = Elementwise(
        lambda x, s, low, high: torch.minimum(torch.maximum(torch.round(x / s), low), high) * s,
        lambda g, x, s, low, high: (
            torch.where((x / s >= low) & (x / s <= high), g, 0.0),
            g * (torch.minimum(torch.maximum(torch.round(x / s), low), high) - torch.clamp(x / s, low, high)),
        ),
    )

    def __init__(self, num_bits: int, **kwargs: Any) -> None:
        super().__init__(num_bits, **kwargs)
        self.scale = nn.Parameter(torch.ones((), device=self.low.device))

    def grid(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.scale, self.low + 0 * self.scale.detach(), self.high

    def first_values(self, x: Tensor) -> None:
        fill(self.scale, x.abs().amax() / self.high)


@pytest.mark.parametrize("kind", ["plain", "integer"])
@pytest.mark.parametrize(("method", "kernel"), [("LSQ", 1), ("LSQ", 3), ("Bounded", 3)])
def test_a_compiled_layer_of_images_is_one_graph(
    kind: str, method: str, kernel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "_active", kind)
    own, found = method == "Bounded", []
    layer = build_quant_layer(dict(type="LSQConv", num_bit_w=4, num_bit_a=4), nn.Conv2d(3, 8, kernel)).train()
    if own:
        layer.weight_quantizer, layer.input_quantizer = Bounded(4, role="weight"), Bounded(4)
    x = torch.randn(2, 3, 8, 8)
    layer(x)
    for compiled in (False, True):
        one = copy.deepcopy(layer)
        weighted((torch.compile(one, backend="aot_eager", fullgraph=True) if compiled else one)(x)).backward()
        found.append([p.grad for p in one.parameters()])
    assert len(found[0]) == 4 and all(distance(a, b) < 1e-5 for a, b in zip(*found, strict=True))

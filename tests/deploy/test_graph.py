"""BatchNorm is folded into scales and bias exactly; signs move into the integers if they fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from lbitcls.deploy.passes.graph import (
    POOLS,
    Graph,
    attributes,
    check_flat,
    drop_repeated,
    name_nodes,
    operation_of,
    separate_weights,
    to_opset_17,
    weights_of,
)
from lbitcls.utils.errors import ConfigError

Exports = Callable[..., Any]
Quantized = Callable[..., nn.Module]


def images() -> Tensor:
    return torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def graph_of(report: Any) -> Graph:
    return Graph(onnx.load(str(report.path)))


def scales(graph: Graph) -> list[np.ndarray]:
    found = [graph.array(weight.input[1]) for weight in weights_of(graph)]
    return [array for array in found if array is not None]


def test_negative_and_zero_gammas(quantized: Quantized, exports: Exports) -> None:
    model: Any = quantized(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), "LSQ", 4, 4, images())
    assert (model[1].weight < 0).any() and (model[1].weight == 0).any()
    graph = graph_of(exports(model, images()))
    assert [n.op_type for n in graph.nodes if n.op_type in ("Conv", "Add", "Mul")] == ["Conv", "Add"]
    assert all((scale > 0).all() for scale in scales(graph))
    codes = graph.array(weights_of(graph)[0].input[0])
    assert codes is not None and not codes[0].any()


def test_a_code_without_its_negative_keeps_the_sign_outside(quantized: Quantized, exports: Exports) -> None:
    model: Any = quantized(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), "TorchQAT", 8, 8, images())
    weight = model[0].weight_quantizer
    with torch.no_grad():
        model[1].weight[1:3] = -0.5
        model[0].weight[1, 0, 0, 0] = -200 * weight.qparams().scale
    assert int(weight.to_integer(model[0].weight)[1].min()) == -128
    graph = graph_of(exports(model, images()))
    (mul,) = [n for n in graph.nodes if n.op_type == "Mul"]
    sign = graph.array(mul.input[1])
    assert sign is not None and sign.reshape(-1)[1:3].tolist() == [-1, 1]  # the other channel's codes were flipped
    assert all((scale > 0).all() for scale in scales(graph))


def test_folded_norms(quantized: Quantized, exports: Exports) -> None:
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4))
    model: Any = quantized(layers, "TorchQAT", 8, 8, images(), fold_bn=True)
    assert model[0].folded_norm
    report = exports(model, images())
    assert report.norms_left == []
    graph = graph_of(report)
    own = float(model[0].weight_quantizer.qparams().scale)
    np.testing.assert_allclose(scales(graph)[0][1:], own, rtol=1e-6)  # γ/σ was divided out and is restored


def test_a_layer_that_is_called_twice_with_different_norms(quantized: Quantized, exports: Exports) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.conv(torch.relu(self.first(self.conv(x)))))

    report = exports(quantized(Twice(), "LSQ", 4, 4, images()), images())
    assert report.norms_left == []
    assert [n.name for n in graph_of(report).nodes if n.op_type == "Conv"] == ["conv", "conv_2"]


def test_norms_that_no_layer_precedes_stay(quantized: Quantized, exports: Exports) -> None:
    class PreActivation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv, self.after = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(torch.relu(self.norm(x)))
            return y + self.after(y)  # the result is also used without the norm

    report = exports(quantized(PreActivation(), "LSQ", 4, 4, images()), images())
    assert report.norms_left == ["norm/BatchNormalization", "after/BatchNormalization"]


def test_editing() -> None:
    helper = onnx.helper
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2])
    nodes = [helper.make_node("Relu", ["x"], ["a"], name="one"), helper.make_node("Neg", ["a"], ["y"], name="two")]
    dead = helper.make_node("Abs", ["x"], ["unused"], name="dead")
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2])
    graph = Graph(helper.make_model(helper.make_graph([*nodes, dead], "g", [value], [output])))
    one, two = graph.nodes[:2]
    assert graph.producer("a") == one and graph.producer("x") is None
    assert graph.only_consumer("a") == two and graph.only_consumer("x") is None and graph.only_consumer("y") is None
    scale = graph.add_constant("c", np.float32(2))
    assert graph.add_constant("c", np.float32(3)) == "c_2"
    graph.append_to(one, "Mul", scale, "three")
    saved = graph.save()
    assert [n.name for n in saved.graph.node] == ["one", "three", "two"]
    assert [t.name for t in saved.graph.initializer] == ["c"]
    onnx.checker.check_model(saved)
    assert attributes(helper.make_node("Conv", [], [], pads=[1, 2])) == {"pads": [1, 2]}


def made_of(nodes: list[Any], constants: dict[str, np.ndarray], output: str = "y") -> Graph:
    """Return a graph from `x` to `output`."""
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    values = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    ends = [helper.make_tensor_value_info(name, floats, None) for name in ("x", output)]
    return Graph(helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], values)))


def test_parameters_with_the_names_of_results() -> None:
    """Model with a buffer `mean` and a computed mean, a parameter `x` named like the input, and a parameter `y`."""
    make = onnx.helper.make_node
    nodes = [make("ReduceMean", ["x"], ["mean"]), make("Sub", ["mean", "traced.mean"], ["sub"])]
    nodes += [make("Mul", ["sub", "traced.x"], ["mul"]), make("Add", ["mul", "traced.y"], ["y"])]
    values = {f"traced.{name}": np.float32([number]) for number, name in enumerate(("mean", "x", "y"))}
    graph = made_of(nodes, values)
    name_nodes(graph, "traced")
    made = [output for node in graph.nodes for output in node.output]
    assert len({"x", *made, *graph.constants}) == 1 + len(made) + len(graph.constants)
    taken = [graph.array(node.input[1]) for node in graph.nodes[1:]]
    assert [None if array is None else array.tolist() for array in taken] == [[0], [1], [2]]


def test_node_names_are_given_once() -> None:
    """Model with a layer that is called twice, and a layer with the name that the second call would get."""
    scope = {"pkg.torch.onnx.name_scopes": "['', 'traced', 'traced.{}', 'conv2d']"}
    nodes = [onnx.helper.make_node("Conv", ["x", "w"], [output]) for output in ("a", "b", "y")]
    for node, name in zip(nodes, ("conv", "conv", "conv_2"), strict=True):
        onnx.helper.set_model_props(node, {key: value.format(name) for key, value in scope.items()})
    graph = made_of(nodes, {"w": np.zeros((1, 1, 1, 1), np.float32)})
    name_nodes(graph, "traced")
    assert [node.name for node in graph.nodes] == ["conv", "conv_3", "conv_2"]


def dequantized(output: str = "w", axis: int = 0) -> Any:
    return onnx.helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], [output], name="fc/Weight", axis=axis)


CODES = {"codes": np.ones((2, 2), np.int8), "scale": np.ones(2, np.float32), "zero": np.zeros(2, np.int8)}


def test_uses_of_a_weight_share_nothing() -> None:
    """One transposed weight serves two layers, and its scales are also a factor in the model."""
    make = onnx.helper.make_node
    nodes = [dequantized(), make("Transpose", ["w"], ["t"], name="t"), make("MatMul", ["x", "t"], ["a"], name="fc")]
    nodes += [make("Mul", ["a", "scale"], ["b"], name="m"), make("MatMul", ["b", "t"], ["y"], name="fc_2")]
    graph = made_of(nodes, CODES)
    separate_weights(graph)
    weights = weights_of(graph)
    operations = [operation_of(graph, weight) for weight in weights]
    assert {node.name for node in operations if node is not None} == {"fc", "fc_2"} and len(weights) == 2
    constants = [name for node in graph.nodes if node.op_type != "MatMul" for name in node.input if name in CODES]
    assert len({name for weight in weights for name in weight.input}) == 6
    assert sorted(constants).count("scale") == 1  # only the Mul's
    assert len({node.name for node in graph.nodes}) == len(graph.nodes)


def test_integers_that_are_a_layers_input_are_no_weight() -> None:
    graph = made_of([dequantized(), onnx.helper.make_node("MatMul", ["w", "x"], ["y"])], CODES)
    assert operation_of(graph, weights_of(graph)[0]) is None


@pytest.mark.parametrize("bounds", [["", "high"], ["low"], ["low", "computed"]])
def test_bounds_that_are_left_out_or_computed(bounds: list[str]) -> None:
    """The second of two quantizations on one grid is removed if the bounds are equal, known or not."""
    make, grid = onnx.helper.make_node, ["s", "z"]
    nodes = [make("ReduceMax", ["x"], ["computed"])]
    for source, number in (("x", "1"), ("d1", "2")):
        nodes.append(make("Clip", [source, *bounds], [f"c{number}"]))
        nodes.append(make("QuantizeLinear", [f"c{number}", *grid], [f"q{number}"]))
        nodes.append(make("DequantizeLinear", [f"q{number}", *grid], [f"d{number}"]))
    nodes.append(make("Neg", ["d2"], ["y"]))
    values = {"s": np.float32(1), "z": np.uint8(0), "low": np.float32(0), "high": np.float32(3)}
    graph = made_of(nodes, values)
    drop_repeated(graph)
    assert [node.op_type for node in graph.save().graph.node].count("QuantizeLinear") == 1


def test_reductions_at_opset_17() -> None:
    make = onnx.helper.make_node
    graph = made_of([make("ReduceMax", ["x", "axes"], ["y"], name="r")], {"axes": np.array([2, 3])})
    to_opset_17(graph)
    assert attributes(graph.nodes[0])["axes"] == [2, 3] and list(graph.nodes[0].input) == ["x"]
    for node in (
        make("ReduceMax", ["x", "computed"], ["y"], name="r"),
        make("ReduceMax", ["x"], ["y"], name="r", noop_with_empty_axes=1),
    ):
        with pytest.raises(ConfigError, match="r cannot be written at opset 17"):
            to_opset_17(made_of([make("Shape", ["x"], ["computed"]), node], {}))


def test_branches_are_refused() -> None:
    helper = onnx.helper
    value = helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Neg", ["x"], ["z"])], "b", [], [value])
    node = helper.make_node("If", ["c"], ["y"], name="block/If", then_branch=branch, else_branch=branch)
    with pytest.raises(ConfigError, match=r"branches at run time \(block/If"):
        check_flat(made_of([node], {"c": np.array(True)}))


class Attention(nn.Module):
    """Patches, a self-attention layer and a linear layer; as torch initializes them, the projections' biases are 0."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, stride=2)
        nn.init.zeros_(self.patches.bias)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = self.norm(tokens)
        return self.fc((tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]).mean(1))


def test_attention(quantized: Quantized, exports: Exports) -> None:
    """The traced graph names both constants and tensors view, view_2, …; additions never reuse a name."""
    graph = graph_of(exports(quantized(Attention(), "LSQ", 4, 4, images()), images()))
    made = [output for node in graph.nodes for output in node.output]
    assert len({*made, *graph.constants}) == len(made) + len(graph.constants)


def test_new_names_are_free(quantized: Quantized, exports: Exports) -> None:
    graph = graph_of(exports(quantized(nn.Sequential(nn.Conv2d(3, 8, 3)), "LSQ", 4, 4, images()), images()))
    tensors = {"image", *graph.constants, *(output for node in graph.nodes for output in node.output)}
    assert tensors.isdisjoint(map(graph.free_name, tensors))
    assert graph.free_name("other") == "other"


class Pooled(nn.Module):
    """Network with pools: one result is quantized, after another pool; an addition also uses one result."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.conv, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(self.pool(self.norm(self.stem(x))))  # signed: padding must not count
        z = nn.functional.max_pool2d(self.conv(y), 2)
        return (z + self.last(z).mean(1, keepdim=True)).mean((2, 3))


@pytest.mark.parametrize(("bits", "gain"), [(4, 0.0), (4, 1e9), (8, 0.95)], ids=["uint8", "int8", "the faster"])
def test_integers_are_pooled(
    quantized: Quantized, exports: Exports, bits: int, gain: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime cannot open two pools in a row on int8 values, which are not chosen then, however fast they are."""
    monkeypatch.setattr("lbitcls.deploy.targets.cpu._GAIN", gain)
    x = torch.randn(8, 3, 17, 17, generator=torch.Generator().manual_seed(1))
    graph = graph_of(exports(quantized(Pooled(), "LSQ", bits, bits, x), x))
    makers = [graph.producer(n.input[0]) for n in graph.nodes if n.op_type == "MaxPool"]
    assert [maker.op_type for maker in makers if maker is not None] == ["DequantizeLinear", "MaxPool", "Add"]
    taken = graph.consumers(next(n for n in graph.nodes if n.op_type == "MaxPool" and n.name.endswith("_2")).output[0])
    assert [node.name for node in taken] == ["conv"]


class Attended(nn.Module):
    """Attention over positions or channels, whose maximum reaches a quantized layer through other operations."""

    def __init__(self, kind: str, reduce: str, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.kind, self.reduce, self.axes = kind, reduce, axes
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        width = (1 if 1 in axes else 8) * (2 if kind in ("joined", "joined with itself") else 1)
        self.attention, self.fc = nn.Conv2d(width, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        if self.reduce == "pool":
            y = nn.functional.adaptive_max_pool2d(x, 1)
        else:
            y = getattr(x, self.reduce)(self.axes, keepdim=True)
        mean = x.mean(self.axes, keepdim=True)
        changed = {
            "joined": lambda: torch.cat([y, mean], 1),
            "joined with itself": lambda: torch.cat([y, y * 0.7], 1),
            "shifted": lambda: y + 0.37,
            "scaled": lambda: y * 1.3,
            "added": lambda: y + mean,
            "squashed": lambda: y.sigmoid(),
            "turned": lambda: (y.transpose(2, 3) * 1.3).relu(),
            "used twice": lambda: y * 1.1,
        }[self.kind]()
        weights = self.attention(changed).sigmoid()
        return self.fc((x * weights + (y if self.kind == "used twice" else 0)).mean((2, 3)))


@pytest.mark.parametrize("number", [pytest.param(n, marks=() if n % 4 == 1 else pytest.mark.slow) for n in range(16)])
def test_what_a_maximum_is_joined_with(quantized: Quantized, exports: Exports, number: int) -> None:
    """OpenVINO fuses a maximum of floats with the next operations, up to a quantization with then wrong integers."""
    kinds = ("joined", "joined with itself", "shifted", "scaled", "added", "squashed", "turned", "used twice")
    reduce, axes = [("amax", (1,)), ("amax", (2, 3)), ("pool", (2, 3)), ("amin", (1,))][(number + number // 8) % 4]
    torch.manual_seed(number)
    x = torch.randn(16, 3, 8, 8)
    model: Any = quantized(Attended(kinds[number % 8], reduce, axes), "LSQ", 8, 8, x)
    with torch.no_grad():
        model.attention.weight.mul_(20)
        model.attention.weight_quantizer.scale.mul_(20)
    graph = graph_of(exports(model, x))
    assert any(node.op_type == "Max" and node.input[0] == node.input[1] for node in graph.nodes)


class Extreme(nn.Module):
    """Maximum or minimum over each channel, then a quantized layer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(3, 64, 3, padding=1)
        self.last: nn.Module = nn.Conv2d(64, 5, 1) if kind == "kept" else nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.relu(self.conv(x))
        if self.kind == "amin":
            return self.last(y.amin((2, 3)))
        if self.kind == "kept":
            return self.last(y.amax((2, 3), keepdim=True))
        if self.kind == "signed":
            return self.last(self.conv(x).amax((2, 3)))
        y = y.amax((2, 3))
        return self.last(y.relu() if self.kind == "relu" else y)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", ["amax", "amin", "kept", "relu", "signed"])
def test_maxima_are_of_integers(quantized: Quantized, exports: Exports, kind: str, bits: int) -> None:
    """OpenVINO quantizes incorrectly right after a maximum of floats."""
    graph = graph_of(exports(quantized(Extreme(kind), "LSQ", bits, bits, images()), images()))
    (pool,) = [node for node in graph.nodes if node.op_type in POOLS]
    before = graph.producer(pool.input[0])
    assert before is not None and before.op_type == "DequantizeLinear"

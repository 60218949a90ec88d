"""Targets: refusals by name, containers, structure of files, layers in integers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from lbitcls.deploy.export.onnx import export_model
from lbitcls.deploy.export.residuals import CarriedOutput
from lbitcls.deploy.passes.containers import to_uint8
from lbitcls.deploy.passes.graph import Graph
from lbitcls.deploy.passes.guards import guard_scales
from lbitcls.deploy.targets import cpu
from lbitcls.deploy.targets.base import Choice, Target, find_target
from lbitcls.deploy.verification.placement import integer_layers
from lbitcls.deploy.verification.verify import verify
from lbitcls.quant.quantizers.lsq import LSQ
from lbitcls.quant.ranges import minmax
from lbitcls.registry import TARGETS
from lbitcls.utils.errors import ConfigError

Exports = Callable[..., Any]
Quantized = Callable[..., nn.Module]


def images() -> Tensor:
    return torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 5)
    )


def quantize_nodes(path: Path) -> list[tuple[Any, Any]]:
    graph = Graph(onnx.load(str(path)))
    return [(graph.array(n.input[1]), graph.array(n.input[2])) for n in graph.nodes if n.op_type == "QuantizeLinear"]


def test_tensorrt_gets_int8_and_zero_points_of_zero(quantized: Quantized, exports: Exports) -> None:
    report = exports(quantized(net(), "LSQ", 4, 7, images()), images(), target="tensorrt")
    assert report.info.target == "tensorrt" and {layer["container"] for layer in report.info.layers} == {"int8"}
    assert all(zero.dtype == np.int8 and zero == 0 for _, zero in quantize_nodes(report.path))
    proto = onnx.load(str(report.path))
    find_target("tensorrt").check_graph(Graph(proto))
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8 and not tensor.dims:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.int8(1), tensor.name))
    with pytest.raises(ConfigError, match="0.input/QuantizeLinear has no int8 zero point of 0"):
        find_target("tensorrt").check_graph(Graph(proto))


@pytest.mark.parametrize(
    "method, bits, match",
    [
        ("LSQ", 8, r"3: its input's integers reach 255, but int8 ends at 127; train it with num_bit_a=7"),
        ("LSQPlus", 4, r"0, 5: its input has a zero point"),
    ],
)
def test_tensorrt_refuses_by_name(quantized: Quantized, tmp_path: Path, method: str, bits: int, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        export_model(
            quantized(net(), method, bits, bits, images()),
            tmp_path / "model.onnx",
            input_shape=(3, 6, 6),
            target="tensorrt",
        )
    assert not list(tmp_path.iterdir())


def test_integers_of_16_bits(quantized: Quantized, exports: Exports, tmp_path: Path) -> None:
    model: Any = quantized(net(), "LSQ", 8, 8, images())
    wide: Any = quantized(net(), "APoT", 8, 8, images(), quant_activation=False)
    model[3].weight_quantizer = wide[3].weight_quantizer
    found = integer_layers(exports(model, images()).path)
    assert found["convolutions"] == {"integer": 1, "total": 2, "float": {"3": "its integer weights need 16 bits"}}
    for options, match in (
        (dict(opset=20), "3: .*need 16 bits, and so opset 21"),
        (dict(target="tensorrt"), "3: .*do not fit into 8 bits"),
    ):
        with pytest.raises(ConfigError, match=match):
            export_model(model, tmp_path / "no.onnx", input_shape=(3, 6, 6), **options)


def test_uneven_levels_run_in_integers(quantized: Quantized, exports: Exports) -> None:
    found = integer_layers(exports(quantized(net(), "APoT", 4, 4, images()), images()).path)
    assert found["convolutions"] == {"integer": 2, "total": 2, "float": {}}


def test_an_unknown_target(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no target named 'tensor'. Did you mean 'tensorrt'"):
        export_model(net(), tmp_path / "model.onnx", input_shape=(3, 6, 6), target="tensor")


@pytest.mark.parametrize(
    "times, container, zero", [((1.0, 1.0), "uint8", 8), ((0.9, 1.0), "int8", 0), ((0.97, 1.0), "uint8", 8)]
)
def test_the_container_of_signed_inputs(
    quantized: Quantized,
    exports: Exports,
    monkeypatch: pytest.MonkeyPatch,
    times: tuple[float, float],
    container: str,
    zero: int,
) -> None:
    given = dict(zip(("int8", "uint8"), times))
    monkeypatch.setattr(cpu, "_latencies", lambda models, shape: given)
    report = exports(quantized(net(), "LSQ", 4, 4, images()), images())
    assert report.container_ms == given
    assert [layer["container"] for layer in report.info.layers] == [container, "uint8", container]
    assert quantize_nodes(report.path)[0][1] == zero


@pytest.mark.parametrize("method, bits, zero", [("LSQ", 8, 128), ("UQ", 8, 127), ("LSQ", 2, 2)])
def test_zero_points_in_uint8(
    quantized: Quantized, exports: Exports, monkeypatch: pytest.MonkeyPatch, method: str, bits: int, zero: int
) -> None:
    monkeypatch.setattr(cpu, "find_spec", lambda name: None)  # nothing to measure with
    report = exports(quantized(net(), method, bits, bits, images()), images())
    assert report.container_ms == {} and quantize_nodes(report.path)[0][1] == zero


def test_the_measurement_takes_both(quantized: Quantized, exports: Exports) -> None:
    report = exports(quantized(net(), "LSQ", 4, 4, images()), images())
    assert set(report.container_ms) == {"int8", "uint8"} and all(ms > 0 for ms in report.container_ms.values())


def test_without_signed_inputs_nothing_is_measured(quantized: Quantized, exports: Exports) -> None:
    x = images().abs()
    model = quantized(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), "LSQ", 4, 4, x)
    assert exports(model, x).container_ms == {}
    assert Choice().milliseconds == {}


def test_layers_in_integers_and_the_reasons_of_others(quantized: Quantized, exports: Exports) -> None:
    model: Any = quantized(net(), "LSQ", 4, 4, images())
    found = integer_layers(exports(model, images()).path)
    assert found == {
        "convolutions": {"integer": 2, "total": 2, "float": {}},
        "linear": {"integer": 1, "total": 1, "float": {}},
    }
    model[0].input_quantizer = model[5].weight_quantizer = None
    found = integer_layers(exports(model, images()).path)
    assert found["convolutions"]["float"] == {"0": "its input is float"}
    assert found["linear"]["float"] == {"5": "its weight is float"}


def test_scales_stay_before_a_clip_where_there_is_no_bias(quantized: Quantized, exports: Exports) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 1), nn.Flatten()]
    layers[3].bias.data.zero_()
    model = quantized(nn.Sequential(*layers, nn.Linear(16, 4, bias=False)), "LSQ", 4, 4, images(), per_channel=True)
    report = exports(model, images())
    assert integer_layers(report.path)["convolutions"]["integer"] == 2


def test_scales_stay_before_a_clip_behind_a_concatenation(quantized: Quantized, exports: Exports) -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.out = nn.Identity(), nn.Identity(), nn.Conv2d(6, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.cat([self.left(x), self.right(x)], 1))

    torch.manual_seed(0)
    model: Any = quantized(Joined(), "LSQ", 4, 4, images())
    for layer, upper in ((model.left, 2.0), (model.right, 4.0)):
        grid = LSQ(8, signed=False)
        grid.initialize(torch.linspace(0, upper, 9), minmax)
        layer.register_forward_hook(CarriedOutput(grid.eval()))
    model.out.input_quantizer = LSQ(4, signed=False)
    model.out.input_quantizer.initialize(torch.linspace(0, 0.97, 9), minmax)
    exports(model.eval(), images())


@pytest.mark.parametrize("channels", [3, 6])
def test_bounds_behind_a_transposed_convolution(
    quantized: Quantized, exports: Exports, monkeypatch: pytest.MonkeyPatch, channels: int
) -> None:
    """OpenVINO uses wrong bounds if it computes the layer in integers; bounds that no value exceeds do no harm."""
    monkeypatch.setattr(cpu, "_latencies", lambda models, shape: {"int8": 1.0, "uint8": 2.0})
    torch.manual_seed(0)
    layers = [nn.ConvTranspose2d(3, channels, 3, 2, 1, 1), nn.SiLU(), nn.Conv2d(channels, 4, 3, 2), nn.Flatten()]
    model = quantized(nn.Sequential(*layers), "LSQ", 3, 3, 3 * images())
    report = exports(model, 3 * images())
    float_layers = integer_layers(report.path)["convolutions"]["float"]
    assert float_layers == {"0": "OpenVINO would use wrong bounds for a later Clip"}


def clipped(low: float, scale: float) -> Graph:
    """The model's own Clip before a quantization to int8."""
    make, grid = onnx.helper.make_node, ["s", "z"]
    nodes = [make("Clip", ["x", "low", "high"], ["c"]), make("QuantizeLinear", ["c", *grid], ["q"])]
    nodes.append(make("DequantizeLinear", ["q", *grid], ["y"]))
    values = {"low": np.float32(low), "high": np.float32(-low), "s": np.float32(scale), "z": np.int8(0)}
    return graph_from(nodes, values)


def graph_from(nodes: list[Any], values: dict[str, Any]) -> Graph:
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 3, 1, 1]) for name in ("x", "y")]
    constants = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    return Graph(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10))


def computed(graph: Graph, x: np.ndarray) -> np.ndarray:
    from onnxruntime import InferenceSession

    return InferenceSession(graph.save().SerializeToString()).run(None, {"x": x.reshape(-1, 3, 1, 1)})[0]


@pytest.mark.parametrize("low, scale", [(-20.0, 0.05), (-1.0, 0.047), (-1.0, 0.04), (-6.4, 0.05), (0.0, 0.05)])
def test_bounds_of_the_models_own_before_a_grid(low: float, scale: float) -> None:
    """Far beyond the integers, on the grid, between two integers: uint8 holds the same values."""
    graph, x = clipped(low, scale), np.linspace(-30, 30, 6000, dtype=np.float32)
    expected = computed(graph, x)
    to_uint8(graph)
    assert {n.input[2] for n in graph.nodes if n.op_type == "QuantizeLinear"} == {"s.zero_point_uint8"}
    np.testing.assert_array_equal(computed(graph, x), expected)


@pytest.mark.parametrize("after, guarded", [("Sign", False), ("Relu", True)])
@pytest.mark.parametrize("between", [None, "Relu", "Neg"])
def test_an_exact_zero_stays_one_where_it_matters(after: str, guarded: bool, between: str | None) -> None:
    make = onnx.helper.make_node
    nodes = [make("DequantizeLinear", ["codes", "s", "z"], ["w"], axis=0, name="conv/w")]
    nodes.append(make("Conv", ["x", "w"], ["a"], name="conv"))
    nodes += [make(between, ["a"], ["b"])] if between else []
    nodes.append(make(after, ["b" if between else "a"], ["y"]))
    values = {"codes": np.ones((3, 3, 1, 1), np.int8), "s": np.ones(3, np.float32), "z": np.zeros(3, np.int8)}
    graph = graph_from(nodes, values)
    guard_scales(graph)
    assert ("Add" in [node.op_type for node in graph.nodes]) == guarded
    assert not np.sign(computed(graph, np.zeros(3, np.float32))).any() or guarded


# Your own targets


@pytest.fixture
def register() -> Iterator[Callable[..., type[Target]]]:
    """Function that registers a target with the given attributes under a name, for the duration of a test."""
    made: list[str] = []

    def add(name: str, **attributes: Any) -> type[Target]:
        made.append(name)
        return TARGETS.register_module(name=name)(type(name, (Target,), attributes))

    yield add
    for name in made:
        TARGETS.module_dict.pop(name)


def test_a_target_that_defines_nothing_has_portable_rules(
    quantized: Quantized, exports: Exports, register: Any
) -> None:
    """Files have no guards or measurements, and containers as the grids need; ONNX Runtime judges them."""
    register("plain")
    for method in ("LSQ", "LSQPlus"):
        model = quantized(net(), method, 4, 4, images())
        report = exports(model, images(), target="plain")
        assert report.info.target == "plain" and report.info.engines == ["onnxruntime"] and report.container_ms == {}
        zeros = {zero.dtype.name for _, zero in quantize_nodes(report.path)}
        assert zeros == ({"int8", "uint8"} if method == "LSQ" else {"uint8"})
        found = verify(model, report.path, [images()], threads=1)
        assert found.passed and {row.name for row in found.rows} == {"integer", "onnxruntime"}


@pytest.mark.parametrize(
    "rule, options, match",
    [
        (dict(kinds=("Conv2d",)), {}, r"5: narrow does not support a quantized Linear \(Conv2d only\); leave it float"),
        (dict(weight_bits=3), {}, r"0, 3, 5: its integer weights do not fit into 3 bits"),
        (
            dict(containers=("uint8",), zero_points=False),
            {},
            r"0, 5: its input's integers reach -8, but uint8 starts at 0",
        ),
        (dict(opsets=(17, 19)), {}, r"opset 21 is not supported for narrow; use 17 to 19"),
        (dict(packed_weights=False), dict(pack=True), "narrow does not support packed weights"),
        (dict(problems=lambda self, layer, opset: ["no"] * (layer.name == "3")), {}, "narrow at opset 21:\n  3: no"),
        (dict(faults=lambda self, graph: ["too long"]), {}, "the exported model breaks the rules of narrow: too long"),
    ],
)
def test_the_rules_of_a_target_are_applied(
    quantized: Quantized, register: Any, tmp_path: Path, rule: dict[str, Any], options: dict[str, Any], match: str
) -> None:
    register("narrow", **rule)
    model = quantized(net(), "LSQ", 4, 4, images())
    with pytest.raises(ConfigError, match=match):
        export_model(model, tmp_path / "model.onnx", input_shape=(3, 6, 6), target="narrow", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("containers", [("uint8",), ("int8",)])
def test_all_inputs_are_in_the_container_of_a_target(
    quantized: Quantized, exports: Exports, register: Any, containers: tuple[str, ...]
) -> None:
    register("one", containers=containers)
    report = exports(quantized(net(), "LSQ", 4, 4, images()), images(), target="one")
    assert {zero.dtype.name for _, zero in quantize_nodes(report.path)} == set(containers)
    assert {layer["container"] for layer in report.info.layers} == set(containers)


def test_what_a_target_does_to_the_graph_is_in_the_file(quantized: Quantized, exports: Exports, register: Any) -> None:
    def mark(self: Target, graph: Graph) -> None:
        lowest = graph.add_constant("lowest", np.array(-1e30, np.float32))
        for node in [node for node in graph.nodes if node.op_type == "Conv"]:
            graph.append_to(node, "Max", lowest, "marked")

    register("marking", shape=mark)
    report = exports(quantized(net(), "LSQ", 4, 4, images()), images(), target="marking")
    assert "marked" in [node.name for node in onnx.load(str(report.path)).graph.node]


@pytest.mark.parametrize("registered", [nn.ReLU, dict, lambda name: None])
def test_what_is_no_target_is_refused(registered: Any, tmp_path: Path) -> None:
    TARGETS.register_module(name="wrong", module=registered)
    try:
        with pytest.raises(ConfigError, match=r"the target 'wrong' is .*; it must be a subclass of .*base\.Target"):
            export_model(net(), tmp_path / "model.onnx", input_shape=(3, 6, 6), target="wrong")
    finally:
        TARGETS.module_dict.pop("wrong")


@pytest.mark.parametrize("name", [None, 3, ["cpu"], {}])
def test_a_target_that_is_no_name(name: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"target must be a name: cpu, executorch, litert, qonnx, tensorrt, web; got"):
        export_model(net(), tmp_path / "model.onnx", input_shape=(3, 6, 6), target=name)

"""What targets take: refusals by name, containers, the structure of files, layers in integers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from lbitcls.deploy.export.graph import Graph
from lbitcls.deploy.export.onnx import export_onnx
from lbitcls.deploy.export.residuals import CarriedOutput
from lbitcls.deploy.targets import base as targets
from lbitcls.deploy.targets.base import Choice, check_structure, integer_layers
from lbitcls.quant.quantizers.lsq import LSQ
from lbitcls.quant.ranges import minmax
from lbitcls.utils.errors import ConfigError

Ships = Callable[..., Any]
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


def test_tensorrt_gets_int8_and_zero_points_of_zero(quantized: Quantized, ships: Ships) -> None:
    report = ships(quantized(net(), "LSQ", 4, 7, images()), images(), target="tensorrt")
    assert report.info.target == "tensorrt" and {layer["container"] for layer in report.info.layers} == {"int8"}
    assert all(zero.dtype == np.int8 and zero == 0 for _, zero in quantize_nodes(report.path))
    proto = onnx.load(str(report.path))
    check_structure(proto, "tensorrt")
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8 and not tensor.dims:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.int8(1), tensor.name))
    with pytest.raises(ConfigError, match="0.input/QuantizeLinear has no int8 zero point of 0"):
        check_structure(proto, "tensorrt")


@pytest.mark.parametrize(
    "method, bits, match",
    [
        ("LSQ", 8, r"3: its input's integers go up to 255, int8's to 127; train it with num_bit_a=7"),
        ("LSQPlus", 4, r"0, 5: its input has a zero point"),
    ],
)
def test_tensorrt_refuses_by_name(quantized: Quantized, tmp_path: Path, method: str, bits: int, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        export_onnx(
            quantized(net(), method, bits, bits, images()),
            tmp_path / "model.onnx",
            input_shape=(3, 6, 6),
            target="tensorrt",
        )
    assert not list(tmp_path.iterdir())


def test_integers_of_16_bits(quantized: Quantized, ships: Ships, tmp_path: Path) -> None:
    model: Any = quantized(net(), "LSQ", 8, 8, images())
    wide: Any = quantized(net(), "APoT", 8, 8, images(), quant_activation=False)
    model[3].weight_quantizer = wide[3].weight_quantizer
    found = integer_layers(ships(model, images()).path)
    assert found["convolutions"] == {"integer": 1, "total": 2, "float": {"3": "its weights' integers need 16 bits"}}
    for options, match in (
        (dict(opset=20), "3: .*need 16 bits, which ONNX has from opset 21"),
        (dict(target="tensorrt"), "3: .*do not fit 8 bits"),
    ):
        with pytest.raises(ConfigError, match=match):
            export_onnx(model, tmp_path / "no.onnx", input_shape=(3, 6, 6), **options)


def test_an_unknown_target(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no target 'tensor'. Did you mean 'tensorrt'"):
        export_onnx(net(), tmp_path / "model.onnx", input_shape=(3, 6, 6), target="tensor")


@pytest.mark.parametrize(
    "times, container, zero", [((1.0, 1.0), "uint8", 8), ((0.9, 1.0), "int8", 0), ((0.97, 1.0), "uint8", 8)]
)
def test_the_container_of_signed_inputs(
    quantized: Quantized,
    ships: Ships,
    monkeypatch: pytest.MonkeyPatch,
    times: tuple[float, float],
    container: str,
    zero: int,
) -> None:
    given = dict(zip(("int8", "uint8"), times))
    monkeypatch.setattr(targets, "_latencies", lambda models, shape: given)
    report = ships(quantized(net(), "LSQ", 4, 4, images()), images())
    assert report.container_ms == given
    assert [layer["container"] for layer in report.info.layers] == [container, "uint8", container]
    assert quantize_nodes(report.path)[0][1] == zero


@pytest.mark.parametrize("method, bits, zero", [("LSQ", 8, 128), ("UQ", 8, 127), ("LSQ", 2, 2)])
def test_zero_points_in_uint8(
    quantized: Quantized, ships: Ships, monkeypatch: pytest.MonkeyPatch, method: str, bits: int, zero: int
) -> None:
    monkeypatch.setattr(targets, "find_spec", lambda name: None)  # nothing to measure with
    report = ships(quantized(net(), method, bits, bits, images()), images())
    assert report.container_ms == {} and quantize_nodes(report.path)[0][1] == zero


def test_the_measurement_takes_both(quantized: Quantized, ships: Ships) -> None:
    report = ships(quantized(net(), "LSQ", 4, 4, images()), images())
    assert set(report.container_ms) == {"int8", "uint8"} and all(ms > 0 for ms in report.container_ms.values())


def test_without_signed_inputs_nothing_is_measured(quantized: Quantized, ships: Ships) -> None:
    x = images().abs()
    model = quantized(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), "LSQ", 4, 4, x)
    assert ships(model, x).container_ms == {}
    assert Choice().milliseconds == {}


def test_layers_in_integers_and_the_reasons_of_others(quantized: Quantized, ships: Ships) -> None:
    model: Any = quantized(net(), "LSQ", 4, 4, images())
    found = integer_layers(ships(model, images()).path)
    assert found == {
        "convolutions": {"integer": 2, "total": 2, "float": {}},
        "linear": {"integer": 1, "total": 1, "float": {}},
    }
    model[0].input_quantizer = model[5].weight_quantizer = None
    found = integer_layers(ships(model, images()).path)
    assert found["convolutions"]["float"] == {"0": "its input is float"}
    assert found["linear"]["float"] == {"5": "its weight is float"}


def test_scales_stay_before_a_clip_where_there_is_no_bias(quantized: Quantized, ships: Ships) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 1), nn.Flatten()]
    layers[3].bias.data.zero_()
    model = quantized(nn.Sequential(*layers, nn.Linear(16, 4, bias=False)), "LSQ", 4, 4, images(), per_channel=True)
    report = ships(model, images())
    assert integer_layers(report.path)["convolutions"]["integer"] == 2


def test_scales_stay_before_a_clip_behind_a_concatenation(quantized: Quantized, ships: Ships) -> None:
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
    ships(model.eval(), images())


@pytest.mark.parametrize("channels", [3, 6])
def test_bounds_behind_a_transposed_convolution(
    quantized: Quantized, ships: Ships, monkeypatch: pytest.MonkeyPatch, channels: int
) -> None:
    """OpenVINO takes others where it computes it in integers; bounds that nothing exceeds do no harm."""
    monkeypatch.setattr(targets, "_latencies", lambda models, shape: {"int8": 1.0, "uint8": 2.0})
    torch.manual_seed(0)
    layers = [nn.ConvTranspose2d(3, channels, 3, 2, 1, 1), nn.SiLU(), nn.Conv2d(channels, 4, 3, 2), nn.Flatten()]
    model = quantized(nn.Sequential(*layers), "LSQ", 3, 3, 3 * images())
    report = ships(model, 3 * images())
    float_layers = integer_layers(report.path)["convolutions"]["float"]
    assert float_layers == {"0": "OpenVINO would take the bounds behind it for others"}


def clipped(low: float, scale: float) -> Graph:
    """A Clip of the model's own before a quantization to int8."""
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
    targets.to_uint8(graph)
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
    targets.guard_scales(graph)
    assert ("Add" in [node.op_type for node in graph.nodes]) == guarded
    assert not np.sign(computed(graph, np.zeros(3, np.float32))).any() or guarded

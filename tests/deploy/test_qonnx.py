"""QONNX: Quant nodes of the trained bit widths compute what was trained, in qonnx's executor and after its cleanup."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from lbitcls.deploy import load
from lbitcls.deploy.export.onnx import export_model
from lbitcls.deploy.passes.graph import Graph
from lbitcls.deploy.passes.quant_nodes import QuantGrid, grid_of, quantization_faults
from lbitcls.deploy.runtime.engines.qonnx import QONNXEngine, executor, with_shapes
from lbitcls.deploy.verification.reference import reference_model
from lbitcls.quant import build_mtransformer, calibrate
from lbitcls.utils.errors import ConfigError

pytest.importorskip("qonnx")
METHODS = ("LSQ", "LSQPlus", "PACT", "DSQ", "UQ", "DoReFa", "EWGS", "APoT", "TorchQAT")
BITS = (8, 4, 2)
_WIDER = ("DoReFa", "PACT", "APoT")
"""Their weights are odd integers or sums of powers of two, which need more bits than there are levels."""


class Block(nn.Module):
    """Two convolutions beside a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU6())
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(self.first(x)))


def net() -> nn.Module:
    """Signed and unsigned inputs, negative γ, a residual block, ReLU6, pooling, a transposed and a grouped layer.

    The weights are large and the BatchNorms have the images' statistics, so that the logits depend on the image.
    """
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), Block(8)),
        *(nn.ConvTranspose2d(8, 8, 2, 2), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 8, 3, groups=8)),
        *(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(72, 12), nn.Hardswish(), nn.Linear(12, 5)),
    )
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.normal_(module.weight, std=2 * module.weight[0].numel() ** -0.5)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1.0, 1.5)
    for _ in range(20):
        model.train()(images())
    return model.eval()


def images() -> Tensor:
    return torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def exported(model: nn.Module, path: Path, **options: Any) -> Any:
    export_model(model, path, input_shape=(3, 8, 8), target="qonnx", **options)
    engine = load(path)
    assert isinstance(engine, QONNXEngine)
    return engine


def rows_off(model: nn.Module, given: Any) -> int:
    """Return the number of images whose logits differ from those in float64 by more than float32's rounding does."""
    with torch.no_grad():
        expected = reference_model(model, torch.float64)(images().double()).numpy()
    assert (expected.std(0) > 0.1 * expected.std()).all()  # the logits depend on the image
    return int((np.abs(given - expected).max(1) > 2e-5 * np.abs(expected).max()).sum())


def quants(path: Path) -> dict[str, tuple[int, int, int, float]]:
    """Return bits, signed, narrow and the zero point of each Quant node, by its name."""
    graph = onnx.load(str(path)).graph
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {}
    for node in [node for node in graph.node if node.op_type == "Quant"]:
        known = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert known["rounding_mode"] == b"ROUND"
        bits, zero = (float(values[node.input[place]]) for place in (3, 2))
        found[node.name] = (int(bits), known["signed"], known["narrow"], zero)
    return found


def quantize(method: str, bits: Sequence[int], **options: Any) -> nn.Module:
    """Return the network with quantized layers, of which the bits take turns, calibrated, in eval mode."""
    model = net()
    kinds = {nn.Conv2d: "Conv", nn.ConvTranspose2d: "ConvTranspose2d", nn.Linear: "Linear"}
    layers = [(name, kinds[type(module)]) for name, module in model.named_modules() if type(module) in kinds]
    entries = [
        dict(type=f"{method}{kind}", num_bit_w=bits[i % len(bits)], num_bit_a=bits[i % len(bits)], **options)
        for i, (_, kind) in enumerate(layers)
    ]
    special = dict(layers_name=[name for name, _ in layers], convert_type=entries)
    cfg = dict(type="ModelTransformer", quan_policy={}, special_layers=special)
    model = build_mtransformer(cfg)(model).eval()
    calibrate(model, [images()], "mse")
    return model


def check(method: str, bits: Sequence[int], path: Path) -> None:
    options = dict(quant_activation=False) if method == "APoT" else {}
    model = quantize(method, bits, **options)
    engine = exported(model, path)
    off = rows_off(model, engine.predict(images().numpy()))
    assert off <= 2, f"{off} of {len(images())} images differ"  # ties fall on either side
    assert engine.integer_counts() == (0 if method == "APoT" else 7, 7)
    trained = {layer["name"]: (layer["weight_bits"], layer["input_bits"]) for layer in engine.info.layers}
    for name, (width, *_) in quants(path).items():
        layer = name.removesuffix("/Quant")
        known = trained[layer][0] if layer in trained else trained[layer.removesuffix(".input")][1]
        assert width <= known or method in _WIDER, name


@pytest.mark.parametrize("method", ["LSQ", "LSQPlus"])
def test_agreement(method: str, tmp_path: Path) -> None:
    check(method, BITS, tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_agreement_of_every_method(method: str, tmp_path: Path) -> None:
    check(method, BITS[::-1], tmp_path / "model.onnx")


def test_what_the_compilers_expect(tmp_path: Path) -> None:
    """qonnx's cleanup changes no result; FINN's rules hold; a channel of -8 with a negative γ keeps 4 bits."""
    model: Any = quantize("LSQ", [4])
    with torch.no_grad():
        model[1].weight[0] = -0.7
        model[0].weight[0, 0, 0, 0] = -100.0  # the integer -8
    engine = exported(model, tmp_path / "model.onnx")
    expected = engine.predict(images().numpy())
    assert rows_off(model, expected) <= 2

    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.util.cleanup import cleanup_model

    proto = onnx.load(str(engine.path))
    assert [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 8, 8]
    cleaned = cleanup_model(ModelWrapper(with_shapes(proto, len(images()))))
    outputs = executor(proto.ir_version).execute_onnx(cleaned, {cleaned.graph.input[0].name: images().numpy()})
    np.testing.assert_array_equal(outputs[cleaned.graph.output[0].name], expected)

    constants = {tensor.name for tensor in proto.graph.initializer}
    makers = {output: node.op_type for node in proto.graph.node for output in node.output}
    users = {name: node.op_type for node in proto.graph.node for name in node.input}
    assert not {"Gemm", "QuantizeLinear", "DequantizeLinear", "Clip"} & set(makers.values()) - {"Clip"}
    found = quants(engine.path)
    assert {bits for bits, *_ in found.values()} == {4} and "0/Mul" in [node.name for node in proto.graph.node]
    for node in [node for node in proto.graph.node if node.op_type == "Quant"]:
        _, signed, narrow, zero = found[node.name]
        assert zero == 0
        if node.input[0] in constants:
            assert users[node.output[0]] in ("Conv", "ConvTranspose", "MatMul") and signed
        else:
            assert signed or (makers[node.input[0]] == "Relu" and not narrow)


def test_packed_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="qonnx does not support packed weights; export without pack"):
        export_model(nn.Conv2d(3, 4, 1), tmp_path / "model.onnx", input_shape=(3, 8, 8), target="qonnx", pack=True)


@pytest.mark.parametrize("zero, name", [(np.zeros(3, np.int8), "several scales"), (None, "computed from the image")])
def test_what_no_quant_expresses_is_refused(zero: np.ndarray | None, name: str) -> None:
    make = onnx.helper.make_node
    nodes = [make("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"), make("Neg", ["q"], ["n"])]
    nodes += [make("DequantizeLinear", ["n", "s", "z"], ["y"], name="d")]
    values = {} if zero is None else {"s": np.ones(3, np.float32), "z": zero}
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 3, 1, 1]) for name in ("x", "y")]
    constants = [onnx.numpy_helper.from_array(value, key) for key, value in values.items()]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    faults = quantization_faults(Graph(onnx.helper.make_model(graph)))
    assert any(name in fault for fault in faults)
    assert any(fault.startswith("q has its integers used by other operations") for fault in faults)
    assert any(fault.startswith("d dequantizes other integers") for fault in faults)


def test_grids() -> None:
    """A grid holds what it must, has no more bits than the levels need, and is called exact only if it is."""
    for low, levels in itertools.product(range(-9, 3), range(1, 20)):
        high = low + levels - 1
        for zero in range(low, high + 1):
            grid = grid_of(low, high, zero)
            top = 2 ** (grid.bits - grid.signed) - 1
            bottom = -top - (not grid.narrow) if grid.signed else 0
            below, above = bottom - grid.zero_point, top - grid.zero_point
            assert below <= low - zero and high - zero <= above
            assert grid.exact == ((below, above) == (low - zero, high - zero))
            assert grid.bits == max(1, (levels - 1).bit_length())
            assert grid.exact or levels & (levels - 1) or levels == 1, (low, high, zero)
            assert grid.zero_point == 0 or zero > low
    assert grid_of(-128, 127, 0) == QuantGrid(8, True) and grid_of(0, 254, 127) == QuantGrid(8, True, narrow=True)

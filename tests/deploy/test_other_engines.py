"""OpenCV and TVM run files for `cpu`, ONNX Runtime those for `tensorrt`, which keep the rules of TensorRT."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from lbitcls.deploy import load
from lbitcls.deploy.export.onnx import export_model
from lbitcls.deploy.passes.graph import Graph, attributes
from lbitcls.deploy.targets.base import find_target
from lbitcls.models.builder import build_classifier
from lbitcls.quant import build_mtransformer, calibrate
from lbitcls.utils.errors import ConfigError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models" / "backbones"))
Quantized = Callable[..., nn.Module]


def images() -> Tensor:
    return torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def net() -> nn.Module:
    """Two convolutions and a linear layer; the results of the first are pooled on their integers."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(36, 5))


def expected(model: nn.Module) -> np.ndarray:
    with torch.no_grad():
        return model(images()).numpy()


@pytest.mark.parametrize("name, package", [("opencv", "cv2"), pytest.param("tvm", "tvm", marks=pytest.mark.slow)])
def test_an_engine_of_files_for_cpu(name: str, package: str, quantized: Quantized, tmp_path: Path) -> None:
    pytest.importorskip(package)
    model, path = quantized(net(), "LSQ", 4, 4, images()), tmp_path / "model.onnx"
    export_model(model, path, input_shape=(3, 12, 12))
    engine = load(path, name, threads=1)
    for batch in (8, 1):
        given = engine.predict(images().numpy()[:batch])
        np.testing.assert_allclose(given, expected(model)[:batch], rtol=0, atol=2e-5 * np.abs(expected(model)).max())
    assert engine.integer_counts() == (0, 3) and engine.version[0].isdigit()
    export_model(model, path, input_shape=(3, 12, 12), pack=True)
    with pytest.raises(ConfigError, match=r"does not read packed weights \(INT4\): 0, 4, 7\. Export .* without --pack"):
        load(path, name)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def test_opencv_takes_another_batch_size_behind_a_mean_over_one_pixel(quantized: Quantized, tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    net = nn.Sequential(nn.Conv2d(3, 8, 12), nn.Tanh(), Mean(), nn.Linear(8, 5))
    model, path = quantized(net, "LSQ", 4, 4, images()), tmp_path / "model.onnx"
    export_model(model, path, input_shape=(3, 12, 12))
    engine = load(path, "opencv", threads=1)
    for batch in (8, 1, 3):
        given = engine.predict(images().numpy()[:batch])
        np.testing.assert_allclose(given, expected(model)[:batch], rtol=0, atol=2e-5 * np.abs(expected(model)).max())


def test_the_layers_that_onnx_runtime_runs_in_integers(quantized: Quantized, tmp_path: Path) -> None:
    """Without a quantized result, only its Gemm multiplies integers; two pooled in int8 open all the same."""
    model, path = quantized(net(), "LSQ", 4, 4, images()), tmp_path / "model.onnx"
    export_model(model, path, input_shape=(3, 12, 12), target="tensorrt")
    assert "MaxPool" in {n.op_type for n in Graph(onnx.load(str(path))).consumers("max_pool2d")}
    engine = load(path, threads=1)
    assert engine.name == "onnxruntime" and engine.integer_counts() == (1, 3)
    given = engine.predict(images().numpy())
    np.testing.assert_allclose(given, expected(model), rtol=0, atol=2e-5 * np.abs(expected(model)).max())


def check_rules(path: Path) -> None:
    """TensorRT's rules for explicit quantization in INT8, read from the file alone."""
    graph = Graph(onnx.load(str(path)))
    assert 9 <= graph.model.opset_import[0].version <= 25 and {node.domain for node in graph.nodes} == {""}
    quantizing = [node for node in graph.nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for node in quantizing:
        scale, zero = (graph.array(name) for name in node.input[1:])
        assert scale is not None and zero is not None and (scale > 0).all()
        assert zero.dtype == np.int8 and not zero.any()
        assert scale.size == 1 or (node.op_type == "DequantizeLinear" and node.input[0] in graph.constants)
    layers = [node for node in graph.nodes if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")]
    assert layers and all(len(layer.input) == 2 for layer in layers if layer.op_type != "Gemm")  # biases are Adds
    for layer in layers:
        weight = graph.producer(layer.input[1])
        assert weight is not None and weight.op_type == "DequantizeLinear"  # no operation in between
        codes, scale = graph.array(weight.input[0]), graph.array(weight.input[1])
        transposed = layer.op_type == "Gemm" and attributes(layer)["transB"]
        axis = 0 if layer.op_type == "Conv" or transposed else 1
        assert codes is not None and scale is not None and codes.dtype == np.int8
        assert attributes(weight)["axis"] == axis and scale.shape == (codes.shape[axis],)


FAMILIES = ("option A, digits", "LeNet5, logits", "VGG-11", "SqueezeNet-1.1", "MobileNetV2, narrow", "ShuffleNetV2")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_tensorrts_rules_in_every_family(family: str, tmp_path: Path) -> None:
    from test_backbones import SMALL, head_for  # type: ignore[import-not-found]

    config, (channels, size), feature = SMALL[family]
    torch.manual_seed(0)
    parts: dict[str, Any] = head_for(config, feature[0])
    if len(feature) == 1:
        parts.pop("neck", None)
    model: Any = build_classifier(dict(type="ImageClassifier", backbone=config, **parts))
    policy = {
        kind: dict(type=f"LSQ{name}", num_bit_w=4, num_bit_a=4)
        for kind, name in (("Conv2d", "Conv"), ("Linear", "Linear"))
    }
    model = build_mtransformer(dict(type="ModelTransformer", quan_policy=policy))(model).eval()
    batch = torch.randn(2, channels, size, size)
    calibrate(model, [batch])
    export_model(model, tmp_path / "model.onnx", input_shape=(channels, size, size), target="tensorrt")
    check_rules(tmp_path / "model.onnx")
    engine = load(tmp_path / "model.onnx", threads=1)
    with torch.no_grad():
        given, trained = engine.predict(batch.numpy()), model.predict(batch).numpy()
    assert np.abs(given - trained).mean() < 0.05 * trained.std()


def test_scales_on_the_axis_of_the_inputs_are_refused() -> None:
    make = onnx.helper.make_node
    values: dict[str, Any] = {"codes": np.ones((3, 3), np.int8), "s": np.ones(3, np.float32), "z": np.zeros(3, np.int8)}
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 3]) for name in ("x", "y")]
    constants = [onnx.numpy_helper.from_array(value, key) for key, value in values.items()]
    cases: Any = (("MatMul", 1, {}, 0), ("Gemm", 0, dict(transB=1), 1), ("Gemm", 1, {}, 0))
    for kind, axis, extra, wrong in cases:
        for given in (axis, wrong):
            nodes = [make("DequantizeLinear", ["codes", "s", "z"], ["w"], axis=given, name="w")]
            graph = onnx.helper.make_graph(
                [*nodes, make(kind, ["x", "w"], ["y"], **extra)], "g", ends[:1], ends[1:], constants
            )
            faults = find_target("tensorrt").faults(Graph(onnx.helper.make_model(graph)))
            assert faults == ([] if given == axis else [f"w has its scales on an axis other than {axis}"])

"""Packed weights: smaller files with bit-equal results at the same speed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from lbitcls.deploy.export.onnx import export_model
from lbitcls.deploy.passes.graph import Graph
from lbitcls.deploy.passes.packing import pack_int4
from lbitcls.deploy.runtime.engine import load
from lbitcls.deploy.targets.cpu import CPU
from lbitcls.deploy.verification.placement import integer_layers
from lbitcls.utils.errors import ConfigError

Exports = Callable[..., Any]
Quantized = Callable[..., nn.Module]


def images() -> Tensor:
    return torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 63, 3), nn.Flatten(), nn.Linear(252, 5)
    )


def test_two_integers_to_a_byte() -> None:
    codes = np.arange(-8, 7, dtype=np.int8).reshape(3, 5)
    packed = pack_int4(codes)
    assert packed.dtype == np.uint8 and len(packed) == 8
    tensor = onnx.TensorProto(data_type=onnx.TensorProto.INT4, dims=codes.shape, raw_data=packed.tobytes())
    assert np.array_equal(onnx.numpy_helper.to_array(tensor).astype(np.int8), codes)


def test_packed_files_compute_the_same_bits_in_integers(quantized: Quantized, exports: Exports) -> None:
    model: Any = quantized(net(), "LSQ", 4, 4, images())
    with torch.no_grad():
        model[1].weight.abs_()
    plain = exports(model, images())
    packed = exports(model, images(), name="packed.onnx", pack=True)
    assert packed.not_packed == {} and all(layer["packed"] for layer in packed.info.layers)
    assert packed.size < 0.6 * plain.size and abs(packed.unpacked_size - plain.size) < 1000
    for engine in CPU.engines:
        given = [load(report.path, engine, threads=1).predict(images().numpy()) for report in (plain, packed)]
        assert np.array_equal(*given)
    assert integer_layers(packed.path) == integer_layers(plain.path)
    assert integer_layers(packed.path)["convolutions"] == {"integer": 2, "total": 2, "float": {}}


def test_a_channel_whose_signs_cannot_change_has_a_negative_scale(quantized: Quantized, exports: Exports) -> None:
    model: Any = quantized(net(), "LSQ", 4, 4, images())
    with torch.no_grad():
        model[0].weight[3] = torch.rand(3, 3, 3) - 1.0  # the codes include -8; 8 would not fit
        model[0].weight[3, 0, 0, 0] = -10
        model[1].weight[:] = 1.0
        model[1].weight[3:5] = -1.0
    report = exports(model, images(), pack=True)
    assert report.not_packed == {} and all(layer["packed"] for layer in report.info.layers)
    graph = Graph(onnx.load(str(report.path)))
    (cast,) = [n for n in graph.nodes if n.name == "0/Cast"]
    (weight,) = graph.consumers(cast.output[0])
    scale = graph.array(weight.input[1])
    assert scale is not None and np.flatnonzero(scale < 0).tolist()[:1] == [3] and (scale < 0).sum() < 3
    assert integer_layers(report.path)["convolutions"]["integer"] == 2


def test_odd_integers_do_not_fit(quantized: Quantized, exports: Exports) -> None:
    report = exports(quantized(net(), "DoReFa", 4, 4, images()), images(), pack=True)
    assert list(report.not_packed) == ["0", "3", "5"] and "-15 to 15" in report.not_packed["3"]


def test_wider_weights_are_left_alone(quantized: Quantized, exports: Exports) -> None:
    report = exports(quantized(net(), "LSQ", 8, 8, images()), images(), pack=True)
    assert report.not_packed == {} and report.size == report.unpacked_size


@pytest.mark.parametrize(
    "options, match", [(dict(opset=20), "opset 21"), (dict(target="tensorrt"), "tensorrt does not support")]
)
def test_where_packing_is_not_possible(tmp_path: Any, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        export_model(net(), tmp_path / "model.onnx", input_shape=(3, 6, 6), pack=True, **options)
    assert not list(tmp_path.iterdir())


def test_layers_that_are_called_twice(quantized: Quantized, exports: Exports) -> None:
    """Layers one of which has the name that the second call of another would get."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.conv_2 = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 4, 3)
            self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.first(self.conv(x)))
            return self.conv_2(torch.relu(self.second(self.conv(x)))).mean((2, 3))

    report = exports(quantized(Twice(), "DoReFa", 3, 4, images()), images(), pack=True)
    assert report.not_packed == {} and [layer["packed"] for layer in report.info.layers] == [True, True]
    stored = [t for t in onnx.load(str(report.path)).graph.initializer if t.data_type == onnx.TensorProto.INT4]
    assert len(stored) == 3

"""Export for ExecuTorch: the same results as in training, in integers, from the engine itself; refusals by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import ModelProto
from torch import Tensor, nn

from lbitcls.deploy.export.onnx import export_model
from lbitcls.deploy.passes.graph import Graph
from lbitcls.deploy.runtime.engine import load
from lbitcls.deploy.runtime.metadata import ModelInfo, read_info
from lbitcls.deploy.targets.base import Target
from lbitcls.deploy.targets.executorch import ExecuTorch
from lbitcls.deploy.verification.reference import reference_model
from lbitcls.deploy.verification.verify import verify
from lbitcls.registry import TARGETS
from lbitcls.utils.errors import CheckpointError, ConfigError

pytest.importorskip("executorch", reason="needs the extra executorch")
pytestmark = pytest.mark.filterwarnings("ignore")  # of ExecuTorch's modules, about each other

Quantized = Callable[..., nn.Module]


class GraphsOnly(ExecuTorch):
    """The target before its last step: the graph that is converted, as an ONNX file."""

    suffix = ".onnx"
    engines = ("onnxruntime",)

    def write(self, model: ModelProto, info: ModelInfo, path: Path) -> None:
        Target.write(self, model, info, path)


class AllKernels(nn.Module):
    """Layers quantized at once or added to a skip connection, depthwise and grouped ones, pools, a strided slice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.second, self.grouped = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.depthwise, self.wide = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 16, 3, groups=8)
        self.point, self.fc = nn.Conv2d(16, 7, 1), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        x = F.max_pool2d(self.second(x).relu() + x, 2)
        x = (F.relu6(self.grouped(x)) + F.hardswish(self.depthwise(x)))[:, :, ::1, ::1]
        x = self.point(F.relu6(self.wide(x)))[:, :, ::2, ::2]
        return self.fc(F.leaky_relu(x).mean((2, 3)))


def all_kernels() -> nn.Module:
    torch.manual_seed(0)
    return AllKernels()


def images(number: int = 16) -> Tensor:
    return torch.randn(number, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def graph_of(model: nn.Module, folder: Path) -> Graph:
    """Return the graph that the target converts."""
    TARGETS.register_module(name="executorch_graph", force=True, module=GraphsOnly)
    report = export_model(model, folder / "model.onnx", input_shape=(3, 8, 8), target="executorch_graph")
    TARGETS.module_dict.pop("executorch_graph")
    return Graph(onnx.load(str(report.path)))


def expected(model: nn.Module, given: Tensor) -> np.ndarray:
    reference: Any = reference_model(model, torch.float64)
    with torch.no_grad():
        return reference(given.double()).numpy()


def off(given: np.ndarray, wanted: np.ndarray) -> int:
    """Return the number of rows that differ by more than the rounding of floats."""
    return int((np.abs(given - wanted).max(1) > 2e-5 * np.abs(wanted).max()).sum())


@pytest.mark.parametrize(
    "method, weight, inputs",
    [
        ("LSQPlus", 3, 5),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("PACT", 4, 4), ("TorchQAT", 8, 8))),
    ],
)
def test_the_converted_network_computes_the_trained_model(
    quantized: Quantized, tmp_path: Path, method: str, weight: int, inputs: int
) -> None:
    from lbitcls.deploy.targets.xnnpack.int8_layers import merge_bounds
    from lbitcls.deploy.targets.xnnpack.network import Network

    import_quantized_operators()
    model = quantized(all_kernels(), method, weight, inputs, images())
    graph = graph_of(model, tmp_path)
    merge_bounds(graph)
    network = Network(graph).eval()
    with torch.no_grad():
        given = torch.cat([network(image)[0] for image in images().split(1)]).numpy()
    assert len(network.layers) == 7
    assert off(given, expected(model, images())) <= 2


def import_quantized_operators() -> None:
    """Register PyTorch's quantized operators without loading ExecuTorch, which takes seconds."""
    import torch.ao.quantization.fx._decomposed  # noqa: F401


def test_codes_fill_int8_exactly() -> None:
    from lbitcls.deploy.targets.xnnpack.int8_layers import fill_container

    codes = np.array([[1, -2], [7, 3], [-8, 0], [-128, 5], [0, 0]], np.int8)
    scale = np.array([0.3, 0.2, 0.1, 0.5, 1e-42], np.float32)
    filled, scales = fill_container(codes, scale)
    assert filled.tolist() == [[64, -128], [112, 48], [-128, 0], [-128, 5], [0, 0]]
    assert np.array_equal(filled[:4] * scales[:4, None], codes[:4] * scale[:4, None]) and scales[4] == 1


@pytest.mark.parametrize(
    "zero_point, low, high", [(-128, 0, 15), (0, -8, 7), (3, -2, 5), (-128, 0, 255), (10, -7, 117)]
)
def test_finer_grid_contains_each_level(zero_point: int, low: int, high: int) -> None:
    from lbitcls.deploy.targets.xnnpack.int8_layers import Int8Grid

    grid = Int8Grid(0.37, zero_point, low, high)
    finer = grid.finer
    places = np.arange(low, high + 1) * grid.scale / finer.scale
    assert np.allclose(places, places.round(), atol=1e-9) and finer.low + finer.zero_point == -128
    assert finer.high - finer.low == 255 and places.max() <= finer.high and places.min() == finer.low


@pytest.mark.slow  # to load ExecuTorch and run its passes takes half a minute
def test_file_is_in_integers_and_faithful(
    quantized: Quantized, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = quantized(all_kernels(), "LSQ", 4, 4, images())
    path = tmp_path / "model.pte"
    report = export_model(model, path, input_shape=(3, 8, 8), target="executorch", classes=["a", "b", "c", "d", "é"])
    assert report.info.target == "executorch" and read_info(path) == report.info
    engine = load(path, threads=1)
    assert engine.name == "executorch" and engine.version.startswith("1.")
    assert engine.integer_counts() == (7, 7)
    assert off(engine.predict(images().numpy()), expected(model, images())) <= 2
    noise = capfd.readouterr().err
    assert not any(word in noise for word in ("cpuinfo", "threadpool", "Experimental"))
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="has changed since lbitcls wrote it"):
        load(path)


def test_refuses_what_it_cannot_express_by_name(quantized: Quantized, tmp_path: Path) -> None:
    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(36, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.atan(self.conv(x))[:, :, ::2, ::2].flatten(1))

    path = tmp_path / "model.pte"
    export = dict(path=path, input_shape=(3, 8, 8), target="executorch")
    with pytest.raises(ConfigError, match="Atan is a Atan, which the export for ExecuTorch cannot express; .* for cpu"):
        export_model(quantized(Folded(), "LSQ", 4, 4, images()), **export)
    transposed = nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.Flatten(), nn.Linear(400, 3))
    with pytest.raises(ConfigError, match="0: executorch does not support a quantized ConvTranspose2d"):
        export_model(quantized(transposed, "LSQ", 4, 4, images()), **export)
    with pytest.raises(ConfigError, match="executorch does not support packed weights"):
        export_model(all_kernels(), pack=True, **export)
    assert not list(tmp_path.iterdir())


class Narrow(nn.Module):
    """Convolution on a grid of 16 levels.

    Args:
        bounded: True: `hardtanh` makes the range before int8 is filled; False: `quant_min` and `quant_max` state it.
    """

    def __init__(self, bounded: bool) -> None:
        super().__init__()
        self.bounded, self.range = bounded, (-128, 127) if bounded else (-128, -113)
        self.register_buffer("codes", torch.arange(-108, 108, dtype=torch.int8).reshape(8, 3, 3, 3))
        self.register_buffer("scale", torch.full((8,), 0.01))
        self.register_buffer("zero", torch.zeros(8, dtype=torch.int64))

    def on_grid(self, x: Tensor, scale: float, low: int, high: int) -> Tensor:
        grid = (scale, -128, low, high, torch.int8)
        integers = torch.ops.quantized_decomposed.quantize_per_tensor(x, *grid)
        return torch.ops.quantized_decomposed.dequantize_per_tensor(integers, *grid)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardtanh(x, 0.0, 1.5) if self.bounded else x
        weight = torch.ops.quantized_decomposed.dequantize_per_channel(
            self.codes, self.scale, self.zero, 0, -127, 127, torch.int8
        )
        return self.on_grid(F.conv2d(self.on_grid(x, 0.1, *self.range), weight).relu(), 0.1, -128, 127)


@pytest.mark.slow
def test_xnnpack_ignores_ranges_that_are_only_stated() -> None:
    x = 2 * images(1).abs()
    right = Narrow(bounded=True)
    wanted = right(x).numpy()
    assert np.abs(Narrow(bounded=False)(x).numpy() - wanted).max() < 1e-5  # in PyTorch, both are the same
    assert np.abs(run_lowered(right, x) - wanted).max() < 0.11  # a step
    assert np.abs(run_lowered(Narrow(bounded=False), x) - wanted).max() > 1


def run_lowered(module: nn.Module, x: Tensor) -> np.ndarray:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    exported = torch.export.export(module.eval(), (x,))
    buffer = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch().buffer
    return Runtime.get().load_program(buffer).load_method("forward").execute([x])[0].numpy()


@pytest.mark.slow
@pytest.mark.parametrize("method, bits", [("PACT", 2), ("DSQ", 4), ("TorchQAT", 8)])
def test_digits_are_verified_in_the_engine(
    make_resnet: Callable[..., nn.Module], digits: Tensor, tmp_path: Path, method: str, bits: int
) -> None:
    model = make_resnet(method, bits)
    export_model(model, tmp_path / "model.pte", input_shape=(1, 8, 8), target="executorch")
    found = verify(model, tmp_path / "model.pte", digits[:120].split(40), threads=1)
    (certificate,) = found.certificates
    assert found.passed, found.reasons
    assert certificate.engine == "executorch" and certificate.integer == certificate.layers == 8

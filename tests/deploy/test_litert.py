"""LiteRT: files in the real engine, their integers, the reference bit for bit, ranges of few levels, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("ai_edge_litert")

from lbitcls.deploy.export.onnx import export_model
from lbitcls.deploy.passes.graph import Graph
from lbitcls.deploy.runtime.engine import load
from lbitcls.deploy.runtime.metadata import read_info
from lbitcls.deploy.targets.tflite import reading
from lbitcls.deploy.targets.tflite.filling import Sample, _refined
from lbitcls.deploy.targets.tflite.fitting import filled, fitted
from lbitcls.deploy.targets.tflite.flatbuffer import tflite_bytes
from lbitcls.deploy.targets.tflite.flatfile import FlatFile, TFLiteGrid
from lbitcls.deploy.targets.tflite.writing import TFLiteWriter
from lbitcls.deploy.verification.tflite_reference import TFLiteReference, multiplier_of, requantize
from lbitcls.deploy.verification.verify import verify
from lbitcls.quant.layers import QuantLayer
from lbitcls.quant.quantizers.lsq import LSQ
from lbitcls.utils.errors import CheckpointError, ConfigError

Quantized = Callable[..., nn.Module]
MakeResNet = Callable[..., nn.Module]


def export(model: nn.Module, images: Tensor, folder: Path, **options: Any) -> Path:
    path = folder / "model.tflite"
    shape = tuple(images.shape[1:])
    export_model(model, path, input_shape=shape, target="litert", batches=[images[:100]], **options)  # type: ignore[arg-type]
    return path


def differences(model: Any, path: Path, images: Tensor, engine: str = "litert") -> tuple[float, float]:
    """Return the fraction of images with the same class, and the mean difference in deviations of the logits.

    Images whose two best logits are equal up to rounding do not count for the first.
    """
    with torch.no_grad():
        expected = getattr(model, "predict", model)(images).numpy()
    given = load(path, engine, threads=1).predict(images.numpy())
    assert isinstance(given, np.ndarray) and given.shape == expected.shape
    second, best = np.sort(expected, 1)[:, -2:].T
    same = (given.argmax(1) == expected.argmax(1))[best - second > 1e-3 * expected.std()].mean()
    return float(same), float(np.abs(given - expected).mean() / expected.std())


def test_reference_computes_every_bit_of_an_integer_model(
    make_resnet: MakeResNet, digits: Tensor, tmp_path: Path
) -> None:
    model = make_resnet("LSQ", 8)
    path = export(model, digits, tmp_path)
    engine = load(path, threads=1)
    assert engine.name == "litert" and engine.integer_counts() == (8, 8)
    same, mean = differences(model, path, digits)
    assert same > 0.8 and mean < 0.15  # weights are random, so the images have no clear class
    given = load(path, "litert_reference", threads=1).predict(digits[:100].numpy())
    assert np.array_equal(TFLiteReference(path)(digits[:100].numpy())[0], given)


@pytest.mark.parametrize("method, bits", [("LSQPlus", 4), ("LSQ", 2)])
def test_few_bits_give_the_trained_levels(
    make_resnet: MakeResNet, digits: Tensor, tmp_path: Path, method: str, bits: int
) -> None:
    """Convolutions before an addition, and the addition, are in float32: eight bits would change some of the levels.

    At 2 bits, eight images have two best logits that are equal, and change class in float64, too.
    """
    model = make_resnet(method, bits)
    path = export(model, digits, tmp_path)
    assert load(path, threads=1).integer_counts() == (4, 8)
    same, mean = differences(model, path, digits)
    assert same >= 0.99 and mean < 0.01
    given = load(path, "litert_reference", threads=1).predict(digits[:100].numpy())
    expected = TFLiteReference(path)(digits[:100].numpy())[0]
    assert np.isclose(expected, given, atol=1e-3 * given.std()).all(1).mean() > 0.9  # a float sum's last bits differ


def test_file_is_integer_describes_itself_and_takes_any_batch(
    make_resnet: MakeResNet, digits: Tensor, tmp_path: Path
) -> None:
    path = export(make_resnet("LSQ", 4), digits, tmp_path, classes=[str(n) for n in range(10)])
    info = read_info(path)
    assert info is not None and info.target == "litert" and info.bits == "W4A4" and info.num_classes == 10
    found = TFLiteReference(path)
    for kind, operation in found.operations:
        if kind in ("CONV_2D", "FULLY_CONNECTED") and found.tensors[operation.inputs[0]].dtype != "float32":
            taken, weight, bias = (found.tensors[number] for number in operation.inputs)
            assert weight.dtype == "int8" and len(weight.scales) == len(bias.scales) > 1
            assert {taken.dtype, bias.dtype} in ({"int8", "int32"}, {"int16", "int64"})
            assert weight.constant is not None and abs(weight.constant.astype(int)).max() <= 127
    assert all(t.dtype == "int8" for t in found.tensors if t.name.endswith(".weight"))  # those of float layers too
    engine = load(path, threads=1)
    together = engine.predict(digits[:7].numpy())
    alone = [engine.predict(digits[i : i + 1].numpy()) for i in range(7)]
    assert engine.input_shape == (1, 8, 8) and np.array_equal(together, np.concatenate(alone))
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="has changed since lbitcls wrote it"):
        load(path)


def test_a_range_that_only_attributes_state_is_ignored(
    quantized: Quantized, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trap: with 16 levels in the quantization's attributes and no operation that ends the range."""
    model = quantized(net("pooled"), "LSQ", 4, 4, images())
    for quantizer in (layer.input_quantizer for layer in model.modules() if isinstance(layer, QuantLayer)):
        assert isinstance(quantizer, LSQ)
        quantizer.scale.data *= 0.5  # so that the range ends many values
    right = differences(model, export(model, images(), tmp_path), images())

    def naive(scale: float, low: int, high: int) -> TFLiteGrid:
        return (
            TFLiteGrid(scale, -128 - low, -128, high - low - 128)
            if high - low <= 255
            else TFLiteGrid(scale, 0, low, high, "int16")
        )

    def state(file: FlatFile, number: int, scales: np.ndarray, zeros: list[int], axis: int) -> None:
        quantize(file, number, scales, zeros, axis)
        if number in file.grids:
            grid = file.grids[number]
            stated = file._graph.tensors[number].quantization
            stated.min, stated.max = ([grid.scale * (end - grid.zero)] for end in (grid.low, grid.high))

    quantize = FlatFile._quantize
    monkeypatch.setattr(FlatFile, "_quantize", state)
    monkeypatch.setattr(TFLiteGrid, "of_levels", naive)
    monkeypatch.setattr(TFLiteWriter, "bounded", lambda writer, number, grid, skip_low=False: number)
    wrong = differences(model, export(model, images(), tmp_path), images())
    assert right[1] < 0.1 and wrong[1] > 5 * right[1]


def net(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "depthwise":
        layers = [nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU6(), nn.Conv2d(6, 6, 3, 1, 1, groups=6), nn.Hardswish()]
    elif kind == "tanh":
        layers = [nn.Conv2d(3, 6, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 6, 3, bias=False), nn.Sigmoid()]
    else:
        layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(5))
    model(images())
    return model


def images() -> Tensor:
    return torch.randn(64, 3, 14, 14, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["depthwise", "tanh", "pooled"])
@pytest.mark.parametrize("bits", [8, 4])
def test_operations(quantized: Quantized, tmp_path: Path, kind: str, bits: int) -> None:
    model = quantized(net(kind), "LSQ", bits, bits, images())
    path = export(model, images(), tmp_path)
    counts = load(path, threads=1).integer_counts()
    assert counts is not None and counts[0] == counts[1] >= 3
    assert differences(model, path, images())[1] < 0.1


def test_float_layers_stay_as_trained(tmp_path: Path) -> None:
    model = net("pooled").eval()
    path = export(model, images(), tmp_path)
    assert load(path, threads=1).integer_counts() == (0, 3)
    assert differences(model, path, images()) == (1.0, pytest.approx(0, abs=1e-5))


def test_verification_counts_what_the_rounding_changes(make_resnet: MakeResNet, digits: Tensor, tmp_path: Path) -> None:
    model = make_resnet("LSQ", 8)
    found = verify(model, export(model, digits, tmp_path), [digits[:120]], engines=["litert"], threads=1)
    rows = {row.name: row for row in found.rows}
    assert found.passed and {"integer", "litert", "rounded"} == set(rows)
    assert 0.2 < rows["rounded"].mean / rows["litert"].mean < 5


class ErrorFunction(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.erf(x)


def test_what_cannot_be_expressed_is_refused_before_writing(quantized: Quantized, tmp_path: Path) -> None:
    refused: dict[str, list[nn.Module]] = {
        "0: litert does not support a quantized ConvTranspose2d": [nn.ConvTranspose2d(3, 4, 3)],
        "1/Erf: Erf cannot be expressed; leave this part out": [nn.Conv2d(3, 4, 3), ErrorFunction()],
    }
    for match, layers in refused.items():
        model: nn.Module = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3))
        model(images())
        with pytest.raises(ConfigError, match=match):
            export(quantized(model, "LSQ", 8, 8, images()), images(), tmp_path)
    model = quantized(nn.Sequential(nn.Flatten(), nn.Linear(588, 3)), "LSQ", 4, 4, images())
    with pytest.raises(ConfigError, match="litert does not support packed weights"):
        export(model, images(), tmp_path, pack=True)
    with pytest.raises(ConfigError, match="opset 17 is not supported for litert"):
        export(model, images(), tmp_path, opset=17)
    assert not list(tmp_path.iterdir())


def test_rounding_twice_is_rounding_once() -> None:
    """On a finer grid whose step is an odd fraction of the layer's."""
    reader = TFLiteGrid.of_levels(0.3, 0, 15)
    values = np.random.default_rng(0).uniform(0, 9, 100_000)
    grids = _refined(reader, Sample(0.0, 9.0))
    assert [round(reader.scale / grid.scale) for grid in grids] == [1, 3, 5, 7, 9, 11, 13, 15, 17]
    for grid in grids:
        once = np.clip(np.rint(values / reader.scale), 0, 15)
        first = np.clip(np.rint(values / grid.scale), grid.low - grid.zero, grid.high - grid.zero)
        twice = np.clip(np.rint(first * grid.scale / reader.scale), 0, 15)
        near = np.abs(values / reader.scale % 1 - 0.5) < 1e-6  # ties
        assert np.array_equal(once[~near], twice[~near])


def test_every_sum_falls_to_the_level_of_training() -> None:
    rng = np.random.default_rng(0)
    weight, bias, level = rng.integers(-7, 8, (64, 9)), rng.uniform(-200, 200, 64), rng.uniform(20, 60, 64)
    weight[:, 0] = 7
    fit = fitted(weight, bias, level, TFLiteGrid.of_levels(1.0, 0, 15))
    assert fit.exact.mean() > 0.98 and fit.factors.max() <= 18 and np.abs(fit.stretch - 1).max() < 0.01
    sums = np.arange(-600, 1200)[:, None]
    trained = np.floor((sums + bias) / level + 0.5).clip(0, 15)
    multipliers = fit.stretch / (level * fit.factors)
    given = sums * fit.factors + fit.bias
    wrong = np.floor(given * multipliers + 0.5).clip(0, 15) != trained
    assert not wrong[:, fit.exact].any()
    twice = requantize(given, [multiplier_of(m) for m in multipliers]).clip(0, 15) != trained
    plain = np.floor((sums + np.rint(bias)) / level + 0.5).clip(0, 15) != trained
    assert plain.mean() > 100 * twice.mean()  # the engine's reference kernels round twice
    assert not (np.abs(filled(weight, fit)) > 127).any()


def test_256_levels_take_the_nearest_bias() -> None:
    weight, bias = np.array([[127, -128], [3, 1]]), np.array([10.3, -4.7])
    fit = fitted(weight, bias, np.array([7.7, 9.1]), TFLiteGrid.of_levels(1.0, -128, 127))
    assert fit.factors[0] == 1 and filled(weight, fit)[0].tolist() == [127, -127]
    assert np.abs(fit.bias / fit.factors - bias).max() < 0.5


def test_multipliers_are_the_engines() -> None:
    assert multiplier_of(0.5) == (1 << 30, 0) and multiplier_of(1.0) == (1 << 30, 1)
    values = np.array([5, -5, 6, -6, 2**30])
    assert requantize(values, [multiplier_of(0.5)]).tolist() == [3, -2, 3, -3, 2**29]


def test_bounds_before_a_quantization_are_read(quantized: Quantized, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export_model(quantized(net("pooled"), "LSQ", 4, 4, images()), path, input_shape=(3, 14, 14))
    source = reading.Source(onnx.load(str(path)))
    grids = [source.grid(node) for node in source.nodes if node.op_type == "QuantizeLinear"]
    assert {grid.high - grid.low for grid in grids} == {15} and {grid.high for grid in grids} == {127}
    assert tflite_bytes(Graph(onnx.load(str(path))).save())[4:8] == b"TFL3"

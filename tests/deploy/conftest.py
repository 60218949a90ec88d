"""Small ONNX files, and quantized models calibrated on the package's digits, with their BatchNorm statistics."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lbitcls.datasets.digits import Digits
from lbitcls.deploy.runtime.metadata import ModelInfo, write_info
from lbitcls.models.builder import build_classifier
from lbitcls.quant import build_mtransformer, calibrate

sys.path.insert(0, str(Path(__file__).resolve().parent))  # modules that tests share, such as `browser`

WEIGHT = np.random.default_rng(7).standard_normal((4, 3), dtype=np.float32)

MakeResNet = Callable[..., nn.Module]


@pytest.fixture
def info() -> ModelInfo:
    """Metadata of a float model for images (3, 6, 5)."""
    return ModelInfo(
        version="1.2.3",
        input_shape=(3, 6, 5),
        num_classes=4,
        classes=["ant", "bee", "çat", "dog"],
        pipeline=[dict(type="Normalize", mean=[0.5], std=[0.25])],
        layers=[],
        config="model = dict(type='x')",
    )


@pytest.fixture
def small_logits() -> Callable[[np.ndarray], np.ndarray]:
    """Function that computes in NumPy what the files of `write_onnx` compute."""
    return lambda images: np.maximum(np.einsum("nchw,oc->nohw", images, WEIGHT), 0).mean((2, 3))


@pytest.fixture
def write_onnx(tmp_path: Path) -> Callable[..., Path]:
    """Function that writes a 1x1 convolution, ReLU and mean: images (N, 3, 6, 5) to logits (N, 4), or features."""
    import onnx
    from onnx import TensorProto, helper

    def write(
        name: str = "model.onnx",
        info: ModelInfo | None = None,
        outputs: int = 1,
        batch: int | str = "N",
        shape: list[Any] | None = None,
    ) -> Path:
        names = ["logits"] if outputs == 1 else [f"feature_{i}" for i in range(outputs)]
        nodes = [
            helper.make_node("Conv", ["image", "weight"], ["convolved"]),
            helper.make_node("Relu", ["convolved"], ["positive"]),
            helper.make_node("GlobalAveragePool", ["positive"], ["mean"]),
            helper.make_node("Flatten", ["mean"], [names[0]]),
        ]
        nodes += [helper.make_node("Add", [names[0], names[0]], [other]) for other in names[1:]]
        graph = helper.make_graph(
            nodes,
            "small",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape or [batch, 3, 6, 5])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch, 4]) for output in names],
            [helper.make_tensor("weight", TensorProto.FLOAT, (4, 3, 1, 1), WEIGHT.flatten().tolist())],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        if info is not None:
            write_info(model, info)
        onnx.save(model, tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture(scope="session")
def digits() -> Tensor:
    """All 360 test digits, normalized, (360, 1, 8, 8)."""
    return _normalized("test")


@pytest.fixture(scope="session")
def make_resnet() -> MakeResNet:
    """Function from a method's name, bits and options to a quantized, untrained ResNet-8 in eval mode."""
    images = _normalized("train")[:100]

    def make(method: str, bits: int = 4, fold_bn: bool = False, **options: object) -> nn.Module:
        torch.manual_seed(0)
        model = build_classifier(
            dict(
                type="ImageClassifier",
                backbone=dict(type="ResNetCIFAROptionA", depth=8, in_channels=1, base_channels=8),
                neck=dict(type="GlobalAveragePooling"),
                head=dict(type="LinearClsHead", num_classes=10, in_channels=32, topk=(1,)),
            )
        )
        nn.init.normal_(model.head.fc.weight)
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            nn.init.uniform_(norm.weight, -1.0, 1.5)
        for _ in range(20):
            model.predict(images)  # running statistics
        policy = {
            kind: dict(type=f"{method}{suffix}", num_bit_w=bits, num_bit_a=bits, **options)
            for kind, suffix in (("Conv2d", "Conv"), ("Linear", "Linear"))
        }
        cfg = dict(type="ModelTransformer", quan_policy=policy, fold_bn=fold_bn)
        model = build_mtransformer(cfg)(model).eval()
        calibrate(model, [images])
        return model

    return make


def _normalized(split: str) -> Tensor:
    dataset = Digits(split=split, pipeline=[dict(type="Normalize", mean=[0.305], std=[0.376])])
    return torch.stack([dataset[i]["img"] for i in range(len(dataset))])


@pytest.fixture
def quantized() -> Callable[..., nn.Module]:
    """Function that quantizes a network with a method, bits of weights and inputs, and images; returns it in eval mode.

    BatchNorms get statistics as after training, a third of their γ negative and one 0; options go to the entries.
    """

    def make(
        net: nn.Module, method: str, weight: int, inputs: int, images: Tensor, fold_bn: bool = False, **options: object
    ) -> nn.Module:
        torch.manual_seed(5)
        for norm in (m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
            norm.running_mean.normal_(0, 0.1), norm.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(norm.weight, -0.5, 1.0)
            nn.init.normal_(norm.bias, std=0.2)
            norm.weight.data[0] = 0
        kinds = {"Conv2d": "Conv", "Linear": "Linear", "Conv1d": "Conv1d", "ConvTranspose2d": "ConvTranspose2d"}
        present = {type(m).__name__ for m in net.modules()} & set(kinds)
        policy = {
            kind: dict(type=f"{method}{kinds[kind]}", num_bit_w=weight, num_bit_a=inputs, **options) for kind in present
        }
        net = build_mtransformer(dict(type="ModelTransformer", quan_policy=policy, fold_bn=fold_bn))(net).eval()
        calibrate(net, [images], "mse")
        return net

    return make


@pytest.fixture
def exports(tmp_path: Path) -> Callable[..., Any]:
    """Function that exports a model, and compares the results of both engines with the model in float64.

    A value next to a rounding tie may fall on the other side in an engine; such a row of the batch may differ, but at
    most one row in eight does.
    """
    from lbitcls.deploy.export.onnx import export_model
    from lbitcls.deploy.runtime.engine import load
    from lbitcls.deploy.runtime.engines.openvino import openvino_core
    from lbitcls.deploy.targets.cpu import CPU
    from lbitcls.deploy.verification.integer import reference_model

    def export(model: nn.Module, images: Tensor, name: str = "model.onnx", **options: Any) -> Any:
        report = export_model(model, tmp_path / name, input_shape=tuple(images.shape[1:]), **options)
        reference: Any = reference_model(model, torch.float64)
        with torch.no_grad():
            expected = getattr(reference, "predict", reference)(images.double()).flatten(1).numpy()
        assert expected.std() > 0
        results = {engine: load(report.path, engine, threads=1).predict(images.numpy()) for engine in CPU.engines}
        free = openvino_core().compile_model(str(report.path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        results["openvino, any batch size"] = free(images.numpy())[0]  # optimized differently from a fixed size
        for engine, given in results.items():
            off = np.abs(given.reshape(expected.shape) - expected).max(1) > 2e-5 * np.abs(expected).max()
            assert off.sum() <= len(off) // 8, f"{engine}: {off.sum()} of {len(off)} rows differ"
        return report

    return export

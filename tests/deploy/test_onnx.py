"""Exported files compute what the models compute, in both engines: methods, bits, geometry, parts, opsets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import DenseNet
from torchvision.models._api import BUILTIN_MODELS

from lbitcls.deploy.export.onnx import export_model
from lbitcls.deploy.runtime.engine import load
from lbitcls.deploy.runtime.metadata import read_info
from lbitcls.deploy.verification.verify import verify
from lbitcls.models.builder import build_classifier
from lbitcls.quant import build_mtransformer, calibrate, set_quantization
from lbitcls.quant.methods import METHODS
from lbitcls.registry import QUANT_LAYERS
from lbitcls.utils.errors import ConfigError

QUANT_LAYERS.names()  # imports every method

Exports = Callable[..., Any]
Quantized = Callable[..., nn.Module]
LARGEST_APOT = 5  # bits of inputs whose integers fit 8 bits


class Blocks(nn.Module):
    """Network with a stem, a depthwise convolution, odd strides and paddings, a skip connection, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=True), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.depthwise = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=(2, 0), groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6()
        )
        self.odd = nn.Sequential(nn.Conv2d(8, 12, (3, 2), (2, 1), (0, 1), dilation=(1, 2)), nn.BatchNorm2d(12))
        self.reflected = nn.Conv2d(12, 12, 3, padding=1, padding_mode="reflect")
        self.norm = nn.BatchNorm2d(12)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.odd(self.depthwise(self.stem(x)))
        x = torch.relu(x + self.norm(self.reflected(x)))
        return self.fc(x.mean((2, 3)))


def images(number: int = 16, *shape: int) -> Tensor:
    return torch.randn(number, *(shape or (3, 10, 9)), generator=torch.Generator().manual_seed(3))


def of_method(quantized: Quantized, method: str, bits: int, **options: Any) -> nn.Module:
    torch.manual_seed(1)
    if method == "APoT" and bits > LARGEST_APOT:
        options["quant_activation"] = False
    return quantized(Blocks(), method, bits, bits, images(), **options)


@pytest.mark.parametrize("method, bits", [("LSQ", 4), ("LSQPlus", 3), ("DoReFa", 2), ("TorchQAT", 8), ("APoT", 5)])
def test_methods(quantized: Quantized, exports: Exports, method: str, bits: int) -> None:
    report = exports(of_method(quantized, method, bits), images())
    assert report.norms_left == []
    assert report.info.method == method and len(report.info.layers) == 5


@pytest.mark.parametrize("method, per_channel", [("LSQ", False), ("DSQ", True), ("TorchQAT", True), ("DoReFa", False)])
def test_normalized_weights(quantized: Quantized, exports: Exports, method: str, per_channel: bool) -> None:
    """The integers are those of the normalized weight; BatchNorm is folded into the rest as without the option."""
    torch.manual_seed(1)
    net = Blocks()
    net.fc = nn.Identity()  # type: ignore[assignment]
    model = quantized(net, method, 4, 4, images(), weight_norm=True, per_channel=per_channel)
    assert exports(model, images()).norms_left == []


# Every method at every number of bits; the other two options meet in all combinations for each method, and each number.
QUARTER = [
    (method, bits, (number + bits + fold_bn) % 2 == 0, fold_bn)
    for number, method in enumerate(sorted(METHODS))
    for bits in range(2, 9)
    for fold_bn in [(number + bits) % 4 > 1]
]


@pytest.mark.slow
@pytest.mark.parametrize("method, bits, per_channel, fold_bn", QUARTER)
def test_every_method_at_every_number_of_bits(
    quantized: Quantized, exports: Exports, method: str, bits: int, per_channel: bool, fold_bn: bool
) -> None:
    model = of_method(quantized, method, bits, per_channel=per_channel, fold_bn=fold_bn)
    report = exports(model, images())
    assert report.norms_left == []
    wide = method == "APoT" and bits > 6
    assert wide == any(t.data_type == onnx.TensorProto.INT16 for t in onnx.load(str(report.path)).graph.initializer)


@pytest.mark.parametrize("options", [dict(num_bit_a=32), dict(num_bit_w=32)])
def test_layers_of_which_one_side_is_float(quantized: Quantized, exports: Exports, options: dict[str, int]) -> None:
    torch.manual_seed(1)
    bits = {"num_bit_w": 4, "num_bit_a": 4, **options}
    model = quantized(Blocks(), "LSQ", bits["num_bit_w"], bits["num_bit_a"], images())
    layer = exports(model, images()).info.layers[0]
    known = layer["weight_bits"], layer["input_bits"], layer["container"]
    assert known in ((4, None, None), (None, 4, "uint8"), (None, 4, "int8"))


def test_one_bit_weights(quantized: Quantized, exports: Exports) -> None:
    torch.manual_seed(1)
    assert exports(quantized(Blocks(), "DoReFa", 1, 4, images()), images()).info.bits == "W1A4"


@pytest.mark.parametrize("opset", [17, 19])
def test_lower_opsets(quantized: Quantized, exports: Exports, opset: int) -> None:
    report = exports(of_method(quantized, "LSQ", 4), images(), opset=opset)
    assert onnx.load(str(report.path)).opset_import[0].version == opset
    assert {layer["name"] for layer in report.info.layers} <= {n.name for n in onnx.load(str(report.path)).graph.node}


@pytest.mark.parametrize("opset", [9, 13, 16, 25])
def test_an_opset_out_of_range_names_the_range(quantized: Quantized, tmp_path: Path, opset: int) -> None:
    with pytest.raises(ConfigError, match=rf"opset {opset} is not supported; use 17 to 21"):
        export_model(Blocks(), tmp_path / "model.onnx", input_shape=(3, 10, 9), opset=opset)
    assert not list(tmp_path.iterdir())


def test_other_kinds_of_layers(quantized: Quantized, exports: Exports) -> None:
    class Kinds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(3, 6, 3, stride=2, padding=1, output_padding=1)
            self.up_norm = nn.BatchNorm2d(6)
            self.groups = nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2, bias=False)
            self.groups_norm = nn.BatchNorm2d(4)
            self.line = nn.Conv1d(4, 6, 3, padding=1)
            self.line_norm = nn.BatchNorm1d(6)
            self.tokens = nn.Linear(6, 7)
            self.last = nn.Linear(7, 4)
            self.last_norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.up_norm(self.up(x)))
            x = torch.relu(self.groups_norm(self.groups(x))).flatten(2)
            x = torch.relu(self.line_norm(self.line(x))).transpose(1, 2)
            return self.last_norm(self.last(self.tokens(x).mean(1)))

    torch.manual_seed(2)
    x = images(16, 3, 4, 5)
    report = exports(quantized(Kinds(), "LSQ", 4, 8, x), x)
    assert report.norms_left == ["groups_norm/BatchNormalization"]  # its weight has no axis of all output channels


def test_a_float_model(exports: Exports) -> None:
    torch.manual_seed(1)
    report = exports(Blocks().eval(), images())
    assert report.info.is_float and report.info.bits == "float" and report.container_ms == {}
    assert 0.9 < report.size / report.float_size < 3  # nodes and metadata outweigh such a small network


def test_quantizers_that_are_off_are_exported_as_float_layers(quantized: Quantized, exports: Exports) -> None:
    model = of_method(quantized, "LSQ", 2)
    set_quantization(model, False)
    report = exports(model, images())
    assert report.info.is_float
    assert not any(node.op_type == "QuantizeLinear" for node in onnx.load(str(report.path)).graph.node)


def test_the_model_is_not_changed(quantized: Quantized, tmp_path: Path) -> None:
    model = of_method(quantized, "LSQ", 4).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_model(model, tmp_path / "model.onnx", input_shape=(3, 10, 9))
    after = model.state_dict()
    assert model.training and all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_the_graph(quantized: Quantized, exports: Exports) -> None:
    proto = onnx.load(str(exports(of_method(quantized, "LSQ", 4), images()).path))
    counts = Counter(node.op_type for node in proto.graph.node)
    assert "BatchNormalization" not in counts
    assert counts["QuantizeLinear"] == counts["Clip"] == 5  # the ReLU6's Clip is merged into one of them
    assert all(len(node.input) == 2 for node in proto.graph.node if node.op_type in ("Conv", "Gemm"))
    names = [node.name for node in proto.graph.node]
    assert len(set(names)) == len(names) and {"stem.0", "odd.0", "reflected", "fc"} <= set(names)
    text = proto.SerializeToString()
    assert b"pkg.torch" not in text and b".py" not in text  # the tracer's notes name files of this machine
    (batch, *shape), known = proto.graph.input[0].type.tensor_type.shape.dim, [3, 10, 9]
    assert batch.dim_param == "N" and [d.dim_value for d in shape] == known
    assert [value.name for value in (*proto.graph.input, *proto.graph.output)] == ["image", "logits"]


def classifier(**options: Any) -> nn.Module:
    torch.manual_seed(1)
    return build_classifier(
        dict(
            type="ImageClassifier",
            backbone=dict(type="ResNet_CIFAR", depth=18, base_channels=4, num_stages=2, out_indices=(0, 1), **options),
            neck=dict(type="GlobalAveragePooling"),
            head=dict(type="LinearClsHead", num_classes=3, in_channels=8, topk=(1,)),
        )
    )


def test_the_record_and_free_batch_of_a_classifier(quantized: Quantized, exports: Exports) -> None:
    x = images(16, 3, 16, 16)
    model = quantized(classifier(), "LSQ", 4, 4, x)
    pipeline = [dict(type="Normalize", mean=[0.5], std=[0.5])]
    report = exports(model, x, classes=("a", "b", "ç"), pipeline=pipeline, config="model = …")
    info = read_info(report.path)
    assert info == report.info
    assert info is not None and (info.part, info.num_classes, info.classes) == ("model", 3, ["a", "b", "ç"])
    assert info.pipeline == pipeline and info.config == "model = …" and info.bits == "W4A4"
    assert info.layers[0]["name"] == "backbone.conv1" and info.layers[-1]["kind"] == "Linear"
    engine = load(report.path)
    assert [engine.predict(x[:n].numpy()).shape for n in (1, 5)] == [(1, 3), (5, 3)]
    record = report.to_json()
    assert record["info"]["bits"] == "W4A4" and "config" not in record["info"]


def test_a_backbone_gives_its_features(quantized: Quantized, tmp_path: Path) -> None:
    x = images(4, 3, 16, 16)
    model: Any = quantized(classifier(), "LSQ", 4, 4, x)
    report = export_model(model, tmp_path / "backbone.onnx", input_shape=(3, 16, 16), part="backbone")
    assert report.info.feature_shapes == [[4, 16, 16], [8, 8, 8]] and report.info.out_channels == [4, 8]
    assert report.info.classes is None and report.info.num_classes is None
    assert all(layer["name"].startswith("backbone.") for layer in report.info.layers)
    with torch.no_grad():
        expected = model.double().backbone(x.double())
    for engine in ("openvino", "onnxruntime"):
        given = load(report.path, engine).predict(x.numpy())
        assert len(given) == 2
        for ours, theirs in zip(given, expected, strict=True):
            assert np.isclose(ours, theirs.numpy(), atol=1e-4).mean() > 0.98


@pytest.mark.parametrize("part", ["head", "backbone"])
def test_a_part_that_is_not_there(tmp_path: Path, part: str) -> None:
    with pytest.raises(ConfigError, match="backbone"):
        export_model(Blocks().eval(), tmp_path / "model.onnx", input_shape=(3, 10, 9), part=part)
    assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_be_traced(tmp_path: Path) -> None:
    class Stubborn(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum().item() > 0 else -x

    with pytest.raises(ConfigError, match=r"Stubborn cannot be traced for ONNX with a free batch size: \w+"):
        export_model(Stubborn(), tmp_path / "model.onnx", input_shape=(3, 4, 4))
    assert not list(tmp_path.iterdir())


FAMILIES = [
    (dict(type="ResNet", depth=50, base_channels=16), 512, 64),
    (dict(type="MobileNetV2", widen_factor=0.5), 1280, 64),
    (dict(type="ResNetCIFAROptionA", depth=20), 64, 32),
    (dict(type="VGG", depth=11, norm_cfg=dict(type="BN")), 512, 64),
    (dict(type="SqueezeNet", version="1_1"), 512, 64),
    (dict(type="TorchvisionBackbone", name="shufflenet_v2_x0_5"), 1024, 64),
    (dict(type="TorchvisionBackbone", name="mobilenet_v3_small"), 1024, 64),
    (dict(type="TorchvisionBackbone", name="vit_b_32"), 768, 224),
    (dict(type="TorchvisionBackbone", name="densenet121"), 64, 64),
]


def small_densenet(**options: Any) -> nn.Module:
    """Return a DenseNet with all its parts, each twice: the export of 120 layers takes a minute."""
    return DenseNet(growth_rate=16, block_config=(2, 2, 2, 2), num_init_features=32)


small_densenet.__module__ = DenseNet.__module__  # by which torchvision finds its models


def settle_norms(model: nn.Module, images: Tensor) -> None:
    """Give BatchNorms the exact statistics of these images, and biases of about 1.

    Otherwise random weights show little. With running statistics that do not fit the data, the signal fades from layer
    to layer, until logits hardly differ and rounding decides their order. With biases of 0, each ReLU cuts off half of
    its inputs, and differences grow from layer to layer in a random network of 50 layers, unlike in a trained one: then
    not even float64 is close to float32.
    """
    for norm in (m for m in model.eval().modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
        norm.train().momentum = 1.0
        nn.init.uniform_(norm.bias, 0.5, 1.5)
    with torch.no_grad():
        cast(Any, model).predict(images)
    model.eval()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("backbone", "channels", "side", "bits"),
    [(*family, (4, 8)[number % 2]) for number, family in enumerate(FAMILIES)],
)
def test_families(
    tmp_path: Path, backbone: dict[str, Any], channels: int, side: int, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BUILTIN_MODELS, "densenet121", small_densenet)
    torch.manual_seed(1)
    head = dict(type="LinearClsHead", num_classes=10, in_channels=channels)
    neck = dict(type="GlobalAveragePooling")
    model: Any = build_classifier(dict(type="ImageClassifier", backbone=backbone, neck=neck, head=head))
    nn.init.normal_(model.head.fc.weight)
    x = images(104, 3, side, side)
    settle_norms(model, x[:64])
    policy = {
        kind: dict(type=f"LSQ{suffix}", num_bit_w=bits, num_bit_a=bits, per_channel=True)
        for kind, suffix in (("Conv2d", "Conv"), ("Linear", "Linear"))
    }
    model = build_mtransformer(dict(type="ModelTransformer", quan_policy=policy))(model).eval()
    calibrate(model, [x[:32]], "mse")
    report = export_model(model, tmp_path / "model.onnx", input_shape=(3, side, side))
    found = verify(model, report.path, x.split(26))
    if found.passed:
        return
    # Where float64 itself is not near float32 (a vision transformer at 4 bits: one value at a tie changes a token, and
    # that all others), which images change is chance. An engine is not much further off than float64, and the numbers
    # of images that change their class differ by less than three standard deviations of such numbers.
    (yardstick,) = found.yardstick
    assert yardstick.mean > 5e-3 * found.deviation["logits"], found.reasons
    for row in found.rows:
        assert row.mean < 3 * yardstick.mean, found.table()
        ours, its = (len(x) * (1 - (r.agreement or 0) / 100) for r in (row, yardstick))
        assert ours <= its + 3 * (2 * max(its, 1)) ** 0.5, found.table()


def test_a_batch_size_that_the_model_fixes_is_refused(tmp_path: Path) -> None:
    class Fixing(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image.mean((2, 3)) / len(image)

    with pytest.raises(ConfigError, match="Fixing cannot be traced .* would accept 2 images and no other number"):
        export_model(Fixing(), tmp_path / "model.onnx", input_shape=(3, 8, 8))
    assert not list(tmp_path.iterdir())

"""A file that computes what was trained passes; a slightly wrong one does not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from lbitcls.deploy.export.onnx import export_model
from lbitcls.deploy.verification.verdict import Verification
from lbitcls.deploy.verification.verify import verify
from lbitcls.quant import calibrate
from lbitcls.quant.methods import METHODS
from lbitcls.quant.quantizer_errors import NotInitializedError
from lbitcls.registry import QUANT_LAYERS
from lbitcls.utils.errors import CheckpointError, ConfigError, DataError, DependencyError

QUANT_LAYERS.names()  # imports every method

Perturb = Callable[[np.ndarray], np.ndarray]


# Comparisons, with an engine that computes in PyTorch


@pytest.fixture
def verify_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Verification]:
    """Function that verifies a model on images, given what an engine does to the model's outputs."""

    def run(
        model: nn.Module, images: Tensor, perturb: Any = lambda y: y, part: str = "model", batches: Any = None
    ) -> Verification:
        module = model.backbone if part == "backbone" else model

        @torch.no_grad()
        def predict(given: np.ndarray) -> Any:
            outputs = getattr(module, "predict", module)(torch.from_numpy(given))
            if isinstance(outputs, tuple):
                return tuple(perturb(y.numpy()) for y in outputs)
            return perturb(outputs.numpy())

        info = SimpleNamespace(part=part, target="cpu")
        facts = dict(name="twin", version="1", is_timed=True, path=Path(__file__), threads=None, info=info)
        engine = SimpleNamespace(predict=predict, integer_counts=lambda: (3, 4), **facts)
        monkeypatch.setattr("lbitcls.deploy.verification.judges.load", lambda path, name, threads: engine)
        return verify(model, "model.onnx", images.split(64) if batches is None else batches, engines=["twin"])

    return run


def test_the_same_computation_is_identical(verify_with: Any, make_resnet: Any, digits: Tensor) -> None:
    model = make_resnet("LSQ")
    verification = verify_with(model, digits)
    integer, twin = verification.rows
    assert (twin.mean, twin.largest, twin.identical, twin.agreement, twin.changed) == (0, 0, 100, 100, 0)
    with torch.no_grad():
        logits = model.predict(digits)
    deviation = min(float(logits.std()), 3 * float(logits.std(0).square().mean().sqrt()))
    assert verification.images == 360 and verification.deviation["logits"] == pytest.approx(deviation, 1e-2)
    (yardstick,), (exactness,) = verification.yardstick, verification.exactness
    assert 0 < yardstick.mean < 1e-2 and yardstick.identical < 100
    assert integer.name == "integer" and integer.mean == pytest.approx(yardstick.mean, abs=1e-10)
    assert exactness.reference == "float64" and exactness.largest < 1e-10
    assert verification.passed and verification.float_layers == {}
    assert verification.largest_accumulator is not None and verification.largest_accumulator[1] > 100


@pytest.mark.parametrize("images, passes", [(1, True), (2, False)])
def test_changed_classes_are_counted(
    images: int, passes: bool, verify_with: Any, make_resnet: Any, digits: Tensor
) -> None:
    """The top two logits of the untied images with the smallest margins swap: the mean hardly changes."""
    model = make_resnet("LSQ")
    before = verify_with(model, digits)
    with torch.no_grad():
        best = model.predict(digits).topk(2, dim=1).values
    margins = best[:, 0] - best[:, 1]
    noise = before.yardstick[0].largest
    limit = float(margins[margins >= noise].sort().values[images - 1])
    assert before.untied == int((margins >= noise).sum())
    left = images

    def swap(logits: np.ndarray) -> np.ndarray:
        nonlocal left
        for row in logits:
            second, first = np.argsort(row)[-2:]
            if left and noise <= row[first] - row[second] <= limit:
                row[[first, second]] = row[[second, first]]
                left -= 1
        return logits

    verification = verify_with(model, digits, swap)
    assert verification.rows[1].changed == images and verification.passed is passes
    assert verification.rows[1].agreement == pytest.approx(100 - 100 * images / 360)


def test_tied_images_may_change(verify_with: Any, digits: Tensor) -> None:
    """Two classes have equal weights, so every image is tied and an ulp decides."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        model[1].weight[1], model[1].bias[1] = model[1].weight[0], model[1].bias[0]
    verification = verify_with(model, digits, lambda y: np.nextafter(y, np.float32([-9, 9])))
    assert verification.untied == 0 and verification.rows[0].changed == 0 and verification.passed
    assert verification.rows[0].agreement == 0


def test_a_single_class_is_never_tied(verify_with: Any, digits: Tensor) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    verification = verify_with(model, digits)
    assert verification.untied == 360 and verification.rows[0].agreement == 100 and verification.passed
    assert [row.name for row in verification.rows] == ["twin"]  # without integer layers there is no integer reference


def test_features_are_compared_one_by_one(verify_with: Any, make_resnet: Any, digits: Tensor) -> None:
    model = make_resnet("LSQ")
    model.backbone.out_indices = (0, 2)
    verification = verify_with(model, digits, lambda y: y * np.float32(1.1 if y.shape[1] == 32 else 1.0), "backbone")
    assert [row.output for row in verification.rows if row.name == "twin"] == ["feature_0", "feature_1"]
    assert all(row.agreement is None and row.changed is None for row in verification.rows)
    assert verification.untied is None and len(verification.reasons) == 1
    assert verification.reasons[0].startswith("twin: feature_1 differ")
    assert verification.table()[0][0] == "float64 feature_0" and verification.table()[0][2] == ""


def test_outputs_that_are_not_numbers_fail(verify_with: Any, make_resnet: Any, digits: Tensor) -> None:
    model = make_resnet("LSQ")
    verification = verify_with(model, digits, lambda y: np.where(y == y.max(), np.float32("nan"), y))
    assert not verification.passed and np.isnan(verification.rows[1].mean) and np.isnan(verification.rows[1].largest)
    model.head.fc.bias.data[3] = torch.inf
    with pytest.raises(CheckpointError, match="model's own outputs are not finite"):
        verify_with(model, digits)


def test_mistakes(verify_with: Any, make_resnet: Any, digits: Tensor) -> None:
    model = make_resnet("LSQ")
    with pytest.raises(CheckpointError, match=r"twin outputs .*\(64, 9\).*, the model .*\(64, 10\).*another model"):
        verify_with(model, digits, lambda y: y[:, :9])
    with pytest.raises(DataError, match="no images"):
        verify_with(model, digits, batches=[])
    model.head.fc.input_quantizer.initialized.fill_(False)
    model.head.fc.input_quantizer.refresh()
    with pytest.raises(NotInitializedError, match=r"head\.fc\.input_quantizer never saw data"):
        verify_with(model, digits)


def test_the_model_is_left_in_its_mode(verify_with: Any, digits: Tensor) -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    verify_with(model, digits[:100], lambda y: np.zeros_like(y))  # the twin itself moves the statistics
    assert model.training and all(v.dtype == before[k].dtype for k, v in model.state_dict().items())


class Wandering(nn.Module):
    """Model whose results change from call to call."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        y = getattr(self.model, "predict", self.model)(x)
        return y + 0.2 * y.std() * torch.randn(y.shape)


def test_a_model_that_is_random_excuses_no_file(verify_with: Any, make_resnet: Any, digits: Tensor) -> None:
    torch.manual_seed(0)
    verification = verify_with(Wandering(make_resnet("LSQ")), digits, lambda y: y * np.float32(0.8))
    assert not verification.passed
    names = [reason.split(":")[0] for reason in verification.reasons]
    assert list(dict.fromkeys(names))[:3] == ["float64", "integer", "twin"]


def test_the_anchor_is_the_very_module_with_its_hooks(verify_with: Any, make_resnet: Any, digits: Tensor) -> None:
    """A hook finds the module that it was created for, not a copy; and the mode of every module is restored."""
    model = make_resnet("LSQ").train()
    model.backbone.eval()
    own = model.head.fc
    own.register_forward_pre_hook(lambda module, args: args if module is own else (args[0] * 1.5,))
    verification = verify_with(model, digits[:100])
    assert verification.rows[-1].name == "twin" and verification.rows[-1].identical == 100
    assert not verification.passed and verification.reasons[0].startswith("float64: ")
    assert model.training and not model.backbone.training and model.head.training


def test_a_model_that_keeps_to_float32_is_named(verify_with: Any, digits: Tensor) -> None:
    inner = nn.Linear(64, 64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    model[0].register_forward_hook(lambda module, args, output: inner(output))
    with pytest.raises(ConfigError, match="the model to run in float64, which fails: .*outside of the copy"):
        verify_with(model, digits)


@pytest.mark.parametrize("kind", ["tensor", "dict", "pair", "list"])
def test_batches_as_loaders_give_them(verify_with: Any, make_resnet: Any, digits: Tensor, kind: str) -> None:
    batches = {
        "tensor": lambda x: x,
        "dict": lambda x: {"img": x, "gt_label": x},
        "pair": lambda x: (x, x[:, 0]),
        "list": lambda x: [x, x[:, 0]],
    }
    model = make_resnet("LSQ")
    given = [batches[kind](images) for images in digits[:120].split(60)]
    assert verify_with(model, digits, batches=given).images == 120
    assert calibrate(model, given) == 0
    with pytest.raises(DataError, match=r"a batch must be a tensor .* got a dict with image"):
        verify_with(model, digits, batches=[{"image": digits}])


# Real files in both engines

Exported = tuple[nn.Module, Path]


@pytest.fixture(scope="module")
def exported(make_resnet: Any, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A model with signed and unsigned inputs and a zero point, and its file."""
    model, path = make_resnet("LSQPlus"), tmp_path_factory.mktemp("exported") / "model.onnx"
    export_model(model, path, input_shape=(1, 8, 8))
    proto = onnx.load(path)
    proto.metadata_props.pop()  # the digest: tests change the file
    onnx.save(proto, path)
    return model, path


class Parts:
    """Return a convolution's initializers in a file, by meaning."""

    def __init__(self, graph: Any, index: int) -> None:
        made_by = {output: node for node in graph.node for output in node.output}
        self.conv = [node for node in graph.node if node.op_type == "Conv"][index]
        (self.add,) = [node for node in graph.node if node.op_type == "Add" and self.conv.output[0] in node.input]
        inputs, weight = (made_by[name] for name in self.conv.input)
        stored = {tensor.name: tensor for tensor in graph.initializer}
        (self.bias,) = [stored[name] for name in self.add.input if name in stored]
        self.codes, self.weight_scale = (stored[name] for name in weight.input[:2])
        self.input_scale = stored[inputs.input[1]]


def change(tensor: Any, function: Perturb) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(function(numpy_helper.to_array(tensor))), tensor.name))


def shift_codes(codes: np.ndarray) -> np.ndarray:
    """Shift one weight of each output channel by one step."""
    codes = codes.copy()
    codes[:, 0, 1, 1] += np.where(codes[:, 0, 1, 1] < 7, 1, -1).astype(codes.dtype)
    return codes


WRONG: dict[str, Callable[[Parts], None]] = {
    "scale of a weight": lambda parts: change(parts.weight_scale, lambda a: a * np.float32(1.01)),
    "scale of an input": lambda parts: change(parts.input_scale, lambda a: a * np.float32(1.01)),
    "bias": lambda parts: change(parts.bias, lambda a: a + np.float32(0.02)),
    "codes": lambda parts: change(parts.codes, shift_codes),
}


def test_an_exported_model_passes_in_both_engines(exported: Exported, digits: Tensor) -> None:
    model, path = exported
    verification = verify(model, path, digits.split(120), threads=1)
    assert [row.name for row in verification.rows] == ["integer", "openvino", "onnxruntime"]
    assert verification.passed and verification.judged and verification.images == 360
    assert all(row.changed == 0 for row in verification.rows)
    assert all(row.mean < 1e-3 * verification.deviation["logits"] for row in verification.rows)


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("index", [0, 3, 6])
def test_a_file_with_one_layer_a_little_wrong_is_rejected(
    what: str, index: int, exported: Exported, digits: Tensor, tmp_path: Path
) -> None:
    """A scale off by 1 %, a bias off by 0.02, or one weight of each channel off by one step is rejected."""
    model, path = exported
    wrong = onnx.load(path)
    WRONG[what](Parts(wrong.graph, index))
    onnx.save(wrong, tmp_path / "model.onnx")
    verification = verify(model, tmp_path / "model.onnx", digits.split(120), threads=1)
    for engine in ("openvino", "onnxruntime"):
        assert any(reason.startswith(f"{engine}: logits differ") for reason in verification.reasons)
    assert not any(reason.startswith("integer") for reason in verification.reasons)


def test_a_missing_clip_to_a_narrow_grid_is_noticed(exported: Exported, digits: Tensor, tmp_path: Path) -> None:
    model, path = exported
    wrong = onnx.load(path)
    for node in wrong.graph.node:
        if node.op_type == "Clip":
            node.op_type = "Identity"
            del node.input[1:]
    onnx.save(wrong, tmp_path / "model.onnx")
    assert not verify(model, tmp_path / "model.onnx", digits.split(120), threads=1).passed


def test_biases_that_an_engine_rounds_to_whole_steps_are_noticed(
    exported: Exported, digits: Tensor, tmp_path: Path
) -> None:
    """ONNX Runtime rounds the bias of a convolution on integers to int32 at the low-bit scale; OpenVINO does not."""
    model, path = exported
    wrong = onnx.load(path)
    for index in range(7):
        parts = Parts(wrong.graph, index)
        change(parts.bias, np.ravel)
        parts.conv.input.append(parts.bias.name)
        parts.conv.output[0] = parts.add.output[0]
        wrong.graph.node.remove(parts.add)
    onnx.save(wrong, tmp_path / "model.onnx")
    verification = verify(model, tmp_path / "model.onnx", digits.split(120), threads=1)
    assert not verification.passed and all(reason.startswith("onnxruntime:") for reason in verification.reasons)


def test_an_engine_that_is_missing_says_what_to_install(
    exported: Exported, digits: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DependencyError, match=r"onnxruntime is required.*lbitcls\[deploy\]"):
        verify(*exported, digits.split(120))


def test_a_backbone_is_compared_by_its_features(make_resnet: Any, digits: Tensor, tmp_path: Path) -> None:
    model = make_resnet("LSQ")
    model.backbone.out_indices = (1, 2)
    export_model(model, tmp_path / "backbone.onnx", input_shape=(1, 8, 8), part="backbone")
    verification = verify(model, tmp_path / "backbone.onnx", digits.split(120), threads=1)
    assert verification.passed and [row.output for row in verification.rows] == ["feature_0", "feature_1"] * 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "bits", "per_channel"),
    [  # a low and a high width for each method, one of them per channel
        (method, *grid)
        for number, method in enumerate(METHODS)
        for grid in (((2, True), (8 if method != "APoT" else 5, False)), ((3, False), (4, True)))[number % 2]
    ],
)
def test_every_method_passes_in_both_engines(
    method: str, bits: int, per_channel: bool, make_resnet: Any, digits: Tensor, tmp_path: Path
) -> None:
    model = make_resnet(method, bits, per_channel=per_channel)
    export_model(model, tmp_path / "model.onnx", input_shape=(1, 8, 8))
    verification = verify(model, tmp_path / "model.onnx", digits.split(120), threads=1)
    assert verification.passed, verification.reasons


# Faults that a yardstick, or the size of the outputs, must not hide


class Masked(nn.Module):
    """Network with one more logit, the same for every image: a masked class.

    Its hook acts on the original only, so that every copy, and the file, computes something else.
    """

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.net, self.offset = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), offset
        layer = self.net[1]
        layer.register_forward_hook(lambda module, args, y: y.flip(1) if module is layer else None)

    def forward(self, image: Tensor) -> Tensor:
        y = self.net(image)
        return torch.cat([y, torch.full_like(y[:, :1], self.offset)], 1)


@pytest.mark.parametrize("offset", [-1e4, 1e9, -1e30])
def test_a_constant_logit_does_not_make_the_others_small(verify_with: Any, offset: float) -> None:
    torch.manual_seed(0)
    model, images = Masked(offset), torch.randn(128, 1, 8, 8)
    wrong = verify_with(model, images, lambda y: np.concatenate([y[:, 3::-1], y[:, 4:]], 1))
    varying = model(images)[:, :4].std(0).square().sum().div(5).sqrt()
    assert wrong.deviation["logits"] == pytest.approx(3 * varying.item(), rel=0.1)
    assert {reason.split(":")[0] for reason in wrong.reasons} == {"float64", "twin"}
    assert verify_with(Masked(0.0).net, images).deviation["logits"] < 3

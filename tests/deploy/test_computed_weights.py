"""Weights computed outside of their layer: the exported weight is the one of a forward pass in eval, or refused."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from lbitcls.core.ema import ModelEMA
from lbitcls.deploy.export.onnx import export_model
from lbitcls.deploy.verification.reference import reference_model
from lbitcls.deploy.verification.verify import verify
from lbitcls.quant import build_mtransformer, calibrate
from lbitcls.quant.computed_weights import copy_model, has_computed_weights, plain_copy
from lbitcls.quant.layers import QuantConv2d, QuantLayer
from lbitcls.utils.errors import ConfigError

SHAPE = (3, 8, 8)
Change = Callable[[nn.Module], Any]


class Standardised(nn.Module):
    """Weight standardization, as a parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        flat = weight.flatten(1)
        return ((flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + 1e-5)).view_as(weight)


def old_weight_norm(layer: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(layer)


def hook_on_input(layer: nn.Module) -> None:
    layer.register_forward_pre_hook(lambda module, args: (args[0] * 0.5 + 0.1,))


def hook_on_output(layer: nn.Module) -> None:
    layer.register_forward_hook(lambda module, args, output: output * 1.5 - 0.2)


def hook_that_reads_the_weight(layer: nn.Module) -> None:
    layer.register_forward_hook(lambda module, args, output: output / (1 + module.weight.abs().mean()))


MECHANISMS: dict[str, Change] = {
    "spectral_norm": nn.utils.spectral_norm,
    "spectral_norm, parametrized": parametrizations.spectral_norm,
    "weight_norm": old_weight_norm,
    "weight_norm, parametrized": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "weight standardisation": lambda layer: parametrize.register_parametrization(layer, "weight", Standardised()),
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "pruned channels": lambda layer: prune.ln_structured(layer, "weight", 0.3, n=2, dim=0),
    "pruned twice, and the bias": lambda layer: (
        prune.l1_unstructured(layer, "weight", 0.3),
        prune.random_unstructured(layer, "weight", 0.2),
        prune.l1_unstructured(layer, "bias", 0.5),
    ),
    "hook on the input": hook_on_input,
    "hook on the output": hook_on_output,
    "hook that reads the weight": hook_that_reads_the_weight,
    "norm, and pruned elsewhere": lambda layer: (nn.utils.spectral_norm(layer), hook_on_output(layer)),
}


class Net(nn.Module):
    """Two convolutions, a transposed one and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.conv, self.fc = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        return self.fc(F.adaptive_avg_pool2d(self.conv(x).relu(), 2).flatten(1))


def make(change: Change, first: bool = True, **options: Any) -> Any:
    """Return the network, whose layers `change` alters before quantization (`first`) or after."""
    entry = dict(num_bit_w=8, num_bit_a=8, **options)
    policy = dict(Conv2d=dict(type="LSQConv", **entry), Linear=dict(type="LSQLinear", **entry))
    transform = build_mtransformer(dict(type="ModelTransformer", quan_policy=policy))
    model: Any = Net()
    for step in range(2):
        if (step == 0) is first:
            change(model.conv)
            change(model.fc)
        else:
            model = transform(model)
    return model


def data(number: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(3))
    labels = torch.randint(0, 4, (number,), generator=generator)
    return classes[labels] + torch.randn(number, *SHAPE, generator=generator), labels


def train(model: nn.Module, steps: int = 25) -> ModelEMA:
    """Return the averaged model; `model` has been trained further since."""
    calibrate(model, [data(64, 1)[0]])
    average, optimizer = ModelEMA(model, 0.5), torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(steps):
        images, labels = data(64, 10 + step)
        optimizer.zero_grad()
        F.cross_entropy(model.train()(images), labels).backward()
        optimizer.step()
        average.update(model)
    return average


def orders() -> list[Any]:
    """Return each mechanism in both orders, one of them per channel; a quarter of them is fast."""
    return [
        pytest.param(
            mechanism,
            first,
            (number % 2 == 0) is first,
            marks=() if number % 4 in (0, 3) and first is (number % 3 == 0) else pytest.mark.slow,
        )
        for number, mechanism in enumerate(MECHANISMS)
        for first in (True, False)
    ]


@pytest.mark.parametrize("mechanism, first, per_channel", orders())
def test_the_exported_weight_is_what_the_forward_pass_uses(
    mechanism: str, first: bool, per_channel: bool, tmp_path: Path
) -> None:
    """Load a checkpoint of a trained, averaged model, export it without a forward pass before, and verify it."""
    torch.manual_seed(0)
    options = dict(per_channel=per_channel)
    trained = make(MECHANISMS[mechanism], first, **options)
    average = train(trained).module
    content = io.BytesIO()
    torch.save(average.state_dict(), content)
    content.seek(0)
    torch.manual_seed(1)
    model = make(MECHANISMS[mechanism], first, **options)  # other weights, other masks
    model.load_state_dict(torch.load(content, weights_only=True))
    assert sum(isinstance(module, QuantLayer) for module in model.modules()) == 3
    export_model(model, tmp_path / "model.onnx", input_shape=SHAPE)
    images, labels = data(200, 2)
    found = verify(model, tmp_path / "model.onnx", images.split(100), threads=1)
    assert found.passed, found.reasons
    assert [row.name for row in found.rows] == ["integer", "openvino", "onnxruntime"] and found.float_layers == {}
    with torch.no_grad():
        expected = average.eval()(images)
        assert torch.equal(model.eval()(images), expected)  # with which `verify` compared the file
        assert (expected.argmax(1) == labels).float().mean() > 0.6
        assert (reference_model(model, torch.float64)(images.double()) - expected).abs().mean() < 0.02 * expected.std()


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_plain_copy_computes_the_same_and_leaves_the_model_alone(mechanism: str) -> None:
    torch.manual_seed(0)
    model = make(MECHANISMS[mechanism])
    calibrate(model, [data(64, 1)[0]])
    model.train()(data(8, 2)[0]).sum().backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain, images = plain_copy(model), data(8, 3)[0]
    assert not has_computed_weights(plain) and type(plain.conv) is QuantConv2d and model.training
    assert isinstance(plain.conv.weight, nn.Parameter) and isinstance(plain.conv.bias, nn.Parameter)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.allclose(plain(images), model.eval()(images), atol=1e-5)
    model.train()(images).sum().backward()  # the computation of its weights is still there
    float_layer = model.conv.to_float()
    assert not isinstance(float_layer, QuantLayer) and torch.isfinite(float_layer.eval()(torch.rand(1, 8, 4, 4))).all()


def test_layers_that_share_a_weight(tmp_path: Path) -> None:
    def net(ties: bool) -> Any:
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1))
        layers.extend([nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(128, 4)])
        if ties:
            layers[5].weight = layers[4].weight
        policy = dict(Conv2d=dict(type="LSQConv", num_bit_w=4, num_bit_a=4))
        return build_mtransformer(dict(type="ModelTransformer", quan_policy=policy))(layers)

    trained = net(True)
    average = train(trained, 4).module
    assert trained[4].weight is trained[5].weight and average[4].weight is average[5].weight
    model = net(True)
    model.load_state_dict(average.state_dict())
    assert plain_copy(model)[4].weight is not model[4].weight
    export_model(model, tmp_path / "model.onnx", input_shape=SHAPE)
    assert verify(model, tmp_path / "model.onnx", data(200, 2)[0].split(100), threads=1).passed


# Layers that cannot be exported are refused by name


def set_by_hook(layer: Any) -> None:
    layer.raw = nn.Parameter(layer.weight.detach().clone() * 3)
    layer.register_forward_pre_hook(lambda module, args: setattr(module.weight, "data", module.raw.data.tanh()))


def set_by_the_image(layer: Any) -> None:
    def scale(module: Any, args: Any) -> None:
        module.weight.data = module.raw * (1 + args[0].abs().mean())

    layer.register_buffer("raw", layer.weight.detach().clone())
    layer.register_forward_pre_hook(scale)


@pytest.mark.parametrize("change", [set_by_hook, set_by_the_image])
def test_a_weight_that_changes_in_the_forward_pass_is_refused(change: Change, tmp_path: Path) -> None:
    model = make(change)
    calibrate(model, [data(64, 1)[0]])
    with torch.no_grad():
        for layer in (model.conv, model.fc):
            layer.raw.mul_(1.5)  # as loading a checkpoint does
    with pytest.raises(ConfigError, match=r"'conv' computes with another weight.*hook.*parametrize"):
        export_model(model, tmp_path / "model.onnx", input_shape=SHAPE)
    assert not list(tmp_path.iterdir())


def set_by_parent(module: Any, args: Any) -> None:
    module.fc.weight.data.mul_(1.01)


def test_a_weight_that_the_parent_sets_is_refused(tmp_path: Path) -> None:
    model = make(lambda layer: None)
    calibrate(model, [data(64, 1)[0]])
    model.register_forward_pre_hook(set_by_parent)
    with pytest.raises(ConfigError, match="'fc' computes with another weight.*a module around it"):
        export_model(model, tmp_path / "model.onnx", input_shape=SHAPE)


class OwnForward(QuantConv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.weight.std()


def test_a_layer_with_a_forward_of_its_own_is_refused(tmp_path: Path) -> None:
    model = make(lambda layer: None)
    calibrate(model, [data(64, 1)[0]])
    model.conv.__class__ = OwnForward
    with pytest.raises(ConfigError, match=r"conv \(OwnForward: forward\).*weight_to_quantize"):
        export_model(model, tmp_path / "model.onnx", input_shape=SHAPE)
    model.conv.__class__ = QuantConv2d
    model.fc.forward = lambda x: x[:, :4]
    with pytest.raises(ConfigError, match=r"fc \(QuantLinear: forward\)"):
        export_model(model, tmp_path / "model.onnx", input_shape=SHAPE)


def test_a_weight_that_the_layer_says_itself(tmp_path: Path) -> None:
    class Centred(QuantConv2d):
        def weight_to_quantize(self) -> Tensor:
            return self.weight - self.weight.mean((1, 2, 3), keepdim=True)

    model = make(lambda layer: None)
    model.conv.__class__ = Centred
    calibrate(model, [data(64, 1)[0]])
    export_model(model, tmp_path / "model.onnx", input_shape=SHAPE)
    assert verify(model, tmp_path / "model.onnx", data(200, 2)[0].split(100), threads=1).passed


def test_what_cannot_be_copied_is_named() -> None:
    model = make(lambda layer: None)
    model.lines = (line for line in "ab")
    for copied in (copy_model, ModelEMA):
        with pytest.raises(ConfigError, match="Net cannot be copied: .*generator.*__deepcopy__"):
            copied(model)


# A model is refused if its copy computes something else, since the copy is exported


def only_on_the_original(layer: Any) -> None:
    layer.register_forward_hook(lambda module, args, y: y.flip(1) * -3 if module is layer else None)


def bias_of_the_original(layer: Any) -> None:
    def set_bias(module: Any, args: Any) -> None:
        if module is layer:
            module.bias.data = torch.full_like(module.bias, 2)

    layer.register_forward_pre_hook(set_bias)


@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("change", [only_on_the_original, bias_of_the_original])
def test_a_hook_that_keeps_to_the_original_is_refused(change: Change, quantized: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = make(lambda layer: None)
    calibrate(model, [data(64, 1)[0]])
    change(model.conv if quantized else model.norm)
    with pytest.raises(ConfigError, match="the export copies Net, and the copy gives different outputs"):
        export_model(model, tmp_path / "model.onnx", input_shape=SHAPE)
    assert not list(tmp_path.iterdir())


class AlsoReads(Net):
    """Network that calls its classifier and also reads its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.linear(x.flatten(1)[:, :32], F.normalize(self.fc.weight))


@pytest.mark.parametrize("change", [lambda layer: None, parametrizations.weight_norm, nn.utils.spectral_norm])
def test_a_weight_that_is_read_besides_is_exported_in_float_there(change: Change, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = make(change)
    model.__class__ = AlsoReads
    calibrate(model, [data(64, 1)[0]])
    export_model(model, tmp_path / "model.onnx", input_shape=SHAPE)
    assert verify(model, tmp_path / "model.onnx", data(100, 2)[0].split(50), threads=1).passed

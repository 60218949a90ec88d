"""Everything that a training step computes stays on the GPU: shown with fake tensors, without a GPU."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from fake_gpu import GPU, StrayTensorError, WaitsForGPUError, backward, fake_gpu, move
from torch import Tensor, nn

from lbitcls.core.ema import ModelEMA
from lbitcls.core.evaluation import Tally
from lbitcls.core.guard import Guard
from lbitcls.core.hooks.precise_bn import estimate_norms
from lbitcls.core.optim import build_optimizer
from lbitcls.core.step import OptimizerStep
from lbitcls.models import build_classifier
from lbitcls.models.augments import BatchAugments
from lbitcls.models.losses import CrossEntropyLoss, LabelSmoothLoss
from lbitcls.quant import build_mtransformer, calibrate, quantizer_parameters, regularization, set_quantization
from lbitcls.quant.layers import QuantLayer
from lbitcls.quant.methods import METHODS, register_method
from lbitcls.quant.quantizers.lsq import LSQ
from lbitcls.registry import BACKBONES, QUANT_LAYERS

pytestmark = pytest.mark.skipif(
    not torch.backends.cuda.is_built(), reason="this PyTorch is built without CUDA; its fake GPU cannot run autograd"
)

QUANT_LAYERS.names()  # imports every method

LAYERS = {
    "Conv": (lambda: nn.Conv2d(4, 6, 3, padding=1), (2, 4, 5, 5)),
    "Linear": (lambda: nn.Linear(4, 6), (2, 4)),
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3), (2, 4, 5)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 6, 2), (2, 4, 3, 3)),
}


def bits_of(method: str) -> list[int]:
    """Return the numbers of bits whose formulas differ."""
    return sorted({METHODS[method].weight.lowest_bits, 4, 8})


def quantized(method: str, kind: str, bits: int = 4, per_channel: bool = False) -> Any:
    entry = QUANT_LAYERS.find(f"{method}{kind}")
    return entry(LAYERS[kind][0](), num_bit_w=bits, num_bit_a=max(bits, 2), per_channel=per_channel)


def train_once(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Run a forward and a backward pass on the fake GPU, and return the gradient of the input."""
    x = torch.empty(shape, device=GPU, requires_grad=True)
    y = layer(x)
    assert y.device == GPU
    backward(y.square().sum() + regularization(layer))
    assert all(p.grad is not None and p.grad.device == GPU for p in layer.parameters())
    assert x.grad is not None
    return x.grad


CASES = [
    (method, kind, bits, per_channel, signed)
    for method, kind, per_channel in itertools.product(METHODS, LAYERS, (False, True))
    for bits in (bits_of(method) if kind == "Conv" else [4])
    for signed in ((False, True) if kind in ("Conv", "Linear") else (False,))
]


def is_fast(case: tuple[str, str, int, bool, bool]) -> bool:
    """Formulas differ among methods; layers and bits among one of them."""
    method, kind, bits, *_ = case
    return method == "LSQ" or (kind == "Conv" and bits == 4)


STEPS = [case if is_fast(case) else pytest.param(case, marks=pytest.mark.slow) for case in CASES]


@pytest.mark.parametrize("case", STEPS, ids=lambda c: f"{c[0]}-{c[1]}-{c[2]}{'-channel' * c[3]}{'-signed' * c[4]}")
def test_a_step_of_every_method(case: tuple[str, str, int, bool, bool]) -> None:
    method, kind, bits, per_channel, signed = case
    layer, shape = quantized(method, kind, bits, per_channel), LAYERS[kind][1]
    layer.train()(torch.randn(shape) if signed else torch.rand(shape))
    with fake_gpu():
        grad = train_once(move(layer), shape)
        assert grad.shape == shape
        with torch.no_grad():
            layer.eval()(torch.empty(shape, device=GPU))


@pytest.mark.parametrize("method", METHODS)
def test_first_values_are_found_on_the_gpu(method: str) -> None:
    """The initialization may wait for the GPU and create constants on the CPU, but must not mix devices."""
    layer = quantized(method, "Linear", per_channel=True)
    with fake_gpu(strict=False, answers=True):
        train_once(move(layer), (2, 4))
        assert all(t.device == GPU for t in layer.state_dict(keep_vars=True).values() if t.dtype is not torch.uint8)


class _ConstantOnCPU(LSQ):
    def grid(self, x: Tensor) -> tuple[Tensor, ...]:
        scale, *others = super().grid(x)
        return (scale * torch.ones(scale.shape), *others)  # a GPU accepts one of shape () and copies it


class _ConstantOfTheClass(LSQ):
    doubled = torch.tensor([2.0])

    def normalize(self, x: Tensor) -> Tensor:
        return x * self.doubled


class _Waits(LSQ):
    def normalize(self, x: Tensor) -> Tensor:
        return x if x.abs().max() > 0 else x + 1


class _BackwardOnCPU(LSQ):
    def normalize(self, x: Tensor) -> Tensor:
        return _HalfGradient.apply(x)


class _HalfGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * torch.tensor(0.5)


BROKEN: list[tuple[type[LSQ], type[Exception], str]] = [
    (_ConstantOnCPU, StrayTensorError, "aten.ones"),
    (_ConstantOfTheClass, Exception, "non-Fake|FakeTensor"),
    (_Waits, WaitsForGPUError, "is_nonzero|scalar"),
    (_BackwardOnCPU, StrayTensorError, "on the CPU"),
]


@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
@pytest.mark.parametrize(("quantizer", "error", "said"), BROKEN, ids=lambda v: getattr(v, "__name__", None))
def test_a_broken_quantizer_is_noticed(
    quantizer: type[LSQ], error: type[Exception], said: str, per_channel: bool, forget_registrations: None
) -> None:
    register_method("Broken", weight=quantizer, input=LSQ)
    layer = quantized("Broken", "Conv", per_channel=per_channel)
    layer.train()(torch.rand(LAYERS["Conv"][1]))
    with fake_gpu(), pytest.raises(error, match=said):
        train_once(move(layer), LAYERS["Conv"][1])


def test_gradients_of_the_graph_are_those_of_autograd() -> None:
    """The helper that replaces autograd's engine, with real tensors."""
    model = nn.Sequential(*(quantized("DSQ", "Conv", per_channel=True), nn.BatchNorm2d(6), nn.Flatten()))
    model.append(QUANT_LAYERS.find("LSQLinear")(nn.Linear(150, 3), num_bit_w=4, num_bit_a=4))
    images = torch.randn(2, 4, 5, 5)
    model(images)
    results = []
    for run in (Tensor.backward, backward):
        model.zero_grad()
        run((model(images).softmax(1).square() * torch.arange(3.0)).mean() + regularization(model))
        results.append([p.grad for p in model.parameters()])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


HEAD = dict(type="LinearClsHead", num_classes=3, topk=(1, 2))
# config of the backbone, size of its image, its number of features after a GlobalAveragePooling (None: logits)
BACKBONES_OF_OURS: dict[str, tuple[dict[str, Any], tuple[int, int], int | None]] = {
    "ResNet": (dict(type="ResNet", depth=18), (3, 32), 512),
    "ResNet, bottlenecks": (dict(type="ResNet", depth=50, num_stages=2, out_indices=(1,)), (3, 32), 512),
    "ResNet_CIFAR": (dict(type="ResNet_CIFAR", depth=18, base_channels=8), (3, 16), 64),
    "option A": (dict(type="ResNetCIFAROptionA", depth=8), (3, 16), 64),
    "option B": (dict(type="ResNetCIFAROptionB", depth=8), (3, 16), 64),
    "MobileNetV2": (dict(type="MobileNetV2", out_indices=(2,)), (3, 32), 32),
    "VGG": (dict(type="VGG", depth=11, norm_cfg=dict(type="BN")), (3, 32), 512),
    "VGG-small": (dict(type="VGGSmall"), (3, 32), 8192),
    "LeNet5": (dict(type="LeNet5", num_classes=3), (1, 28), None),
    "SqueezeNet": (dict(type="SqueezeNet"), (3, 64), 512),
    "timm": (dict(type="TimmBackbone", name="resnet10t"), (3, 32), 512),
    "torchvision": (dict(type="TorchvisionBackbone", name="shufflenet_v2_x0_5"), (3, 32), 1024),
}


def classifier(name: str, method: str = "LSQ", **transformer: Any) -> tuple[Any, tuple[int, ...]]:
    """Return a classifier, quantized and calibrated, and the shape of its images."""
    backbone, (channels, side), features = BACKBONES_OF_OURS[name]
    if name == "SqueezeNet":
        parts: dict[str, Any] = dict(head=dict(type="ConvClsHead", num_classes=3, topk=(1, 2)))
    elif features is None:
        parts = dict(head=dict(type="ClsHead", topk=(1, 2)))
    else:
        parts = dict(neck=dict(type="GlobalAveragePooling"), head=dict(HEAD, in_channels=features))
    if name == "VGG-small":
        del parts["neck"]
    model = build_classifier(dict(type="ImageClassifier", backbone=backbone, **parts))
    bits = dict(num_bit_w=4, num_bit_a=4, per_channel=True)
    policy = dict(Conv2d=dict(type=f"{method}Conv", **bits), Linear=dict(type=f"{method}Linear", **bits))
    build_mtransformer(dict(type="ModelTransformer", quan_policy=policy, **transformer))(model)
    shape = (2, channels, side, side)
    calibrate(model.eval(), [torch.rand(shape)])
    return model.train(), shape


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autograd without its engine, and autocast as on a machine with a GPU."""
    monkeypatch.setattr(Tensor, "backward", backward)
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)


def step_once(model: Any, shape: tuple[int, ...], **options: Any) -> dict[str, Tensor]:
    """Run one step of the runner's kind with images and labels on the fake GPU, and return its results."""
    optimizer = build_optimizer(model, dict(type="SGD", lr=0.1, momentum=0.9), quantizer_parameters(model))
    step = OptimizerStep(optimizer, GPU, penalty=lambda: regularization(model), **options)
    labels = torch.empty(shape[0], dtype=torch.int64, device=GPU)
    results = step(model, dict(img=torch.empty(shape, device=GPU), gt_label=labels), 0, 1)
    assert all(value.device == GPU for value in results.values())
    assert all(p.grad is not None and p.grad.device == GPU for p in model.parameters())
    return results


@pytest.mark.parametrize("name", BACKBONES_OF_OURS)
def test_a_training_step_of_every_backbone(name: str, no_engine: None) -> None:
    """Loss, top-k, gradients, clipping, the optimizer and the average of the weights; then a validation batch."""
    model, shape = classifier(name)
    ema = ModelEMA(model)  # fake tensors cannot be copied
    with fake_gpu():
        move(model)
        move(ema.module)
        results = step_once(model, shape, grad_clip=dict(max_norm=1.0))
        assert {"loss", "top-1", "top-2", "grad_norm"} <= results.keys()
        ema.update(model)
        with torch.no_grad():
            images, labels = torch.empty(shape, device=GPU), torch.empty(shape[0], dtype=torch.int64, device=GPU)
            logits = ema.module.predict(images)
            tally = Tally(logits.shape[1], (1, 2), GPU)
            tally.note("the logits", logits, None)
            tally.add(logits, labels, ema.module.loss(logits, labels)["loss"])


def test_every_backbone_is_tested() -> None:
    own = {name for name in BACKBONES.names() if BACKBONES.find(name).__module__.startswith("lbitcls.models.")}
    tested = {config["type"] for config, _, _ in BACKBONES_OF_OURS.values()}
    assert own - tested == {"TorchvisionQuantizedBackbone"}  # its quantized kernels run on the CPU only


@pytest.mark.parametrize(
    ("method", "fold_bn", "dtype"),
    [*((name, False, torch.bfloat16) for name in METHODS), ("LSQ", True, torch.float16)],
)
def test_a_step_under_autocast(method: str, fold_bn: bool, dtype: torch.dtype, no_engine: None) -> None:
    model, shape = classifier("option A", method, fold_bn=fold_bn)
    computed: set[torch.dtype] = set()
    for layer in [layer for layer in model.modules() if isinstance(layer, QuantLayer)]:
        layer.register_forward_hook(lambda _, inputs, output: computed.add(output.dtype))
    model.to(memory_format=torch.channels_last)
    with fake_gpu():
        move(model)
        images = torch.empty(shape, device=GPU).contiguous(memory_format=torch.channels_last)
        labels = torch.empty(shape[0], dtype=torch.int64, device=GPU)
        with torch.autocast("cuda", dtype):
            loss = model(images, gt_label=labels)["loss"]
        backward(loss + regularization(model))
        assert all(p.grad is not None and p.grad.device == GPU for p in model.parameters())
    assert loss.dtype is torch.float32
    assert computed == {torch.float32 if fold_bn else dtype, dtype}  # a folded layer divides by BatchNorm's factor


@pytest.mark.parametrize(
    "loss", [CrossEntropyLoss(class_weight=[1, 2, 3]), LabelSmoothLoss(0.1)], ids=["weights", "smooth"]
)
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "probabilities"])
def test_losses(loss: nn.Module, soft: bool) -> None:
    with fake_gpu():
        logits = torch.empty(4, 3, device=GPU, requires_grad=True)
        labels = torch.empty(4, 3, device=GPU) if soft else torch.empty(4, dtype=torch.int64, device=GPU)
        backward(move(loss)(logits, labels))
    assert logits.grad is not None and logits.grad.device == GPU


@pytest.mark.parametrize("kind", ["BatchMixup", "BatchCutMix"])
def test_mixing_of_batches(kind: str) -> None:
    """The ratio is drawn on the CPU, the images are mixed where they are."""
    augments = BatchAugments(dict(type=kind, alpha=1.0, prob=2 / 3), num_classes=3)
    with fake_gpu(strict=False, answers=True):
        images, labels = torch.empty(4, 3, 8, 8, device=GPU), torch.empty(4, dtype=torch.int64, device=GPU)
        mixed = augments(images, labels)
    assert all(tensor.device == GPU for tensor in mixed)


def test_statistics_of_norms() -> None:
    model, shape = classifier("option A")
    with fake_gpu(strict=False, answers=True):  # BatchNorm counts its batches on the CPU
        estimate_norms(move(model), iter([torch.empty(shape, device=GPU)] * 2))
        assert all(buffer.device == GPU for buffer in model.buffers())


def test_the_guard_waits_only_when_asked() -> None:
    with fake_gpu(answers=True):
        guard = Guard()
        guard.watch(0, torch.empty((), device=GPU))
        assert guard._losses  # not read yet
        assert guard.agree(now=True) == (0, 0)


def test_switched_off_quantizers() -> None:
    layer, shape = quantized("DSQ", "Conv", per_channel=True), LAYERS["Conv"][1]
    layer(torch.rand(shape))
    set_quantization(layer, False)
    with fake_gpu():
        assert move(layer)(torch.empty(shape, device=GPU)).device == GPU

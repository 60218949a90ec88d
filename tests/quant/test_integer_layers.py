"""Integer kernels and every form of layer and input: served exactly, or in floats for a reason that has a name."""

from __future__ import annotations

import copy
import itertools
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from integer_steps import check_step, distance, quantized, step
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lbitcls.quant.integer_layers import why_float
from lbitcls.quant.kernels import integer_operators, machine, selection
from lbitcls.quant.layers import ENTRY_SUFFIXES, QuantLayer
from lbitcls.quant.methods import METHODS, build_quant_layer
from lbitcls.quant.quantizers.lsq import LSQ
from lbitcls.registry import QUANT_LAYERS

QUANT_LAYERS.names()  # imports every method
pytestmark = [
    pytest.mark.skipif(bool(machine.find_obstacle()), reason="this machine multiplies no 8-bit integers"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),  # it copies the input
]


def convolutions() -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]:
    one, two = (3, 8, 15), (3, 8, 9, 11)
    cases: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
        "Linear, a vector": (lambda: nn.Linear(24, 7), (24,)),
        "Linear, rows": (lambda: nn.Linear(24, 7, bias=False), (5, 24)),
        "Linear, tokens": (lambda: nn.Linear(24, 7), (2, 5, 24)),
        "Linear, an image of tokens": (lambda: nn.Linear(24, 7), (2, 3, 5, 24)),
        "Conv2d, one image": (lambda: nn.Conv2d(8, 6, 3), (8, 9, 11)),
        "Conv1d": (lambda: nn.Conv1d(8, 6, 3, stride=2, padding=1), one),
        "Conv1d, one signal": (lambda: nn.Conv1d(8, 6, 5, padding=2), (8, 15)),
        "Conv1d, groups": (lambda: nn.Conv1d(8, 8, 3, dilation=2, groups=4, bias=False), one),
        "Conv1d, depthwise": (lambda: nn.Conv1d(8, 8, 3, padding=1, groups=8), one),
        "Conv2d, valid": (lambda: nn.Conv2d(8, 6, (3, 2), stride=2, padding="valid"), two),
    }
    for kernel, dilation in itertools.product((1, 2, 3, 4, (2, 5)), (1, 2, (3, 1))):
        cases[f"Conv2d, same {kernel} {dilation}"] = (
            lambda k=kernel, d=dilation: nn.Conv2d(8, 6, k, padding="same", dilation=d),
            two,
        )
    for kernel in (2, 3, 4):
        cases[f"Conv1d, same {kernel}"] = (lambda k=kernel: nn.Conv1d(8, 6, k, padding="same"), one)
    return cases


CASES = convolutions()


def case(name: str, method: str = "LSQ", **options: Any) -> tuple[QuantLayer, Tensor]:
    make, shape = CASES[name]
    torch.manual_seed(0)
    layer, x = make(), torch.randn(shape)
    return quantized(layer, x, ENTRY_SUFFIXES[type(layer).__name__], method, **options), x


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_every_form_is_served(name: str, image: bool) -> None:
    layer, x = case(name, per_channel="same" in name)
    if "groups" in name:  # oneDNN's sums are wrong in groups with a zero point
        layer, x = quantized(nn.Conv1d(8, 8, 3, dilation=2, groups=4, bias=False), x.relu(), "Conv1d"), x.relu()
    assert why_float(layer) is None
    check_step(layer, x, image=image)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_in_one_dimension_and_with_uneven_padding(method: str) -> None:
    for name in ("Conv1d", "Conv2d, same 4 1"):
        layer, x = case(name, method, per_channel=True)
        assert why_float(layer) == ("its input quantizer bends its input" if method == "N2UQ" else None)
        check_step(layer, x, products=method != "N2UQ")


@pytest.mark.parametrize("method", METHODS)
def test_statistics_move_as_in_the_simulation(method: str) -> None:
    """Ten steps on different data leave the same buffers: observers see the batches that integers multiply."""
    layer, x = case("Linear, tokens", method)
    layers = {kind: copy.deepcopy(layer) for kind in ("plain", "integer")}
    for i, kind in itertools.product(range(10), layers):
        step(layers[kind], x * (1 + 0.3 * i), kind)
    for (name, one), other in zip(layers["plain"].named_buffers(), layers["integer"].buffers()):
        torch.testing.assert_close(one, other, msg=name)


@pytest.mark.parametrize("memory", ["channels_last", "transposed", "every other", "expanded", "offset"])
@pytest.mark.parametrize("groups", [1, 8])
def test_any_memory_layout(memory: str, groups: int) -> None:
    torch.manual_seed(0)
    x = {
        "channels_last": torch.randn(3, 8, 9, 10).to(memory_format=torch.channels_last),
        "transposed": torch.randn(3, 8, 10, 9).transpose(2, 3),
        "every other": torch.randn(6, 16, 9, 10)[::2, ::2],
        "expanded": torch.randn(3, 8, 1, 1).expand(3, 8, 9, 10),
        "offset": torch.randn(4, 8, 9, 10)[1:],
    }[memory]
    check_step(quantized(nn.Conv2d(8, 8, 3, padding=1, groups=groups), x, "Conv"), x)
    rows = x.flatten(2).transpose(1, 2)
    check_step(quantized(nn.Linear(8, 5), rows, "Linear"), rows)


@pytest.mark.parametrize("shape", [(0, 8, 9, 9), (1, 8, 9, 9), (1, 8, 1, 1), (2, 8, 1, 5)])
def test_small_and_empty_batches(shape: tuple[int, ...]) -> None:
    layer, x = quantized(nn.Conv2d(8, 6, 3, padding=1), torch.randn(2, 8, 9, 9), "Conv"), torch.randn(shape)
    check_step(layer, x, products=int(x.numel() > 0))
    rows = x.flatten(2).transpose(1, 2)
    layer = quantized(nn.Linear(8, 5), torch.randn(4, 8), "Linear")
    check_step(layer, rows, products=int(x.numel() > 0))


def of_floats(kind: str, reason: str) -> Any:
    return pytest.param(kind, reason, id=kind)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        of_floats("transposed", "no integer kernel for a ConvTranspose2d"),
        of_floats("reflected", "padding_mode='reflect'"),
        of_floats("circular 1-D", "padding_mode='circular'"),
        of_floats("weights only", "weight or input is float"),
        of_floats("inputs only", "weight or input is float"),
        of_floats("switched off", "weight or input is float"),
        of_floats("own forward", "its input quantizer has its own forward pass"),
        of_floats("backward hook", "hooks watch a quantizer"),
        of_floats("wide", "its integer sums do not fit 32 bits"),
    ],
)
def test_the_rest_runs_in_floats_for_a_reason(kind: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_largest_pair", 2 * 255 * 128)  # as with VNNI
    torch.manual_seed(0)
    x = torch.randn(2, 8, 7, 7)
    if kind == "transposed":
        layer = quantized(nn.ConvTranspose2d(8, 6, 3, stride=2), x, "ConvTranspose2d")
    elif kind == "reflected":
        layer = quantized(nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"), x, "Conv")
    elif kind == "circular 1-D":
        x = x.flatten(2)
        layer = quantized(nn.Conv1d(8, 6, 3, padding="same", padding_mode="circular"), x, "Conv1d")
    elif kind == "wide":
        layer, x = nn.Linear(70_000, 2), torch.randn(2, 70_000)
        layer = build_quant_layer(dict(type="LSQLinear", num_bit_w=8, num_bit_a=8), layer).train()
        layer(x)
    else:
        options = {"weights only": dict(num_bit_a=32), "inputs only": dict(num_bit_w=32)}.get(kind, {})
        entry = dict(type="LSQConv", num_bit_w=4, num_bit_a=4) | options
        layer = build_quant_layer(entry, nn.Conv2d(8, 6, 3)).train()
        layer(x)
    if kind == "switched off":
        layer.input_quantizer.enable(False)
    elif kind == "own forward":
        own = type("Doubling", (LSQ,), {"forward": lambda self, x: 2 * LSQ.forward(self, x)})
        layer.input_quantizer.__class__ = own
    elif kind == "backward hook":
        layer.input_quantizer.register_full_backward_hook(lambda *_: None)
    assert why_float(layer) == reason
    check_step(layer, x * 1.1, products=0)


def test_a_layer_without_a_scale_yet_takes_it_first() -> None:
    layer = build_quant_layer(dict(type="LSQConv", num_bit_w=4, num_bit_a=4), nn.Conv2d(8, 6, 3)).train()
    check_step(layer, torch.randn(2, 8, 7, 7))


def test_the_largest_sums_are_exact() -> None:
    """Sums that nearly fill int32, with every product at its largest and a zero point: one rounding to float32."""
    if not machine.is_whole():
        pytest.skip("this machine's instructions saturate at 8 bits")
    channels = machine.LARGEST_SUM // (255 * 127)
    one, codes = torch.ones(()), torch.full((1, channels), 255, dtype=torch.uint8)
    weight = torch.full((3, channels), 127, dtype=torch.int8)
    weight[1] *= -1
    weight[2, ::2] *= -1
    for low in (0.0, -1.0, -128.0):
        y = integer_operators.integer_linear(codes, weight, one, torch.tensor(low), one, None)
        assert torch.equal(y, ((codes.double() + low) @ weight.double().t()).float())


def test_float64_runs_as_a_simulation() -> None:
    layer, x = case("Conv1d")
    results = [step(copy.deepcopy(layer).double(), x.double(), kind) for kind in ("plain", "integer")]
    assert results[1].products == 0 and torch.equal(results[0].output, results[1].output)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["Conv1d", "Linear, tokens", "Conv2d, same 4 1"])
def test_half_precision_models(name: str, dtype: torch.dtype) -> None:
    """Products of half-precision grids, accumulated exactly: nearer to the float64 model than its own products."""
    layer, x = case(name)
    layer, x = layer.to(dtype), x.to(dtype)
    exact = step(copy.deepcopy(layer).double(), x.double(), "plain")
    simulated, got = (step(copy.deepcopy(layer), x, kind) for kind in ("plain", "integer"))
    assert got.products == 1
    assert distance(got.output, exact.output) <= 1.1 * distance(simulated.output, exact.output)
    for name, expected in exact.gradients.items():
        bound = max(0.02, 1.5 * distance(simulated.gradients[name], expected))
        assert distance(got.gradients[name], expected) <= bound, name


@pytest.mark.parametrize("frozen", ["weight", "bias", "weight_quantizer", "input_quantizer", "all"])
@pytest.mark.parametrize("image", [False, True])
def test_frozen_parameters_get_no_gradient(frozen: str, image: bool) -> None:
    layer, x = case("Conv2d, same 3 1")
    for name, parameter in layer.named_parameters():
        if (frozen == "all" and name != "bias") or name == frozen or name.startswith(f"{frozen}."):
            parameter.requires_grad_(False)
    check_step(layer, x, image=image)


class Twice(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x).relu())


def test_a_layer_used_twice_adds_its_gradients() -> None:
    x = torch.randn(2, 8, 7, 7)
    check_step(Twice(quantized(nn.Conv2d(8, 8, 3, padding=1), x, "Conv")), x, products=2)


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def test_computed_weights_are_served() -> None:
    x = torch.randn(2, 8, 7, 7)
    layer = nn.Conv2d(8, 8, 3)
    parametrize.register_parametrization(layer, "weight", Halved())
    check_step(quantized(layer, x, "Conv"), x)
    weighted = quantized(nn.utils.parametrizations.weight_norm(nn.Linear(8, 5)), torch.randn(4, 8), "Linear")
    check_step(weighted, torch.randn(4, 8))


def test_copies_and_pickles_after_a_step_go_on_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = case("Conv1d")
    step(layer, x, "integer")
    expected = step(copy.deepcopy(layer), x, "integer")
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        got = step(other, x, "integer")
        assert torch.equal(got.output, expected.output) and got.products == 1


@pytest.mark.parametrize("name", ["Conv1d", "Linear, rows"])
def test_a_second_derivative_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the first gradient is constant, so that autograd could take the second for 0."""
    layer, x = case(name)
    monkeypatch.setattr(selection, "_active", "integer")
    monkeypatch.setattr(selection, "fused_now", lambda: False)
    x.requires_grad_(True)
    for loss in (layer(x).sum(), layer(x).square().sum()):
        gradients = torch.autograd.grad(loss, [x, layer.weight], create_graph=True)
        assert all(g.isfinite().all() for g in gradients)
        for gradient in gradients:
            with pytest.raises(RuntimeError, match=r"second derivative.*select_kernels\('plain'\)"):
                gradient.sum().backward(retain_graph=True)


@pytest.mark.parametrize(
    "error", [TypeError("expected 14 arguments"), NotImplementedError("no such\noperator"), AttributeError("qconv")]
)
def test_an_operator_that_changed_is_no_operator(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN's operators are private: whatever fails in the trial leaves floats, with the reason for the log."""

    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(machine, "_largest_pair", machine._largest_pair)
    monkeypatch.setattr(machine, "integer_conv2d", fails)
    assert machine.find_obstacle() == f"{type(error).__name__}: {str(error).splitlines()[0]}"
    monkeypatch.undo()
    assert not machine.find_obstacle()


def test_the_operators_arguments_are_those_that_the_kernels_pass() -> None:
    """Fails where a PyTorch version changes them, before `measure` turns integer kernels off."""
    counts = {"qconv_prepack": 9, "qconv2d_pointwise": 17, "qlinear_prepack": 2, "qlinear_pointwise": 13}
    for name, count in counts.items():
        schema = getattr(torch.ops.onednn, name).default._schema
        assert len(schema.arguments) == count, schema


def test_without_vnni_only_small_integers_are_exact() -> None:
    """oneDNN held to AVX2 saturates silently at 8 bits; the trial notices."""
    code = "from lbitcls.quant.kernels import machine; print(machine.find_obstacle() or 'none', machine.is_whole())"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["none", "False"], done.stderr


class Forms(nn.Module):
    """One layer of each form that integers serve."""

    def __init__(self) -> None:
        super().__init__()
        self.signal = nn.Conv1d(4, 8, 3, padding=1)
        self.even = nn.Conv2d(8, 8, 2, padding="same")
        self.tokens = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        images = self.even(self.signal(x).relu().unflatten(2, (4, 5)))
        return self.tokens(images.relu().flatten(2).transpose(1, 2))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("autocast", [False, True])
def test_every_form_compiles_to_the_same_step(autocast: bool, compiler: None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    monkeypatch.setattr(selection, "_active", "plain")
    model = Forms()
    for name, layer in list(model.named_children()):
        entry = dict(type=f"LSQ{ENTRY_SUFFIXES[type(layer).__name__]}", num_bit_w=4, num_bit_a=4)
        setattr(model, name, build_quant_layer(entry, layer))
    x = torch.randn(2, 4, 20)
    model.train()(torch.randn(2, 4, 20))
    results = []
    monkeypatch.setattr(selection, "_active", "integer")
    for compiled, half in ((False, False), (False, autocast), (True, autocast)):
        one = copy.deepcopy(model)
        if compiled:
            one.compile(fullgraph=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            y = one(x)
        assert y.dtype is (torch.bfloat16 if half else torch.float32)
        y.float().square().sum().backward()
        results.append([y.detach().double(), *(p.grad.double() for p in one.parameters())])
    exact, eager, by_compiler = ([distance(*pair) for pair in zip(r, results[0], strict=True)] for r in results)
    assert max(exact) == 0
    # In bfloat16 the compiler rounds less often, which may move a value over a tie.
    assert max(by_compiler) < (1.5 * max(eager) + 0.02 if autocast else 1e-4), (by_compiler, eager)

"""Training in integers: exact products, the simulation's gradients, and floats where integers would not be exact."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lbitcls.quant.integer_layers import why_float
from lbitcls.quant.kernels import integer_operators, machine, select_kernels, selection
from lbitcls.quant.layers import QuantLayer
from lbitcls.quant.methods import METHODS, build_quant_layer
from lbitcls.registry import QUANT_LAYERS
from lbitcls.utils.errors import DependencyError

QUANT_LAYERS.names()  # imports every method
pytestmark = pytest.mark.skipif(bool(machine.find_obstacle()), reason="this machine multiplies no 8-bit integers")

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Conv": (lambda: nn.Conv2d(24, 32, 3, stride=2, padding=1), (4, 24, 9, 9)),
    "depthwise Conv": (lambda: nn.Conv2d(24, 24, 3, padding=2, dilation=2, groups=24, bias=False), (4, 24, 9, 9)),
    "Linear": (lambda: nn.Linear(24, 32), (5, 4, 24)),
}


@pytest.fixture
def plain_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the formulas uncompiled."""
    monkeypatch.setattr(selection, "fused_now", lambda: False)


@pytest.fixture(autouse=True)
def kernels_afterwards() -> Iterator[None]:
    with selection.restored_kernels():
        yield


def use(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "_active", kind)


def make(method: str, name: str, bits: int, per_channel: bool, signed: bool) -> tuple[QuantLayer, Tensor]:
    """Return an initialized layer in training, and an input for it."""
    torch.manual_seed(0)
    layer, shape = LAYERS[name]
    options = dict(num_bit_w=bits, num_bit_a=bits, **(dict(per_channel=True) if per_channel else {}))
    kind = f"{method}{name.rpartition(' ')[2]}"
    quantized = build_quant_layer(dict(type=kind, **options), layer()).train()
    x = torch.randn(shape) if signed else torch.randn(shape).relu()
    with torch.no_grad():
        quantized(x)
    return quantized, x


def step(layer: nn.Module, x: Tensor, image: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """Return output and gradients; of an image, that needs no gradient, only those of the parameters."""
    x = x.clone().requires_grad_(not image)
    y = layer(x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype))
    gradients = {name: p.grad.double() for name, p in layer.named_parameters() if p.grad is not None}
    return y.detach().double(), gradients if x.grad is None else {**gradients, "input": x.grad.double()}


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm().clamp_min(1e-9))


@pytest.mark.parametrize("seed", range(40))
def test_products_are_exact(seed: int) -> None:
    """Any shape, padding, zero point and size of the integers: the float64 product, rounded once."""
    draw, torch_draw = random.Random(seed), torch.Generator().manual_seed(seed)
    groups = draw.choice([1, 1, 2, 4])
    channels, out = groups * draw.choice([1, 2, 3, 8, 17]), groups * draw.choice([1, 3, 8, 20])
    kernel, stride, padding, dilation = ([draw.randint(low, 3) for _ in "hw"] for low in (1, 1, 0, 1))
    bits = draw.randint(2, 8)
    low, top = -draw.randint(0, 2**bits - 1), 2 ** (bits - 1) - 1
    codes = torch.randint(0, 2**bits, (draw.randint(1, 3), channels, 11, 13), generator=torch_draw).to(torch.uint8)
    weight = torch.randint(-top, top + 1, (out, channels // groups, *kernel), generator=torch_draw).to(torch.int8)
    arguments = (stride, padding, dilation, groups)
    geometry = integer_operators.Geometry(tuple(stride), tuple(padding), tuple(dilation), groups)
    product = machine.Product(tuple(weight.shape), geometry, 2**bits - 1, top, low != 0)
    if not machine.is_exact(product):
        assert not machine.is_served(product) or bits > 6
        return
    bias = torch.randint(-999, 999, (out,), generator=torch_draw).float()
    one, lowest = torch.ones(()), torch.tensor(float(low))
    y = integer_operators.integer_conv2d(codes, weight, one, lowest, one, bias, *arguments)
    expected = F.conv2d(codes.double() + low, weight.double(), bias.double(), *arguments)
    assert torch.equal(y, expected.float())
    rows, matrix = codes.flatten(1), weight.new_ones(out, codes[0].numel())
    y = integer_operators.integer_linear(rows, matrix, one, lowest, one, bias)
    assert torch.equal(y, F.linear(rows.double() + low, matrix.double(), bias.double()).float())


MULTIPLYING = [method for method in METHODS if method != "N2UQ"]
"""Methods whose layers multiply integers in training."""
CASES = [
    (method, name, bits, per_channel, signed)
    for method, name, bits in itertools.product(MULTIPLYING, LAYERS, (2, 4, 8))
    for per_channel, signed in ((False, False), (True, True))
]


def check_step(case: tuple[str, str, int, bool, bool], image: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    use("plain", monkeypatch)
    layer, x = make(*case)
    results = []
    for kind, dtype in (("plain", torch.float64), ("plain", torch.float32), ("integer", torch.float32)):
        use(kind, monkeypatch)
        results.append(step(copy.deepcopy(layer).to(dtype), x.to(dtype), image))
    (exact, gradients), (simulated, simulated_gradients), (got, got_gradients) = results
    assert got_gradients.keys() == simulated_gradients.keys() == gradients.keys()
    # A value within rounding of a tie becomes another integer in float64, in the simulation as in integers.
    assert distance(got, exact) <= max(1e-6, 1.01 * distance(simulated, exact))
    for name, expected in gradients.items():
        # A scale's gradient is a sum in which nearly everything cancels.
        smallest = 1e-3 if "quantizer" in name else 2e-5
        bound = max(smallest, 3 * distance(simulated_gradients[name], expected))
        assert distance(got_gradients[name], expected) <= bound, name


def test_inputs_with_learned_thresholds_are_simulated() -> None:
    assert why_float(make("N2UQ", "Conv", 4, False, False)[0]) == "its input quantizer bends its input"


def slow_unless(is_fast: Callable[[Any], bool]) -> list[Any]:
    return [case if is_fast(case) else pytest.param(case, marks=pytest.mark.slow) for case in CASES]


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("case", slow_unless(lambda case: case[2] == 4 or case[:2] == ("LSQ", "Conv")), ids=str)
def test_a_step_is_that_of_the_simulation(
    case: tuple[str, str, int, bool, bool], image: bool, plain_formulas: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, _, bits, *_ = case
    layer, _ = make(*case)
    if method == "APoT" and bits == 8:
        assert why_float(layer) == "its integers do not fit 8 bits"
        return
    assert why_float(layer) is None
    check_step(case, image, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "image"),
    [  # LSQ in all forms, the others per tensor or per channel, with and without an image, in turn
        (case, bool((number // 2 + number) % 2))
        for number, case in enumerate(case for case in CASES if case[1] == "Conv" and case[2] == 4)
        if case[0] == "LSQ" or case[3] is (number // 4 % 2 == 0)
    ],
    ids=str,
)
def test_a_step_with_fused_formulas(
    case: tuple[str, str, int, bool, bool], image: bool, compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_step(case, image, monkeypatch)


@pytest.mark.parametrize("where", ["input", "weight"])
def test_nan_reaches_the_output(where: str, plain_formulas: None, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = make("LSQ", "Conv", 4, False, False)
    with torch.no_grad():
        (x if where == "input" else layer.weight).view(-1)[5] = torch.nan
    use("integer", monkeypatch)
    assert layer(x).isnan().any()


def test_eval_and_hooks_keep_floats(plain_formulas: None, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = make("LSQ", "Conv", 4, False, False)
    called: list[Any] = []
    monkeypatch.setattr(torch.ops.onednn, "qconv2d_pointwise", lambda *_: called.append(1), raising=False)
    use("integer", monkeypatch)
    layer.eval()(x)
    with torch.no_grad():
        layer.train()(x)
    seen: list[Any] = []
    layer.input_quantizer.register_forward_hook(lambda *given: seen.append(given))
    layer(x).sum().backward()
    assert seen and not called and why_float(layer) == "hooks watch a quantizer"


def test_what_saturates_stays_float(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without VNNI two products must fit 16 bits: 4-bit layers run in integers, 8-bit layers do not."""
    monkeypatch.setattr(machine, "_largest_pair", machine.SATURATION)
    assert why_float(make("LSQ", "Conv", 4, False, False)[0]) is None
    assert why_float(make("LSQ", "Conv", 8, False, False)[0]) == "this machine's integer sums are not exact"


def test_integer_kernels_are_refused_where_they_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "can_compile", lambda device: True)
    with pytest.raises(DependencyError, match="integer products run on the CPU, not on cuda"):
        select_kernels("integer", "cuda")
    monkeypatch.setattr(machine, "find_obstacle", lambda: "its 4-bit products are not exact")
    with pytest.raises(DependencyError, match="its 4-bit products are not exact"):
        select_kernels("integer")


@pytest.mark.slow
@pytest.mark.parametrize("method", MULTIPLYING)
def test_a_compiled_model_steps_alike(method: str, compiler: None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    convolutions = (nn.Conv2d(3, 16, 3, bias=False), nn.Conv2d(16, 8, 3))  # a bias before BatchNorm has no gradient
    model = nn.Sequential(convolutions[0], nn.BatchNorm2d(16), nn.ReLU(), convolutions[1], nn.Flatten(1))
    for index in (0, 3):
        model[index] = build_quant_layer(dict(type=f"{method}Conv", num_bit_w=4, num_bit_a=4), model[index])
    use("plain", monkeypatch)
    # Other images than the step's: an observer's range would end exactly at their largest value, which the compiled
    # BatchNorm recomputes in the backward pass with another rounding, beyond the end.
    model.train()(torch.randn(4, 3, 12, 12))
    x = torch.randn(4, 3, 12, 12)
    simulation, compiled = copy.deepcopy(model), copy.deepcopy(model)
    exact = step(copy.deepcopy(model).double(), x.double(), image=True)
    simulated = step(simulation, x, image=True)
    use("integer", monkeypatch)
    compiled.compile(fullgraph=True)
    got = step(compiled, x, image=True)
    assert distance(got[0], exact[0]) < max(1e-6, 2 * distance(simulated[0], exact[0]))
    for name, gradient in exact[1].items():
        bound = max(1e-3 if "quantizer" in name else 1e-5, 3 * distance(simulated[1][name], gradient))
        assert distance(got[1][name], gradient) < bound, name
    for (name, expected), buffer in zip(simulation.named_buffers(), compiled.buffers(), strict=True):
        torch.testing.assert_close(buffer, expected, msg=name)

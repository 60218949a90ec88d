"""Networks trained in integers beside their float32 and float64 simulation: equal but for ties, and no farther off."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_steps import distance
from test_contract import CASES, STRANGE, Case, data, ready
from torch import Tensor, nn

from lbitcls.datasets import build_dataset
from lbitcls.quant import calibrate
from lbitcls.quant.bypass import quantized_layers
from lbitcls.quant.integer_layers import why_float
from lbitcls.quant.kernels import integer_operators, machine, selection
from lbitcls.quant.layers import ENTRY_SUFFIXES
from lbitcls.quant.methods import METHODS, build_quant_layer

pytestmark = pytest.mark.skipif(bool(machine.find_obstacle()), reason="this machine multiplies no 8-bit integers")

MARGIN = 2e-4
"""Distance of a value from the next tie, in steps, from which float32 and float64 round alike."""


def network(method: str = "LSQ", width: int = 8) -> nn.Sequential:
    """Convolution, depthwise convolution and matrix product, between them BatchNorm and ReLU."""
    layers: list[nn.Module] = [
        *(nn.Conv2d(1, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.Conv2d(width, width, 3, stride=2, groups=width, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.Conv2d(width, 2 * width, 3, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10)),
    ]
    for i, layer in enumerate(layers):
        if type(layer) in (nn.Conv2d, nn.Linear):
            options: dict[str, Any] = dict(num_bit_w=4, num_bit_a=4, per_channel=i > 0)
            if method in ("LSQ", "EWGS"):
                options["init"] = "paper"  # not at an end of the range, which is a tie
            layers[i] = build_quant_layer(dict(type=method + ENTRY_SUFFIXES[type(layer).__name__], **options), layer)
    return nn.Sequential(*layers).train()


def use(kind: str, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(selection, "_active", kind)
    patch.setattr(selection, "fused_now", lambda: False)


def loss_and_gradients(model: nn.Module, x: Tensor, labels: Tensor) -> tuple[float, dict[str, Tensor]]:
    loss = F.cross_entropy(model(x), labels)
    loss.backward()
    return loss.item(), {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}


def ready_network(seed: int, method: str = "LSQ") -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(seed)
    model = network(method)
    calibrate(model, [torch.randn(16, 1, 12, 12)])
    return model.train(), torch.randn(4, 1, 12, 12), torch.randint(10, (4,))


def simulated_codes(model: nn.Module, x: Tensor) -> tuple[dict[str, Tensor], float]:
    """The integers of every input of the simulation, counted from the smallest, and the distance to the nearest tie."""
    model, codes, margins = copy.deepcopy(model), {}, [1.0]
    for name, layer in quantized_layers(model).items():

        def look(quantizer: Any, given: tuple[Tensor], name: str = name) -> None:
            codes[name] = quantizer.to_integer(given[0]) - quantizer.quant_min
            margins.append(margin(quantizer, given[0]))

        layer.input_quantizer.register_forward_pre_hook(look)
        margins.append(margin(layer.weight_quantizer, layer.weight))
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.register_forward_hook(lambda _, given, y: margins.append(float(y.detach().abs().min())))
    model(x)
    return codes, min(margins)


@torch.no_grad()
def margin(quantizer: Any, x: Tensor) -> float:
    """The smallest distance of a value to a tie or to an end of the range, in steps; zeros of a ReLU are exact."""
    scale, zero = quantizer.grid(x)[0], quantizer.zero_point()
    low, high = quantizer.low - zero, quantizer.high - zero
    x = quantizer.normalize(x)
    steps = x / scale.reshape(-1, *(1,) * (x.dim() - 1)) if scale.dim() else x / scale
    inside = steps[(steps > low - 1) & (steps < high + 1) & (steps != 0)]
    ends = torch.minimum((inside - low).abs(), (inside - high).abs()).min()
    return min(float(ends), float((inside - inside.floor() - 0.5).abs().min()))


def integer_codes(model: nn.Module, x: Tensor, patch: pytest.MonkeyPatch) -> list[Tensor]:
    """The codes that integer kernels multiply, layer by layer."""
    seen: list[Tensor] = []

    def watch(name: str, run: Callable[..., Tensor]) -> None:
        def watched(codes: Tensor, *rest: Any) -> Tensor:
            seen.append(codes.clone())
            return run(codes, *rest)

        patch.setattr(integer_operators, name, watched)

    watch("convolve", integer_operators.convolve)
    watch("multiply_matrices", integer_operators.multiply_matrices)
    use("integer", patch)
    copy.deepcopy(model)(x)
    return seen


@pytest.mark.parametrize(("method", "start"), [("LSQ", 0), ("LSQ", 100), ("LSQPlus", 0), ("EWGS", 0)])
def test_without_ties_everything_is_equal(method: str, start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    use("plain", monkeypatch)
    for seed in range(start, start + 80):
        model, x, labels = ready_network(seed, method)
        codes, nearest = simulated_codes(copy.deepcopy(model).double(), x.double())
        if nearest > MARGIN:
            break
    else:
        pytest.fail("no network without ties")
    exact_loss, exact = loss_and_gradients(copy.deepcopy(model).double(), x.double(), labels)
    _, simulated = loss_and_gradients(copy.deepcopy(model), x, labels)
    assert all(why_float(layer) is None for layer in quantized_layers(model).values())
    for expected, got in zip(codes.values(), integer_codes(model, x, monkeypatch), strict=True):
        assert torch.equal(got.int(), expected)
    loss, gradients = loss_and_gradients(copy.deepcopy(model), x, labels)
    assert abs(loss - exact_loss) < 1e-6 * abs(exact_loss)
    for name, expected in exact.items():  # in a parameter of a grid nearly everything cancels
        bound = max(1e-5, 5 * distance(simulated[name], expected)) if "quantizer" in name else 1e-5
        assert distance(gradients[name], expected) < bound, name


def all_distances(model: nn.Module, x: Tensor, labels: Tensor, patch: pytest.MonkeyPatch) -> dict[str, float]:
    """Distances of the gradients, all in one vector, from those of the float64 simulation."""
    use("plain", patch)
    found = {}
    _, exact = loss_and_gradients(copy.deepcopy(model).double(), x.double(), labels)
    for kind in ("plain", "integer"):
        use(kind, patch)
        _, gradients = loss_and_gradients(copy.deepcopy(model), x, labels)
        found[kind] = apart(gradients, exact)
    return found


def apart(gradients: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """The distance of all gradients in one vector."""
    return distance(*(torch.cat([g.flatten() for g in part.values()]) for part in (gradients, exact)))


def test_with_ties_integers_are_no_farther_from_float64_than_the_simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    """In some of thirty networks values lie next to ties, which the roundings before them decide."""
    simulated, integers = [], []
    for seed in range(30):
        model, x, labels = ready_network(seed)
        found = all_distances(model, x.repeat(8, 1, 1, 1), labels.repeat(8), monkeypatch)
        simulated.append(found["plain"])
        integers.append(found["integer"])
    assert max(simulated) > 1e-4  # ties occur
    mean = [sum(values) / len(values) for values in (integers, simulated)]
    assert mean[0] <= 1.5 * mean[1] + 1e-6, f"integers: {mean[0]:.2e}; float32 simulation: {mean[1]:.2e}"


def small_pieces(case: Case) -> str:
    return f"{case[0]}-{case[2]}{'-signed' * case[4]}"


@pytest.mark.parametrize("case", [c for c in CASES if c[1] == "input" and c[2] in (2, 3, 4, 8)], ids=small_pieces)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([1e-6, 0.1, 1.0, 3.0, 1e6]))
def test_codes_are_the_contracts_integers(case: Case, seed: int, size: float) -> None:
    """In every sign, at every size: code = integer - smallest integer, as an exporter writes it."""
    quantizer, x = ready(case), data((*case[:4], True), seed, size)
    if quantizer.quant_max - quantizer.quant_min > machine.LARGEST_CODE:
        return
    low = quantizer.low - quantizer.zero_point().detach()
    codes, undefined = quantizer.formula.codes(quantizer.normalize(x), low, quantizer.grid(x))
    assert torch.equal(codes.int(), quantizer.to_integer(x) - quantizer.quant_min) and not undefined
    x[1, 3] = torch.nan
    assert quantizer.formula.codes(quantizer.normalize(x), low, quantizer.grid(x))[1]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("method", METHODS)
def test_strange_data_gives_the_simulations_numbers(method: str, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for x in STRANGE.values():
        torch.manual_seed(0)
        use("plain", monkeypatch)
        equals_the_simulation(method, bits, x.clone(), monkeypatch)


def equals_the_simulation(method: str, bits: int, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = dict(type=f"{method}Linear", num_bit_w=bits, num_bit_a=bits)
    layer = build_quant_layer(entry, nn.Linear(x.shape[1], 2)).train()
    layer(x)
    results = []
    for name in ("plain", "integer"):
        use(name, monkeypatch)
        other = copy.deepcopy(layer)
        y = other(x)
        y.sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in other.parameters())
        results.append([y.detach(), other.weight.grad])  # the grids' gradients are sums that cancel to nothing
    for simulated, got in zip(*results, strict=True):
        torch.testing.assert_close(got, simulated, rtol=1e-4, atol=1e-6 * float(simulated.abs().max()))


@pytest.mark.parametrize("method", ["LSQ", "TorchQAT", "PACT"])
def test_under_autocast_integers_are_no_farther_from_float64(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their sums are exact where the simulation rounds each factor to bfloat16; outputs have the same dtype."""
    found: dict[str, list[float]] = {"plain": [], "integer": []}
    for seed, kind in itertools.product(range(8), found):
        use("plain", monkeypatch)
        model, x, labels = ready_network(seed, method)
        _, exact = loss_and_gradients(copy.deepcopy(model).double(), x.double(), labels)
        use(kind, monkeypatch)
        with torch.autocast("cpu", torch.bfloat16):
            assert copy.deepcopy(model)[:4](x).dtype is torch.bfloat16
            _, gradients = loss_and_gradients(model, x, labels)
        found[kind].append(apart(gradients, exact))
    assert sum(found["integer"]) <= 1.25 * sum(found["plain"]), found


@pytest.mark.slow
def test_sixty_steps_on_mnist_stay_as_near_to_float64_as_the_simulation(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One flipped tie changes a run, so the distance of two float32 simulations is the measure."""
    images, labels = mnist(shared_data)
    torch.manual_seed(0)
    start = network(width=16)
    calibrate(start, [images[:64]])
    curves = {}
    for name, dtype in {
        "float64": torch.float64,
        "float32": torch.float32,
        "channels_last": torch.float32,
        "integer": torch.float32,
    }.items():
        use("integer" if name == "integer" else "plain", monkeypatch)
        model = copy.deepcopy(start).to(dtype).train()
        layout = torch.contiguous_format if name == "float32" else torch.channels_last
        model = model.to(memory_format=layout)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        losses = []
        for i in range(60):
            batch = slice(64 * i, 64 * (i + 1))
            loss = F.cross_entropy(model(images[batch].to(dtype).to(memory_format=layout)), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves[name] = torch.tensor(losses).double()
    off = {name: float((curve - curves["float64"]).square().mean().sqrt()) for name, curve in curves.items()}
    assert curves["integer"][-10:].mean() < 0.8 * curves["integer"][0]
    assert off["integer"] <= 1.5 * max(off["float32"], off["channels_last"]) + 1e-6, off


def mnist(root: Path) -> tuple[Tensor, Tensor]:
    """Sixty batches of 64 images (1, 28, 28), normalized, and their labels."""
    dataset = build_dataset(dict(type="MNIST", split="train"), data_root=root)
    images, labels = dataset.images[: 60 * 64], dataset.labels[: 60 * 64]
    return (images.float() / 255 - 0.13) / 0.31, torch.as_tensor(labels).long()

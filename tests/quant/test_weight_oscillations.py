"""Dampening loss and freezing against the paper's formulas, written independently in float64 (arXiv:2203.11086)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lbitcls.quant import build_quant_layer
from lbitcls.quant.weight_oscillations import Oscillations, dampening_loss, read_integers

METHODS = ("LSQ", "LSQPlus", "DSQ", "DoReFa", "PACT", "APoT", "UQ", "EWGS", "TorchQAT")
SCALE, LOW, HIGH = 0.25, -4, 3
OPTIMA = torch.tensor([-0.41, -0.3, 0.06, 0.14, 0.33, 0.6, 0.25, 0.9], dtype=torch.float64)  # one is on the grid


def make_layer(method: str, outputs: int = 6, inputs: int = 20, **options: Any) -> Any:
    """A Linear, or a 1×1 convolution: `weight_norm` is for convolutions."""
    convolves = "weight_norm" in options
    entry = {"type": f"{method}{'Conv' if convolves else 'Linear'}", "num_bit_w": 3, "num_bit_a": 32, **options}
    plain = nn.Conv2d(inputs, outputs, 1, bias=False) if convolves else nn.Linear(inputs, outputs, bias=False)
    layer = build_quant_layer(entry, plain)
    layer.weight_quantizer.initialize(layer.weight.detach())
    return layer


def toy() -> Any:
    """Eight independent regressions with one weight each, in float64, on a fixed grid."""
    torch.manual_seed(0)
    layer = make_layer("LSQ", 1, len(OPTIMA)).double()
    layer.weight_quantizer.scale.data.fill_(SCALE)
    layer.weight_quantizer.scale.requires_grad_(False)
    nn.init.uniform_(layer.weight, -0.5, 0.5)
    return layer


def regression(layer: Any) -> Tensor:
    """The paper's toy problem, E[½ (x w* - x q(w))²], for inputs x of variance 1."""
    return 0.5 * (OPTIMA - layer.weight_quantizer(layer.weight)).square().sum()


def train(layer: Any, steps: int, dampening: float = 0.0, freeze: dict[str, float] | None = None) -> list[Tensor]:
    """The integers after each step."""
    optimizer = torch.optim.SGD([layer.weight], 0.1)
    oscillations = Oscillations.start(layer)
    seen = []
    for _ in range(steps):
        optimizer.zero_grad()
        (regression(layer) + dampening * dampening_loss(layer)).backward()
        optimizer.step()
        if freeze:
            oscillations.update(layer, **freeze)
        seen.append(read_integers(layer)[0])
    return seen


def changes(integers: list[Tensor]) -> Tensor:
    """How often each weight's integer changed."""
    return (torch.stack(integers).diff(dim=0) != 0).sum(0)


def test_weights_between_two_integers_oscillate_until_dampened_or_frozen() -> None:
    between = ((OPTIMA / SCALE).round() * SCALE != OPTIMA) & (OPTIMA < HIGH * SCALE)
    assert (changes(train(toy(), 200)[120:])[between] > 5).all()
    assert (changes(train(toy(), 200, dampening=1.0)[120:]) == 0).all()
    assert (changes(train(toy(), 200, freeze=dict(momentum=0.05, threshold=0.08))[120:]) == 0).all()


def paper_algorithm(weight: Tensor, steps: int, momentum: float, threshold: float) -> list[list[int]]:
    """Training with iterative freezing, one weight after the other, as in the paper."""
    columns = []
    for w, optimum in zip(weight.tolist(), OPTIMA.tolist(), strict=True):
        integer = min(max(round(w / SCALE), LOW), HIGH)
        average, frequency, last, frozen, column = float(integer), 0.0, 0, False, []
        for _ in range(steps):
            if not frozen:
                if LOW <= w / SCALE <= HIGH:
                    w -= 0.1 * (integer * SCALE - optimum)
                new = min(max(round(w / SCALE), LOW), HIGH)
                direction = (new > integer) - (new < integer)
                oscillates = direction != 0 and last != 0 and direction != last
                frequency = momentum * oscillates + (1 - momentum) * frequency
                last = direction or last
                frozen = frequency > threshold
                integer = round(average) if frozen else new
                average = momentum * new + (1 - momentum) * average
            column.append(integer)
        columns.append(column)
    return [list(row) for row in zip(*columns, strict=True)]


def test_every_integer_of_a_training_with_freezing() -> None:
    layer, setting = toy(), dict(momentum=0.05, threshold=0.12)
    expected = paper_algorithm(layer.weight.detach()[0].clone(), 300, **setting)
    assert [row.tolist() for row in train(layer, 300, freeze=setting)] == expected
    assert changes([torch.tensor(row) for row in expected]).sum() > 20


@pytest.mark.parametrize("per_channel", [False, True])
def test_dampening_loss_and_its_gradient(per_channel: bool) -> None:
    torch.manual_seed(1)
    layer = make_layer("LSQ", per_channel=per_channel).double()
    layer.weight_quantizer.scale.data.mul_(0.4)  # so that some weights are outside the range
    scale = layer.weight_quantizer.scale.detach().reshape(-1, 1)
    loss = dampening_loss(layer)
    loss.backward()
    w = layer.weight.detach()
    quantized = (w / scale).round().clamp(LOW, HIGH) * scale
    inside = (w >= LOW * scale) & (w <= HIGH * scale)
    residual = torch.where(inside, w - quantized, 0.0)
    assert 0.02 < 1 - inside.double().mean() < 0.9
    torch.testing.assert_close(loss.detach(), residual.square().sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(layer.weight.grad, 2 * residual, rtol=1e-9, atol=1e-15)
    assert layer.weight_quantizer.scale.grad is None


def test_dampening_measures_dorefas_weight_itself() -> None:
    """Its distance to the weight that tanh and the maximum of the tensor map to the nearest level."""
    torch.manual_seed(1)
    layer = make_layer("DoReFa").double()
    w = layer.weight.detach()
    widest = torch.tanh(w).abs().max()
    levels = torch.arange(-7, 8, 2, dtype=torch.float64) / 7
    nearest = levels[(torch.tanh(w)[..., None] / widest - levels).abs().argmin(-1)]
    residual = w - torch.atanh(nearest * widest)
    loss = dampening_loss(layer)
    loss.backward()
    torch.testing.assert_close(loss.detach(), residual.square().sum(), rtol=1e-9, atol=0)
    torch.testing.assert_close(layer.weight.grad, 2 * residual, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["LSQ", "APoT", "UQ"])
def test_dampening_means_the_same_with_normalized_weights(method: str) -> None:
    """The grid is that of (w - mean) / std, and the distance that of the weight: std times that of the normalized."""
    torch.manual_seed(1)
    layer = make_layer(method, per_channel=True, weight_norm=True).double()
    loss = dampening_loss(layer)
    loss.backward()
    w, quantizer = layer.weight.detach(), layer.weight_quantizer
    std = w.std(dim=(1, 2, 3), keepdim=True, correction=0)
    latent = (w - w.mean(dim=(1, 2, 3), keepdim=True)) / std
    quantized = quantizer(w).detach()
    scale = quantizer.qparams().scale.reshape(-1, 1, 1, 1)
    inside = (latent >= quantizer.quant_min * scale) & (latent <= quantizer.quant_max * scale)
    residual = torch.where(inside, std * (latent - quantized), 0.0)
    assert 0.5 < inside.double().mean() < 1
    torch.testing.assert_close(loss.detach(), residual.square().sum(), rtol=1e-6, atol=0)
    torch.testing.assert_close(layer.weight.grad, 2 * residual, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("options", [dict(), dict(per_channel=True), dict(weight_norm=True)])
def test_frozen_integers_stay_while_all_else_moves(method: str, bits: int, options: dict[str, Any]) -> None:
    torch.manual_seed(2)
    layer = make_layer(method, num_bit_w=bits, **options)
    oscillations = Oscillations.start(layer)
    oscillations.frozen = torch.rand_like(layer.weight) < 0.3
    before = oscillations.integers.clone()
    number = oscillations.frozen.sum()
    for _ in range(8):
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter += 0.03 * parameter.abs().mean() * torch.randn_like(parameter)
        layer.train()(torch.randn(2, 20, *layer.weight.shape[2:]))  # observed ranges move
        oscillations.update(layer, momentum=0.01, threshold=1.0)
        assert torch.equal(read_integers(layer)[oscillations.frozen].short(), before[oscillations.frozen])
    assert oscillations.frozen.sum() == number
    moved = read_integers(layer) != before
    assert moved.any() and not moved[oscillations.frozen].any()


@pytest.mark.parametrize("method", ["DoReFa", "APoT"])
def test_a_weight_freezes_at_an_integer_that_occurs(method: str) -> None:
    layer = make_layer(method, num_bit_w=4)
    oscillations = Oscillations.start(layer)
    oscillations.average = torch.linspace(-6, 6, 120).view(6, 20)
    oscillations.frequency.fill_(1.0)
    oscillations.update(layer, momentum=0.01, threshold=0.5)
    levels = layer.weight_quantizer.levels()
    nearest = (torch.linspace(-6, 6, 120)[:, None] - levels).abs().min(1).values
    chosen = (torch.linspace(-6, 6, 120) - oscillations.integers.flatten()).abs()
    assert torch.isin(oscillations.integers, levels).all() and torch.equal(chosen, nearest)


def test_weights_that_no_normalization_can_hold_are_released() -> None:
    layer = make_layer("UQ")
    oscillations = Oscillations.start(layer)
    oscillations.frozen.fill_(True)
    oscillations.integers.fill_(1)  # all the same: their deviation would be 0
    oscillations.write(layer)
    oscillations._release(layer)
    assert layer.weight.isfinite().all()
    held = oscillations.frozen
    assert not held.all() and (read_integers(layer)[held] == 1).all()


def test_state_is_small_and_comes_back() -> None:
    layer = make_layer("LSQ")
    oscillations = Oscillations.start(layer)
    with torch.no_grad():
        layer.weight.neg_()
    oscillations.update(layer, 0.01, 1.0)
    state = oscillations.state_dict()
    again = Oscillations(**state).to(torch.device("cpu")).state_dict()
    assert state.pop("bits") == again["bits"] == 3
    assert sum(value.element_size() for value in state.values()) == 12  # bytes for each weight
    assert all(torch.equal(state[name], again[name]) for name in state) and (state["directions"] != 0).any()


def test_nothing_is_dampened_before_quantization_or_in_frozen_layers() -> None:
    layer = make_layer("LSQ")
    layer.weight_quantizer.enable(False)
    assert dampening_loss(layer) == 0.0
    layer.weight_quantizer.enable(True)
    assert dampening_loss(layer) > 0
    layer.weight.requires_grad_(False)
    assert dampening_loss(layer) == 0.0

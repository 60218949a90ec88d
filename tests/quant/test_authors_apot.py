"""Options that quantize as the APoT authors' code does: values computed by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lbitcls.quant.methods import build_quant_layer
from lbitcls.quant.quantizers.apot import UQ, APoT, magnitudes
from lbitcls.quant.quantizers.minmax import MinMax
from lbitcls.utils.errors import ConfigError

W = torch.tensor([-3.0, -1.0, 1.0, 3.0])  # mean 0; sum of squares 20: deviation √5 by n, √(20/3) by n - 1


@pytest.mark.parametrize("method", [APoT, UQ])
def test_the_unbiased_deviation_divides_by_n_minus_1(method: type) -> None:
    biased, unbiased = (method(4, role="weight", unbiased=flag).normalize(W) for flag in (False, True))
    torch.testing.assert_close(biased, W / 5**0.5)
    torch.testing.assert_close(unbiased, W / (20 / 3) ** 0.5)


def test_the_unbiased_deviation_is_over_the_whole_tensor_or_each_channel() -> None:
    w = torch.stack([W, 2 * W])  # sum of squares 20 + 80, n = 8
    torch.testing.assert_close(APoT(4, role="weight", unbiased=True).normalize(w), w / (100 / 7) ** 0.5)
    by_channel = APoT(4, role="weight", unbiased=True, num_channels=2).normalize(w)
    torch.testing.assert_close(by_channel, torch.stack([W, W]) / (20 / 3) ** 0.5)
    one = APoT(4, role="weight", unbiased=True).normalize(torch.tensor([[0.3]]))
    assert torch.equal(one, torch.zeros(1, 1))


def test_the_unbiased_deviation_is_recorded() -> None:
    unbiased, biased = (APoT(4, role="weight", unbiased=flag) for flag in (True, False))
    unbiased.initialize(W)
    assert "unbiased deviation there" in str(biased.misfit(unbiased.state_dict(), ""))
    with pytest.raises(RuntimeError, match="is for another grid"):
        biased.load_state_dict(unbiased.state_dict())
    assert "unbiased" not in biased.grid_facts()  # files of earlier versions still fit


@pytest.mark.parametrize(
    ("bits", "levels"),
    [
        (2, [0, 1 / 4, 1 / 2, 1]),
        (3, [0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1]),
        (4, [n / 48 for n in (0, 1, 2, 3, 4, 6, 8, 9, 12, 16, 18, 24, 32, 33, 36, 48)]),
    ],
)
def test_levels_as_fractions(bits: int, levels: list[float]) -> None:
    """Those of the paper, equation 5, for inputs: each level is a fixed point, the value above the last is clipped."""
    quantizer = APoT(bits, signed=False, fractional_levels=True)
    quantizer.initialize(torch.tensor([0.0, 1.0]))
    quantizer.clip.data.fill_(2.5)
    fractions = torch.tensor(levels)
    assert torch.equal(quantizer(fractions * 2.5), fractions * 2.5)
    assert quantizer(torch.tensor([9.0, -0.1])).tolist() == [2.5, 0.0]
    assert quantizer.to_integer(fractions * 2.5).tolist() == magnitudes(bits)


def test_two_bit_weights_are_minus_one_zero_one() -> None:
    """Of the normalized weights, with α = 1: half a step and less goes to zero."""
    quantizer = APoT(2, role="weight", unbiased=True, fractional_levels=True)
    w = torch.tensor([-2.0, -0.4, 0.4, 2.0])
    quantizer.initialize(w)
    quantizer.clip.data.fill_(1.0)
    assert quantizer(w).tolist() == [-1.0, 0.0, 0.0, 1.0]
    assert quantizer.levels().tolist() == [-1, 0, 1]


def theirs(x: Tensor, clip: Tensor, bits: int) -> Tensor:
    """Value by the formula x̂ = α · project(clip(x / α, -1, 1)), evaluated in this order in float32."""
    levels = torch.tensor(magnitudes(bits)) / magnitudes(bits)[-1]
    v = (x / clip).clamp(-1, 1)
    nearest = (v.abs()[:, None] - levels).abs().argmin(1)
    return levels[nearest] * v.sign() * clip


@pytest.mark.parametrize("signed", [False, True])
def test_fractions_are_bit_equal_to_the_formula(signed: bool) -> None:
    x, differs = torch.rand(20000) * 4 - 2 * signed, False
    for clip in (0.502, 0.514, 1.4535694):
        quantizer = APoT(4, signed=signed, fractional_levels=True)
        quantizer.initialize(x)
        quantizer.clip.data.fill_(clip)
        expected = theirs(x, quantizer.clip.detach(), 4 - signed)
        assert torch.equal(quantizer(x), expected)
        plain = APoT(4, signed=signed)
        plain.load_state_dict(quantizer.state_dict())  # the same grid
        assert torch.equal(plain.to_integer(x), quantizer.to_integer(x))
        torch.testing.assert_close(plain(x), expected)
        differs |= not torch.equal(plain(x), expected)  # in the last bit
    assert differs


def test_fractions_have_the_same_gradients() -> None:
    found = []
    for flag in (False, True):
        torch.manual_seed(0)
        quantizer = APoT(4, role="weight", fractional_levels=flag).double()
        x = torch.randn(300, dtype=torch.float64, requires_grad=True)
        quantizer.initialize(x)
        quantizer(x).sum().backward()
        found.append((x.grad, quantizer.clip.grad))
    torch.testing.assert_close(*found)


def test_the_step_is_the_largest_weight_over_127() -> None:
    """Not the largest magnitude; weights below -max(w) are not clipped, but rounded to whole steps."""
    quantizer = MinMax(8, role="weight", step_from_max=True)
    w = torch.tensor([1.27, 0.004, 0.006, -1.5, -0.996], requires_grad=True)  # steps of 0.01
    y = quantizer(w)
    torch.testing.assert_close(y.detach(), torch.tensor([1.27, 0.0, 0.01, -1.5, -1.0]))
    assert quantizer.to_integer(w).tolist() == [127, 0, 1, -150, -100]
    y.sum().backward()
    assert w.grad.tolist() == [1.0] * 5
    params = quantizer.qparams()
    torch.testing.assert_close(params.scale, torch.tensor(0.01))
    assert (params.quant_min, params.quant_max) == (-(2**15), 127)


def test_a_step_of_a_channel_and_of_weights_without_a_positive_one() -> None:
    quantizer = MinMax(8, role="weight", step_from_max=True, num_channels=2)
    quantizer.initialize(torch.tensor([[1.27, -2.0], [-0.5, 0.0]]))
    torch.testing.assert_close(quantizer.qparams().scale, torch.tensor([0.01, 1 / 127]))  # the second: no range


def test_grids_of_both_kinds_are_told_apart() -> None:
    free, clipped = (MinMax(8, role="weight", step_from_max=flag) for flag in (True, False))
    free.initialize(W)
    there, here = str(clipped.misfit(free.state_dict(), "")).split("; ")
    assert there == "MinMax, 8 bits, integers -32768 to 127 there"
    assert here == "MinMax, 8 bits, integers -128 to 127 here"


def test_options_of_weights_in_a_config() -> None:
    """They reach the weight's quantizer alone; inputs keep theirs."""
    layer = build_quant_layer(
        dict(type="APoTConv", num_bit_w=4, num_bit_a=4, unbiased=True, fractional_levels=True, signed=False),
        nn.Conv2d(2, 2, 3),
    )
    assert layer.weight_quantizer.unbiased and not layer.input_quantizer.unbiased
    assert layer.weight_quantizer.fractional_levels and layer.input_quantizer.fractional_levels
    end = dict(type="TorchQATLinear", num_bit_w=8, num_bit_a=8, step_from_max=True)
    layer = build_quant_layer(end, nn.Linear(2, 2))
    assert layer.weight_quantizer.step_from_max and not layer.input_quantizer.step_from_max
    with pytest.raises(ConfigError, match="step_from_max needs role='weight'"):
        MinMax(8, role="input", step_from_max=True)

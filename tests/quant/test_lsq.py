"""LSQ against its paper, in float64, and the state of a quantizer through its life."""

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor, nn

from lbitcls.quant.calibration import calibrate, named_quantizers, set_quantization
from lbitcls.quant.kernels import select_kernels
from lbitcls.quant.methods import build_quant_layer
from lbitcls.quant.quantizer_errors import NotInitializedError
from lbitcls.quant.quantizers.lsq import LSQ
from lbitcls.utils.errors import ConfigError


def paper_gradients(x: Tensor, s: float, low: int, high: int, grad: Tensor, g: float) -> tuple[Tensor, Tensor]:
    """Equations 3 and 5 element by element, in Python's float64 (ends of the range pass, as the file says)."""
    grad_x, grad_s = [], 0.0
    for value, upstream in zip(x.flatten().tolist(), grad.flatten().tolist()):
        v = value / s
        if v < low:
            d, passes = float(low), 0.0
        elif v > high:
            d, passes = float(high), 0.0
        else:
            d, passes = round(v) - v, 1.0  # Python rounds half to even
        grad_x.append(upstream * passes)
        grad_s += upstream * d
    return torch.tensor(grad_x, dtype=torch.float64).view_as(x), torch.tensor(grad_s * g, dtype=torch.float64)


@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
@pytest.mark.parametrize("role", ["weight", "input"])
@pytest.mark.parametrize("init", ["mse", "paper"])
def test_values_and_gradients_are_the_papers(num_bits: int, role: str, init: str) -> None:
    torch.manual_seed(num_bits)
    quantizer = LSQ(num_bits, role=role, signed=role == "weight", init=init).double()
    x = torch.randn(6, 5, 3, 3, dtype=torch.float64)
    quantizer.initialize(x)
    quantizer.scale.data.mul_(0.7)  # values beyond the range too
    x.requires_grad_(True)
    grad = torch.randn_like(x)
    y = quantizer(x)
    y.backward(grad)
    n = x.numel() if role == "weight" else x[0].numel()
    s = quantizer.scale.item()
    g = 1 / math.sqrt(n * quantizer.quant_max) if init == "paper" else 1 / (math.sqrt(n) * quantizer.quant_max)
    expected_x, expected_s = paper_gradients(x.detach(), s, quantizer.quant_min, quantizer.quant_max, grad, g)
    steps = torch.tensor(
        [min(max(round(v / s), quantizer.quant_min), quantizer.quant_max) for v in x.flatten().tolist()]
    )
    assert torch.equal(y.flatten(), steps * quantizer.scale.detach())
    assert torch.equal(x.grad, expected_x)
    torch.testing.assert_close(quantizer.scale.grad, expected_s, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", ["LSQ", "EWGS"])
@pytest.mark.parametrize("num_bits", [2, 4, 8])
def test_steps_and_weights_learn_at_one_pace(method: str, num_bits: int) -> None:
    """The paper's aim (section 2.2): relative updates of step and weights are alike, here for all bits."""
    torch.manual_seed(0)
    bits = dict(num_bit_w=num_bits, num_bit_a=num_bits)
    layer = build_quant_layer(dict(type=f"{method}Linear", per_channel=True, **bits), nn.Linear(64, 100))
    x = torch.randn(128, 64).relu()
    y = layer(x)
    ratios = []
    for _ in range(20):
        layer.zero_grad()
        layer(x).backward(torch.randn_like(y))
        of_weight = (layer.weight.grad.norm(dim=1) / layer.weight.detach().norm(dim=1)).mean()
        scale = layer.weight_quantizer.scale
        ratios.append(float((scale.grad / scale.detach()).square().mean().sqrt() / of_weight))
    assert 0.5 < sum(ratios) / len(ratios) < 5


@pytest.mark.parametrize("low, high", [(0, 15), (-8, 7)])
def test_values_at_the_ends_and_at_ties(low: int, high: int) -> None:
    quantizer = LSQ(4, signed=low < 0).double()
    quantizer.initialize(torch.tensor([low - 1.0, high + 1.0]))
    quantizer.scale.data.fill_(0.5)
    x = torch.tensor([low, high, 0.5, 1.5, 2.5, low - 1e-9, high + 1e-9], dtype=torch.float64) * 0.5
    x.requires_grad_(True)
    y = quantizer(x)
    y.sum().backward()
    assert (y / 0.5).tolist() == [low, high, 0.0, 2.0, 2.0, low, high]
    assert x.grad.tolist() == [1, 1, 1, 1, 1, 0, 0]


def test_per_channel_is_per_tensor_slice_by_slice() -> None:
    x = torch.randn(4, 3, 3, 3) * torch.tensor([0.1, 1.0, 10.0, 0.0]).view(4, 1, 1, 1)
    whole = LSQ(4, role="weight", num_channels=4)
    whole.initialize(x)
    whole(x).sum().backward()
    for i in range(3):
        one = LSQ(4, role="weight")
        one.initialize(x[i : i + 1])
        one(x[i : i + 1]).sum().backward()
        torch.testing.assert_close(whole.scale[i], one.scale, rtol=0, atol=0)
        torch.testing.assert_close(whole.scale.grad[i], one.scale.grad)
        assert torch.equal(whole(x)[i : i + 1], one(x[i : i + 1]))
    assert whole.scale[3] > 0 and torch.equal(whole(x)[3], x[3])


def test_first_scale_of_the_paper_is_taken_once_in_place() -> None:
    quantizer, x = LSQ(4, role="weight", init="paper"), torch.randn(100)
    scale = quantizer.scale
    quantizer(x)
    assert quantizer.scale is scale
    torch.testing.assert_close(scale.detach(), 2 * x.abs().mean() / math.sqrt(7))
    before = scale.detach().clone()
    quantizer(x * 100)
    assert torch.equal(scale, before)


@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
@pytest.mark.parametrize("role", ["weight", "input"])
def test_first_scale_has_the_least_squared_error(num_bits: int, role: str) -> None:
    """No other scale within a third is better by more than a grid search misses, by the paper's formula in float64."""
    x = torch.randn(2000) if role == "weight" else torch.randn(2000).relu()
    quantizer = LSQ(num_bits, role=role)
    quantizer.initialize(x)
    low, high = quantizer.quant_min, quantizer.quant_max

    def error(scale: float) -> float:
        v = x.double() / scale
        return (torch.clamp(torch.round(v), low, high) * scale - x.double()).square().mean().item()

    found = quantizer.scale.item()
    least = min(error(found * factor) for factor in torch.linspace(0.7, 1.4, 200).tolist())
    assert error(found) <= 1.05 * least
    assert error(found) < error(2 * x.abs().mean().item() / math.sqrt(high))


def test_rule_of_the_first_scale_is_an_option_of_the_method() -> None:
    entry = dict(type="LSQConv", num_bit_w=2, num_bit_a=2, init="paper")
    layer = build_quant_layer(entry, nn.Conv2d(3, 3, 1))
    assert (layer.weight_quantizer.init, layer.input_quantizer.init) == ("paper", "paper")
    with pytest.raises(ConfigError, match="init must be one of 'mse', 'paper'; got 'papers'"):
        build_quant_layer({**entry, "init": "papers"}, nn.Conv2d(3, 3, 1))
    with pytest.raises(ConfigError, match="init"):
        build_quant_layer(dict(type="LSQPlusConv", num_bit_w=2, num_bit_a=2, init="paper"), nn.Conv2d(3, 3, 1))


@pytest.mark.parametrize("data, signed", [([0.0, 1.0], False), ([-1e-3, 1.0], True)])
def test_the_sign_of_inputs_is_decided_once_by_data(data: list[float], signed: bool) -> None:
    quantizer = LSQ(4)
    quantizer.initialize(torch.tensor(data))
    assert quantizer.signed is signed
    quantizer(torch.tensor([-1.0, 1.0]))
    assert quantizer.signed is signed and (quantizer(torch.tensor([-1.0])) < 0).item() is signed


def test_a_config_may_fix_the_sign() -> None:
    layer = build_quant_layer(dict(type="LSQConv", num_bit_w=4, num_bit_a=4, signed=True), nn.Conv2d(1, 1, 1))
    calibrate(layer, [torch.rand(2, 1, 4, 4)])
    assert layer.input_quantizer.signed and layer.input_quantizer.quant_min == -8


def test_eval_before_any_data_raises_and_names_the_remedy() -> None:
    with pytest.raises(NotInitializedError, match="has not seen data.*calibrate"):
        LSQ(4).eval()(torch.rand(3))


def test_integers_dequantize_to_the_fake_quantized_values() -> None:
    for signed in (False, True):
        quantizer = LSQ(3, signed=signed)
        x = torch.randn(1000)
        quantizer.initialize(x)
        integers = quantizer.to_integer(x)
        assert torch.equal(quantizer.qparams().dequantize(integers), quantizer(x))
        assert integers.min() == quantizer.quant_min and integers.max() == quantizer.quant_max


def test_state_survives_saving_deepcopy_and_pickle_and_is_not_taken_anew() -> None:
    x = torch.randn(50)
    quantizer = LSQ(4)
    expected = quantizer(x)
    fresh = LSQ(4)
    fresh.load_state_dict(quantizer.state_dict())
    for other in (fresh, copy.deepcopy(quantizer), pickle.loads(pickle.dumps(quantizer))):
        assert torch.equal(other(x), expected) and other.signed
        assert torch.equal(other.eval()(x * 9), quantizer(x * 9))


def test_a_float_checkpoint_resets_first_values_and_a_quantized_one_keeps_them() -> None:
    conv = nn.Conv2d(2, 2, 3)
    layer = build_quant_layer(dict(type="LSQConv", num_bit_w=4, num_bit_a=4), conv)
    calibrate(layer, [torch.rand(2, 2, 5, 5)])
    saved = copy.deepcopy(layer.state_dict())
    bigger = nn.Conv2d(2, 2, 3)
    bigger.weight.data.mul_(10)
    layer.load_state_dict(bigger.state_dict())  # strict: a float checkpoint has no quantizer's keys
    assert not any(quantizer.is_initialized for _, quantizer in named_quantizers(layer))
    layer.load_state_dict(saved)
    assert all(quantizer.is_initialized for _, quantizer in named_quantizers(layer))


def test_switched_off_a_layer_computes_in_float_and_says_so_in_its_state() -> None:
    conv = nn.Conv2d(2, 2, 3)
    layer = build_quant_layer(dict(type="LSQConv", num_bit_w=2, num_bit_a=2), copy.deepcopy(conv))
    x = torch.randn(2, 2, 5, 5)
    set_quantization(layer, False)
    assert torch.equal(layer(x), conv(x))
    assert not any(p.requires_grad for _, q in named_quantizers(layer) for p in q.parameters())
    other = build_quant_layer(dict(type="LSQConv", num_bit_w=2, num_bit_a=2), copy.deepcopy(conv))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.eval()(x), conv(x))
    set_quantization(layer, True)
    assert not torch.equal(layer(x), conv(x))


def test_bfloat16_input_is_computed_in_float32() -> None:
    quantizer, x = LSQ(8), torch.randn(1000).bfloat16()
    quantizer.initialize(x)
    assert quantizer(x).dtype is torch.bfloat16
    assert torch.equal(quantizer(x), quantizer(x.float()).bfloat16())


def test_a_negative_scale_counts_by_its_magnitude_and_zero_stays_finite() -> None:
    quantizer, x = LSQ(4, signed=True), torch.randn(10, requires_grad=True)
    quantizer.initialize(x)
    expected = quantizer(x)
    quantizer.scale.data.neg_()
    assert torch.equal(quantizer(x), expected)
    quantizer.scale.data.zero_()
    y = quantizer(x)
    y.sum().backward()
    assert y.isfinite().all() and quantizer.scale.grad.isfinite() and x.grad.isfinite().all()


@pytest.mark.parametrize("shape, channels", [((8, 4, 5, 5), None), ((8, 4, 3, 3), 8), ((7,), None)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_fused_kernels_give_the_same_values(
    compiler: None, shape: tuple[int, ...], channels: int | None, memory_format: torch.memory_format
) -> None:
    results = {}
    for kind in ("plain", "fused"):
        select_kernels(kind)
        try:
            torch.manual_seed(0)
            x = torch.randn(shape)
            if len(shape) == 4:
                x = x.to(memory_format=memory_format)
            x.requires_grad_(True)
            quantizer = LSQ(4, role="weight", num_channels=channels)
            y = quantizer(x)
            y.backward(torch.randn(shape))
            results[kind] = (y.detach(), x.grad, quantizer.scale.grad)
        finally:
            select_kernels("plain")
    assert torch.equal(results["plain"][0], results["fused"][0])
    assert torch.equal(results["plain"][1], results["fused"][1])
    torch.testing.assert_close(results["plain"][2], results["fused"][2], rtol=1e-4, atol=1e-6)


def test_whole_model_compilation_gives_the_same_values_and_gradients(compiler: None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        build_quant_layer(dict(type="LSQConv", num_bit_w=4, num_bit_a=4, per_channel=True), nn.Conv2d(3, 4, 3)),
        nn.ReLU(),
        build_quant_layer(dict(type="LSQConv", num_bit_w=4, num_bit_a=4), nn.Conv2d(4, 4, 3)),
    )
    x = torch.randn(2, 3, 8, 8)
    calibrate(model, [x])
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True)
    out = []
    for m in (model, compiled):
        y = m(x)
        y.square().sum().backward()
        out.append([y.detach(), *(p.grad for p in m.parameters())])
    for a, b in zip(*out):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)

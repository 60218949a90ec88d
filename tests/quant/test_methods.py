"""Each method against its paper, and its names in configs."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from lbitcls.quant import methods
from lbitcls.quant.calibration import calibrate, regularization
from lbitcls.quant.methods import build_quant_layer, register_method
from lbitcls.quant.quantizer import OWN_METHODS
from lbitcls.quant.quantizers.apot import APoT, magnitudes
from lbitcls.quant.quantizers.dorefa import DoReFaInput, DoReFaWeight
from lbitcls.quant.quantizers.dsq import DSQ, soft_step
from lbitcls.quant.quantizers.ewgs import EWGS
from lbitcls.quant.quantizers.lsq_plus import LSQPlus
from lbitcls.quant.quantizers.minmax import MinMax
from lbitcls.quant.quantizers.pact import PACT
from lbitcls.utils.errors import ConfigError

ALL = ("LSQ", "LSQPlus", "DSQ", "PACT", "DoReFa", "APoT", "UQ", "TorchQAT", "EWGS", "N2UQ")


def numeric_gradient(function, x: Tensor, step: float = 1e-6) -> Tensor:
    """Return central differences of an elementwise function, in float64."""
    return (function(x + step) - function(x - step)) / (2 * step)


# DSQ


@pytest.mark.parametrize("sharpness", [0.5, 2.2, 8.0])
def test_dsqs_tanh_reaches_one_at_the_edges_of_a_cell(sharpness: float) -> None:
    edges = torch.tensor([3 + 1e-9, 4 - 1e-9], dtype=torch.float64)
    phi = soft_step(edges, torch.tensor(sharpness, dtype=torch.float64))
    torch.testing.assert_close(phi, torch.tensor([-1.0, 1.0], dtype=torch.float64), atol=1e-6, rtol=0)


def test_dsqs_gradients_are_those_of_the_soft_staircase() -> None:
    quantizer = DSQ(3, role="input", signed=False).double()
    quantizer.initialize(torch.tensor([-1.0, 2.0]))
    quantizer.set_range(torch.tensor([-1.0]), torch.tensor([2.5]))  # steps of 0.5: zero is on the grid
    x = torch.linspace(-0.99, 2.49, 301, dtype=torch.float64).requires_grad_(True)
    quantizer(x).sum().backward()
    scale, _, sharpness, _, _ = (t.detach() for t in quantizer.grid(x))

    def soft(x: Tensor, scale: Tensor = scale, sharpness: Tensor = sharpness) -> Tensor:
        v = x / scale
        return (torch.floor(v) + (soft_step(v, sharpness) + 1) / 2) * scale

    inside = (x.detach() / scale).frac().abs() > 1e-3  # where central differences do not straddle a cell's edge
    torch.testing.assert_close(x.grad[inside], numeric_gradient(soft, x.detach())[inside], rtol=1e-4, atol=1e-6)
    assert x.grad.max() / x.grad.min() > 1.5  # not a straight-through estimator
    by_sharpness = numeric_gradient(lambda s: soft(x.detach(), sharpness=s), sharpness).sum()
    alpha = quantizer.alpha.detach()
    expected = by_sharpness * (-2 / alpha**2) / (2 / alpha - 1)
    torch.testing.assert_close(quantizer.alpha.grad, expected, rtol=1e-4, atol=1e-6)


def test_dsqs_range_moves_with_the_values_beyond_it() -> None:
    quantizer = DSQ(4, role="input").double()
    quantizer.initialize(torch.tensor([-1.0, 2.0]))
    x = torch.tensor([-5.0, -6.0, 7.0], dtype=torch.float64)
    quantizer(x).sum().backward()
    factor = 1 / (1 * 15) ** 0.5  # one feature in a sample
    torch.testing.assert_close(quantizer.lower.grad, torch.tensor(2.0 * factor, dtype=torch.float64))
    torch.testing.assert_close(quantizer.upper.grad, torch.tensor(1.0 * factor, dtype=torch.float64))


def test_dsqs_penalty_of_alpha_enters_the_loss() -> None:
    layer = build_quant_layer(dict(type="DSQConv", num_bit_w=4, num_bit_a=4, alpha_decay=0.1), nn.Conv2d(1, 1, 1))
    assert regularization(layer).item() == pytest.approx(2 * 0.05 * 0.2**2)


# APoT


@pytest.mark.parametrize("bits, levels", [(1, [0, 1]), (2, [0, 1, 2, 4]), (3, [0, 1, 2, 3, 4, 6, 8, 10])])
def test_apots_levels_are_the_authors(bits: int, levels: list[int]) -> None:
    assert magnitudes(bits) == levels


@pytest.mark.parametrize("bits", range(1, 9))
def test_apots_levels_are_sums_of_powers_of_two(bits: int) -> None:
    levels = magnitudes(bits)
    assert len(levels) == 2**bits and levels[0] == 0
    assert all(bin(level).count("1") <= (bits + 1) // 2 for level in levels)


def test_apots_4_bit_activations_are_equation_5() -> None:
    """Two terms: {0, 1, 1/4, 1/16} and {0, 1/2, 1/8, 1/32}, over their sum."""
    first, second = (0, 1, 1 / 4, 1 / 16), (0, 1 / 2, 1 / 8, 1 / 32)
    expected = sorted({(a + b) / 1.5 for a in first for b in second})
    torch.testing.assert_close(torch.tensor(magnitudes(4)) / 48, torch.tensor(expected))


def test_apot_normalizes_weights_and_learns_the_clip() -> None:
    quantizer, x = APoT(4, role="weight").double(), torch.randn(400, dtype=torch.float64) * 3 + 1
    quantizer.initialize(x)
    quantizer.clip.data.fill_(1.5)
    y = quantizer(x)
    y.sum().backward()
    normalized = (x - x.mean()) / x.std(correction=0)
    assert (y.abs() <= 1.5 + 1e-9).all() and y.unique().numel() <= 15
    inside = normalized.abs() <= 1.5
    expected = torch.where(inside, (y - normalized) / 1.5, normalized.sign()).sum() / (400 * 15) ** 0.5
    torch.testing.assert_close(quantizer.clip.grad, expected.detach())


def test_power_false_is_uq() -> None:
    layer = build_quant_layer(dict(type="APOTQuantConv2d", power=False, bit_w=4, bit_a=4), nn.Conv2d(1, 1, 1))
    assert type(layer.weight_quantizer).__name__ == "UQ" and layer.method == "UQ"


# DoReFa


@pytest.mark.parametrize("bits", [2, 3, 4, 7])
def test_dorefas_weights_are_equation_9(bits: int) -> None:
    w = torch.randn(200, dtype=torch.float64)
    quantizer = DoReFaWeight(bits, role="weight").double()
    bent = torch.tanh(w) / torch.tanh(w).abs().max()
    n = 2**bits - 1
    expected = 2 * torch.round((bent + 1) / 2 * n) / n - 1
    torch.testing.assert_close(quantizer(w), expected)
    assert set(quantizer.to_integer(w).tolist()) <= set(range(-n, n + 1, 2))


def test_dorefas_8_bit_weights_fit_int8_with_zero() -> None:
    quantizer = DoReFaWeight(8, role="weight")
    integers = quantizer.to_integer(torch.linspace(-3, 3, 10001))
    assert integers.min() == -127 and integers.max() == 127 and 0 in integers


def test_dorefas_1_bit_weights_are_signs_times_the_mean_magnitude() -> None:
    w = torch.tensor([-2.0, 0.5, 1.5], requires_grad=True)
    y = DoReFaWeight(1, role="weight")(w)
    y.sum().backward()
    torch.testing.assert_close(y.detach(), torch.tensor([-4.0, 4.0, 4.0]) / 3)
    assert w.grad.tolist() == [1, 1, 1]


def test_dorefas_inputs_are_clipped_to_one() -> None:
    y = DoReFaInput(2, signed=False)(torch.tensor([-1.0, 0.2, 0.6, 5.0]))
    torch.testing.assert_close(y, torch.tensor([0.0, 1 / 3, 2 / 3, 1.0]))
    y = DoReFaInput(2, signed=True)(torch.tensor([-5.0, -0.6, 0.2, 5.0]))
    torch.testing.assert_close(y, torch.tensor([-1.0, -1.0, 0.0, 1.0]))


# PACT


def test_pacts_clip_learns_from_clipped_values_alone() -> None:
    quantizer = PACT(4, signed=False)
    quantizer.initialize(torch.rand(1000))
    quantizer.clip.data.fill_(0.5)
    x = torch.tensor([0.1, 0.4, 0.6, 0.9, -1.0], requires_grad=True)
    quantizer(x).backward(torch.tensor([10.0, 10.0, 1.0, 2.0, 10.0]))
    torch.testing.assert_close(quantizer.clip.grad, torch.tensor(3.0))
    assert x.grad.tolist() == [10, 10, 0, 0, 0]
    assert regularization(quantizer).item() == pytest.approx(1e-4 / 2 * 0.25)


# EWGS


def test_ewgs_scales_the_gradient_by_the_rounding_error() -> None:
    quantizer = EWGS(3, signed=False, delta=0.2).double()
    quantizer.initialize(torch.tensor([0.0, 7.0]))
    quantizer.scale.data.fill_(1.0)
    x = torch.tensor([2.3, 2.3, 9.0], dtype=torch.float64, requires_grad=True)
    quantizer(x).backward(torch.tensor([2.0, -2.0, 1.0], dtype=torch.float64))
    error = 0.3 / 7
    torch.testing.assert_close(
        x.grad, torch.tensor([2 * (1 + 0.2 * error), -2 * (1 - 0.2 * error), 0.0], dtype=torch.float64)
    )


# LSQ+


def test_lsq_plus_learns_its_offset_from_values_outside() -> None:
    quantizer = LSQPlus(4).double()
    quantizer.initialize(torch.linspace(-1, 2, 100, dtype=torch.float64))
    quantizer.set_range(torch.tensor([-1.0]), torch.tensor([2.0]))
    x = torch.tensor([-3.0, -2.0, 0.33, 5.0], dtype=torch.float64, requires_grad=True)
    y = quantizer(x)
    y.sum().backward()
    factor = 1 / 15**0.5
    assert quantizer.zero_point() == 5 and (quantizer(torch.zeros(1, dtype=torch.float64)) == 0).all()
    torch.testing.assert_close(y.detach(), torch.tensor([-1.0, -1.0, 0.4, 2.0], dtype=torch.float64))
    torch.testing.assert_close(quantizer.offset.grad, torch.tensor(3 * factor, dtype=torch.float64))
    inside = 2 - 0.33 / 0.2
    torch.testing.assert_close(quantizer.scale.grad, torch.tensor((0 + 0 + inside + 15) * factor, dtype=torch.float64))
    assert x.grad.tolist() == [0, 0, 1, 0]


# PyTorch QAT


@pytest.mark.parametrize("role, per_channel", [("input", False), ("weight", False), ("weight", True)])
@pytest.mark.parametrize("reduce_range", [False, True])
def test_torch_qat_is_torchs_own_fake_quantize(role: str, per_channel: bool, reduce_range: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization = pytest.importorskip("torch.ao.quantization")
        if role == "input":
            qmax = 127 if reduce_range else 255
            oracle = quantization.FakeQuantize(
                quantization.MovingAverageMinMaxObserver, quant_min=0, quant_max=qmax, dtype=torch.quint8
            )
        else:
            low, high = (-64, 63) if reduce_range else (-128, 127)
            observer = (
                quantization.MovingAveragePerChannelMinMaxObserver
                if per_channel
                else quantization.MovingAverageMinMaxObserver
            )
            scheme = torch.per_channel_symmetric if per_channel else torch.per_tensor_symmetric
            oracle = quantization.FakeQuantize(
                observer, quant_min=low, quant_max=high, dtype=torch.qint8, qscheme=scheme
            )
        ours = MinMax(8, role=role, reduce_range=reduce_range, num_channels=4 if per_channel else None)
        torch.manual_seed(0)
        for size in (1.0, 3.0, 0.5, 8.0):
            x = torch.randn(4, 50) * size
            expected, y = oracle(x), ours(x)
            torch.testing.assert_close(
                ours._scale(), oracle.scale if per_channel else oracle.scale[0], rtol=1e-6, atol=0
            )
            assert torch.equal(ours.zero_point().int().expand(oracle.zero_point.shape), oracle.zero_point.int())
            different = (y - expected).abs() > 1e-5 * size
            assert different.sum() <= 1  # a value within an ulp of a tie
        ours.eval(), oracle.apply(quantization.disable_observer)
        x = torch.randn(4, 50) * 20
        assert ((ours(x) - oracle(x)).abs() > 1e-4).sum() <= 1


# Names


@pytest.mark.parametrize(
    "old, method",
    [
        ("LSQConv2d", "LSQ"),
        ("LSQPlusConv2d", "LSQPlus"),
        ("LSQDPlusConv2d", "LSQPlus"),
        ("DRFConv", "DoReFa"),
        ("APOTQuantConv2d", "APoT"),
    ],
)
def test_older_names_and_keys_are_understood(old: str, method: str) -> None:
    layer = build_quant_layer(dict(type=old, nbits_w=4, nbits_a=3), nn.Conv2d(2, 2, 3))
    assert layer.method == method and layer.weight_quantizer.num_bits == 4 and layer.input_quantizer.num_bits == 3


def test_eight_bit_layers_quantize_weights_unless_told_otherwise() -> None:
    layer = build_quant_layer(dict(type="EightBitQuantConv"), nn.Conv2d(2, 2, 3))
    assert layer.method == "TorchQAT" and layer.weight_quantizer.num_bits == 8 and layer.input_quantizer is None
    layer = build_quant_layer(dict(type="EightBitQuantLinear", quant_activation=True), nn.Linear(2, 2))
    assert layer.input_quantizer.num_bits == 8


def test_keys_without_a_meaning_are_named_in_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    cfg = dict(type="LSQPlusConv2d", nbits_w=4, nbits_a=4, init_method_w="x", wquant_error_loss=True, auto_signed=True)
    for _ in range(2):
        build_quant_layer(cfg, nn.Conv2d(2, 2, 3))
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert messages == ["LSQPlusConv: Ignoring init_method_w, wquant_error_loss, which have no effect here."]
    layer = build_quant_layer(dict(type="LSQConv", bit_w=4, bit_a=4, auto_signed=False), nn.Conv2d(2, 2, 3))
    layer.input_quantizer.initialize(torch.tensor([-1.0, 1.0]))
    assert not layer.input_quantizer.signed


@pytest.mark.parametrize("method", ALL)
def test_a_layer_with_channels_of_zeros_trains(method: str) -> None:
    conv = nn.Conv2d(2, 4, 3)
    conv.weight.data[1] = 0
    layer = build_quant_layer(dict(type=f"{method}Conv", num_bit_w=4, num_bit_a=4, per_channel=True), conv)
    x = torch.randn(2, 2, 6, 6)
    calibrate(layer, [x])
    layer(x).square().sum().backward()
    assert layer.weight.grad.isfinite().all()
    assert torch.isfinite(layer.weight_quantizer.qparams(layer.weight).scale).all()


def test_every_method_is_in_this_file() -> None:
    own = [name for name, method in methods.METHODS.items() if method.weight.__module__.startswith(OWN_METHODS)]
    assert set(own) == set(ALL)


@pytest.mark.parametrize("method", ALL)
def test_one_bit_is_refused_but_for_dorefas_weights(method: str) -> None:
    """PACT has DoReFa's weights. No input has 1 bit, nor any tensor 0 or 9."""

    def build(weight_bits: int, input_bits: int) -> nn.Module:
        return build_quant_layer(
            dict(type=f"{method}Conv", num_bit_w=weight_bits, num_bit_a=input_bits), nn.Conv2d(2, 2, 3)
        )

    lowest = 1 if method in ("PACT", "DoReFa") else 2
    for bits in range(lowest, 2):
        layer = build(bits, 2)
        assert layer.weight_quantizer(layer.weight).unique().numel() == 2
    for bits in (*range(lowest), 9):
        with pytest.raises(
            ConfigError, match=rf"num_bit_w\): bits must be an integer from {lowest} to 8 .*got {bits}\."
        ):
            build(bits, 2)
    for bits in (0, 1, 9):
        with pytest.raises(ConfigError, match=rf"num_bit_a\): bits must be an integer from 2 to 8 .*got {bits}\."):
            build(2, bits)
        with pytest.raises(ConfigError, match=rf"bits must be an integer from 2 to 8 .*got {bits}\."):
            methods.METHODS[method].input(bits, role="input")


def test_a_methods_name_is_taken_twice_only_on_purpose(forget_registrations: None) -> None:
    """A notebook cell that runs again registers a method again."""

    class First(LSQPlus):
        pass

    class Second(LSQPlus):
        pass

    register_method("Own", weight=First, input=First)
    with pytest.raises(ConfigError, match="'OwnConv' exists already, .*Second needs another name.*force=True"):
        register_method("Own", weight=Second, input=Second)
    assert methods.METHODS["Own"].weight is First
    register_method("Own", weight=Second, input=Second, force=True)
    layer = build_quant_layer(dict(type="OwnConv", num_bit_w=4, num_bit_a=4), nn.Conv2d(2, 2, 3))
    assert type(layer.weight_quantizer) is Second

"""N2UQ against the formulas of its paper, written here in float64, and against its exported form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lbitcls.deploy.export.lowering import LoweredInput, lower
from lbitcls.deploy.verification.integer import integer_model
from lbitcls.deploy.verification.reference import reference_model
from lbitcls.quant.calibration import calibrate
from lbitcls.quant.kernels.piecewise import MARGIN, positions, steps_of
from lbitcls.quant.methods import build_quant_layer
from lbitcls.quant.quantizers.n2uq import N2UQInput, N2UQWeight

STEP = 0.7


def uneven(bits: int, signed: bool) -> N2UQInput:
    """Return a float64 quantizer with uneven lengths and a step that is not theirs."""
    quantizer = N2UQInput(bits, signed=signed).double()
    quantizer.initialize(torch.tensor([-1.0 if signed else 0.0, 1.0], dtype=torch.float64))
    generator = torch.Generator().manual_seed(bits)
    quantizer.lengths.data = torch.rand(2**bits - 1, generator=generator, dtype=torch.float64) + 0.3
    quantizer.scale.data.fill_(STEP)
    return quantizer


def stairs(x: Tensor, lengths: Tensor) -> Tensor:
    """The paper's forward pass: the number of thresholds T_i = d_(i-1) + a_i / 2 below each value."""
    steps, start = torch.zeros_like(x), torch.zeros((), dtype=x.dtype)
    for length in lengths:
        steps = steps + (x > start + length / 2).to(x.dtype)
        start = start + length
    return steps


def line(x: Tensor, lengths: Tensor) -> Tensor:
    """The paper's backward pass: a line from i - 1 to i over the length a_i of each segment, constant outside."""
    value, start = torch.zeros_like(x), torch.zeros((), dtype=x.dtype)
    for length in lengths:
        value = value + ((x - start) / length).clamp(0, 1)
        start = start + length
    return value


def mirrored(function, x: Tensor, lengths: Tensor, signed: bool) -> Tensor:
    return x.sign() * function(x.abs(), lengths) if signed else function(x, lengths)


each_sign = pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])


@each_sign
@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_the_value_counts_the_thresholds_below(bits: int, signed: bool) -> None:
    quantizer = uneven(bits, signed)
    lengths = quantizer.lengths.detach()[: quantizer.quant_max]
    x = torch.linspace(-1.2, 1.2, 998, dtype=torch.float64) * lengths.sum()
    torch.testing.assert_close(quantizer(x).detach(), STEP * mirrored(stairs, x, lengths, signed))


@each_sign
@pytest.mark.parametrize("bits", [2, 4, 6])
def test_the_gradients_are_those_of_the_line(bits: int, signed: bool) -> None:
    """The generalized straight-through estimator, and the step's gradient: the number of steps."""
    quantizer = uneven(bits, signed)
    x = torch.linspace(-1.2, 1.2, 998, dtype=torch.float64) * quantizer.lengths[: quantizer.quant_max].sum().item()
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = x.clone().requires_grad_()
    quantizer(ours).backward(upstream)
    expected, lengths = x.clone().requires_grad_(), quantizer.lengths.detach().clone().requires_grad_()
    used = lengths[: quantizer.quant_max]
    (STEP * mirrored(line, expected, used, signed)).backward(upstream)
    factor = 1 / quantizer.quant_max**0.5  # one feature in a sample
    torch.testing.assert_close(ours.grad, expected.grad)
    torch.testing.assert_close(quantizer.lengths.grad, factor * lengths.grad)
    steps = mirrored(stairs, x, used.detach(), signed)
    torch.testing.assert_close(quantizer.scale.grad, factor * (upstream * steps).sum())


def test_a_length_near_zero_or_below_keeps_a_segment_and_its_gradient() -> None:
    quantizer = uneven(2, signed=False)
    quantizer.lengths.data = torch.tensor([2.0, 1e-9, -1.0], dtype=torch.float64)
    torch.testing.assert_close(quantizer.thresholds(), torch.tensor([1.0, 2.005, 2.51], dtype=torch.float64))
    quantizer(torch.tensor([2.002, 2.5], dtype=torch.float64)).sum().backward()
    assert (quantizer.lengths.grad != 0).all()


def test_new_first_values_forget_the_thresholds() -> None:
    quantizer, x = uneven(3, signed=False), torch.rand(500, dtype=torch.float64)
    quantizer.initialize(x)
    fresh = N2UQInput(3, signed=False).double()
    fresh.initialize(x)
    assert torch.equal(quantizer.lengths, fresh.lengths) and torch.equal(quantizer.scale, fresh.scale)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 7])
def test_weights_are_the_papers(bits: int, per_channel: bool) -> None:
    w = torch.randn(4, 60, dtype=torch.float64, requires_grad=True)
    quantizer = N2UQWeight(bits, role="weight", num_channels=4 if per_channel else None).double()
    mean = w.detach().abs().mean(1, keepdim=True) if per_channel else w.detach().abs().mean()
    n = 2**bits - 1
    clip = mean * n / 2 ** (bits - 1)
    levels = 2 * torch.round(((w.detach() / clip).clamp(-1, 1) + 1) / 2 * n) / n - 1
    y = quantizer(w)
    torch.testing.assert_close(y.detach(), levels * clip)
    y.sum().backward()
    assert (w.grad == 1).all()  # also where clipped


def test_the_levels_of_weights_are_used_more_evenly_than_between_their_extremes() -> None:
    """What the paper's normalization is for: the entropy of the levels."""
    w = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    integers = N2UQWeight(2, role="weight").to_integer(w)
    ours = integers.unique(return_counts=True)[1] / w.numel()
    between_extremes = ((w / w.abs().max() + 1) / 2 * 3).round().unique(return_counts=True)[1] / w.numel()
    entropy, other = (-(p * p.log2()).sum() for p in (ours, between_extremes))
    assert entropy > 1.95 and other < 1.6


@pytest.mark.parametrize("knots", [4, 300])
def test_positions_are_interpolation(knots: int) -> None:
    np = pytest.importorskip("numpy")
    ends = torch.cat([torch.zeros(1), torch.rand(knots, generator=torch.Generator().manual_seed(0)) + 0.1]).cumsum(0)
    x = torch.rand(3, 4, 5, 6).mul(ends[-1]).to(memory_format=torch.channels_last)
    expected = np.interp(x.numpy(), ends.numpy(), range(knots + 1))
    torch.testing.assert_close(positions(x, ends), torch.tensor(expected).float(), rtol=1e-4, atol=MARGIN + 1e-4)
    assert positions(torch.tensor([torch.nan]), ends).isnan()


@each_sign
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_value_at_a_threshold_and_its_neighbors_fall_as_they_are_compared(bits: int, signed: bool) -> None:
    """In float32, too: no rounding error of the line moves a value across, so training and export agree exactly."""
    quantizer = uneven(bits, signed).float()
    for seed in range(10):
        torch.manual_seed(seed)
        quantizer.lengths.data = torch.rand(2**bits - 1) * 3 + 0.01
        thresholds, step = quantizer.thresholds(), torch.tensor(STEP)
        above, below = (torch.nextafter(thresholds, torch.tensor(end)) for end in (torch.inf, -torch.inf))
        number = torch.arange(quantizer.quant_max).float()
        for x, expected in ((above, number + 1), (thresholds, number), (below, number)):
            for sign in (1, -1) if signed else (1,):
                assert torch.equal(quantizer(sign * x), sign * expected * step)
                assert torch.equal(steps_of(sign * x, thresholds, signed), sign * expected)


def network(bits: int) -> tuple[nn.Module, Tensor]:
    """A signed and an unsigned input with uneven thresholds."""
    torch.manual_seed(0)
    options = dict(num_bit_w=bits, num_bit_a=bits, per_channel=True)
    net = nn.Sequential(
        build_quant_layer(dict(type="N2UQConv", **options), nn.Conv2d(3, 4, 3)),
        nn.ReLU(),
        build_quant_layer(dict(type="N2UQConv", **options), nn.Conv2d(4, 4, 3)),
    )
    x = torch.randn(16, 3, 8, 8)
    calibrate(net, [x])
    for quantizer in (layer.input_quantizer for layer in (net[0], net[2])):
        quantizer.lengths.data.mul_(torch.rand_like(quantizer.lengths) + 0.5)
    return net.eval(), x


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_lowered_and_integer_models_bend_their_inputs_too(bits: int) -> None:
    net, x = network(bits)
    y = net(x)
    assert torch.equal(lower(net)[0].input(x), net[0].input_quantizer(x))
    torch.testing.assert_close(lower(net)(x), y)
    exact = reference_model(net, torch.float64)(x.double())
    torch.testing.assert_close(integer_model(net)(x.double()), exact)
    assert ((exact - y).abs() > 1e-5).float().mean() < 0.02  # values beside a threshold may fall to the other side


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 8])
def test_the_exported_model_has_the_thresholds(bits: int) -> None:
    """Few thresholds are compared one by one, many are searched."""
    ort = pytest.importorskip("onnxruntime")
    net, x = network(bits)
    program = torch.onnx.export(lower(net), (x,), dynamo=True, verbose=False)
    session = ort.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert ((torch.tensor(y) - net(x)).abs() > 1e-5).float().mean() < 0.02


@pytest.mark.slow
@each_sign
@pytest.mark.parametrize("bits", [2, 8])
def test_the_exported_input_falls_as_in_training_beside_every_threshold(bits: int, signed: bool) -> None:
    ort = pytest.importorskip("onnxruntime")
    quantizer = uneven(bits, signed).float().eval()
    thresholds = quantizer.thresholds()
    above, below = (torch.nextafter(thresholds, torch.tensor(end)) for end in (torch.inf, -torch.inf))
    x = torch.cat([above, thresholds, below, -above, -thresholds, -below, torch.zeros(1)])
    program = torch.onnx.export(LoweredInput(quantizer.qparams()).eval(), (x,), dynamo=True, verbose=False)
    session = ort.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.equal(torch.tensor(y), quantizer(x).detach())

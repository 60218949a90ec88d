"""Calibration, values that are not finite, and the size of a quantized model."""

import random

import pytest
import torch
from torch import Tensor, nn

from lbitcls.quant import build_mtransformer, model_size
from lbitcls.quant.calibration import calibrate, quantizer_parameters, set_quantization, uninitialized
from lbitcls.quant.methods import METHODS
from lbitcls.quant.ranges import RULES
from lbitcls.registry import QUANT_LAYERS
from lbitcls.utils.errors import DataError

QUANT_LAYERS.names()  # imports every method
BAD = [float("nan"), float("inf"), float("-inf")]


def model(**options: object) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Conv2d(4, 4, 3))
    entry = dict(type="LSQConv", num_bit_w=4, num_bit_a=4, **options)
    return build_mtransformer(dict(type="ModelTransformer", quan_policy=dict(Conv2d=entry)))(net)


def test_calibration_initialises_everything_once_and_leaves_the_rest_alone() -> None:
    net, x = model(), torch.randn(8, 3, 8, 8)
    state = torch.random.get_rng_state()
    norm = {k: v.clone() for k, v in net[1].state_dict().items()}
    assert calibrate(net.train(), [x, {"img": x}]) == 4
    assert not uninitialized(net) and net.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(v, norm[k]) for k, v in net[1].state_dict().items())
    scale = net[0].input_quantizer.scale.detach().clone()
    assert calibrate(net, [x * 100]) == 0 and torch.equal(net[0].input_quantizer.scale, scale)


def test_the_first_scale_of_inputs_uses_all_batches() -> None:
    net, batches = model(), [torch.rand(8, 3, 8, 8), torch.rand(8, 3, 8, 8) * 3]
    net[0].input_quantizer.init = "paper"
    calibrate(net, batches)
    mean = torch.stack(batches).abs().mean()
    torch.testing.assert_close(net[0].input_quantizer.scale.detach(), 2 * mean / 15**0.5)
    assert not net[0].input_quantizer.signed


def test_no_data_is_an_error_that_names_the_layer() -> None:
    with pytest.raises(DataError, match=r"no data reached 0\.input_quantizer and 1 others"):
        calibrate(model(), [])


def test_a_layer_that_the_forward_pass_leaves_out_is_named() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = model(), model()[0]

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    with pytest.raises(DataError, match=r"no data reached spare\.input_quantizer;"):
        calibrate(Unused(), [torch.randn(1, 3, 8, 8)])


def test_size_counts_weights_at_their_bits_while_quantization_is_on() -> None:
    net = model(per_channel=True)
    weights, rest = 4 * 3 * 9 + 4 * 4 * 9, 4 + 4 + 4 * 4  # biases, BatchNorm's four vectors
    assert model_size(net)["float_kib"] * 1024 == 4 * (weights + rest)
    scales = 2 * (4 + 1) * 8
    assert model_size(net)["quantized_kib"] * 1024 == weights / 2 + 4 * rest + scales
    set_quantization(net, False)
    assert model_size(net)["quantized_kib"] == model_size(net)["float_kib"]
    assert len(quantizer_parameters(net)) == 4


def of_method(method: str) -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    policy = {k: dict(type=f"{method}{s}", num_bit_w=4, num_bit_a=4) for k, s in (("Conv2d", "Conv"), ("Linear",) * 2)}
    return build_mtransformer(dict(type="ModelTransformer", quan_policy=policy))(net)


@pytest.mark.parametrize("rule", [None, *RULES])
@pytest.mark.parametrize("method", METHODS)
def test_images_that_are_not_finite_are_an_error_that_names_the_batch(method: str, rule: str | None) -> None:
    draw = random.Random(f"{method} {rule}")
    for bad in BAD:
        batches = [torch.randn(4, 3, 6, 6) for _ in range(3)]
        number, place = draw.randrange(3), draw.randrange(4)
        batches[number][place].view(-1)[draw.randrange(108)] = bad
        net = of_method(method)
        message = (
            rf"1 of 4 images of batch {number} \(counted from 0\), the first at index {place}, contain NaN or infinite"
        )
        with pytest.raises(DataError, match=message):
            calibrate(net, batches, rule)
        assert all(p.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("method", METHODS)
def test_weights_that_are_not_finite_are_an_error_that_names_the_layer(method: str, bad: float) -> None:
    net = of_method(method)
    net[3].weight.data[1, 2] = bad
    with pytest.raises(DataError, match=r"calibration: 3\.weight contains values that are NaN or infinite"):
        calibrate(net, [torch.randn(2, 3, 6, 6)])
    if net[3].weight_quantizer.needs_data:
        with pytest.raises(DataError, match=r"3\.weight_quantizer cannot be initialized: .* 1 of 320 values"):
            net.train()(torch.randn(2, 3, 6, 6))


def test_a_layer_that_overflows_is_named() -> None:
    net = of_method("LSQ")
    net[0].weight.data.fill_(1e38)
    with pytest.raises(DataError, match=r"what reaches 3\.input_quantizer for batch 1 .* an earlier layer overflows"):
        calibrate(net, [torch.zeros(2, 3, 6, 6), torch.full((2, 3, 6, 6), 9.0)])


@pytest.mark.parametrize("method", METHODS)
def test_the_first_batch_of_training_is_looked_at_too(method: str) -> None:
    net, x = of_method(method), torch.randn(2, 3, 6, 6)
    x[0, 0, 0, 0] = float("nan")
    if net[0].input_quantizer.needs_data:
        with pytest.raises(DataError, match=r"0\.input_quantizer cannot be initialized: .* 1 of 216 values"):
            net.train()(x)
    assert not net[0].input_quantizer.initialized


@pytest.mark.parametrize("rule", [None, *RULES])
@pytest.mark.parametrize("method", METHODS)
def test_values_so_large_that_a_grid_would_not_be_finite(method: str, rule: str | None) -> None:
    """For the largest floats every method yields finite parameters, or an error."""
    quantizer = of_method(method)[0].input_quantizer
    try:
        quantizer.initialize(torch.tensor([-3.4e38, 0.0, 3.4e38]), RULES.get(str(rule)))
    except DataError as error:
        assert "its grid contains" in str(error) and not quantizer.initialized
    else:
        assert all(p.isfinite().all() for p in quantizer.parameters())
        assert quantizer.qparams().scale.isfinite().all()

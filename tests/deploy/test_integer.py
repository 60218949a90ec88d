"""The integer reference equals the fake-quantized model in float64, up to the rounding of the final scale."""

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lbitcls.deploy.verification.integer import (
    LARGEST_ACCUMULATOR,
    AccumulatorError,
    integer_model,
    is_integer,
    largest_accumulator,
    layers_in_float,
)
from lbitcls.deploy.verification.reference import reference_model
from lbitcls.quant import calibrate
from lbitcls.quant.layers import ENTRY_SUFFIXES, QuantLayer
from lbitcls.quant.methods import METHODS, build_quant_layer
from lbitcls.quant.quantizer_errors import NotInitializedError
from lbitcls.registry import QUANT_LAYERS

QUANT_LAYERS.names()  # imports every method
KINDS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "plain": lambda: (nn.Conv2d(6, 8, 3, padding=1), (4, 6, 9, 7)),
    "strided": lambda: (nn.Conv2d(6, 8, (3, 5), stride=2, padding=(0, 2), bias=False), (4, 6, 9, 7)),
    "reflect": lambda: (nn.Conv2d(6, 8, 3, padding=2, padding_mode="reflect"), (4, 6, 9, 7)),
    "replicate": lambda: (nn.Conv2d(6, 8, 3, padding=2, padding_mode="replicate"), (4, 6, 9, 7)),
    "circular": lambda: (nn.Conv2d(6, 8, 3, padding=1, padding_mode="circular"), (4, 6, 9, 7)),
    "same": lambda: (nn.Conv2d(6, 8, (5, 3), padding="same", dilation=(1, 2)), (4, 6, 9, 7)),
    "grouped": lambda: (nn.Conv2d(6, 8, 3, padding=1, groups=2), (4, 6, 9, 7)),
    "depthwise": lambda: (nn.Conv2d(6, 12, 3, padding=1, groups=6), (4, 6, 9, 7)),
    "one image": lambda: (nn.Conv2d(6, 8, 3, padding=1), (6, 9, 7)),
    "Conv1d": lambda: (nn.Conv1d(6, 8, 5, padding=2, stride=2), (4, 6, 21)),
    "circular Conv1d": lambda: (nn.Conv1d(6, 8, 5, padding=2, padding_mode="circular"), (4, 6, 21)),
    "transposed": lambda: (nn.ConvTranspose2d(6, 8, 3, stride=2, padding=1, output_padding=1), (4, 6, 5, 4)),
    "grouped transposed": lambda: (nn.ConvTranspose2d(6, 8, 3, stride=2, groups=2, bias=False), (4, 6, 5, 4)),
    "Linear": lambda: (nn.Linear(6, 8), (4, 6)),
    "tokens": lambda: (nn.Linear(6, 8), (4, 5, 6)),
}


def quantized(kind: str, method: str, bits: int = 4, **options: object) -> tuple[nn.Module, Tensor]:
    """Return a calibrated layer, and an input with negative values that is mostly above zero."""
    layer, shape = KINDS[kind]()
    entry = method + ENTRY_SUFFIXES[type(layer).__name__]
    layer = build_quant_layer(dict(type=entry, num_bit_w=bits, num_bit_a=bits, **options), layer)
    x = torch.randn(shape) + 0.7
    calibrate(layer, [x])
    return layer.eval(), x.double()


def assert_same(model: nn.Module, x: Tensor, *args: object) -> nn.Module:
    """Return the integer reference of `model`; check that both agree in float64 on `x`."""
    integer, reference = integer_model(model), reference_model(model, torch.float64)
    run = [getattr(m, "predict", m) for m in (integer, reference)]
    given, expected = (r(x.double(), *args) for r in run)
    assert given.dtype is torch.float64 and given.isfinite().all() and given.abs().max() > 0
    assert (given - expected).abs().max() <= 1e-12 * expected.abs().max()
    return integer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["LSQ", "LSQPlus"])  # without and with a zero point
def test_layers_agree_with_float64(kind: str, method: str) -> None:
    layer, x = quantized(kind, method)
    assert method == "LSQ" or layer.input_quantizer.zero_point() > 0
    assert is_integer(assert_same(layer, x))


@pytest.mark.parametrize("method", METHODS)
def test_models_of_every_method_agree_with_float64_on_digits(method: str, make_resnet, digits: Tensor) -> None:
    model = make_resnet(method)
    integer = assert_same(model, digits[:100])
    layers = [m for m in integer.modules() if isinstance(m, QuantLayer)]
    assert len(layers) == 8 and all(is_integer(layer) for layer in layers)
    assert not layers_in_float(integer)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, bits, per_channel", list(itertools.product(METHODS, range(2, 9), [False, True])), ids=str
)
def test_every_method_and_width(method: str, bits: int, per_channel: bool, make_resnet, digits: Tensor) -> None:
    assert_same(make_resnet(method, bits, per_channel=per_channel), digits)


@pytest.mark.slow
@pytest.mark.parametrize("kind, method", list(itertools.product(KINDS, METHODS)))
def test_every_method_and_kind_of_layer(kind: str, method: str) -> None:
    per_channel = kind != "grouped transposed"
    for bits in (2, 4, 8):
        assert_same(*quantized(kind, method, bits, per_channel=per_channel))


def test_a_folded_batchnorm_is_divided_out_again(make_resnet, digits: Tensor) -> None:
    model = make_resnet("TorchQAT", 8, fold_bn=True)
    folded = [m for m in model.modules() if getattr(m, "folded_norm", ())]
    assert len(folded) == 7 and any((m.fold_factor() < 0).any() for m in folded)
    assert_same(model, digits[:100])


def test_accumulators_are_those_of_stored_codes_with_a_correction_for_the_zero_point() -> None:
    """int64 throughout: pad the codes with the zero point, add up the products, subtract z · Σ w."""
    layer, x = quantized("plain", "LSQPlus", per_channel=True)
    integer = integer_model(layer)
    zero_point = int(layer.input_quantizer.zero_point())
    codes = integer.input_quantizer.to_integer(x).long()
    assert codes.min() >= 0 and codes.max() <= 15 and zero_point > 0
    weight = layer.weight_quantizer.to_integer(layer.weight.double()).long()
    patches = F.pad(codes, (1, 1, 1, 1), value=zero_point).unfold(2, 3, 1).unfold(3, 3, 1)
    sums = torch.einsum("nchwij,ocij->nohw", patches, weight)
    sums = sums - zero_point * weight.sum((1, 2, 3)).view(1, -1, 1, 1)
    assert sums.abs().max() <= integer.largest_accumulator
    scale = layer.input_quantizer.qparams().scale.double() * layer.weight_quantizer.qparams().scale.double()
    expected = sums * scale.view(-1, 1, 1) + layer.bias.double().view(-1, 1, 1)
    assert torch.equal(integer(x), expected)


def test_a_transposed_convolution_takes_its_output_size() -> None:
    layer, x = quantized("grouped transposed", "LSQPlus")
    assert_same(layer, x, [12, 10])


def test_apot_inputs_are_integers_times_one_scale(make_resnet, digits: Tensor) -> None:
    integer = integer_model(make_resnet("APoT"))
    quantizer = integer.backbone.layer1[0].conv1.input_quantizer
    assert set(quantizer.to_integer(digits.double()).unique().tolist()) <= set(quantizer.levels().tolist())
    assert quantizer.levels().diff().unique().numel() > 1


def test_the_model_is_left_as_it_was(make_resnet, digits: Tensor) -> None:
    model = make_resnet("LSQ").train()
    before = copy.deepcopy(model.state_dict())
    integer = integer_model(model)
    integer.predict(digits[:2].double())
    assert model.training and not integer.training and not any(is_integer(m) for m in model.modules())
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], v) for k, v in after.items())
    assert all(a.dtype == b.dtype for a, b in zip(before.values(), after.values()))


def test_a_layer_that_is_used_twice_is_one_integer_layer() -> None:
    x = torch.randn(4, 6)
    shared = build_quant_layer(dict(type="LSQLinear", num_bit_w=4, num_bit_a=4), nn.Linear(6, 6))
    model = nn.Sequential(shared, nn.ReLU(), shared)
    calibrate(model, [x])
    integer = assert_same(model, x)
    assert integer[0] is integer[2]


def test_what_is_quantized_on_one_side_only_stays_float_and_is_named() -> None:
    layers = [
        build_quant_layer(dict(type="LSQLinear", num_bit_w=4, num_bit_a=bits), nn.Linear(6, 6)) for bits in (4, 32)
    ]
    layers.append(build_quant_layer(dict(type="LSQLinear", num_bit_w=32, num_bit_a=4), nn.Linear(6, 6)))
    layers.append(build_quant_layer(dict(type="LSQLinear", num_bit_w=4, num_bit_a=4), nn.Linear(6, 6)))
    model, x = nn.Sequential(*layers), torch.randn(4, 6)
    calibrate(model, [x])
    model[3].input_quantizer.enable(False)
    integer = assert_same(model, x)
    assert [is_integer(m) for m in integer] == [True, False, False, False]
    assert layers_in_float(integer) == {
        "1": "its input is float",
        "2": "its weight is float",
        "3": "its input is float",
    }


def test_a_quantizer_without_first_values_is_named() -> None:
    model = nn.Sequential(build_quant_layer(dict(type="LSQLinear", num_bit_w=4, num_bit_a=4), nn.Linear(6, 6)))
    with pytest.raises(NotInitializedError, match=r"0\.weight_quantizer and 1 others never saw data"):
        integer_model(model)


@pytest.mark.parametrize("features, fits", [(66311, True), (66312, False)])
def test_accumulators_that_could_exceed_int32_are_refused(features: int, fits: bool) -> None:
    """127 · 255 · 66,311 is the largest such sum that fits into int32."""
    linear = nn.Linear(features, 1)
    nn.init.constant_(linear.weight, 1.0)
    layer = build_quant_layer(dict(type="LSQLinear", num_bit_w=8, num_bit_a=8, signed=False), linear)
    x = torch.rand(1, features)
    calibrate(layer, [x], "minmax")
    model = nn.Sequential(layer)
    bound = 127 * 255 * features
    assert (bound <= LARGEST_ACCUMULATOR) is fits
    if fits:
        assert largest_accumulator(assert_same(model, x)) == ("0", bound)
    else:
        with pytest.raises(AccumulatorError, match=f"^0: a sum may reach {bound:,}, beyond the 2,147,483,647 of int32"):
            integer_model(model)


def test_the_bound_of_a_transposed_convolution_counts_the_inputs_of_its_group() -> None:
    layer, _ = quantized("grouped transposed", "LSQ")
    codes = layer.weight_quantizer.to_integer(layer.weight).abs()  # (6, 4, 3, 3): 2 groups of 3 inputs, 4 outputs
    sums = [codes[3 * g : 3 * g + 3, o].sum() for g in range(2) for o in range(4)]
    assert integer_model(layer).largest_accumulator == 8 * int(max(sums))


def test_float_models_have_no_accumulators() -> None:
    model = nn.Sequential(nn.Linear(3, 3)).double()
    integer, x = integer_model(model), torch.randn(2, 3).double()
    assert torch.equal(integer(x), model(x)) and largest_accumulator(integer) is None

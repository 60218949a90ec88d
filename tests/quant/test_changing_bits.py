"""Other bits in training: every method keeps its tensors and its range, and is then a quantizer of the new bits."""

import copy
import itertools
import math

import pytest
import torch
from test_contract import Case, data, make, values_of_grid
from torch import Tensor, nn

from lbitcls.core.ema import ModelEMA
from lbitcls.quant import calibrate
from lbitcls.quant.changing_bits import change_bits, check_stages, saved_stage, set_bits
from lbitcls.quant.methods import METHODS, build_quant_layer
from lbitcls.quant.quantizer import Quantizer
from lbitcls.quant.quantizers.lsq import LSQ
from lbitcls.quant.quantizers.minmax import MinMax
from lbitcls.registry import QUANT_LAYERS
from lbitcls.utils.errors import ConfigError

QUANT_LAYERS.names()  # imports every method

CASES: list[tuple[Case, int]] = [
    ((name, role, bits, per_channel, signed), new)
    for name, role, (bits, new) in itertools.product(METHODS, ("weight", "input"), [(8, 4), (4, 3), (3, 2), (2, 8)])
    for per_channel, signed in ([(False, True), (True, True)] if role == "weight" else [(False, True), (False, False)])
    if not getattr(METHODS[name], role).bits_are_fixed
]
each_case = pytest.mark.parametrize(
    ("case", "new"),
    CASES,
    ids=[f"{c[0]}-{c[1]}-{c[2]}to{n}{'-channel' * c[3]}{'-signed' * c[4]}" for c, n in CASES],
)
STEPS = ("LSQ", "EWGS", "LSQPlus")


def trained(case: Case) -> Quantizer:
    """Return a quantizer whose parameters have left their first values."""
    quantizer = make(case).train()
    x = data(case).requires_grad_()
    optimizer = torch.optim.SGD([x, *quantizer.parameters()], 0.05)
    for _ in range(3):
        (quantizer(x) - 0.8 * x.detach()).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return quantizer


def ends(quantizer: Quantizer) -> Tensor:
    values = values_of_grid(quantizer, torch.zeros(3, 4))
    return torch.stack([values.amin(1), values.amax(1)])


def check_range(case: Case, quantizer: Quantizer, before: dict[str, Tensor], old: Tensor) -> None:
    if case[0] in STEPS and (case[0] != "LSQPlus" or case[1] == "weight"):
        assert torch.allclose(ends(quantizer)[1], old[1], rtol=1e-6)
    elif case[0] == "LSQPlus":
        step = ends(quantizer).diff(dim=0).abs() / (2**quantizer.num_bits - 1)
        assert torch.allclose(ends(quantizer).diff(dim=0), old.diff(dim=0), rtol=1e-6)
        assert ((ends(quantizer) - old).abs() <= step / 2 + 1e-6).all()  # the zero point is an integer
    else:
        after = quantizer.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before if name != "grid")


@each_case
def test_quantizer_is_one_of_the_new_bits_with_the_same_range(case: Case, new: int) -> None:
    quantizer = trained(case)
    tensors = {**dict(quantizer.named_parameters()), "lowest": getattr(quantizer, "lowest", None)}
    before, old = copy.deepcopy(quantizer.state_dict()), ends(quantizer)
    change_bits(quantizer, new)
    check_range(case, quantizer, before, old)
    fresh = make((case[0], case[1], new, *case[3:]))
    fresh.load_state_dict(quantizer.state_dict())  # checks the grid, and the shapes
    assert all(getattr(quantizer, name) is tensor for name, tensor in tensors.items() if tensor is not None)
    x = data(case, seed=1)
    for mode in (False, True):
        assert torch.equal(quantizer.train(mode)(x), fresh.train(mode)(x))
    assert torch.equal(quantizer.to_integer(x), fresh.to_integer(x))
    assert quantizer.grid_facts() == fresh.grid_facts()


def test_formula_of_a_learned_step() -> None:
    quantizer = trained(("LSQ", "weight", 8, True, True))
    scale = quantizer.scale.detach().double()
    change_bits(quantizer, 4)
    assert torch.allclose(quantizer.scale.double(), scale.abs() * 127 / 7, rtol=1e-6)
    change_bits(quantizer, 2)
    assert torch.allclose(quantizer.scale.double(), scale.abs() * 127, rtol=1e-6)
    unsigned = trained(("LSQ", "input", 8, False, False))
    scale = unsigned.scale.detach().double()
    change_bits(unsigned, 3)
    assert unsigned.scale.item() == pytest.approx(abs(scale.item()) * 255 / 7, rel=1e-6)


def test_options_and_defaults_that_depend_on_the_bits() -> None:
    given, default = LSQ(4, role="weight", narrow_range=False), LSQ(4, role="weight")
    for quantizer in (given, default):
        change_bits(quantizer, 8)
    assert (given.quant_min, default.quant_min) == (-128, -127)
    change_bits(default, 4)
    assert default.quant_min == -8
    reduced = MinMax(8, reduce_range=True)
    change_bits(reduced, 4)
    assert reduced.quant_max == 7
    with pytest.raises(ConfigError, match="2 to 8"):
        change_bits(default, 1)
    assert default.num_bits == 4


def test_quantizer_without_values_has_none_afterwards() -> None:
    quantizer = LSQ(2)
    change_bits(quantizer, 8)
    assert not quantizer.is_initialized and quantizer.scale == 1
    known = trained(("LSQ", "input", 8, False, False))
    known.init = "paper"
    change_bits(known, 4, keep_range=False)
    assert not known.is_initialized
    x = data(("LSQ", "input", 4, False, False))
    known.train()(x)
    assert known.scale.item() == pytest.approx(2 * x.abs().mean().item() / math.sqrt(known.quant_max))


class Stepped(Quantizer):
    """User's quantizer with a learned step, which knows nothing of a change of bits."""

    formula = LSQ.formula

    def __init__(self, num_bits: int, **kwargs: object) -> None:
        super().__init__(num_bits, **kwargs)
        self.step = nn.Parameter(torch.ones(()))

    def grid(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.step, self.low, self.high

    def first_values(self, x: Tensor) -> None:
        self.set_range(x.amin(), x.amax())

    def set_range(self, lower: Tensor, upper: Tensor) -> None:
        self.step.copy_(upper.reshape(()) / self.quant_max)


def test_users_quantizer_keeps_its_range() -> None:
    quantizer = Stepped(8)
    quantizer.initialize(torch.tensor([0.0, 3.0]))
    change_bits(quantizer, 2)
    assert (quantizer.step * 3).item() == pytest.approx(3.0)


def network(method: str = "LSQ", final: int = 2) -> nn.Sequential:
    def layer(bits: int, *sizes: int) -> nn.Module:
        entry = dict(type=f"{method}Conv", num_bit_w=bits, num_bit_a=bits)
        return build_quant_layer(entry, nn.Conv2d(*sizes))

    return nn.Sequential(layer(8, 3, 4, 3), nn.ReLU(), layer(final, 4, 4, 3), nn.ReLU(), layer(4, 4, 4, 3))


def bits_of(model: nn.Module) -> list[tuple[int, int]]:
    return [(layer.weight_quantizer.num_bits, layer.input_quantizer.num_bits) for layer in model[::2]]


def test_layers_have_the_bits_of_the_stage_or_their_own_if_more() -> None:
    model = network()
    assert set_bits(model, (8, 6)) == 4
    assert bits_of(model) == [(8, 8), (8, 6), (8, 6)]
    assert set_bits(model, (3, 3)) == 4
    assert bits_of(model) == [(8, 8), (3, 3), (4, 4)]
    assert set_bits(model, (2, 2)) == 2
    assert set_bits(model, (2, 2)) == 0


def test_saved_weights_tell_their_stage() -> None:
    pairs = [(8, 8), (4, 4), (2, 2)]
    model = network()
    for number, pair in enumerate(pairs):
        set_bits(model, pair)
        assert saved_stage(network(), model.state_dict(), pairs) == number
    set_bits(model, (3, 3))
    assert saved_stage(network(), model.state_dict(), pairs) is None
    assert saved_stage(network(), {}, pairs) is None


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(8, 8), (3, 3)], "which are 2 for weights; got 3"),
        ([(8, 8), (2, 4)], "which are 2 for inputs; got 4"),
    ],
)
def test_stages_end_at_the_bits_of_the_config(pairs: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_stages(network(), pairs)
    check_stages(network(), [(8, 8), (2, 2)])


def test_stage_that_changes_nothing_is_refused() -> None:
    layer = build_quant_layer(dict(type="LSQConv", num_bit_w=2, quant_activation=False), nn.Conv2d(3, 3, 1))
    with pytest.raises(ConfigError, match=r"bits\[1\] changes no layer"):
        check_stages(nn.Sequential(layer), [(4, 8), (4, 4), (2, 4)])


@pytest.mark.parametrize("method", METHODS)
def test_averaged_model_and_cached_weights_follow(method: str) -> None:
    model = network(method)
    set_bits(model, (8, 2 if METHODS[method].input.bits_are_fixed else 8))
    x = torch.randn(2, 3, 9, 9)
    calibrate(model, [x])
    ema = ModelEMA(model, decay=0.5)
    with torch.no_grad():
        before = model.eval()(x)  # caches the weights
        for one in (model, ema.module):
            set_bits(one, (2, 2))
        after, averaged = model(x), ema.module(x)
        assert not torch.equal(before, after) and torch.equal(after, averaged)
        renewed = copy.deepcopy(model)  # without a cache
        assert torch.equal(renewed(x), after)
    model.train()(x)
    ema.update(model)  # shapes fit


def test_thresholds_have_the_bits_of_the_config_in_every_stage() -> None:
    """N2UQ's inputs have a parameter for each threshold; its weights change their bits as all do."""
    model = network("N2UQ")
    with pytest.raises(ConfigError, match=r"2\.input_quantizer \(N2UQInput, 2 bits\) cannot change its bits"):
        check_stages(model, [(8, 8), (2, 2)])
    with pytest.raises(ConfigError, match="give inputs the bits of quant_transformer in every stage"):
        change_bits(model[2].input_quantizer, 4)
    assert model[2].input_quantizer.num_bits == 2
    pairs = [(8, 2), (4, 2), (2, 2)]
    check_stages(model, pairs)
    for pair in pairs:
        set_bits(model, pair)
    assert bits_of(model) == [(8, 8), (2, 2), (4, 4)]

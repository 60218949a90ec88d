"""Contract of every registered quantizer, for all methods, bits, granularities and signs."""

import copy
import itertools
import pickle
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lbitcls.quant.kernels import select_kernels
from lbitcls.quant.methods import METHODS
from lbitcls.quant.quantizer import GRID, NotInitializedError, Quantizer, ScaleError
from lbitcls.quant.spec import along
from lbitcls.registry import QUANT_LAYERS

QUANT_LAYERS.names()  # imports every method

Case = tuple[str, str, int, bool, bool]  # method, role, bits, per channel, signed

CASES: list[Case] = [
    (name, role, bits, per_channel, signed)
    for name, role, bits in itertools.product(METHODS, ("weight", "input"), range(1, 9))
    for per_channel, signed in ([(False, True), (True, True)] if role == "weight" else [(False, True), (False, False)])
    if bits >= (METHODS[name].weight.lowest_bits if role == "weight" else 2)
]
NORMALIZED: list[Case] = [
    (f"{name} normalized", "weight", bits, bits == 2, True)
    for name in METHODS
    for bits in (2, 4)
    if not METHODS[name].weight.norm_of_method
]
CASES += [*NORMALIZED, ("DoReFa normalized", "weight", 1, True, True)]
CHANNELS = 3


def make(case: Case) -> Quantizer:
    name, role, bits, per_channel, signed = case
    name, _, normalized = name.partition(" ")
    cls = getattr(METHODS[name], role)
    options = {"weight_norm": True} if normalized else {}
    return cls(bits, role=role, signed=signed, num_channels=CHANNELS if per_channel else None, **options)


def data(case: Case, seed: int = 0, size: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(CHANNELS, 40, generator=generator) * size
    return x if case[4] else x.relu()


def ready(case: Case, seed: int = 0) -> Quantizer:
    quantizer = make(case)
    quantizer.initialize(data(case, seed))
    return quantizer.eval()


def values_of_grid(quantizer: Quantizer, x: Tensor) -> Tensor:
    """Return every value of the grid, one row per grid."""
    qparams = quantizer.qparams(x)
    levels = qparams.levels
    if levels is None:
        levels = torch.arange(qparams.quant_min, qparams.quant_max + 1)
    scale, zero_point = qparams.scale.reshape(-1, 1), qparams.zero_point.reshape(-1, 1)
    return (levels - zero_point) * scale


each_case = pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[pytest.mark.slow] if c[2] in (5, 6, 7) else []) for c in CASES],
    ids=lambda c: f"{c[0]}-{c[1]}-{c[2]}{'-channel' * c[3]}{'-signed' * c[4]}",
)
few_cases = pytest.mark.parametrize(
    "case",
    [c for c in CASES if c[2] in (2, 4, 8)],
    ids=lambda c: f"{c[0]}-{c[1]}-{c[2]}{'-channel' * c[3]}{'-signed' * c[4]}",
)


@each_case
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([1e-6, 0.1, 1.0, 3.0, 1e6]))
def test_integers_are_what_is_trained(case: Case, seed: int, size: float) -> None:
    quantizer, x = ready(case), data((*case[:4], True), seed, size)
    y, integers = quantizer(x), quantizer.to_integer(x)
    assert torch.equal(y, quantizer.qparams(x).dequantize(integers))
    assert integers.min() >= quantizer.quant_min and integers.max() <= quantizer.quant_max
    rows = y.reshape(CHANNELS, -1) if case[3] else y.reshape(1, -1)
    assert all(row.unique().numel() <= 2 ** case[2] for row in rows)


@each_case
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([1e-3, 1.0, 30.0]))
def test_a_value_goes_to_the_nearest_level(case: Case, seed: int, size: float) -> None:
    """After normalization: error at most half the local step inside the range, the end outside; hence idempotent."""
    quantizer, x = ready(case), data((*case[:4], True), seed, size)
    x = quantizer.normalize(x)
    grid = quantizer.grid(x)
    y = quantizer.formula(x, quantizer.channel_axis, *grid)
    levels = values_of_grid(quantizer, x).expand(CHANNELS, -1) if case[3] else values_of_grid(quantizer, x)
    rows_x, rows_y = (t.reshape(levels.shape[0], -1) for t in (x, y))
    best = (rows_x[:, :, None] - levels[:, None, :]).abs().amin(2)
    largest = levels.abs().amax(1, keepdim=True)
    assert ((rows_x - rows_y).abs() <= best + 1e-6 * (largest + rows_x.abs())).all()
    assert torch.equal(quantizer.formula(y, quantizer.channel_axis, *grid), y)


@each_case
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_staircase_is_monotone(case: Case, seed: int) -> None:
    quantizer = ready(case)
    x = quantizer.normalize(data((*case[:4], True), seed, 2.0)).sort(1).values
    y = quantizer.formula(x, quantizer.channel_axis, *quantizer.grid(x))
    rows = y if case[3] else x.flatten().sort().values
    rows = y if case[3] else quantizer.formula(rows, None, *quantizer.grid(x))[None]
    assert (rows.diff(dim=1) >= 0).all()


@pytest.mark.parametrize("case", [c for c in CASES if c[1] == "input"], ids=str)
def test_zero_stays_zero_at_inputs(case: Case) -> None:
    for shift in (-3.0, 0.0, 3.0):
        quantizer = make(case)
        quantizer.initialize(data(case) + shift)
        assert (quantizer.eval()(torch.zeros(3)) == 0).all()


@each_case
def test_gradients_are_finite_and_zero_outside_the_range(case: Case) -> None:
    quantizer, x = ready(case), data((*case[:4], True), 1, 5.0)
    x = quantizer.normalize(x).detach().requires_grad_(True)
    quantizer.formula(x, quantizer.channel_axis, *quantizer.grid(x)).sum().backward()
    levels = values_of_grid(quantizer, x)
    low, high = (along(t, 2, quantizer.channel_axis) for t in (levels[:, 0].squeeze(), levels[:, -1].squeeze()))
    edge = 1e-5 * (high - low).clamp(min=1e-6)
    outside, inside = (x < low - edge) | (x > high + edge), (x > low + edge) & (x < high - edge)
    assert x.grad.isfinite().all() and (x.grad[inside] != 0).all()
    everywhere = ("DoReFa", "PACT", "N2UQ")  # weights: normalized into their range, or unclipped as the authors' are
    if case[1] == "input" or not case[0].startswith(everywhere):
        assert (x.grad[outside] == 0).all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in quantizer.parameters())


@few_cases
def test_parameters_stay_the_same_objects_and_survive_saving(case: Case) -> None:
    quantizer, x = make(case), data(case)
    before = dict(quantizer.named_parameters())
    expected = quantizer(x)
    assert all(dict(quantizer.named_parameters())[name] is p for name, p in before.items())
    loaded = make(case)
    loaded.load_state_dict(quantizer.state_dict())
    assert loaded.is_initialized
    for other in (loaded, copy.deepcopy(quantizer), pickle.loads(pickle.dumps(quantizer))):
        assert torch.equal(other.eval()(x), expected)


STRANGE = {
    "zeros": torch.zeros(CHANNELS, 4),
    "constant": torch.full((CHANNELS, 4), 2.5),
    "negative": -torch.rand(CHANNELS, 4) - 1,
    "one element": torch.full((CHANNELS, 1), -0.3),
    "huge": torch.tensor([[1e30, -1e30, 1e-30, 0.0]] * CHANNELS),
    "tiny": torch.full((CHANNELS, 4), 1e-35),
}


@few_cases
def test_strange_data_stays_finite(case: Case) -> None:
    for kind, values in STRANGE.items():
        quantizer, x = make(case), values.clone().requires_grad_(True)
        for _ in range(2):
            y = quantizer(x)
            y.sum().backward()
        assert y.isfinite().all() and x.grad.isfinite().all(), kind
        found = (t for p in quantizer.parameters() for t in (p, p.grad) if t is not None)
        assert all(t.isfinite().all() for t in found), kind


def nan_stays(case: Case) -> None:
    quantizer, x = ready(case), data(case)
    clean = quantizer(x)
    x[1, ::7] = torch.nan
    y = quantizer(x)
    assert y[x.isnan()].isnan().all()
    if case[1] == "input":  # a weight is normalized by all its values
        assert torch.equal(y[~x.isnan()], clean[~x.isnan()])


@each_case
def test_a_nan_stays_one(case: Case) -> None:
    nan_stays(case)


@each_case
def test_a_scale_that_is_none_is_refused(case: Case) -> None:
    for value in (0.0, torch.nan, torch.inf):
        scale_is_refused(case, value)


def scale_is_refused(case: Case, value: float) -> None:
    quantizer = ready(case)
    learned = [name for name, _ in quantizer.named_parameters() if name in ("scale", "clip", "upper")]
    for name in learned:
        with torch.no_grad():
            getattr(quantizer, name).view(-1)[0] = value
    if getattr(quantizer, "lower", None) is not None:
        quantizer.lower.data.zero_()
    if case[0].startswith("TorchQAT") and value:  # an empty range has a scale of its own
        quantizer.highest.view(-1)[0] = value
        learned = ["highest"]
    if learned:
        quantizer.place = "head.fc.weight_quantizer"
        with pytest.raises(ScaleError, match=r"head\.fc.*: 1 of (1|3) scales are not finite or not positive"):
            quantizer.qparams(data(case))
    else:
        assert (quantizer.qparams(data(case)).scale > 0).all()


@pytest.mark.parametrize("case", [c for c in CASES if c[3]], ids=str)
def test_per_channel_is_per_tensor_slice_by_slice(case: Case) -> None:
    whole, x = ready(case), data(case, 2)
    for i in range(CHANNELS):
        one = make((*case[:3], False, case[4]))
        state = {k: v[i] if v.dim() else v for k, v in whole.state_dict().items() if k != GRID}
        one.load_state_dict(state)
        torch.testing.assert_close(one.eval()(x[i : i + 1]), whole(x)[i : i + 1], rtol=1e-6, atol=0)


@few_cases
def test_eval_changes_no_buffer(case: Case) -> None:
    quantizer = ready(case)
    before = {k: v.clone() for k, v in quantizer.state_dict().items()}
    quantizer(data(case, 3, 100.0))
    assert all(torch.equal(v, before[k]) for k, v in quantizer.state_dict().items())


@pytest.mark.parametrize("case", [c for c in CASES if c[2] == 4], ids=str)
def test_without_data_eval_raises_where_data_is_needed(case: Case) -> None:
    quantizer = make(case).eval()
    if quantizer.needs_data:
        with pytest.raises(NotInitializedError, match="has not seen data"):
            quantizer(data(case))
    else:
        assert quantizer(data(case)).isfinite().all()


@few_cases
def test_half_precision_is_computed_in_float32(case: Case) -> None:
    quantizer, x = ready(case), data(case).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = quantizer(x)
    assert y.dtype is torch.bfloat16 and torch.equal(y, quantizer(x.float()).bfloat16())


@pytest.fixture
def fused(compiler: None) -> Iterator[None]:
    select_kernels("fused")
    yield
    select_kernels("plain")


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [c for c in CASES if c[2] == 4 or c[2] == (8 if (c[1] == "input") ^ c[3] ^ c[4] else 2)], ids=str
)
def test_fused_kernels_agree_with_plain_ones(case: Case, fused: None) -> None:
    results = []
    for kind in ("plain", "fused"):
        select_kernels(kind)
        quantizer, x = ready(case), data(case, 4).requires_grad_(True)
        y = quantizer(x)
        y.backward(data(case, 5))
        results.append((y, x.grad, *(p.grad for p in quantizer.parameters())))
    for plain, fused_one in zip(*results):
        torch.testing.assert_close(plain, fused_one, rtol=2e-4, atol=1e-6)
    nan_stays(case)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "memory_format"),
    [  # LSQ in both, the others in turn
        ("LSQ", torch.contiguous_format),
        ("LSQ", torch.channels_last),
        *(
            (name, (torch.contiguous_format, torch.channels_last)[number % 2])
            for number, name in enumerate(method for method in METHODS if method != "LSQ")
        ),
    ],
    ids=str,
)
def test_compiled_models_agree_with_eager_ones(name: str, memory_format: torch.memory_format, compiler: None) -> None:
    torch.compiler.reset()  # models of other tests count towards the limit of recompilations
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    for i in (0, 2):
        options = dict(num_bit_w=4, num_bit_a=4, per_channel=i == 2)
        model[i] = QUANT_LAYERS.find(f"{name}Conv")(model[i], **options)
    model.to(memory_format=memory_format)
    x = torch.randn(2, 3, 8, 8).to(memory_format=memory_format)
    model(x)
    results = []
    for m in (copy.deepcopy(model), torch.compile(copy.deepcopy(model), fullgraph=True)):
        y = m(x)
        y.square().sum().backward()
        results.append([y.detach(), *(p.grad for p in m.parameters())])
    for eager, compiled in zip(*results):
        torch.testing.assert_close(eager, compiled, rtol=1e-3, atol=1e-5 * max(1.0, float(eager.abs().max())))

"""Order of memory of what integer layers return: that of PyTorch's layers, also where the kernels' own is another."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from delayed import CHANNELS, Residual, Unit, distance, prepared, step, weighted
from torch import Tensor, nn

from lbitcls.quant.kernels import selection
from lbitcls.quant.methods import build_quant_layer
from lbitcls.quant.pending import Pending, Produced, Watched, is_nchw

pytestmark = pytest.mark.usefixtures("integer_kernels")
NCHW, NHWC = torch.contiguous_format, torch.channels_last


def order(y: Tensor) -> Any:
    """Whether the tensor is dense in either order, and the strides of the axes longer than 1."""
    strides = [stride for stride, size in zip(y.stride(), y.shape, strict=True) if size > 1]
    return y.is_contiguous(), y.is_contiguous(memory_format=NHWC), strides


class Whole(nn.Module):
    """A function between two units."""

    def __init__(self, function: Callable[..., Tensor], two: bool = False) -> None:
        super().__init__()
        self.stem, self.other, self.last = Unit(channels=3), Unit(channels=3), Unit()
        self.function, self.two = function, two

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.last(self.function(y, self.other(x)) if self.two else self.function(y))


def changed(y: Tensor) -> Tensor:
    y.mul_(2)
    y[0] = 1
    return y


def sum_out(y: Tensor) -> Tensor:
    with torch.no_grad():
        torch.add(y, 1, out=y)
    return y


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda y: y,
    "relu": torch.relu,
    "relu in place": nn.ReLU(inplace=True),
    "silu": F.silu,
    "silu in place": nn.SiLU(inplace=True),
    "max pool": lambda y: F.max_pool2d(y.relu(), 2),
    "average pool": lambda y: F.avg_pool2d(y.relu(), 2),
    "sum": lambda y: (y + y.detach()).relu(),
    "changes in place": changed,
    "out": sum_out,
    "one pixel": lambda y: y[:, :, :1, :1],
    "global pool": lambda y: F.adaptive_avg_pool2d(y, 1),
}
FORMATS = [(NCHW, NCHW), (NHWC, NCHW), (NCHW, NHWC), (NHWC, NHWC)]


def results(model: nn.Module, x: Tensor, function: Callable[[nn.Module, Tensor], Any]) -> list[Any]:
    """What a function of a copy of the model returns, as a simulation and in integers."""
    found = []
    for kind in ("plain", "integer"):
        selection._active = kind
        found.append(function(copy.deepcopy(model), x))
    return found


@pytest.mark.parametrize(("images", "weights"), FORMATS, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_results_have_the_order_of_the_simulation(name: str, images: Any, weights: Any) -> None:
    x = torch.randn(2, 3, 8, 8).contiguous(memory_format=images)
    model: Any = prepared(Whole(FUNCTIONS[name]), x).to(memory_format=weights)
    if name in ("one pixel", "global pool"):
        model.last.norm = nn.Identity()  # two values: their normalization cancels all gradients

    def read(model: nn.Module, x: Tensor) -> Any:
        y: Any = model(x)
        told = order(y)
        y.mean()  # PyTorch's function receives the order that was told
        assert order(y) == told
        features = y.view(len(y), -1) if y.is_contiguous() else y.permute(0, 2, 3, 1).view(len(y), -1)
        weighted(features).backward()
        return told, features.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    (told, *_), (own_told, own_features, own_grads) = results(model, x, read)
    selection._active = "plain"
    _, features, grads = read(copy.deepcopy(model).double(), x.double())  # in float32 the maximum of a pooling is a tie
    assert own_told == told and distance(own_features, features) < 1e-5
    assert all(distance(own_grads[name], grad) < 1e-3 for name, grad in grads.items())


@pytest.mark.parametrize("first", [NCHW, NHWC], ids=str)
@pytest.mark.parametrize("second", [NCHW, NHWC], ids=str)
@pytest.mark.parametrize("add", [torch.add, lambda a, b: b + a, Tensor.add_, lambda a, b: a + b.relu().detach()])
def test_the_order_of_a_sum_is_that_of_its_first_summand(add: Any, first: Any, second: Any) -> None:
    class Summed(Whole):
        def forward(self, x: Tensor) -> Tensor:
            one, other = (x.contiguous(memory_format=m) for m in (first, second))
            return add(self.stem(one), self.other(other)).relu()

    x = torch.randn(2, 3, 8, 8)
    expected, got = results(prepared(Summed(torch.relu), x), x, lambda model, x: order(model(x)))
    assert got == expected


FORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Conv1d": (lambda: nn.Conv1d(CHANNELS, 6, 3), (2, CHANNELS, 9)),
    "Conv1d, one channel": (lambda: nn.Conv1d(1, 1, 1), (2, 1, 9)),
    "Conv1d, one signal": (lambda: nn.Conv1d(CHANNELS, 6, 3), (CHANNELS, 9)),
    "Conv2d, one image": (lambda: nn.Conv2d(CHANNELS, 6, 3), (CHANNELS, 9, 7)),
    "Conv2d, same": (lambda: nn.Conv2d(CHANNELS, 6, 2, padding="same"), (2, CHANNELS, 9, 7)),
    "Conv2d, one pixel": (lambda: nn.Conv2d(CHANNELS, 6, 1), (2, CHANNELS, 1, 1)),
    "Conv2d, one channel": (lambda: nn.Conv2d(1, 1, 3), (2, 1, 9, 7)),
    "Linear": (lambda: nn.Linear(CHANNELS, 6), (2, 5, CHANNELS)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_every_form_returns_what_can_be_viewed(name: str, frozen: bool, half: bool) -> None:
    make, shape = FORMS[name]
    layer, x = make(), torch.randn(shape)
    suffix = {"Conv2d": "Conv"}.get(type(layer).__name__, type(layer).__name__)
    layer = build_quant_layer(dict(type=f"LSQ{suffix}", num_bit_w=4, num_bit_a=4), layer).train()
    layer(x)
    layer.requires_grad_(not frozen)

    def read(layer: nn.Module, x: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            y = layer(x)
        return y.view(-1).dtype, y.is_contiguous()

    expected, got = results(layer, x, read)
    assert got == expected


class Flat(nn.Module):
    """Layers of each kind, and a view after each."""

    def __init__(self) -> None:
        super().__init__()
        self.compiled = False
        layers = nn.Conv2d(3, CHANNELS, 3, padding=1), nn.Conv1d(CHANNELS, 4, 3), nn.Linear(4 * 62, 5)
        for name, layer, suffix in zip(("image", "signal", "rows"), layers, ("Conv", "Conv1d", "Linear"), strict=True):
            entry = dict(type=f"LSQ{suffix}", num_bit_w=4, num_bit_a=4)
            setattr(self, name, build_quant_layer(entry, layer))

    def run(self, x: Tensor) -> Tensor:
        y = F.silu(self.image(x)).view(len(x), CHANNELS, -1)
        return self.rows(self.signal(y).view(len(x), -1)).square().sum()

    def forward(self, x: Tensor) -> Tensor:
        return (torch.compile(self.run, backend="aot_eager", fullgraph=True) if self.compiled else self.run)(x)


@pytest.mark.slow
def test_a_compiled_model_views_its_results(integer_kernels: None) -> None:
    torch.compiler.reset()
    x = torch.randn(2, 3, 8, 8)
    model: Any = prepared(Flat(), x)
    _, expected = step(model, x, "plain", torch.float64)
    for model.compiled in (False, True):
        _, got = step(model, x, "integer")
        assert all(distance(got[name], value) < 1e-3 for name, value in expected.items())


def test_pytorchs_rule_of_strides() -> None:
    """Of every order of the axes, with sides of 1 and without, as PyTorch's convolution shows."""
    weight = torch.ones(2, 3, 1, 1)
    for axes in ((0, 1, 2, 3), (0, 2, 3, 1), (1, 0, 2, 3), (3, 1, 0, 2), (0, 3, 1, 2), (2, 3, 0, 1)):
        for sizes in ((2, 3, 4, 5), (2, 3, 1, 1), (1, 3, 4, 1), (2, 3, 1, 5), (1, 3, 1, 1)):
            stored = torch.zeros([sizes[axis] for axis in axes])
            x = stored.permute([axes.index(axis) for axis in range(4)])
            y = F.conv2d(F.pad(x, (1, 1, 1, 1)).as_strided(x.shape, x.stride()), weight.repeat(1, 1, 1, 1))
            assert is_nchw(x) == (y.stride() == torch.empty(y.shape).stride()), (sizes, x.stride(), y.stride())


def test_continued_promises_stay_in_the_kernels_order() -> None:
    """Only what is not known pays for another order."""
    x = torch.randn(2, 3, 8, 8)
    model: Any = prepared(Residual(), x)
    moved: list[Any] = []
    move = Watched._move_to_nchw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watched, "_move_to_nchw", lambda self: (moved.append(self), move(self)))
        features = model.features(x)
        assert isinstance(features, Watched) and not moved
        features.sum()
        features.mean()
        assert len(moved) == 1


def test_a_move_in_inference_mode_leaves_an_ordinary_tensor() -> None:
    x = torch.randn(2, 3, 8, 8)
    y: Any = prepared(Unit(channels=3), x).conv(x)  # type: ignore[operator]
    assert isinstance(y, Produced)
    with torch.inference_mode():
        y.view(2, -1)
    assert not y.is_inference()
    y.view(2, -1).sum().backward()


def test_a_change_in_place_after_a_layer_has_read_the_values_is_an_error() -> None:
    """The layer needs them for its gradient; the order of the memory was changed before."""
    x = torch.randn(2, 3, 8, 8)
    model: Any = prepared(Whole(torch.relu), x)
    y = model.stem(x)
    y.mean()
    z = model.last.conv(y)
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


@pytest.mark.parametrize("of", [Watched, Produced, Pending])
def test_no_name_of_pytorchs_tensors_has_another_meaning(of: type) -> None:
    own = {name for name in (*vars(of), *of.__annotations__) if not name.startswith("_")}
    assert not own & set(dir(Tensor))

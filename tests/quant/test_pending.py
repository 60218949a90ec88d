"""Delayed batch normalization in integer training: values and gradients of the simulation."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from delayed import CHANNELS, KERNELS, Residual, Unit, check, distance, prepared, reversed_gradient, step, weighted
from torch import Tensor, nn

from lbitcls.quant.kernels import native, norm, selection
from lbitcls.quant.methods import METHODS
from lbitcls.quant.pending import Pending
from lbitcls.quant.quantizers.lsq import LSQ

pytestmark = pytest.mark.usefixtures("integer_kernels")


class RandomNetwork(nn.Module):
    """Random operations on a list of equally shaped tensors, each in one of several spellings."""

    ACTIVATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
        F.relu,
        torch.relu,
        Tensor.relu,
        F.relu6,
        nn.ReLU6(),
        nn.Hardtanh(0, 0.5),
        nn.ReLU(),
        nn.Hardtanh(),
        F.leaky_relu,
    )
    IN_PLACE: tuple[Callable[[Tensor], Any], ...] = (
        nn.ReLU(inplace=True),
        torch.relu_,
        Tensor.relu_,
        nn.ReLU6(inplace=True),
        nn.Hardtanh(0, 2, inplace=True),
    )
    ADDITIONS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
        lambda a, b: a + b,
        lambda a, b: b + a,
        torch.add,
        Tensor.add,
        lambda a, b: torch.add(a, b, alpha=2),
        lambda a, b: a - b,
        lambda a, b: a + b[:, :1],
        lambda a, b: a + b.detach(),
        lambda a, b: a + b.contiguous(),
    )
    ADDITIONS_IN_PLACE: tuple[Callable[[Tensor, Tensor], Any], ...] = (
        lambda a, b: a.__iadd__(b),
        Tensor.add_,
        lambda a, b: a.add_(b, alpha=2),
    )
    USES: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda v: weighted(v.square()),
        lambda v: weighted(F.max_pool2d(v, 2)),
        lambda v: v[0, 1].sum(),
        lambda v: weighted(torch.cat([v, v])),
        lambda v: F.adaptive_avg_pool2d(v, 1).square().sum(),
    )

    def __init__(self, draw: random.Random, method: str) -> None:
        super().__init__()
        self.units, self.steps = nn.ModuleList([Unit(method, 3)]), [("unit", 0, 0, None)]
        fresh, clipped = {1}, set()  # indices not used yet; those whose operation saved its result
        count = 2
        for _ in range(draw.randint(4, 9)):
            kind = draw.choice(["unit", "unit", "activate", "activate_", "add", "add", "add_", "use"])
            i, j = draw.randrange(max(1, count - 3), count), draw.randrange(1, count)
            if kind.endswith("_") and (i not in fresh or (i == j and kind == "add_") or i in clipped):
                kind = kind[:-1]
            if kind == "unit":
                self.units.append(Unit(method, kernel=draw.choice(list(KERNELS))))
                what: Any = len(self.units) - 1
            else:
                menu = dict(activate=self.ACTIVATIONS, activate_=self.IN_PLACE, add=self.ADDITIONS)
                menu |= dict(add_=self.ADDITIONS_IN_PLACE, use=self.USES)
                what = draw.choice(menu[kind])
            self.steps.append((kind, i if kind != "unit" or what else 0, j, what or None))
            fresh -= {i, j} if not kind.endswith("_") else {j}
            if kind in ("unit", "activate", "add"):
                (clipped if kind == "activate" else fresh).add(count)
                count += 1
            elif kind == "activate_":
                clipped.add(i)
        self.kept = [i for i in range(1, count) if draw.random() < 0.3] or [count - 1]

    def forward(self, x: Tensor) -> Tensor:
        values, loss = [x], x.new_zeros(())
        for kind, i, j, what in self.steps:
            if kind == "unit":
                values.append(self.units[what or 0](values[i]))
            elif kind == "activate":
                values.append(what(values[i]))
            elif kind == "add":
                values.append(what(values[i], values[j]))
            elif kind == "use":
                loss = loss + what(values[i])
            else:  # in place: the returned value is not used
                what(values[i], *([values[j]] if kind == "add_" else []))
        return loss + sum(weighted(values[i], i) for i in self.kept)


@pytest.mark.parametrize("seed", range(60))
def test_a_step_of_a_random_network(seed: int, kernels: str) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    methods = sorted({*METHODS} - {"TorchQAT", "N2UQ"})  # a tie in its first batch; inputs that are simulated
    model = RandomNetwork(draw, draw.choice(["LSQ", "LSQ", *methods]))
    x = torch.randn(3, 3, draw.choice([6, 7]), 6)
    check(prepared(model, x), x)


def test_the_normalizations_of_a_residual_network_run_fused(
    residual: tuple[Residual, Tensor], products: list[Any], kernels: str
) -> None:
    check(*residual)
    assert len(products) == 4  # the first layer quantizes the image; `down` finds values that `third` has filled


def test_values_that_nothing_reads_are_not_computed(
    residual: tuple[Residual, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = residual
    filled: list[Any] = []
    fill = Pending.fill
    monkeypatch.setattr(Pending, "fill", lambda self: self.promise and (filled.append(self), fill(self)))
    features = model.features(x)
    assert len(filled) == 2  # the shortcuts: the stem's result, and that of `down`
    features.sum()
    assert len(filled) == 3


@pytest.mark.parametrize("method", METHODS)
def test_every_method(method: str, kernels: str) -> None:
    x = torch.randn(4, 3, 8, 8)
    check(prepared(Residual(method), x), x)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["LSQ", "EWGS", "DSQ"])
def test_a_step_with_compiled_formulas(method: str, compiler: None) -> None:
    x = torch.randn(4, 3, 8, 8)
    selection._active = "plain"
    check(prepared(Residual(method), x), x)


def test_less_is_saved(residual: tuple[Residual, Tensor]) -> None:
    def saved(kind: str) -> int:
        selection._active = kind
        blocks: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            blocks[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(x)
        activations = sum(t.numel() * t.element_size() for t in blocks.values() if t.dim() == 4 and len(t) == len(x))
        del loss
        return activations

    model, _ = residual
    x = torch.randn(32, 3, 8, 8)
    assert saved("integer") < 0.5 * saved("plain")


class Changing(nn.Module):
    """Network that changes a source of a pending tensor before the tensor is computed."""

    def __init__(self, change: str) -> None:
        super().__init__()
        self.stem, self.first, self.last = Unit(channels=3), Unit(channels=3), Unit()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        shortcut, z = self.stem(x), self.first.conv(x)
        alias = reversed_gradient(shortcut) if "alias" in self.change else shortcut
        part = shortcut[:, :3]
        y = F.relu(self.first.norm(z) + alias)
        changed = dict(z=z.detach(), part=part, shortcut=shortcut, alias=shortcut.detach())[self.change]
        changed.mul_(2)
        return weighted(self.last(y)) + weighted(shortcut)


@pytest.mark.parametrize("change", ["part", "shortcut", "alias"])
def test_a_shortcut_that_changes_after_its_addition(change: str, kernels: str) -> None:
    x = torch.randn(4, 3, 8, 8)
    check(prepared(Changing(change), x), x)


def test_an_input_of_the_normalization_that_changes_after_it() -> None:
    x = torch.randn(4, 3, 8, 8)
    model = prepared(Changing("z"), x)
    selection._active = "plain"
    expected = model(x)
    selection._active = "integer"
    loss = model(x)
    assert distance(loss.detach(), expected.detach()) < 1e-5
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):  # as PyTorch's normalization
        loss.backward()


def test_a_result_that_changes_before_its_gradient() -> None:
    x = torch.randn(4, 3, 8, 8)
    model: Any = prepared(Residual(), x)
    features = model.features(x)
    loss = features.mean()
    features.add_(1)
    with pytest.raises(RuntimeError, match="modified by an in-place operation"):
        loss.backward()


@pytest.mark.parametrize("where", ["eval", "no_grad", "frozen", "autocast", "plain kernels", "no affine", "one pixel"])
def test_ordinary_tensors_elsewhere(where: str, residual: tuple[Residual, Tensor], products: list[Any]) -> None:
    model, x = residual
    if where == "eval":
        model.eval()
    elif where == "frozen":
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    elif where == "plain kernels":
        selection._active = "plain"
    elif where == "no affine":
        for unit in (model.stem, model.first, model.second, model.third, model.fourth, model.down):
            unit.norm = nn.BatchNorm2d(CHANNELS, affine=False)
    elif where == "one pixel":
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            model(x[:1, :, :1, :1])
        return
    with torch.set_grad_enabled(where != "no_grad"), torch.autocast("cpu", enabled=where == "autocast"):
        assert type(model.features(x)) is Tensor
    assert not products


@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("tracked", [True, False])
def test_running_statistics(momentum: float | None, tracked: bool) -> None:
    x = torch.randn(4, 3, 8, 8)
    model = prepared(Unit(channels=3), x)
    model.norm = nn.BatchNorm2d(CHANNELS, momentum=momentum, track_running_stats=tracked)
    model.train()
    for kind in ("plain", "integer"):
        selection._active = kind
        own = copy.deepcopy(model)
        for scale in (1, 2, 3):
            y = own(x * scale)
            assert isinstance(y, Pending) == (kind == "integer")
        if kind == "plain":
            expected = own.norm.state_dict()
        else:
            torch.testing.assert_close(dict(own.norm.state_dict()), dict(expected))


@pytest.mark.parametrize("where", ["image", "norm", "shortcut"])
def test_nan_reaches_the_loss(where: str, residual: tuple[Residual, Tensor], kernels: str) -> None:
    model, x = residual
    with torch.no_grad():
        if where == "image":
            x[0, 0, 0, 0] = torch.nan
        elif where == "norm":
            model.stem.norm.weight[2] = torch.nan
        else:
            model.down.norm.bias[1] = torch.inf
            model.fourth.norm.bias[1] = -torch.inf
    assert not model(x).isfinite()


class Pooled(nn.Module):
    """Stem with a pooling, whose result a layer and a shortcut receive."""

    def __init__(self, pooling: nn.Module, clip: nn.Module) -> None:
        super().__init__()
        self.stem, self.first, self.pooling, self.clip = Unit("LSQ", 3), Unit(), pooling, clip

    def forward(self, x: Tensor) -> Tensor:
        x = self.pooling(self.clip(self.stem(x)))
        return weighted(torch.relu(self.first(x) + x))


POOLINGS = {
    "3 x 3": nn.MaxPool2d(3, 2, 1),
    "2 x 2": nn.MaxPool2d(2),
    "uneven": nn.MaxPool2d((3, 2), (1, 3), (1, 0)),
    "overlapping": nn.MaxPool2d(5, 1, 2),
}


@pytest.mark.parametrize("clip", [nn.ReLU(), nn.ReLU6(inplace=True), nn.Identity()], ids=str)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_joins_the_normalization(pooling: str, clip: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    if native.library() is None:
        pytest.skip("no C++ compiler: install g++, or name one in CXX")
    pooled: list[Any] = []
    kernel = norm.max_pool
    monkeypatch.setattr(norm, "max_pool", lambda *given: pooled.append(given) or kernel(*given))
    torch.manual_seed(0)
    x = torch.randn(4, 3, 9, 10)
    model: Any = prepared(Pooled(POOLINGS[pooling], clip), x)
    check(model, x)
    assert len(pooled) == 1


@pytest.mark.parametrize(
    "pooling", [nn.MaxPool2d(3, ceil_mode=True), nn.MaxPool2d(2, dilation=2), nn.AvgPool2d(2)], ids=str
)
def test_other_pooling_receives_values(pooling: nn.Module) -> None:
    x = torch.randn(4, 3, 9, 10)
    model: Any = prepared(Pooled(pooling, nn.ReLU()), x)
    check(model, x)


def test_pooling_keeps_nan() -> None:
    x = torch.randn(4, 3, 9, 10)
    model: Any = prepared(Pooled(POOLINGS["3 x 3"], nn.ReLU()), x)
    selection._active = "integer"
    with torch.no_grad():
        model.stem.norm.bias[3] = torch.nan
    assert model(x).isnan()


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_the_default_type_changes_nothing(
    default: torch.dtype, residual: tuple[Residual, Tensor], kernels: str
) -> None:
    model, x = residual
    expected = step(model, x, "integer")
    torch.set_default_dtype(default)
    try:
        loss, got = step(model, x, "integer")
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(loss, expected[0]) and all(torch.equal(got[name], value) for name, value in expected[1].items())


def test_parameters_of_another_size_are_pytorchs_errors() -> None:
    z = prepared(Unit("LSQ", 3), torch.randn(2, 3, 8, 8)).conv(torch.randn(2, 3, 8, 8))  # type: ignore[operator]
    for norm_ in (nn.BatchNorm2d(1), nn.BatchNorm2d(1, track_running_stats=False), nn.BatchNorm2d(2 * CHANNELS)):
        with pytest.raises(RuntimeError, match="should contain 8 elements"):
            norm_(z)


def test_second_derivatives_are_errors(residual: tuple[Residual, Tensor]) -> None:
    model, x = residual
    (gradient,) = torch.autograd.grad(model(x), model.first.norm.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.square().sum().backward()


class Dynamic(LSQ):
    """A user's quantizer whose scale follows the values of each batch."""

    def grid(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x.detach().amax() / self.quant_max).clamp_min(1e-6), self.low, self.high


def test_a_grid_may_read_values(residual: tuple[Residual, Tensor]) -> None:
    model, x = residual
    model.first.conv.input_quantizer.__class__ = Dynamic
    check(model, x)

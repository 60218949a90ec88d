"""Learned rounding: each part does what its paper says, in float64, on layers small enough to try every rounding."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from lbitcls.models import build_classifier
from lbitcls.quant import build_mtransformer, calibrate
from lbitcls.quant.calibration import named_quantizers, set_quantization
from lbitcls.quant.layers import QuantLayer
from lbitcls.quant.reconstruction.block_rounding import learn_block, mixed
from lbitcls.quant.reconstruction.equalization import equalize
from lbitcls.quant.reconstruction.layer_rounding import learn_layer
from lbitcls.quant.reconstruction.moments import Moments, moments_of, rows_of
from lbitcls.quant.reconstruction.reconstruct import Reconstruction
from lbitcls.quant.reconstruction.rounding import Roundings, exponent_at, first_variable, indecision, soft_rounding
from lbitcls.quant.reconstruction.unit_inputs import Cache, cache_unit
from lbitcls.quant.reconstruction.units import find_units
from lbitcls.settings.reconstruction import ReconstructConfig
from lbitcls.utils.errors import ConfigError

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "grouped": (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (12, 4, 7, 7)),
    "reflected": (nn.Conv2d(2, 3, 3, padding=1, dilation=1, padding_mode="reflect"), (8, 2, 5, 5)),
    "sequence": (nn.Conv1d(3, 4, 3, padding=2, dilation=2), (12, 3, 9)),
    "tokens": (nn.Linear(5, 3), (6, 4, 5)),
    "linear": (nn.Linear(5, 3), (30, 5)),
}


def quantized(net: nn.Module, method: str = "LSQ", bits: int = 3, fold_bn: bool = False) -> nn.Module:
    suffixes = {"Conv2d": "Conv", "Linear": "Linear", "Conv1d": "Conv1d"}
    policy = {
        k: dict(type=f"{method}{s}", num_bit_w=bits, num_bit_a=bits, per_channel=True) for k, s in suffixes.items()
    }
    return build_mtransformer(dict(type="ModelTransformer", quan_policy=policy, fold_bn=fold_bn))(net).double().eval()


def one_layer(name: str = "linear", seed: int = 0) -> tuple[QuantLayer, Tensor]:
    """A calibrated layer in float64 and inputs that depend on each other, all of them positive."""
    torch.manual_seed(seed)
    layer, shape = copy.deepcopy(LAYERS[name])
    layer.reset_parameters()
    common = torch.randn(shape[0], *[1] * (len(shape) - 1), dtype=torch.float64)
    x = (torch.randn(shape, dtype=torch.float64) + 2 * common).relu()
    net = quantized(nn.Sequential(layer))
    calibrate(net, [x], "mse")
    return net[0], x


def exact_moments(layer: QuantLayer, x: Tensor) -> Moments:
    with torch.no_grad():
        read = layer.input_quantizer(x)
    return moments_of(layer, layer.weight.detach(), [(read, x)], len(x), seed=0)


def blocks_net() -> nn.Module:
    torch.manual_seed(0)
    model = build_classifier(
        dict(
            type="ImageClassifier",
            backbone=dict(type="ResNetCIFAROptionB", depth=8, base_channels=4),
            neck=dict(type="GlobalAveragePooling"),
            head=dict(type="LinearClsHead", num_classes=5, in_channels=16, topk=(1,)),
        )
    )
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_mean, -0.5, 0.5)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    return model


def reconstructed(net: nn.Module, images: list[Tensor], **options: object) -> Reconstruction:
    work = Reconstruction(net, images, ReconstructConfig(**options))
    calibrate(net, images, "mse")
    for number in range(len(work.units)):
        work.advance(number)
    return work


def images(number: int = 2, side: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(6, 3, side, side, generator=generator, dtype=torch.float64) for _ in range(number)]


def test_the_rectified_sigmoid_is_the_papers() -> None:
    v = torch.linspace(-6, 6, 101, dtype=torch.float64)
    expected = [min(1.0, max(0.0, 1.2 / (1 + 2.718281828459045 ** -float(x)) - 0.1)) for x in v]
    torch.testing.assert_close(soft_rounding(v), torch.tensor(expected, dtype=torch.float64))
    fraction = torch.rand(50, dtype=torch.float64)
    torch.testing.assert_close(soft_rounding(first_variable(fraction)), fraction)
    assert indecision(torch.tensor([0.0, 0.5, 1.0]), 20.0).tolist() == [0.0, 1.0, 0.0]
    betas = [exponent_at(step, 100) for step in range(100)]
    assert betas[:20] == [None] * 20 and betas[20] == 20.0
    rest = [beta for beta in betas if beta is not None]
    assert rest == sorted(rest, reverse=True) and 2.0 <= rest[-1] < 2.1


@pytest.mark.parametrize("name", LAYERS)
def test_errors_from_moments_are_those_of_the_layer(name: str) -> None:
    layer, x = one_layer(name)
    roundings = Roundings(layer)
    weight = (roundings.nearest() * roundings.scale).detach()
    with torch.no_grad():
        difference = layer(x) - layer.to_float()(x)
    axis = difference.dim() - 1 if isinstance(layer, nn.Linear) else 1
    rows = difference.movedim(axis, 0).flatten(1)
    moments = exact_moments(layer, x)
    torch.testing.assert_close(moments.errors(rows_of(layer, weight)).flatten(), rows.square().mean(1))
    torch.testing.assert_close(moments.mean_errors(rows_of(layer, weight)).flatten(), rows.mean(1))
    torch.testing.assert_close(moments.centered().errors(rows_of(layer, weight)).flatten(), rows.var(1, correction=0))


def test_adaround_is_better_than_nearest_and_near_the_best_of_all_roundings() -> None:
    ups = torch.tensor(list(itertools.product((0.0, 1.0), repeat=5)), dtype=torch.float64)
    nearest, learned, best = torch.zeros(3, dtype=torch.float64)
    for seed in range(4):
        layer, x = one_layer(seed=seed)
        moments, roundings = exact_moments(layer, x).centered(), Roundings(layer)
        every = torch.clamp(roundings.floor[:, None] + ups, roundings.low, roundings.high) * roundings.scale[:, None]
        best += torch.stack([moments.errors(every[:, i][None])[0] for i in range(32)]).amin(0).sum()
        nearest += moments.errors((roundings.nearest() * roundings.scale)[None]).sum()
        steps = learn_layer(layer, moments, ReconstructConfig(iterations=250))
        learned += moments.errors((steps * roundings.scale)[None]).sum()
    assert learned < 0.8 * nearest and learned < 1.1 * best, (nearest, learned, best)


@pytest.mark.parametrize("method", ["LSQ", "LSQPlus", "DSQ", "TorchQAT", "EWGS"])
@pytest.mark.parametrize("fold_bn", [False, True])
def test_the_ordinary_quantizer_returns_the_learned_steps(method: str, fold_bn: bool) -> None:
    torch.manual_seed(0)
    net = quantized(
        nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()), method, fold_bn=fold_bn
    )
    net[1].weight.data.uniform_(-2, 2)
    net[1].running_var.uniform_(0.1, 3)
    calibrate(net, images(), "mse")
    layer, roundings = net[0], Roundings(net[0])
    drawn = (torch.rand_like(roundings.steps) < 0.5).double()
    steps = torch.clamp(roundings.floor + drawn, roundings.low, roundings.high)
    roundings.settle(layer, steps)
    assert torch.equal(layer.weight_quantizer.to_integer(layer.weight_to_quantize()).double(), steps)
    with torch.no_grad():
        torch.testing.assert_close(layer.weight_quantizer(layer.weight_to_quantize()), steps * roundings.scale)


def test_units_are_the_residual_blocks_and_single_layers() -> None:
    units = find_units(quantized(blocks_net()), images()[0])
    names = ["backbone.conv1", *(f"backbone.layer{i}.0" for i in (1, 2, 3)), "head.fc"]
    assert [unit.name for unit in units] == names
    assert [len(unit.layers) for unit in units] == [1, 2, 3, 3, 1]
    assert units[2].norms["backbone.layer2.0.downsample.0"] == "backbone.layer2.0.downsample.1"
    assert units[0].norms == {"backbone.conv1": "backbone.bn1"} and units[-1].norms == {}


def test_a_layer_called_twice_is_named() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x))

    with pytest.raises(ConfigError, match=r"conv is called 2 times\. Exclude it"):
        find_units(quantized(Twice()), images()[0])


@pytest.mark.parametrize("method", ["DoReFa", "APoT", "UQ"])
def test_methods_whose_weights_cannot_lie_on_their_grid_are_refused(method: str) -> None:
    net = quantized(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), method, bits=4)
    with pytest.raises(ConfigError, match=rf"evenly spaced levels of the weights themselves; 0 \({method}.*LSQPlus"):
        reconstructed(net, images())


@pytest.mark.parametrize("fold_bn", [False, True])
@pytest.mark.parametrize("rounding", ["nearest", "adaround"])
def test_bias_correction_makes_the_mean_error_of_every_layer_zero(rounding: str, fold_bn: bool) -> None:
    net, batches = quantized(blocks_net(), fold_bn=fold_bn), images()
    work = reconstructed(net, batches, rounding=rounding, iterations=20)
    for unit in work.units:
        cache = cache_unit(net, work.teacher, unit.name, batches, 1024)
        for name in unit.layers:
            layer = work._layer(name)
            shifted = Roundings(layer)
            weight = rows_of(layer, shifted.nearest() * shifted.scale)
            error = work._moments(unit, name, cache, 0).mean_errors(weight).flatten()
            bias = layer.bias - work.teacher.get_submodule(name).bias if layer.bias is not None else None
            if bias is not None:
                torch.testing.assert_close(error, -bias.detach())
                continue
            ours, theirs = (m.get_submodule(unit.norms[name]) for m in (net, work.teacher))
            factor = layer.fold_factor()
            moved = (ours.running_mean - theirs.running_mean) * (1 if factor is None else factor)
            torch.testing.assert_close(error, moved)
            assert error.abs().max() > 1e-4


def test_adaround_brings_the_whole_network_closer_to_the_float_one() -> None:
    batches, errors = images(3), {}
    with torch.no_grad():
        expected = blocks_net().double().eval().predict(torch.cat(batches))
        for rounding in ("nearest", "adaround", "qdrop"):
            net = quantized(blocks_net())
            reconstructed(net, batches, rounding=rounding, iterations=40, batch_size=6)
            errors[rounding] = (net.predict(torch.cat(batches)) - expected).square().mean().item()
    assert errors["adaround"] < 0.8 * errors["nearest"] and errors["qdrop"] < 0.8 * errors["nearest"], errors


def test_a_block_learns_roundings_and_ranges_together() -> None:
    net, batches = quantized(blocks_net(), bits=2), images()
    work = Reconstruction(net, batches, ReconstructConfig())
    calibrate(net, batches, "mse")
    unit = work.units[2]
    cache = cache_unit(net, work.teacher, unit.name, batches, 1024)
    block, layers = net.get_submodule(unit.name), [work._layer(name) for name in unit.layers]
    before = {name: p.clone() for name, p in net.named_parameters()}

    def error() -> float:
        with torch.no_grad():
            return (block(cache.quantized) - cache.targets).square().mean().item()

    nearest = error()
    settings = ReconstructConfig(rounding="qdrop", iterations=80, batch_size=12, drop=0.0)
    steps = learn_block(block, layers, cache, settings, seed=0)
    changed = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {f"{name}.input_quantizer.scale" for name in unit.layers}
    for layer, found in zip(layers, steps):
        Roundings(layer).settle(layer, found)
        assert not layer.weight_quantizer._forward_hooks and not layer.input_quantizer._forward_hooks
    assert error() < 0.9 * nearest


def test_layers_of_other_kinds_keep_the_nearest_rounding_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    entry = dict(type="LSQConvTranspose2d", num_bit_w=3, num_bit_a=8)
    net = nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.ReLU())
    net = (
        build_mtransformer(dict(type="ModelTransformer", quan_policy=dict(ConvTranspose2d=entry)))(net).double().eval()
    )
    caplog.set_level("WARNING", "lbitcls")
    reconstructed(net, images())
    assert "0: its weights are rounded to nearest; AdaRound and bias correction know Conv1d" in caplog.text


def test_half_of_the_activations_are_dropped() -> None:
    generator = torch.Generator().manual_seed(0)
    q, x = torch.zeros(100, 1000), torch.ones(100, 1000)
    assert mixed(q, x, 0.0, generator) is q and mixed(q, x, 1.0, generator).min() == 1
    drawn = mixed(q, x, 0.5, generator)
    assert abs(drawn.mean() - 0.5) < 0.01  # six standard errors
    assert drawn.mean(0).std() == pytest.approx(0.05, rel=0.15) and not torch.equal(drawn, mixed(q, x, 0.5, generator))


def test_the_cache_is_bounded() -> None:
    net, batches = quantized(blocks_net()), images(3)
    work = Reconstruction(net, batches, ReconstructConfig())
    calibrate(net, batches)
    size = 8 * (2 * 3 + 4) * 8 * 8 / 2**20  # one image's inputs, twice, and outputs
    assert len(cache_unit(net, work.teacher, "backbone.conv1", batches, 7.5 * size).targets) == 7
    assert len(cache_unit(net, work.teacher, "backbone.conv1", batches, 0.1 * size).targets) == 1
    whole: Cache = cache_unit(net, work.teacher, "backbone.conv1", batches, 1024)
    assert torch.equal(whole.plain, torch.cat(batches)) and torch.equal(whole.quantized, whole.plain)


def chain(fold_bn: bool) -> nn.Module:
    torch.manual_seed(0)
    norm = [nn.BatchNorm2d(6)] if fold_bn else []
    net = nn.Sequential(
        *(nn.Conv2d(3, 6, 3), *norm, nn.ReLU(inplace=True), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Conv2d(6, 4, 3), nn.ReLU6(), nn.Conv2d(4, 2, 1)),
    )
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data.mul_(torch.logspace(-1, 1, module.weight.shape[0])[:, None, None, None])
    return quantized(net, fold_bn=fold_bn)


@pytest.mark.parametrize("fold_bn", [False, True])
def test_equalization_keeps_the_float_output_and_balances_ranges(fold_bn: bool) -> None:
    net, x = chain(fold_bn), images(side=12)[0]
    set_quantization(net, False)
    before = net(x)
    pairs = equalize(net, x)
    torch.testing.assert_close(net(x), before)
    assert len(pairs) == 2  # not across ReLU6
    depthwise, last = (net.get_submodule(pairs[1].first), net.get_submodule(pairs[1].readers[0]))
    made, read = depthwise.weight.abs().flatten(1).amax(1), last.weight.abs().amax((0, 2, 3))
    torch.testing.assert_close(made, read)


def test_channels_that_an_addition_reads_too_are_not_equalized() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return y + self.b(y)

    net, x = quantized(Skip()), images()[0]
    state = copy.deepcopy(net.state_dict())
    assert equalize(net, x) == []
    assert all(torch.allclose(value, state[name]) for name, value in net.state_dict().items())


def test_quantizers_without_values_are_an_error() -> None:
    work = Reconstruction(quantized(blocks_net()), images(), ReconstructConfig())
    with pytest.raises(ConfigError, match="needs initialized quantizers; calibrate the model first"):
        work.advance(0)
    assert sum(1 for _ in named_quantizers(work.model)) == 20

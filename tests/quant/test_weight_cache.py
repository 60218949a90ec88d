"""Quantized weight cached in eval: reused while nothing changes, recomputed after a change."""

import copy
import gc
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lbitcls.core.ema import ModelEMA
from lbitcls.quant import build_mtransformer, calibrate, set_quantization
from lbitcls.quant.kernels import select_kernels
from lbitcls.quant.methods import METHODS, build_quant_layer
from lbitcls.quant.weight_cache import WeightCache
from lbitcls.registry import QUANT_LAYERS

QUANT_LAYERS.names()  # imports every method
X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(7))


def network(method: str = "LSQ", fold: bool = False) -> nn.Sequential:
    """A convolution, its BatchNorm and a linear layer, calibrated, in eval."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    net[1].running_var.uniform_(0.5, 2)
    options = dict(num_bit_w=4, num_bit_a=4, per_channel=True)
    policy = dict(Conv2d=dict(type=f"{method}Conv", **options), Linear=dict(type=f"{method}Linear", **options))
    build_mtransformer(dict(type="ModelTransformer", quan_policy=policy, fold_bn=fold))(net)
    calibrate(net.eval(), [X])
    return net


class Counter:
    """Counts how often weights are quantized."""

    def __init__(self, net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        for layer in (net[0], net[4]):
            monkeypatch.setattr(layer, "_make_quantized_weight", self._counted(layer._make_quantized_weight))

    def _counted(self, make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def counted(*args: Any) -> Tensor:
            self.calls += 1
            return make(*args)

        return counted


def afresh(net: nn.Module) -> Tensor:
    """Return the network's output without the cache, which grad mode never uses."""
    with torch.enable_grad():
        return copy.deepcopy(net)(X).detach()


@pytest.mark.parametrize("method", METHODS)
def test_the_weight_is_quantized_once_and_bit_equal(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = network(method)
    expected, counter = afresh(net), Counter(net, monkeypatch)
    with torch.no_grad():
        assert all(torch.equal(net(X), expected) for _ in range(3))
    with torch.inference_mode():
        assert torch.equal(net(X), expected)
    assert counter.calls == 2


def test_fused_kernels_keep_it_too(compiler: None, monkeypatch: pytest.MonkeyPatch) -> None:
    select_kernels("fused")
    try:
        net = network()
        expected, counter = afresh(net), Counter(net, monkeypatch)
        with torch.no_grad():
            assert all(torch.equal(net(X), expected) for _ in range(2))
        assert counter.calls == 2
    finally:
        select_kernels("plain")


def step_of(name: str, **options: Any) -> Callable[[nn.Module], None]:
    def step(net: nn.Module) -> None:
        optimizer = getattr(torch.optim, name)(net.parameters(), 0.1, **options)
        with torch.enable_grad():
            net(X).square().sum().backward()
        optimizer.step()

    return step


def average(net: nn.Module) -> None:
    other = copy.deepcopy(net)
    nn.init.normal_(other[0].weight)
    ema = ModelEMA(other)
    ema.module = net
    ema.update(other)


def swap(net: nn.Module) -> None:
    """As in a hook that evaluates averaged weights in place of the model's."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(parameter * 1.5 + 0.01)


def swap_memory(net: nn.Module) -> None:
    for parameter in net.parameters():
        parameter.data = parameter.data * 2 + 0.1


def exchange(net: nn.Module) -> None:
    """No sum over the weights changes."""
    flat = net[0].weight.data.view(-1)
    flat[:2] = flat[[1, 0]].clone()


def step_on_gradients_at_hand(net: nn.Module) -> None:
    """No pass with gradients clears the caches, and the fused optimizer does not count its change."""
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.Adam(net.parameters(), 0.1, fused=True).step()


def another_weight(net: nn.Module) -> None:
    """At the same address, if the allocator reuses it, and with the same change count."""
    shape = net[0].weight.shape
    net[0].weight = None
    gc.collect()
    net[0].weight = nn.Parameter(torch.randn(shape))


def another_parameter_in_the_same_memory(net: nn.Module) -> None:
    """The new tensor counts its changes from the start, up to the previous one's number."""
    old, net[0].weight = net[0].weight, nn.Parameter(net[0].weight.data)
    assert net[0].weight._version < old._version
    while net[0].weight._version < old._version:
        net[0].weight.mul_(1.7)


def other_layout(net: nn.Module) -> None:
    net[0].weight.data = net[0].weight.data.transpose(2, 3)


def load(net: nn.Module, **options: Any) -> None:
    state = {k: v * 1.3 if v.is_floating_point() else v for k, v in net.state_dict().items()}
    net.load_state_dict(state, **options)


def calibrate_again(net: nn.Module) -> None:
    for layer in (net[0], net[4]):
        layer.weight_quantizer.initialize(layer.weight * 3)


CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    "SGD": step_of("SGD", momentum=0.9),
    "SGD, foreach": step_of("SGD", foreach=True),
    "SGD, fused": step_of("SGD", fused=True),
    "Adam": step_of("Adam"),
    "Adam, fused": step_of("Adam", fused=True),
    "moving average": average,
    "weights swapped in place": swap,
    "memory of the parameters swapped": swap_memory,
    "written through .data": lambda net: net[0].weight.data.mul_(-1),
    "one weight through .data": lambda net: net[4].weight.data[0, 5].add_(1),
    "two weights exchanged through .data": exchange,
    "written by NumPy": lambda net: net[0].weight.detach().numpy().__imul__(-1),
    "scale written by NumPy": lambda net: net[0].weight_quantizer.scale.detach().numpy().__imul__(2),
    "written through DLPack": lambda net: torch.from_dlpack(net[0].weight.detach()).mul_(-1),
    "written through its storage": lambda net: net[0].weight.untyped_storage().fill_(0),
    "Adam, fused, on gradients at hand": step_on_gradients_at_hand,
    "another parameter": another_weight,
    "another parameter in the same memory": another_parameter_in_the_same_memory,
    "other layout": other_layout,
    "load_state_dict": load,
    "load_state_dict(assign=True)": lambda net: load(net, assign=True),
    "quantization off": lambda net: set_quantization(net, False),
    "one quantizer off": lambda net: net[4].weight_quantizer.enable(False),
    "off and on again": lambda net: (set_quantization(net, False), swap(net), set_quantization(net, True)),
    "set_range": lambda net: net[0].weight_quantizer.set_range(torch.full((4,), -3.0), torch.full((4,), 3.0)),
    "calibrated again": calibrate_again,
    "another quantizer": lambda net: setattr(net[0], "weight_quantizer", network("UQ")[0].weight_quantizer),
    "trained and back": lambda net: (net.train()(X), net[0].weight.data.mul_(-1), net.eval()),
    "double": lambda net: net.double().float().double(),
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_what_changes_the_weight_is_seen(change: str) -> None:
    net = network()
    before = net(X)
    CHANGES[change](net)
    x = X.to(net[0].weight.dtype)
    with torch.enable_grad():
        expected = copy.deepcopy(net)(x).detach()
    assert torch.equal(net(x), expected) and torch.equal(net(x), expected)
    assert not torch.equal(expected.float(), before)


@torch.no_grad()
def test_a_folded_norm_is_part_of_it() -> None:
    net = network("TorchQAT", fold=True)
    net(X)
    for tensor in (net[1].running_var, net[1].weight):
        tensor.mul_(torch.tensor([0.5, 1.0, 2.0, 3.0]))
        assert torch.equal(net(X), afresh(net))
    before = net[1].running_var.clone()
    net[1].train()(net[0](X))  # as when its statistics are estimated anew; PyTorch does not count that as a change
    net[1].eval()
    assert not torch.equal(net[1].running_var, before) and torch.equal(net(X), afresh(net))


@torch.no_grad()
def test_copies_keep_nothing_and_share_nothing() -> None:
    net = network()
    net(X)
    assert net[0]._weight_cache._kept is not None
    size = len(pickle.dumps(network()))
    assert len(pickle.dumps(net)) == size
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert other[0]._weight_cache._kept is None and other[0]._weight_cache is not net[0]._weight_cache
        expected = net(X)
        assert torch.equal(other(X), expected)
        nn.init.normal_(other[0].weight)
        assert torch.equal(net(X), expected) and torch.equal(other(X), afresh(other))
    assert "_weight_cache" not in net[0].to_float().__dict__


@pytest.mark.parametrize(
    "forget",
    [lambda net: net.train(), lambda net: net.double(), lambda net: net.requires_grad_()(X), lambda net: net.eval()],
    ids=["train", "double", "a pass with gradients", "eval"],
)
def test_the_memory_is_freed(forget: Callable[[nn.Module], Any]) -> None:
    net = network()
    with torch.no_grad():
        net(X)
    assert net[0]._weight_cache._kept is not None
    forget(net)
    assert net[0]._weight_cache._kept is None and net[4]._weight_cache._kept is None


def test_weights_that_count_no_changes_are_compared_too() -> None:
    with torch.inference_mode():
        layer = build_quant_layer(dict(type="LSQConv", num_bit_w=4, num_bit_a=32), nn.Conv2d(3, 4, 3)).eval()
        calibrate(layer, [X])
        before = layer(X)
        layer.weight.mul_(-1)
        assert not torch.equal(layer(X), before)
    shared = network()
    shared.share_memory()
    with torch.no_grad():
        before = shared(X)
        torch.from_numpy(shared[0].weight.detach().numpy()).mul_(-1)
        assert not torch.equal(shared(X), before) and torch.equal(shared(X), afresh(shared))


@torch.no_grad()
def test_random_edits_are_seen_and_undoing_them_as_well() -> None:
    generator = torch.Generator().manual_seed(3)
    net = network()
    for _ in range(60):
        layer = (net[0], net[4])[int(torch.randint(2, (), generator=generator))]
        tensors = [layer.weight, *layer.weight_quantizer.parameters()]
        tensor = tensors[int(torch.randint(len(tensors), (), generator=generator))]
        memory = tensor.detach().numpy().reshape(-1)
        place = int(torch.randint(memory.size, (), generator=generator))
        kept = memory[place].copy()
        memory[place] = kept * 1.7 + 0.05
        assert torch.equal(net(X), afresh(net))
        if torch.rand((), generator=generator) < 0.5:
            memory[place] = kept
            assert torch.equal(net(X), afresh(net))


@torch.no_grad()
def test_who_watches_a_quantizer_sees_every_call() -> None:
    net, seen = network(), []
    net(X)
    net[0].weight_quantizer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    net(X), net(X)
    assert len(seen) == 2


@torch.no_grad()
def test_exported_and_compiled_models_quantize_their_weight_themselves() -> None:
    net = network("DoReFa")
    expected = net(X)
    exported = torch.export.export(net, (X,))
    assert torch.equal(exported.module()(X), expected)
    assert any("tanh" in str(node.target) for node in exported.graph.nodes)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    assert torch.equal(compiled(X), expected)
    net[0].weight.mul_(-1)
    assert torch.equal(compiled(X), afresh(net))


def test_stateless_calls_use_the_tensors_given() -> None:
    net = network()
    state = {name: value * 1.5 for name, value in net.named_parameters()}
    with torch.no_grad():
        net(X)
        result = torch.func.functional_call(net, state, (X,))
    assert torch.equal(result, torch.func.functional_call(net, state, (X,)).detach())


def test_a_cache_alone() -> None:
    cache, source, made, key = WeightCache(), torch.ones(2), [], ("4 bits",)

    def make() -> Tensor:
        made.append(1)
        return source * 2

    assert cache.get(key, [source], make) is cache.get(key, [source], make) and len(made) == 1
    source.add_(1)
    assert torch.equal(cache.get(key, [source], make), torch.full((2,), 4.0)) and len(made) == 2
    cache.get(key, [source.clone()], make)
    assert len(made) == 2
    for changed in ([source.double()], [source.view(1, 2)], [source, source], [source * float("nan")]):
        cache.get(key, changed, make)
    cache.get(("3 bits",), [source], make)
    assert len(made) == 7

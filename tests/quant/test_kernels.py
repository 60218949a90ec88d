"""Kernels: their selection, and quantized copies that the backward pass makes again."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from lbitcls.quant import functional
from lbitcls.quant.calibration import calibrate
from lbitcls.quant.kernels import Elementwise, active_kind, select_kernels, selection
from lbitcls.quant.layers import QuantLayer
from lbitcls.quant.methods import build_quant_layer
from lbitcls.utils.errors import ConfigError, DependencyError


@pytest.fixture(autouse=True)
def plain_kernels_afterwards() -> Iterator[None]:
    yield
    select_kernels("plain")


def test_auto_takes_fused_kernels_where_a_compiler_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "can_compile", lambda device: True)
    assert select_kernels("auto") == active_kind() == "fused"
    monkeypatch.setattr(selection, "can_compile", lambda device: False)
    assert select_kernels("auto") == active_kind() == "plain"
    with pytest.raises(DependencyError, match="needs a C\\+\\+ compiler"):
        select_kernels("fused")
    with pytest.raises(ConfigError, match="'fuse'. Did you mean 'fused'"):
        select_kernels("fuse")


def test_a_formula_is_summed_over_what_shares_a_parameter() -> None:
    times = Elementwise(lambda x, a: a * x, lambda g, x, a: (a * g, x * g))
    x, a = torch.randn(3, 4, 5, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    for axis, parameter in ((1, a), (None, a[0])):
        x.grad = None
        inputs = (x.requires_grad_(True), parameter.clone().requires_grad_(True))
        assert torch.autograd.gradcheck(lambda x, p, axis=axis: times(x, axis, p), inputs)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("axis", [None, 0])
def test_gradients_apart_are_a_well_formed_operator_with_the_same_values(
    axis: int | None, memory_format: torch.memory_format, compiler: None
) -> None:
    def backward(g: Tensor, x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return torch.where(x > b, g * a, 0.0), torch.where(x > b, g * x, 0.0)  # none for b

    function = Elementwise(lambda x, a, b: a * x, backward, apart=True)
    x = torch.randn(4, 3, 5, 6).to(memory_format=memory_format)
    grad = torch.randn(4, 3, 5, 6)
    shape = () if axis is None else (4,)
    parameters = [torch.rand(shape), torch.randn(shape)]
    expected = function.gradients(grad, x, axis, tuple(parameters))
    arguments = (function._apart, grad, x, axis, parameters)
    torch.library.opcheck(torch.ops.lbitcls.gradients, arguments, test_utils=("test_schema", "test_faketensor"))
    found = torch.ops.lbitcls.gradients(*arguments)
    assert found[0].stride() == x.stride() and len(found) == len(expected) == 2
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b)


def test_masks_are_computed_late_only_in_compiled_models(compiler: None) -> None:
    grad, x = torch.tensor([0.0, 1.0]), torch.tensor([5.0, 5.0])
    assert functional.late(grad, x) is x
    assert torch.compile(functional.late, backend="eager")(grad, x).tolist() == [0.0, 5.0]


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    options = dict(num_bit_w=3, num_bit_a=3)
    return nn.Sequential(
        build_quant_layer(dict(type="LSQConv", **options), nn.Conv2d(3, 8, 3)),
        nn.ReLU(),
        build_quant_layer(dict(type="LSQConv", per_channel=True, **options), nn.Conv2d(8, 8, 3, groups=2)),
        nn.ReLU(),
        nn.Flatten(),
        build_quant_layer(dict(type="LSQLinear", **options), nn.Linear(8 * 16, 4)),
    )


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = model(x)
    assert y.requires_grad
    return sum(held.values())


def test_recomputed_copies_change_no_gradient_and_save_memory(compiler: None) -> None:
    model, x = layers(), torch.randn(512, 3, 8, 8)
    calibrate(model, [x])
    plain, recomputing = copy.deepcopy(model), copy.deepcopy(model)
    select_kernels("fused")
    recomputed = saved_bytes(recomputing, x)
    recomputing(x).square().sum().backward()
    model_without = copy.deepcopy(model)
    for layer in model_without.modules():
        if isinstance(layer, QuantLayer):  # the same fused kernels, everything saved
            layer.apply_quantized = lambda x, op, layer=layer: op(
                layer.input_quantizer(x), layer.weight_quantizer(layer.weight)
            )
    model_without(x).square().sum().backward()
    for a, b in zip(recomputing.parameters(), model_without.parameters()):
        assert torch.equal(a.grad, b.grad)
    select_kernels("plain")
    assert recomputed < 0.75 * saved_bytes(plain, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_layers_train_under_autocast(dtype: torch.dtype) -> None:
    model, x = layers(), torch.randn(16, 3, 8, 8)
    calibrate(model, [x])
    with torch.autocast("cpu", dtype):
        loss = model(x).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

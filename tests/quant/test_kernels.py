"""Kernels: their selection, and quantized copies that the backward pass recomputes."""

import copy
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lbitcls.quant import functional
from lbitcls.quant.calibration import calibrate
from lbitcls.quant.kernels import Elementwise, active_kind, machine, select_kernels, selection
from lbitcls.quant.layers import QuantLayer
from lbitcls.quant.methods import build_quant_layer
from lbitcls.utils.errors import ConfigError, DependencyError


@pytest.fixture(autouse=True)
def plain_kernels_afterwards() -> Iterator[None]:
    yield
    select_kernels("plain")


@pytest.mark.parametrize(
    ("compiles", "inexact", "fast", "kind", "said"),
    [
        (True, "", True, "integer", "products are exact here, and faster than floats; gradients in float32."),
        (True, "", False, "fused", "fused kernels; no integer products: they are not faster than floats here."),
        (True, "no VNNI", True, "fused", "Quantizers run fused kernels; no integer products: no VNNI."),
        (False, "", True, "plain", "Quantizers run plain kernels: fused kernels need a C++ compiler"),
    ],
)
def test_auto_takes_the_best_kernels_that_the_machine_runs(
    compiles: bool, inexact: str, fast: bool, kind: str, said: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(selection, "can_compile", lambda device: compiles)
    monkeypatch.setattr(torch, "compile", lambda formula, **options: formula)
    monkeypatch.setattr(machine, "find_obstacle", lambda: inexact)
    monkeypatch.setattr(machine, "integers_are_fast", lambda: fast)
    assert select_kernels("auto") == active_kind() == kind
    assert said in selection.describe_kernels("cpu") and not caplog.text


def test_auto_on_a_gpu_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "can_compile", lambda device: True)
    monkeypatch.setattr(selection, "_first_formula_compiles", lambda device: True)
    assert select_kernels("auto", "cuda") == active_kind() == "fused"
    assert "no integer products: integer products run on the CPU, not on cuda" in selection.describe_kernels("cuda")


def test_speed_is_measured_without_autocast_and_auto_simulates_under_it(
    unselected: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "can_compile", lambda device: True)
    monkeypatch.setattr(selection, "compiled", lambda formula: formula)
    monkeypatch.setattr(machine, "find_obstacle", lambda: "")
    monkeypatch.setattr(machine, "integers_are_fast", lambda: not torch.is_autocast_enabled("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        assert selection._integers_are_fast()
        selection.select_at_first_use("cpu")
    assert active_kind() == "fused"
    assert "no integer products: under autocast they are not faster" in selection.describe_kernels("cpu")
    assert select_kernels("auto") == "integer"


def test_kernels_that_cannot_be_selected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "can_compile", lambda device: False)
    with pytest.raises(DependencyError, match="needs a C\\+\\+ compiler"):
        select_kernels("fused")
    with pytest.raises(ConfigError, match="'fuse'. Did you mean 'fused'"):
        select_kernels("fuse")
    with pytest.raises(ConfigError, match="'integer-int8' and gradients='bf16' contradict each other"):
        select_kernels("integer-int8", gradients="bf16")


BROKEN_COMPILER = """
import torch
from torch import nn
from lbitcls.quant.kernels import active_kind
from lbitcls.quant.methods import build_quant_layer

layer = build_quant_layer(dict(type="LSQConv", num_bit_w=4, num_bit_a=4), nn.Conv2d(3, 8, 3)).train()
layer(torch.randn(4, 3, 8, 8)).sum().backward()
print(active_kind(), layer.weight.grad.isfinite().all().item())
"""


@pytest.mark.slow
def test_a_compiler_that_is_broken_leaves_plain_kernels(compiler: None, tmp_path: Path) -> None:
    """A new process: this one may have compiled the formula already."""
    (tmp_path / "g++").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "g++").chmod(0o755)
    env = {**os.environ, "CXX": str(tmp_path / "g++"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", BROKEN_COMPILER], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split() == ["plain", "True"], done.stderr
    assert "Quantizers run plain kernels: compiling for cpu failed" in done.stderr


@pytest.fixture
def unselected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deselect the kernels, as in a new process."""
    monkeypatch.setattr(selection, "_active", None)


@pytest.mark.parametrize("training", [True, False])
def test_the_first_gradient_selects_auto_once(
    training: bool, unselected: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Own loops need no call; in eval the backward pass decides, so that a forward pass compiles nothing."""
    monkeypatch.setattr(selection, "can_compile", lambda device: False)
    caplog.set_level("INFO", "lbitcls")
    model, x = layers(), torch.randn(8, 3, 8, 8)
    calibrate(model, [x])
    with torch.no_grad():
        model.train()(x)
    assert model.eval()(x).requires_grad
    assert selection._active is None and active_kind() == "plain"
    y = model.train(training)(x)
    assert selection._active == ("plain" if training else None)
    y.sum().backward()
    assert selection._active == "plain"
    model(x).sum().backward()
    assert caplog.text.count("plain kernels: fused kernels need a C++ compiler") == 1


def test_the_first_gradient_selects_the_best_kernels_with_a_compiler(unselected: None, best_kernels: str) -> None:
    model, x = layers(), torch.randn(512, 3, 8, 8)
    calibrate(model, [x])
    needed = saved_bytes(model.train(), x)
    assert selection._active == best_kernels
    select_kernels("plain")
    assert needed < 0.75 * saved_bytes(model, x)


def test_a_selected_kind_stays(unselected: None) -> None:
    select_kernels("plain")
    model = layers().train()
    model(torch.randn(8, 3, 8, 8)).sum().backward()
    assert active_kind() == "plain"


@pytest.mark.parametrize("frozen", [False, True])
def test_nothing_is_selected_where_no_gradient_is_needed(frozen: bool, unselected: None) -> None:
    model, x = layers(), torch.randn(8, 3, 8, 8)
    calibrate(model, [x])
    if frozen:
        model.requires_grad_(False).train()(x)
    else:
        model.to("meta").train()(x.to("meta"))
    assert selection._active is None


def test_compiled_and_traced_models_hold_plain_formulas(unselected: None, compiler: None) -> None:
    model, x = layers().train(), torch.randn(8, 3, 8, 8)
    calibrate(model, [x])
    expected = model.eval()(x)
    compiled = torch.compile(model.train(), backend="eager", fullgraph=True)
    compiled(x).sum().backward()
    assert selection._active == "fused"  # selected when the model was traced
    select_kernels("fused")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, and warns of each number that it makes a constant
        assert torch.equal(torch.jit.trace(model.eval(), x)(x), expected)


def test_a_quantizer_that_ran_can_be_copied(compiler: None) -> None:
    """Its recipe for recomputing contains a tensor with a history, which cannot be copied."""
    select_kernels("fused")
    quantizer = layers()[0].input_quantizer
    x = torch.randn(8, requires_grad=True) * 1
    y = quantizer(x)
    assert torch.equal(copy.deepcopy(quantizer).eval()(x), y)
    assert torch.equal(pickle.loads(pickle.dumps(quantizer)).eval()(x), y)


@pytest.mark.slow
def test_checkpointed_activations_train_from_an_unselected_start(unselected: None, best_kernels: str) -> None:
    """Kernels selected in the first backward pass do not disturb the forward pass that it reruns."""
    model, x = layers(), torch.randn(512, 3, 8, 8)
    calibrate(model, [x])
    checkpoint(model.eval(), x, use_reentrant=False).sum().backward()
    assert selection._active == best_kernels
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(x).sum().backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(found, model.parameters()))


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

"""Hooks that check the class of their module: the exported model does what they do, or the export is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from lbitcls.deploy.export.lowering import lower
from lbitcls.deploy.export.onnx import export_model
from lbitcls.deploy.runtime.engine import load
from lbitcls.deploy.verification.verify import verify
from lbitcls.quant.layers import QuantConv2d, QuantLayer, QuantLinear
from lbitcls.quant.quantizer import Quantizer
from lbitcls.utils.errors import ConfigError

Quantized = Callable[..., nn.Module]
SHAPE = (3, 8, 8)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4)
    )


def images(number: int = 120) -> Tensor:
    return torch.randn(number, *SHAPE, generator=torch.Generator().manual_seed(1))


KINDS: dict[str, Callable[[Any], bool]] = {
    "the float class": lambda module: isinstance(module, nn.Conv2d),
    "another float class": lambda module: isinstance(module, nn.Linear),
    "the quantized class": lambda module: isinstance(module, QuantLayer),
    "the very type": lambda module: type(module) is QuantConv2d,
    "the type's name": lambda module: type(module).__name__ == QuantLinear.__name__,
    "an attribute": lambda module: hasattr(module, "kernel_size"),
    "its quantizer": lambda module: getattr(module, "weight_quantizer", None) is not None,
    "the quantizer's bits": lambda module: getattr(getattr(module, "input_quantizer", None), "num_bits", 0) == 4,
    "the weight's shape": lambda module: getattr(module, "weight", torch.zeros(0)).shape[:2] == (8, 8),
}


def changes_outputs(asks: Callable[[Any], bool]) -> Callable[..., Any]:
    return lambda module, args, y: y.flip(1) * 1.5 + 0.3 if asks(module) else None


def changes_inputs(asks: Callable[[Any], bool]) -> Callable[..., Any]:
    return lambda module, args: (args[0].flip(1) * 0.5 + 0.1,) if asks(module) else None


@contextmanager
def hooked(model: nn.Module, asks: Callable[[Any], bool], everywhere: bool, inputs: bool) -> Iterator[None]:
    """Register a global hook (`everywhere`), or a hook on each module of the model."""
    handles: list[Any] = []
    if everywhere:
        handles += [
            register_module_forward_pre_hook(changes_inputs(asks))
            if inputs
            else register_module_forward_hook(changes_outputs(asks))
        ]
    for module in () if everywhere else model.modules():
        handles.append(
            module.register_forward_pre_hook(changes_inputs(asks))
            if inputs
            else module.register_forward_hook(changes_outputs(asks))
        )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("inputs", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_lowered_layer_is_of_the_kind_that_hooks_ask_for(
    quantized: Quantized, kind: str, inputs: bool, everywhere: bool
) -> None:
    model, x = quantized(net(), "LSQ", 4, 4, images(32)), images(32)
    with torch.no_grad():
        plain = model(x)
        with hooked(model, KINDS[kind], everywhere, inputs):
            expected, given = model(x), lower(model)(x)
    assert (expected - plain).abs().mean() > 0.1 * plain.std(), "the hook should act"
    assert (given - expected).abs().mean() < 0.01 * expected.std()


ASKED = ("the float class", "the very type", "its quantizer")


@pytest.mark.parametrize(
    "number, kind",
    [pytest.param(n, kind, marks=[pytest.mark.slow] if n else []) for n, kind in enumerate(ASKED)],
)
def test_a_hook_that_asks_for_the_kind_of_layer(quantized: Quantized, number: int, kind: str, tmp_path: Path) -> None:
    """A hook acts on the same layers in the exported model, whether it is a layer's hook or a global one."""
    model, x = quantized(net(), "LSQ", 4, 4, images(32)), images()
    path = tmp_path / "model.onnx"
    with hooked(model, KINDS[kind], everywhere=number % 2 == 0, inputs=number % 3 == 0), torch.no_grad():
        expected = model(x)
        export_model(model, path, input_shape=SHAPE)
        assert verify(model, path, x.split(60), threads=1).passed
    given = torch.from_numpy(load(path, "onnxruntime", threads=1).predict(x.numpy()))
    assert (given - expected).abs().mean() < 0.01 * expected.std()


def on_quantizers(module: Any, args: Any, y: Tensor) -> Tensor | None:
    """Hook on a quantizer, which a lowered layer does not call."""
    return y * 3 if isinstance(module, Quantizer) and module.role == "input" else None


@pytest.mark.parametrize("everywhere", [False, True])
def test_a_hook_that_the_exported_model_cannot_have_is_refused(
    quantized: Quantized, everywhere: bool, tmp_path: Path
) -> None:
    model: Any = quantized(net(), "LSQ", 4, 4, images(32))
    handle = (
        register_module_forward_hook(on_quantizers)
        if everywhere
        else model[3].input_quantizer.register_forward_hook(on_quantizers)
    )
    try:
        with pytest.raises(ConfigError, match="Sequential gives different outputs with its layers lowered for export"):
            export_model(model, tmp_path / "model.onnx", input_shape=SHAPE)
    finally:
        handle.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method, bits", [("LSQ", 2), ("LSQPlus", 4), ("DoReFa", 3), ("TorchQAT", 8)])
@pytest.mark.parametrize("fold_bn", [False, True])
def test_a_lowered_model_computes_the_same_in_pytorch(
    quantized: Quantized, method: str, bits: int, fold_bn: bool
) -> None:
    model = quantized(net(), method, bits, bits, images(32), fold_bn=fold_bn)
    with torch.no_grad():
        expected, given = model(images()), lower(model)(images())
    off = (given - expected).abs().amax(1) > 1e-4 * expected.abs().max()
    assert off.sum() <= len(off) // 8, "a value at a tie may fall to the other side"


class Scaled(QuantConv2d):
    """Layer with attributes of the names that lowering gives to constants."""

    def weight_to_quantize(self) -> Tensor:
        return self.weight * self.scale.view(-1, 1, 1, 1) + self.input


def test_a_layer_whose_attributes_have_the_names_of_constants(quantized: Quantized, tmp_path: Path) -> None:
    model: Any = quantized(net(), "LSQ", 4, 4, images(32))
    model[3].__class__ = Scaled
    model[3].scale, model[3].input = nn.Parameter(torch.linspace(0.5, 1.5, 8)), nn.Parameter(torch.tensor(0.01))
    with torch.no_grad():
        model.eval()
        export_model(model, tmp_path / "model.onnx", input_shape=SHAPE)
        assert verify(model, tmp_path / "model.onnx", images().split(60), threads=1).passed

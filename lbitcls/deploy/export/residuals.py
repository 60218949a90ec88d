"""Skip connections in 8 bits: the tensor that skips a block is stored as 8-bit integers instead of float32.

One of an addition's two operands is the result of the block's last convolution. An engine adds the other operand to it
before storing anything, so it stays float (OpenVINO would omit its rounding, and the results would differ). The other
operand, which comes from memory, is the output of some module, such as the previous block; it is fake quantized there,
so that all its users see the same integers. The model that `carry_residuals` returns computes exactly this in PyTorch
too; the exported model is therefore verified against it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lbitcls.protocols import Addition
from lbitcls.quant.computed_weights import copy_model
from lbitcls.quant.layers import QuantLayer
from lbitcls.quant.quantized_sums import RESIDUAL_BITS, trained_residual_bits
from lbitcls.quant.quantizer import Quantizer
from lbitcls.quant.quantizers.lsq import LSQ
from lbitcls.quant.ranges import mse
from lbitcls.utils.errors import ConfigError, DataError

_ADDS = ("add", "add_", "__add__", "__iadd__", "__radd__")
_SAMPLE = 2**18  # elements kept of each batch
_LOSS = 4.0  # factor by which the squared error may grow on the grid of a layer that consumes the tensor as well


class CarriedOutput:
    """Forward hook that fake quantizes a module's output.

    Attributes:
        quantizer: Quantizer of the output; a `LoweredInput` in a lowered model.
        bits: Bits of its integers.
    """

    def __init__(self, quantizer: Quantizer) -> None:
        self.quantizer: nn.Module = quantizer
        self.bits = quantizer.num_bits

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """Return the output on the grid."""
        return self.quantizer(output)


def carried_outputs(model: nn.Module) -> Iterator[tuple[str, CarriedOutput]]:
    """Yield the hooks of `carry_residuals`, with the names of their modules."""
    for name, module in model.named_modules():
        for hook in module._forward_hooks.values():
            if isinstance(hook, CarriedOutput):
                yield name, hook


def residual_bits(model: nn.Module) -> int | None:
    """Return the bits of the model's skip connections; None if they are float."""
    return next((hook.bits for _, hook in carried_outputs(model)), trained_residual_bits(model))


@torch.no_grad()
def carry_residuals(
    model: nn.Module, batches: Iterable[Tensor], bits: int = RESIDUAL_BITS, signed: bool | None = None
) -> tuple[nn.Module, dict[str, str]]:
    """Return a copy of `model` in eval mode, on the CPU, whose skip connections are stored in 8 bits.

    A tensor that is also the 8-bit input of a quantized layer uses that layer's grid, unless its squared error is over
    four times that of the best grid; the other tensors use the range of least squared error.

    Args:
        model: Classifier, or any module that accepts an image.
        batches: float32 images (N, C, H, W) from which the ranges are computed.
        bits: 8.
        signed: True: only grids with negative integers (for targets without uint8); None: as the data needs.

    Returns:
        The copy, and a note on each added tensor, by the name of the module that computes it.

    Raises:
        ConfigError: Other bits, or a model without skip connections that can be stored in 8 bits, or trained with them.
        DataError: There are no images.
    """
    if bits != RESIDUAL_BITS:
        raise ConfigError(f"skip connections must be in {RESIDUAL_BITS} bits, or float; got {bits!r}.")
    if trained_residual_bits(model) is not None:
        raise ConfigError("the model's skip connections were trained in 8 bits, and are exported so; omit the option.")
    model = copy_model(model).cpu().eval()
    batches = list(batches)
    if not batches:
        raise DataError("skip connections in 8 bits need at least one batch of images for their ranges.")
    found = _Watch.over(model, batches[0][:1])
    names = [name for name in found.made_by if name is not None]
    once = [name for name in names if found.calls[name] == 1]
    if not once:
        raise ConfigError(f"{type(model).__name__} has no skip connections that can be stored in {bits} bits.")
    samples = _samples(model, once, batches)
    report = dict.fromkeys(set(names) - set(once), "stays float: its module is called several times")
    for name in once:
        quantizer, note = _grid(samples[name], found.takers.get(name, ()), bits, signed)
        model.get_submodule(name).register_forward_hook(CarriedOutput(quantizer))
        report[name] = note
    if None in found.made_by:
        report["(no module)"] = "stays float: the added tensor is not a module's output"
    return model, report


class _Watch(TorchFunctionMode):
    """Watcher of one forward pass: which modules compute the added tensors, and which quantized layers consume them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.makers: dict[int, str] = {}
        self.kept: list[Tensor] = []  # so that no id is reused
        self.used: set[int] = set()  # tensors that a module has consumed since they were computed
        self.calls: Counter[str] = Counter()
        self.added: dict[str | None, None] = {}
        self.takers: dict[str, list[QuantLayer]] = {}
        watched = [(name, m) for name, m in model.named_modules() if name and not isinstance(m, Addition)]
        self.hooks = [hook for name, module in watched for hook in self._watch(name, module)]

    @classmethod
    def over(cls, model: nn.Module, images: Tensor) -> _Watch:
        """Return the watcher after a forward pass of `images`."""
        watch = cls(model)
        try:
            with watch:
                _run(model, images)
        finally:
            for hook in watch.hooks:
                hook.remove()
        return watch

    @property
    def made_by(self) -> Sequence[str | None]:
        """Modules that compute the operands added from memory, each once; None for an operand without a module."""
        return list(self.added)

    def _watch(self, name: str, module: nn.Module) -> tuple[Any, Any]:
        def take(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            inputs = (*args, *kwargs.values())
            self.calls[name] += 1
            self.used.update(id(value) for value in inputs)
            if isinstance(module, QuantLayer) and inputs and id(inputs[0]) in self.makers:
                self.takers.setdefault(self.makers[id(inputs[0])], []).append(module)

        def make(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                self.makers[id(output)] = name  # enclosing modules come later and replace this one
                self.kept.append(output)
                self.used.discard(id(output))

        return module.register_forward_pre_hook(take, with_kwargs=True), module.register_forward_hook(make)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _ADDS and len(args) == 2 and _is_skip(*args):
            direct = next((operand for operand in args if id(operand) not in self.used), None)
            self.added.update({self.makers.get(id(operand)): None for operand in args if operand is not direct})
        return func(*args, **(kwargs or {}))


def _is_skip(left: Any, right: Any) -> bool:
    tensors = isinstance(left, Tensor) and isinstance(right, Tensor)
    return tensors and left.shape == right.shape and left.dim() > 1 and left.is_floating_point()


def _run(model: Any, images: Tensor) -> None:
    model.predict(images) if hasattr(model, "predict") else model(images)


def _samples(model: nn.Module, names: Sequence[str], batches: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return a subsample of each module's outputs for the images, flattened."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            flat = output.detach().flatten()
            ends = torch.stack(flat.aminmax())
            seen[name].append(torch.cat([flat[:: max(1, -(-flat.numel() // _SAMPLE))], ends]))

        return hook

    with _hooked(model, {name: keep(name) for name in names}):
        for images in batches:
            _run(model, images)
    return {name: torch.cat(rows) for name, rows in seen.items()}


@contextmanager
def _hooked(model: nn.Module, hooks: dict[str, Any]) -> Iterator[None]:
    handles = [model.get_submodule(name).register_forward_hook(hook) for name, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _grid(sample: Tensor, takers: Iterable[QuantLayer], bits: int, signed: bool | None) -> tuple[Quantizer, str]:
    """Return the quantizer of one tensor, and the note on it for the report."""
    best = LSQ(bits, role="input", signed=signed)
    best.initialize(sample, mse)
    best.eval()
    limit = _LOSS * _squared_error(best, sample)
    for layer in takers:
        own = layer.input_quantizer
        if own is None or not own.is_enabled or own.num_bits != bits:
            continue
        if (
            own.levels() is not None or own.thresholds() is not None
        ):  # not integers at even distances, or not kept by it
            continue
        if _squared_error(own, sample) <= limit:
            return own, "8 bits, on the grid of the layer that consumes it"
    return best, f"{bits} bits, {'signed' if best.signed else 'unsigned'}, scale {float(best.qparams().scale):.6g}"


def _squared_error(quantizer: Quantizer, sample: Tensor) -> float:
    return float((quantizer(sample) - sample).square().mean())

"""Forward passes with hooks on the layers; of activations, only sums, counts and a sample are kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lbitcls.analysis.measures import Similarity
from lbitcls.analysis.tensors import Extent, TensorWatch
from lbitcls.protocols import predictor
from lbitcls.quant.calibration import quantizing
from lbitcls.quant.layers import QuantLayer, kind_of
from lbitcls.quant.quantizer import Quantizer
from lbitcls.utils.errors import DataError

SAMPLE = 2**16
"""Values of a layer's output per batch to compare between two models; a random sample if there are more."""

Look = Callable[[str, nn.Module, Tensor, Tensor], None]


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the convolutions and matrix products of a model, quantized or not, by name, in order of definition."""
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantLayer) or kind_of(m) is not None}


def quantizers_of(layer: nn.Module) -> list[Quantizer]:
    """Return the quantizers of a layer, its weight's first; an empty list for a float layer."""
    return [m for m in layer.children() if isinstance(m, Quantizer)]


def input_quantizer(layer: nn.Module) -> Quantizer | None:
    """Return the quantizer of a layer's input, if it is enabled."""
    found: Any = getattr(layer, "input_quantizer", None)
    return found if isinstance(found, Quantizer) and found.is_enabled else None


def weight_quantizer(layer: nn.Module) -> Quantizer | None:
    """Return the quantizer of a layer's weight, if it is enabled."""
    found: Any = getattr(layer, "weight_quantizer", None)
    return found if isinstance(found, Quantizer) and found.is_enabled else None


@contextmanager
def in_eval(model: nn.Module) -> Iterator[None]:
    """Set eval mode without gradients for the block; restore each module's own mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def looking(model: nn.Module, look: Look) -> Iterator[None]:
    """Call `look(name, layer, input, output)` after each layer's forward pass within the block."""
    hooks = [
        layer.register_forward_hook(lambda m, x, y, name=name: look(name, m, x[0], y))
        for name, layer in layers_of(model).items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def predict(model: nn.Module, batches: Sequence[Tensor]) -> Tensor:
    """Return the logits (N, K) of all batches, float32 on the CPU; the model must be in eval mode (`in_eval`)."""
    logits = [predictor(model)(batch).float().cpu() for batch in batches]
    return torch.cat(logits)


@dataclass
class Survey:
    """Result of the first pass over the images.

    Attributes:
        logits: (N, K).
        order: Layers in the order of their first call.
        extents: Range of each layer's inputs, as its quantizer sees them.
    """

    logits: Tensor
    order: list[str] = field(default_factory=list)
    extents: dict[str, Extent] = field(default_factory=dict)


def survey(model: nn.Module, batches: Sequence[Tensor], quantizers: dict[str, Quantizer | None], what: str) -> Survey:
    """Run the model once and record its logits, the order of its layers, and the range of their inputs.

    Args:
        model: Model in eval mode.
        batches: Images.
        quantizers: Quantizer of each layer's inputs, on whose grid the range is counted.
        what: Name of the model in messages.

    Raises:
        DataError: The model's output is not finite.
    """
    found: dict[str, Extent] = {}

    def look(name: str, layer: nn.Module, x: Tensor, y: Tensor) -> None:
        found.setdefault(name, Extent()).add(x, quantizers.get(name))

    with looking(model, look):
        logits = predict(model, batches)
    if not logits.isfinite().all():
        raise DataError(f"the output of {what} is not finite on these images; there is nothing to compare.")
    return Survey(logits, list(found), found)


class OutputSamples:
    """Sample of each layer's output for one batch, to compare with another model's values at the same places."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, int], Tensor] = {}
        self._calls: dict[str, int] = defaultdict(int)
        self._places: dict[int, Tensor] = {}

    def new_batch(self) -> None:
        """Discard the last batch."""
        self._kept.clear()
        self._calls.clear()

    def keep(self, name: str, y: Tensor) -> None:
        """Keep values of a layer's output."""
        self._kept[self._key(name)] = self._sample(y)

    def other_model(self) -> None:
        """Switch to the outputs of the other model, for the same batch."""
        self._calls.clear()

    def compare(self, name: str, y: Tensor, similarity: Similarity) -> None:
        """Add the kept values of a layer and the other model's to `similarity`."""
        similarity.add(self._kept[self._key(name)], self._sample(y))

    def _key(self, name: str) -> tuple[str, int]:
        self._calls[name] += 1
        return name, self._calls[name]

    def _sample(self, y: Tensor) -> Tensor:
        number = y.numel()
        if number <= SAMPLE:
            return y.flatten().clone()
        if number not in self._places:
            generator = torch.Generator().manual_seed(number)
            self._places[number] = torch.randint(number, (SAMPLE,), generator=generator)
        return y.flatten()[self._places[number].to(y.device)]


@dataclass
class LayerWatch:
    """Counts of the second pass at one layer: its inputs, its own error, and its error against the reference."""

    inputs: TensorWatch
    own: Similarity = field(default_factory=Similarity)
    against: Similarity = field(default_factory=Similarity)


def watch_layers(
    model: nn.Module,
    reference: nn.Module | None,
    batches: Sequence[Tensor],
    watches: dict[str, LayerWatch],
) -> None:
    """Run both models, batch by batch, and count at each layer as `watches` request.

    Args:
        model: Analyzed model, in eval mode.
        reference: Float model with the same layers; None: `model` with its quantizers disabled.
        batches: Images.
        watches: Watches by layer name; they are filled.
    """
    samples = OutputSamples()

    def look_at_reference(name: str, layer: nn.Module, x: Tensor, y: Tensor) -> None:
        if name in watches:
            samples.keep(name, y)
            if reference is not None:
                watches[name].inputs.add_float(x)

    def look(name: str, layer: nn.Module, x: Tensor, y: Tensor) -> None:
        if name in watches:
            watches[name].inputs.add(x)
            samples.compare(name, y, watches[name].against)
            if quantizers_of(layer):
                with quantizing(layer):
                    watches[name].own.add(layer.forward(x), y)

    for batch in batches:
        samples.new_batch()
        base = model if reference is None else reference
        with looking(base, look_at_reference), quantizing(base):
            predict(base, [batch])
        samples.other_model()
        with looking(model, look):
            predict(model, [batch])

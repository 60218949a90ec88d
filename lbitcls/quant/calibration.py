"""First values from data, and the state of all quantizers of a model."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from lbitcls.protocols import predictor
from lbitcls.quant.bypass import mark, refuse_read, watching
from lbitcls.quant.computed_weights import settle
from lbitcls.quant.layers import QuantLayer
from lbitcls.quant.quantizer import Quantizer
from lbitcls.quant.ranges import find_rule
from lbitcls.utils.errors import DataError

Batch = Tensor | Mapping[str, Any] | Sequence[Any]  # what `images_of` takes

logger = logging.getLogger("lbitcls")
SAMPLE_SIZE = 2**18
"""Elements kept of each batch at each quantizer: enough for any statistic, little beside the activations."""


def named_quantizers(model: nn.Module) -> Iterator[tuple[str, Quantizer]]:
    """Every quantizer of a model, with its full name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, Quantizer))


def quantizer_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that quantizers learn (they take no weight decay)."""
    return [p for _, quantizer in named_quantizers(model) for p in quantizer.parameters()]


def set_quantization(model: nn.Module, enabled: bool) -> None:
    """Switch all quantizers of a model on or off (off: the layers compute in float)."""
    for _, quantizer in named_quantizers(model):
        quantizer.enable(enabled)


def refresh(model: nn.Module) -> None:
    """Have all quantizers read their buffers again, after something else than loading wrote them (a broadcast)."""
    for _, quantizer in named_quantizers(model):
        quantizer.refresh()


def regularization(model: nn.Module) -> Tensor | float:
    """Sum of the quantizers' own additions to the loss; 0.0 where no method has one."""
    terms = [term for _, quantizer in named_quantizers(model) if (term := quantizer.regularization()) is not None]
    return torch.stack(terms).sum() if terms else 0.0


def uninitialized(model: nn.Module) -> list[str]:
    """Names of the quantizers that never took first values."""
    return [name for name, quantizer in named_quantizers(model) if not quantizer.is_initialized]


def calibrate(model: nn.Module, batches: Iterable[Batch], method: str | None = None) -> int:
    """Give every quantizer that has none its first values: weights' from the weights, inputs' from data.

    The model runs in float meanwhile, in the mode it is in (in training mode BatchNorm uses the batch's statistics,
    and its running ones stay as they are).

    Args:
        model: a transformed model.
        batches: what `images_of` takes, on any device: tensors (N, C, H, W), dicts with such an `img`, or pairs
            (images, labels).
        method: `minmax`, `percentile` or `mse`: the rule that finds ranges; None: each method's own.

    Returns:
        How many quantizers took their first values.

    Raises:
        DataError: an input quantizer saw no data: `batches` is empty, or the forward pass does not reach its layer; or
            a weight, an image or what is made of it holds values that are not finite.
        ConfigError: the model reads a layer's weight itself and does not call the layer, which would stay float.
    """
    rule = find_rule(method)
    pending = uninitialized(model)
    settle(model)
    if not pending:
        return 0
    _require_finite_weights(model)
    layers = [module for module in model.modules() if isinstance(module, QuantLayer)]
    of_weights = {id(layer.weight_quantizer) for layer in layers}
    inputs = {n: q for n, q in named_quantizers(model) if not q.is_initialized and id(q) not in of_weights}
    samples = _observe(model, inputs, batches if inputs else islice(batches, 1))
    for layer in layers:
        if layer.weight_quantizer is not None and not layer.weight_quantizer.is_initialized:
            layer.weight_quantizer.initialize(layer.weight_to_quantize(), rule)
    for name, quantizer in inputs.items():
        quantizer.initialize(torch.cat(samples[name]), rule)
    if inputs:
        signed = [name for name, quantizer in inputs.items() if quantizer.signed]
        logger.info("%d of %d inputs are signed: %s", len(signed), len(inputs), ", ".join(signed) or "none")
    return len(pending)


def _require_finite_weights(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if not parameter.detach().isfinite().all():
            raise DataError(
                f"calibration: {name} holds values that are NaN or infinite; the weights come from a run that "
                "diverged, or from a damaged file. Give other weights."
            )


def _observe(model: nn.Module, waiting: dict[str, Quantizer], batches: Iterable[Batch]) -> dict[str, list[Tensor]]:
    """Samples of what reaches each quantizer, in float; every quantizer must see some."""
    samples: dict[str, list[Tensor]] = {name: [] for name in waiting}
    number = 0

    def take(name: str, x: Tensor) -> None:
        samples[name].append(sample := _sample(x))
        if not sample.isfinite().all():
            raise DataError(
                f"calibration: what reaches {name} for batch {number} (counted from 0) holds values that are NaN or "
                "infinite, though the images are finite: a layer before it overflows. Look at the range of the images "
                "and at the weights."
            )

    hooks = [
        quantizer.register_forward_pre_hook(lambda _, inputs, name=name: take(name, inputs[0]))
        for name, quantizer in waiting.items()
    ]
    device = next(model.parameters()).device
    try:
        with (
            torch.no_grad(),
            torch.random.fork_rng(),
            quantizing(model),
            _running_statistics_kept(model),
            watching(model) as watch,
        ):
            for number, batch in enumerate(batches):
                images = images_of(batch)
                _require_finite_images(images, number)
                predictor(model)(images.to(device))
                watch.passes += 1
    finally:
        for hook in hooks:
            hook.remove()
    if watch.passes:
        refuse_read(watch.result(), "calibration")
        mark(model, watch.result(), "calibration")
    unseen = [name for name, seen in samples.items() if not seen]
    if unseen:
        raise DataError(
            f"calibration: no data reached {unseen[0]}{f' and {len(unseen) - 1} others' if unseen[1:] else ''}; "
            "give at least one batch, and leave layers that the forward pass does not use out of the transformer."
        )
    return samples


def images_of(batch: object) -> Tensor:
    """The images of a batch as loaders give it.

    Args:
        batch: a tensor, a dict with `img`, or a tuple or list whose first item they are, such as (images, labels).

    Raises:
        DataError: it is something else.
    """
    images = batch
    if isinstance(batch, Mapping):
        images = batch.get("img")
    elif isinstance(batch, (tuple, list)) and batch:
        images = batch[0]
    if not isinstance(images, Tensor):
        held = f" with {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else ""
        raise DataError(
            "a batch is a tensor (N, C, H, W), a dict with such an 'img', or a pair (images, labels); got a "
            f"{type(batch).__name__}{held}."
        )
    return images


def _require_finite_images(images: Tensor, number: int) -> None:
    finite = images.isfinite().flatten(1).all(1)
    if not finite.all():
        raise DataError(
            f"calibration: {int((~finite).sum())} of {len(images)} images of batch {number} (counted from 0), the "
            f"first at place {int(finite.int().argmin())}, hold NaN or infinite values. Look at it and at what "
            "the pipeline makes of it (a standard deviation of 0 divides by it)."
        )


def _sample(x: Tensor) -> Tensor:
    """At most `SAMPLE_SIZE` elements of `x` at equal distances, with its extremes, in one row."""
    flat = x.detach().float().flatten()
    stride = -(-flat.numel() // SAMPLE_SIZE)
    if stride <= 1:
        return flat.clone()
    return torch.cat([flat[::stride], flat.aminmax().min[None], flat.aminmax().max[None]])


@contextmanager
def quantizing(model: nn.Module, chosen: Collection[Quantizer] = ()) -> Iterator[None]:
    """The quantizers `chosen` quantize for the time being, all others hand their input on; states stay as they are."""
    active = [(quantizer, quantizer.is_enabled) for _, quantizer in named_quantizers(model)]
    on = {id(quantizer) for quantizer in chosen}
    for quantizer, _ in active:
        quantizer._active = id(quantizer) in on
    try:
        yield
    finally:
        for quantizer, was_active in active:
            quantizer._active = was_active


@contextmanager
def _running_statistics_kept(model: nn.Module) -> Iterator[None]:
    """Put the running statistics of normalization layers back as they were."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    kept = [{name: buffer.clone() for name, buffer in norm.named_buffers(recurse=False)} for norm in norms]
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept):
            for name, value in buffers.items():
                norm.get_buffer(name).copy_(value)

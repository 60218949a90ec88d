"""Initial values from data, and the state of all quantizers of a model."""

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
from lbitcls.utils.dist import concatenate_over_ranks, world_size
from lbitcls.utils.errors import DataError
from lbitcls.utils.logging import DETAIL
from lbitcls.utils.shards import whole

Batch = Tensor | Mapping[str, Any] | Sequence[Any]  # what `images_of` accepts

logger = logging.getLogger("lbitcls")
SAMPLE_SIZE = 2**18
"""Elements kept of each batch for each quantizer: enough for any statistic, few compared with the activations."""


def named_quantizers(model: nn.Module) -> Iterator[tuple[str, Quantizer]]:
    """Iterate over a model's quantizers, with their full names."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, Quantizer))


def quantizer_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that quantizers learn (exempt from weight decay)."""
    return [p for _, quantizer in named_quantizers(model) for p in quantizer.parameters()]


def weight_bits(model: nn.Module, final: bool = False) -> dict[int, int]:
    """Return the number of bits of the quantized weights, or those at the end of training, by a parameter's `id`."""
    return {
        id(parameter): layer.weight_quantizer.final_bits if final else layer.weight_quantizer.num_bits
        for layer in model.modules()
        if isinstance(layer, QuantLayer) and layer.weight_quantizer is not None
        for name, parameter in layer.named_parameters()  # a parametrized weight has other names
        if "quantizer" not in name and "bias" not in name
    }


def set_quantization(model: nn.Module, enabled: bool) -> None:
    """Switch all quantizers of a model on or off (off: the layers compute in float)."""
    for _, quantizer in named_quantizers(model):
        quantizer.enable(enabled)


def refresh(model: nn.Module) -> None:
    """Make all quantizers reread their buffers after anything but loading wrote to them (a broadcast)."""
    for _, quantizer in named_quantizers(model):
        quantizer.refresh()


def regularization(model: nn.Module) -> Tensor | float:
    """Return the sum of the quantizers' additions to the loss; 0.0 if no method has one."""
    terms = [term for _, quantizer in named_quantizers(model) if (term := quantizer.regularization()) is not None]
    return torch.stack(terms).sum() if terms else 0.0


def uninitialized(model: nn.Module) -> list[str]:
    """Return the names of the quantizers without initial values."""
    return [name for name, quantizer in named_quantizers(model) if not quantizer.is_initialized]


def calibrate(model: nn.Module, batches: Iterable[Batch], method: str | None = None, shared: bool = False) -> int:
    """Initialize every uninitialized quantizer: weight quantizers from the weights, input quantizers from data.

    The model runs in float, in its current mode (in training mode BatchNorm uses the batch statistics, and its running
    statistics stay unchanged).

    Args:
        model: Transformed model.
        batches: Batches that `images_of` accepts, on any device: tensors (N, C, H, W), dicts with such an `img`, or
            pairs (images, labels).
        method: Rule that finds ranges, `minmax`, `percentile` or `mse`; None: each method's own rule.
        shared: True: all ranks call this, each with its part of each batch, and get the values of the whole batches.

    Returns:
        Number of quantizers that were initialized.

    Raises:
        DataError: An input quantizer saw no data, because `batches` is empty or the forward pass does not reach its
            layer; or a weight, an image or an activation contains values that are not finite.
        ConfigError: The model reads a layer's weight itself without calling the layer, which would stay float.
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
    samples = _observe(model, inputs, batches if inputs else islice(batches, 1), world_size() if shared else 1)
    for layer in layers:
        if layer.weight_quantizer is not None and not layer.weight_quantizer.is_initialized:
            layer.weight_quantizer.initialize(whole(layer.weight_to_quantize()), rule)
    for name, quantizer in inputs.items():
        seen = torch.cat(samples[name])
        quantizer.initialize(concatenate_over_ranks(seen) if shared else seen, rule)
    if inputs:
        signed = [name for name, quantizer in inputs.items() if quantizer.signed]
        said = ", ".join(signed) or "none"
        logger.info("%d of %d inputs are signed: %s", len(signed), len(inputs), said, extra=DETAIL)
    return len(pending)


def _require_finite_weights(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if not whole(parameter.detach()).isfinite().all():
            raise DataError(
                f"calibration: {name} contains values that are NaN or infinite; the weights come from a run that "
                "diverged, or from a damaged file. Use other weights."
            )


def _observe(
    model: nn.Module, waiting: dict[str, Quantizer], batches: Iterable[Batch], parts: int
) -> dict[str, list[Tensor]]:
    """Return float samples of the values that reach each quantizer; every quantizer must see some.

    `batches` are one of `parts` parts of the batches, whose samples have at most `SAMPLE_SIZE` values together.
    """
    samples: dict[str, list[Tensor]] = {name: [] for name in waiting}
    number = 0

    def take(name: str, x: Tensor) -> None:
        samples[name].append(sample := _sample(x, SAMPLE_SIZE // parts))
        if not sample.isfinite().all():
            raise DataError(
                f"calibration: what reaches {name} for batch {number} (counted from 0) contains values that are NaN "
                "or infinite, although the images are finite: an earlier layer overflows. Check the range of the "
                "images and the weights."
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
            "provide at least one batch, and exclude layers that the forward pass does not use."
        )
    return samples


def images_of(batch: object) -> Tensor:
    """Return the images of a batch from a data loader.

    Args:
        batch: Tensor, dict with `img`, or tuple or list whose first item is the images, such as (images, labels).

    Raises:
        DataError: The batch has another form.
    """
    images = batch
    if isinstance(batch, Mapping):
        images = batch.get("img")
    elif isinstance(batch, (tuple, list)) and batch:
        images = batch[0]
    if not isinstance(images, Tensor):
        held = f" with {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else ""
        raise DataError(
            "a batch must be a tensor (N, C, H, W), a dict with such an 'img', or a pair (images, labels); got a "
            f"{type(batch).__name__}{held}."
        )
    return images


def _require_finite_images(images: Tensor, number: int) -> None:
    finite = images.isfinite().flatten(1).all(1)
    if not finite.all():
        raise DataError(
            f"calibration: {int((~finite).sum())} of {len(images)} images of batch {number} (counted from 0), the "
            f"first at index {int(finite.int().argmin())}, contain NaN or infinite values. Check the image and "
            "the pipeline (a standard deviation of 0 divides by zero)."
        )


def _sample(x: Tensor, size: int) -> Tensor:
    """Return at most `size` evenly spaced elements of `x`, with its extremes, in one row."""
    flat = x.detach().float().flatten()
    stride = -(-flat.numel() // size)
    if stride <= 1:
        return flat.clone()
    return torch.cat([flat[::stride], flat.aminmax().min[None], flat.aminmax().max[None]])


@contextmanager
def quantizing(model: nn.Module, chosen: Collection[Quantizer] = ()) -> Iterator[None]:
    """Temporarily let only the quantizers `chosen` quantize; all others pass their input on. States do not change."""
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
    """Restore the running statistics of normalization layers on exit."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    kept = [{name: buffer.clone() for name, buffer in norm.named_buffers(recurse=False)} for norm in norms]
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept):
            for name, value in buffers.items():
                norm.get_buffer(name).copy_(value)

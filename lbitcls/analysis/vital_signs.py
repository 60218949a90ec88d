"""Vital signs of a quantized network on a few images: use of each grid, and fit of BatchNorm's running statistics.

    reach        largest |x| / largest magnitude of the grid                            (of several grids the median)
    clipped      share of the nonzero values beyond the outermost levels
    lost         Σ x² over x < 0 / Σ x², if the grid has no level below zero
    span         levels from the lowest to the highest that occurs, those between included
    at borders   share of the weights within 1/20 of a step of a border between two integers: 10 % if they are spread
                 evenly; weights that oscillate gather there (Nagel et al., 2022, arXiv:2203.11086, section 3)
    shift        mean over the channels of |mean on the images - running mean| / running deviation
    spread       median over the channels of the ratio of the two deviations, the larger by the smaller

x is the value that the method divides by its scale, as in `tensors`. The measures need one forward pass in eval mode,
and of a layer's inputs only a sample, so that they are cheap enough for training (`lbitcls.tracking.quant_stats`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lbitcls.analysis.measures import Similarity
from lbitcls.analysis.passes import in_eval, input_quantizer, layers_of, weight_quantizer
from lbitcls.protocols import predictor
from lbitcls.quant.computed_weights import settle
from lbitcls.quant.layers import QuantLayer
from lbitcls.quant.quantizer import Quantizer
from lbitcls.quant.spec import along, per_grid

SAMPLE = 2**14
"""Values of a layer's inputs per batch that are measured: a random sample, always at the same places."""
BORDER = 0.05
"""Distance to a border between two integers, in steps, within which a weight counts as being at it."""
_TOLERANCE = 1e-3  # steps: rounding may put a value at the end of the range slightly beyond it


@dataclass(frozen=True)
class GridSigns:
    """Use of one quantizer's grid; the module's docstring defines the measures.

    Attributes:
        layer: Full name of the layer.
        role: `'weight'` or `'input'`.
        num_bits: Bits of the grid.
        signed: True if the grid has levels below zero.
        one_sided: True if the grid has levels below zero and no value needs them.
        scale: Median scale.
        turned: Share of the learned scales (or clips) that are below zero.
        reach: Reach of the grid.
        clipped: Share of the nonzero values; without those below zero if the grid has no level there.
        lost: Share of the signal below zero.
        levels: Number of levels.
        levels_used: Levels that occur; per-channel: their mean.
        span: Span of the levels; per-channel: its mean.
        sqnr_db: SQNR of the quantized values, in dB; None: no error.
        at_borders: Share at borders; None for inputs and for levels that are not evenly spaced.
    """

    layer: str
    role: str
    num_bits: int
    signed: bool
    one_sided: bool
    scale: float
    turned: float
    reach: float
    clipped: float
    lost: float
    levels: int
    levels_used: float
    span: float
    sqnr_db: float | None
    at_borders: float | None


@dataclass(frozen=True)
class NormSigns:
    """Fit of a BatchNorm's running statistics to the images; the module's docstring defines the measures."""

    name: str
    shift: float
    spread: float


@dataclass(frozen=True)
class VitalSigns:
    """Signs of a network.

    Attributes:
        grids: Quantizers that are on, in the order of the forward pass, a layer's weight first. Of a layer that is
            called several times, the inputs of all calls count.
        norms: BatchNorms with running statistics, in the order of the forward pass.
        first: Full name of the first layer of the forward pass, quantized or not; None without a pass.
        oscillating: Shares of the weights that oscillate, by layer name, if they were watched in training.
    """

    grids: tuple[GridSigns, ...]
    norms: tuple[NormSigns, ...] = ()
    first: str | None = None
    oscillating: Mapping[str, float] = field(default_factory=dict)


def take_signs(
    model: nn.Module, batches: Iterable[Tensor], oscillating: Mapping[str, float] | None = None
) -> VitalSigns:
    """Run the model once over the images, in eval mode and without gradients, and leave it unchanged.

    Args:
        model: Model; quantizers that are off or have no values yet are left out.
        batches: Images (N, C, H, W) on the model's device.
        oscillating: Shares of oscillating weights by layer name, if known.

    Example:
        >>> from lbitcls.quant import build_quant_layer
        >>> layer = build_quant_layer(dict(type="LSQConv", num_bit_w=4, num_bit_a=4), nn.Conv2d(3, 4, 3))
        >>> network, images = nn.Sequential(layer, nn.Flatten()), torch.rand(8, 3, 8, 8)
        >>> logits = network(images)  # the quantizers take their first values
        >>> [signs.role for signs in take_signs(network, [images]).grids]
        ['weight', 'input']
    """
    seen = _Seen()
    with in_eval(model):
        with _recording(model, seen):
            for images in batches:
                predictor(model)(images)
        settle(model)
        grids = [sign for name, samples in seen.inputs.items() for sign in _of_layer(name, model, samples)]
        norms = [_fit(name, model.get_submodule(name), *sums) for name, sums in seen.norms.items()]
    first = next(iter(seen.inputs), None)
    return VitalSigns(tuple(grids), tuple(norms), first, dict(oscillating or {}))


@dataclass
class _Seen:
    """Record of a pass: samples of each layer's inputs, and each norm's count, Σx and Σx² by channel."""

    inputs: dict[str, list[Tensor]] = field(default_factory=dict)
    norms: dict[str, tuple[int, Tensor, Tensor]] = field(default_factory=dict)


@contextmanager
def _recording(model: nn.Module, seen: _Seen) -> Iterator[None]:
    layers = layers_of(model)
    norms = {n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is not None}
    hooks = [
        *(m.register_forward_pre_hook(partial(_take_input, seen, n)) for n, m in layers.items()),
        *(m.register_forward_pre_hook(partial(_take_norm, seen, n)) for n, m in norms.items()),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _take_input(seen: _Seen, name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    samples = seen.inputs.setdefault(name, [])
    if input_quantizer(layer) is not None:
        samples.append(sample_values(inputs[0]))


def _take_norm(seen: _Seen, name: str, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    rows = per_grid(inputs[0].float(), 1)
    sums = rows.shape[1], rows.sum(1), rows.square().sum(1)
    before = seen.norms.get(name)
    seen.norms[name] = sums if before is None else (sums[0] + before[0], sums[1] + before[1], sums[2] + before[2])


def sample_values(x: Tensor) -> Tensor:
    """Return at most `SAMPLE` values of `x` in one row, and its extremes, which define how far a grid must reach."""
    flat = x.flatten()
    if flat.numel() <= SAMPLE:
        return flat.clone()
    generator = torch.Generator().manual_seed(flat.numel())
    places = torch.randint(flat.numel(), (SAMPLE,), generator=generator)
    return torch.cat([flat[places.to(flat.device)], torch.stack(torch.aminmax(flat))])


def _of_layer(name: str, model: nn.Module, samples: list[Tensor]) -> Iterator[GridSigns]:
    layer = model.get_submodule(name)
    weight, inputs = weight_quantizer(layer), input_quantizer(layer)
    if weight is not None and weight.is_initialized and isinstance(layer, QuantLayer):
        yield measure_grid(name, weight, layer.weight_to_quantize().detach())
    if inputs is not None and inputs.is_initialized and samples:
        yield measure_grid(name, inputs, torch.cat(samples))


@torch.no_grad()
def measure_grid(name: str, quantizer: Quantizer, x: Tensor) -> GridSigns:
    """Return the use that the values `x` make of a grid.

    Args:
        name: Full name of the layer.
        quantizer: Initialized quantizer in eval mode.
        x: Weight, or a sample of the inputs.
    """
    x = x.float()
    axis, low, high = quantizer.channel_axis, quantizer.quant_min, quantizer.quant_max
    value, quantized = quantizer.normalize(x), quantizer(x)
    scale, zero = quantizer.grid(x)[0], quantizer.zero_point()
    step, offset = along(scale, x.dim(), axis), along(zero, x.dim(), axis)
    steps = value / step + offset
    codes = torch.clamp(torch.round(quantized / step + offset), low, high).long() - low
    above, below = steps > high + _TOLERANCE, steps < low - _TOLERANCE
    unsigned = bool((zero <= low).all())
    lost = (value < 0) if unsigned else torch.zeros_like(above)
    counted = (value != 0) & ~lost
    spread_evenly = quantizer.levels() is None and quantizer.thresholds() is None
    shares = torch.stack(
        [
            ((above | below) & counted).sum() / counted.sum().clamp(min=1),
            value[lost].square().sum() / value.square().sum().clamp(min=torch.finfo(value.dtype).tiny),
            _reach(value, scale, zero, quantizer),
        ]
    )
    clipped, lost_share, reach = shares.tolist()
    used, span, levels = _levels(codes, quantizer)
    error = Similarity()
    error.add(value, quantized)
    at_borders = _at_borders(steps, ~(above | below)) if quantizer.role == "weight" and spread_evenly else None
    return GridSigns(
        layer=name,
        role=quantizer.role,
        num_bits=quantizer.num_bits,
        signed=not unsigned,
        one_sided=not unsigned and bool((value >= -0.5 * step).all()),
        scale=scale.median().item(),
        turned=_turned(quantizer),
        reach=reach,
        clipped=clipped,
        lost=lost_share,
        levels=levels,
        levels_used=used,
        span=span,
        sqnr_db=error.sqnr_db,
        at_borders=at_borders,
    )


def _reach(value: Tensor, scale: Tensor, zero: Tensor, quantizer: Quantizer) -> Tensor:
    """Return the median over the grids of the largest magnitude by the grid's largest."""
    end = torch.maximum(quantizer.quant_max - zero, zero - quantizer.quant_min) * scale
    largest = per_grid(value, quantizer.channel_axis).abs().amax(1)
    return (largest / end.flatten()).median()


def _levels(codes: Tensor, quantizer: Quantizer) -> tuple[float, float, int]:
    """Return the number of levels that occur and their span, each the mean over the grids, and all levels."""
    rows = per_grid(codes, quantizer.channel_axis)
    number = quantizer.quant_max - quantizer.quant_min + 1
    occurs = torch.zeros(len(rows), number, device=rows.device).scatter_(1, rows, 1.0)
    levels = quantizer.levels()
    if levels is not None:
        occurs = occurs[:, levels.long() - quantizer.quant_min]
    highest = occurs.shape[1] - 1 - occurs.flip(1).argmax(1)
    span = (highest - occurs.argmax(1) + 1).float()
    used, wide = torch.stack([occurs.sum(1).mean(), span.mean()]).tolist()
    return used, wide, occurs.shape[1]


def _at_borders(steps: Tensor, inside: Tensor) -> float:
    """Return the share of the values on the grid that lie at a border between two integers."""
    near = ((steps - steps.floor() - 0.5).abs() < BORDER) & inside
    return (near.sum() / inside.sum().clamp(min=1)).item()


def _turned(quantizer: Quantizer) -> float:
    """Return the share of the learned scales or clips that are below zero, where methods use the magnitude."""
    learned = [p for name, p in quantizer.named_parameters(recurse=False) if name in ("scale", "clip")]
    return max(((p < 0).float().mean().item() for p in learned), default=0.0)


def _fit(name: str, norm: nn.Module, count: int, total: Tensor, squares: Tensor) -> NormSigns:
    assert isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None
    mean = total / count
    deviation = ((squares / count - mean.square()).clamp(min=0) + norm.eps).sqrt()
    running = (norm.running_var + norm.eps).sqrt()
    shift = ((mean - norm.running_mean).abs() / running).mean()
    spread = (deviation / running).log().abs().median().exp()
    moved, ratio = torch.stack([shift, spread]).tolist()
    return NormSigns(name, moved, ratio)

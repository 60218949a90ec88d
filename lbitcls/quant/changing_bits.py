"""Other bits for the quantizers of a model in training: progressive quantization.

A stage of training has bits (weights, inputs). In it, each quantizer has these, or those of the config if they are
more: layers with more bits than a stage stay as they are.

When the bits change, all tensors stay the same objects with the same shapes. Either the quantizer waits for initial
values again, as a new one does, or the range of its grid is kept:

    learned step:        s ← s · (largest integer before) / (largest integer now)
    learned offset:      scale and offset span the range that the grid had
    range or clip:       unchanged, whether learned or observed; so are a constant range, α of DSQ, and the sign
    learned thresholds:  refused, since each number of bits has another number of them (N2UQ's inputs)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from lbitcls.quant.calibration import named_quantizers
from lbitcls.quant.grid_facts import GRID, read_facts
from lbitcls.quant.quantizer import Quantizer
from lbitcls.quant.spec import check_num_bits
from lbitcls.settings.progressive import Pair
from lbitcls.utils.errors import ConfigError


@torch.no_grad()
def change_bits(quantizer: Quantizer, num_bits: int, keep_range: bool = True) -> None:
    """Change a quantizer's bits in place.

    Args:
        quantizer: Quantizer of a model; in a run, on the device of the run.
        num_bits: Number of bits, 1 (if the method has them) or 2 to 8.
        keep_range: Keep the range of each grid; False: the quantizer waits for initial values, as a new one does.

    Raises:
        ConfigError: The method lacks these bits, or the quantizer cannot change its bits.
        ScaleError: The grid to keep has a scale that is not finite or not positive.

    Example:
        >>> from lbitcls.quant.quantizers.lsq import LSQ
        >>> quantizer = LSQ(8, role="weight")
        >>> quantizer.initialize(torch.randn(8, 3, 3, 3))
        >>> before = quantizer.scale * 127
        >>> change_bits(quantizer, 4)
        >>> torch.allclose(quantizer.scale * 7, before)
        True
    """
    check_num_bits(num_bits, type(quantizer).__name__, quantizer.lowest_bits)
    if num_bits != quantizer.num_bits:
        _require_changeable(quantizer, quantizer.place or type(quantizer).__name__)
    spans = keep_range and quantizer.is_initialized and not quantizer.bits_leave_range
    ends = _ends(quantizer) if spans else None
    quantizer.num_bits = num_bits
    if not keep_range:
        quantizer.initialized.fill_(False)
    quantizer.refresh()
    if ends is not None:
        quantizer.set_range(*ends)


def _require_changeable(quantizer: Quantizer, name: str) -> None:
    if quantizer.bits_are_fixed:
        raise ConfigError(
            f"{name} ({type(quantizer).__name__}, {quantizer.num_bits} bits) cannot change its bits in training: each "
            f"number of bits has another number of parameters. In progressive.bits, give {quantizer.role}s "
            "the bits of quant_transformer in every stage, as in [(8, 2), (4, 2), (2, 2)], or use another method."
        )


def _ends(quantizer: Quantizer) -> tuple[Tensor, Tensor]:
    """Return the ends of each grid's range; without a zero point at most as wide below zero as above."""
    grid = quantizer.qparams()
    lower, upper = ((end - grid.zero_point) * grid.scale for end in (grid.quant_min, grid.quant_max))
    has_zero_point = type(quantizer).zero_point is not Quantizer.zero_point
    return lower if has_zero_point else torch.maximum(lower, -upper), upper


def stage_bits(quantizer: Quantizer, pair: Pair) -> int:
    """Return the bits of a quantizer in a stage with the bits `pair`."""
    return max(pair[quantizer.role == "input"], quantizer.final_bits)


def set_bits(model: nn.Module, pair: Pair, keep_range: bool = True) -> int:
    """Give all quantizers of a model their bits in a stage; return the number of those that changed."""
    changed = [(q, stage_bits(q, pair)) for _, q in named_quantizers(model) if q.num_bits != stage_bits(q, pair)]
    for quantizer, bits in changed:
        change_bits(quantizer, bits, keep_range)
    return len(changed)


def saved_stage(model: nn.Module, state_dict: Mapping[str, Tensor], pairs: Sequence[Pair]) -> int | None:
    """Return the number of the stage, from 0, in which a state dict was saved; None if it fits none.

    Args:
        model: Model with the quantizers of the state dict.
        state_dict: Weights, and the grids that the quantizers record.
        pairs: Bits of the stages.
    """
    quantizers = {f"{name}.{GRID}": q for name, q in named_quantizers(model) if f"{name}.{GRID}" in state_dict}
    bits = {name: read_facts(state_dict[name]).get("bits") for name in quantizers}
    for number, pair in enumerate(pairs):
        if bits and all(bits[name] == stage_bits(quantizer, pair) for name, quantizer in quantizers.items()):
            return number
    return None


def check_stages(model: nn.Module, pairs: Sequence[Pair]) -> None:
    """Check that stages end at the bits of the config, and that each changes a quantizer.

    Raises:
        ConfigError: The last stage has other bits than the lowest of the model's quantizers, a stage changes nothing,
            no quantizer has so few bits, or a quantizer that would change its bits cannot.
    """
    quantizers = [quantizer for _, quantizer in named_quantizers(model)]
    for name, quantizer in named_quantizers(model):
        if any(stage_bits(quantizer, pair) != quantizer.final_bits for pair in pairs):
            _require_changeable(quantizer, name)
    for role, last in zip(("weight", "input"), pairs[-1], strict=True):
        fewest = min((q.final_bits for q in quantizers if q.role == role), default=last)
        if last != fewest:
            raise ConfigError(
                f"progressive.bits must end with the fewest bits that quant_transformer sets, which are {fewest} for "
                f"{role}s; got {last}."
            )
    for number, (before, after) in enumerate(pairwise(pairs), start=1):
        if all(stage_bits(q, before) == stage_bits(q, after) for q in quantizers):
            raise ConfigError(f"progressive.bits[{number}] changes no layer: no quantizer has fewer bits than before.")

"""Effect of values next to a tie on a model's results: what an engine may differ by, computed in PyTorch.

OpenVINO quantizes by a product and a sum in float32, at up to 255 steps from the end of the grid; there neighbouring
float32 numbers are 2⁻¹⁶ of a step apart. So a value within this distance of the middle between two levels may get
either. The float64 form of the model does not show it: a signed value of 2 bits is within one step of zero, and PyTorch
rounds it a hundred times more accurately.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lbitcls.deploy.export.residuals import carried_outputs
from lbitcls.deploy.verification.verdict import YARDSTICKS, Verification
from lbitcls.quant.calibration import named_quantizers
from lbitcls.quant.quantizer import Quantizer
from lbitcls.quant.spec import along

NUDGE = 2.0**-16
"""Distance from a tie, in steps."""
_RELATIVE = "times the difference of float32 and float64"


def explained_by_ties(found: Verification, model: Any, images: Tensor) -> bool:
    """Return True if only the yardstick rejects a file, and values next to a tie explain the difference.

    Args:
        found: Verification of the exported model, which is rejected.
        model: The model that was exported, in eval mode.
        images: The images of the verification (N, C, H, W).
    """
    if not all(_RELATIVE in reason for reason in found.reasons):
        return False
    limit = YARDSTICKS * effect_of_ties(model, images)
    names = {reason.split(":")[0] for reason in found.reasons}
    return all(row.mean <= limit for row in found.rows if row.name in names)


@torch.no_grad()
def effect_of_ties(model: Any, images: Tensor) -> float:
    """Return the mean absolute difference of the logits if each quantized input is `NUDGE` steps higher, or lower.

    The larger of the two counts.
    """
    expected, effects = model.predict(images), []
    for sign in (1, -1):
        with _nudged(model, sign * NUDGE):
            effects.append(float((model.predict(images) - expected).abs().mean()))
    return max(effects)


@contextmanager
def _nudged(model: nn.Module, steps: float) -> Iterator[None]:
    """Add `steps` steps to what the quantizers of inputs, sums and skip connections receive."""

    def add(quantizer: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        scale = along(quantizer.qparams().scale, args[0].dim(), quantizer.channel_axis)
        return (args[0] + steps * scale, *args[1:])

    carried = [hook.quantizer for _, hook in carried_outputs(model) if isinstance(hook.quantizer, Quantizer)]
    inner = [quantizer for _, quantizer in named_quantizers(model) if quantizer.role == "input"]
    quantizers = {id(quantizer): quantizer for quantizer in (*inner, *carried) if quantizer.is_enabled}
    handles = [quantizer.register_forward_pre_hook(add) for quantizer in quantizers.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

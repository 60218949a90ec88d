"""Losses: logits (N, K) and labels -> scalar tensor.

Labels are class labels (N,) int64, or probabilities (N, K), as produced by mixup and cutmix. Half-precision logits
are converted to float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from lbitcls.registry import LOSSES
from lbitcls.utils.errors import ConfigError, suggest


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _check_weight(owner: str, loss_weight: float) -> None:
    if not 0 < loss_weight < math.inf:
        raise ConfigError(f"{owner}: loss_weight must be a number above 0; got {loss_weight}.")


@LOSSES.register_module()
class CrossEntropyLoss(nn.Module):
    """Softmax cross entropy, averaged over the batch.

    Args:
        loss_weight: Factor on the loss.
        class_weight: K factors, one per class; the average is then weighted, as in torch.
        use_soft: True if labels are probabilities. Accepted for configs that set it; both kinds of labels always work,
            whatever its value.
    """

    class_weight: Tensor | None

    def __init__(
        self, loss_weight: float = 1.0, class_weight: Sequence[float] | None = None, use_soft: bool = False
    ) -> None:
        super().__init__()
        _check_weight("CrossEntropyLoss", loss_weight)
        if class_weight is not None and not all(0 <= weight < math.inf for weight in class_weight):
            raise ConfigError(f"CrossEntropyLoss: class_weight must be numbers ≥ 0; got {class_weight!r}.")
        self.loss_weight = loss_weight
        self.use_soft = use_soft
        weight = None if class_weight is None else torch.tensor(class_weight, dtype=torch.float32)
        self.register_buffer("class_weight", weight, persistent=False)

    def forward(self, logits: Tensor, gt_label: Tensor) -> Tensor:
        if self.class_weight is not None and len(self.class_weight) != logits.shape[1]:
            raise ConfigError(
                f"CrossEntropyLoss: class_weight has {len(self.class_weight)} entries, but there are "
                f"{logits.shape[1]} classes; give one per class."
            )
        weight = self.class_weight
        return self.loss_weight * functional.cross_entropy(_at_least_float32(logits), gt_label, weight)


@LOSSES.register_module()
class LabelSmoothLoss(nn.Module):
    """Cross entropy with label smoothing: the one becomes 1 - e, and e is spread evenly over all K classes.

    Args:
        label_smooth_val: Amount of smoothing, in [0, 1).
        num_classes: K, used only as a check; the logits determine it.
        mode: 'original' (e = label_smooth_val, Szegedy et al., arXiv:1512.00567) or 'classy_vision'
            (e = label_smooth_val / (1 + label_smooth_val)).
        loss_weight: Factor on the loss.
    """

    def __init__(
        self,
        label_smooth_val: float,
        num_classes: int | None = None,
        mode: str = "original",
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        _check_weight("LabelSmoothLoss", loss_weight)
        if not 0 <= label_smooth_val < 1:
            raise ConfigError(f"LabelSmoothLoss: label_smooth_val must be 0 <= value < 1; got {label_smooth_val}.")
        smoothing = {"original": label_smooth_val, "classy_vision": label_smooth_val / (1 + label_smooth_val)}
        if mode not in smoothing:
            raise ConfigError(f"LabelSmoothLoss has no mode '{mode}'{suggest(mode, smoothing)} Known: {[*smoothing]}.")
        self.label_smoothing = smoothing[mode]
        self.num_classes = num_classes
        self.loss_weight = loss_weight

    def forward(self, logits: Tensor, gt_label: Tensor) -> Tensor:
        if self.num_classes is not None and self.num_classes != logits.shape[1]:
            raise ConfigError(
                f"LabelSmoothLoss(num_classes={self.num_classes}), but there are {logits.shape[1]} logits; "
                "make them equal, or leave num_classes out."
            )
        loss = functional.cross_entropy(_at_least_float32(logits), gt_label, label_smoothing=self.label_smoothing)
        return self.loss_weight * loss

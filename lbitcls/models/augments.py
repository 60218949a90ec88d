"""Mixup (arXiv:1710.09412) and cutmix (arXiv:1905.04899) of training batches, by torchvision.

    train_cfg = dict(augments=dict(type='BatchMixup', alpha=0.2, num_classes=10, prob=1.0))

The random numbers come from torch's global generator, which the runner seeds for each iteration.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from lbitcls.utils.errors import ConfigError, reject_unknown_keys, suggest

_TRANSFORMS: dict[str, type] = {
    "BatchMixup": v2.MixUp,
    "MixUp": v2.MixUp,
    "BatchCutMix": v2.CutMix,
    "CutMix": v2.CutMix,
}


class BatchAugments(nn.Module):
    """Module that mixes a batch by one of several augments or, with the remaining probability, does not change it.

    Args:
        augments: One `dict(type=…, alpha=1.0, num_classes=None, prob=…)` or a list of them; `type` is
            BatchMixup (alias MixUp) or BatchCutMix (alias CutMix); `prob` defaults to 1 divided evenly among the
            augments, and the sum may not exceed 1; `num_classes` defaults to the head's.
        num_classes: K of the head, or None if it does not define K.

    Example:
        >>> augment = BatchAugments(dict(type="MixUp", alpha=0.2), num_classes=10)
        >>> img, label = augment(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))
        >>> label.shape
        torch.Size([4, 10])
    """

    def __init__(self, augments: dict | Sequence[dict], num_classes: int | None) -> None:
        super().__init__()
        configs = [augments] if isinstance(augments, dict) else list(augments)
        if not configs:
            raise ConfigError("train_cfg.augments is empty; leave it out, or name BatchMixup or BatchCutMix.")
        self.transforms = nn.ModuleList(_build(config, num_classes) for config in configs)
        self.probabilities = [float(config.get("prob", 1 / len(configs))) for config in configs]
        if not all(0 <= share <= 1 for share in self.probabilities) or sum(self.probabilities) > 1 + 1e-6:
            raise ConfigError(
                f"train_cfg.augments: the probabilities {self.probabilities} must not be negative, "
                "nor add up to more than 1."
            )

    # The mixing ratio is drawn as a Python number: a compiled model runs this part outside its graph.
    @torch.compiler.disable
    def forward(self, img: Tensor, gt_label: Tensor) -> tuple[Tensor, Tensor]:
        """Return images (N, C, H, W) and labels: both mixed, labels as probabilities (N, K), or both unchanged."""
        draw = torch.rand(()).item()
        for transform, probability in zip(self.transforms, self.probabilities, strict=True):
            if draw < probability:
                return transform(img, gt_label)
            draw -= probability
        return img, gt_label


def _build(config: dict, num_classes: int | None) -> nn.Module:
    kind = config.get("type")
    if kind not in _TRANSFORMS:
        raise ConfigError(
            f"train_cfg.augments: there is no augment '{kind}'{suggest(str(kind), _TRANSFORMS)} "
            f"Known: {', '.join(_TRANSFORMS)}."
        )
    reject_unknown_keys(f"train_cfg.augments ({kind})", config, ("type", "alpha", "num_classes", "prob"))
    alpha = config.get("alpha", 1.0)
    if not isinstance(alpha, (int, float)) or not 0 < alpha < math.inf:
        raise ConfigError(f"train_cfg.augments ({kind}): alpha must be a number above 0; got {alpha!r}.")
    return _TRANSFORMS[kind](alpha=alpha, num_classes=_class_count(config.get("num_classes"), num_classes, kind))


def _class_count(given: int | None, of_head: int | None, kind: str) -> int | None:
    if given is None and of_head is None:
        raise ConfigError(f"train_cfg.augments ({kind}) needs num_classes: this head does not define it.")
    if given is not None and of_head is not None and given != of_head:
        raise ConfigError(f"train_cfg.augments ({kind}): num_classes={given}, but the head has {of_head} classes.")
    return given if given is not None else of_head

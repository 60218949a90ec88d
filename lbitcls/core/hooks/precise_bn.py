"""`PreciseBNHook`: BatchNorm's running statistics, recomputed from training batches before validation.

Moving averages lag behind weights that still change, which affects a quantized model more than a float one (precise
BatchNorm: Wu and Johnson, arXiv:2105.07576, section 3).
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lbitcls.core.hooks.hook import PRIORITIES, Hook
from lbitcls.protocols import predictor
from lbitcls.registry import HOOKS
from lbitcls.utils.dist import broadcast_module
from lbitcls.utils.errors import require_count

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lbitcls.core.runner import EpochRunner


@HOOKS.register_module()
class PreciseBNHook(Hook):
    """Hook that sets the statistics to averages over `num_batches` training batches every `interval` epochs.

    With `ema` the statistics are those of the averaged model, which is validated and saved.

    Args:
        num_batches: Number of batches to average.
        interval: Epochs between two estimations; the last epoch always has one.
    """

    priority = PRIORITIES["ABOVE_NORMAL"]  # before validation

    def __init__(self, num_batches: int = 100, interval: int = 1) -> None:
        self.num_batches = require_count("PreciseBNHook: num_batches", num_batches, 1)
        self.interval = require_count("PreciseBNHook: interval", interval, 1)

    def after_epoch(self, runner: EpochRunner) -> None:
        if runner.epoch % self.interval and runner.epoch < runner.max_epochs:
            return
        runner.seed_iteration()
        batches = islice(runner.loader.iterate(runner.epoch), min(self.num_batches, len(runner.loader)))
        estimate_norms(runner.eval_model, (runner.to_device(batch)["img"] for batch in batches), runner.module)
        broadcast_module(runner.eval_model)


@torch.no_grad()
def estimate_norms(model: nn.Module, images: Iterable[Tensor], trained: nn.Module | None = None) -> None:
    """Set the running statistics of every BatchNorm in training mode to their averages over batches.

    All other modules are in eval, so quantizers and dropout do not change; frozen norms stay unchanged.

    Args:
        model: Model with `predict`, like classifiers, or any callable model.
        images: Batches (N, C, H, W), on the model's device.
        trained: Model in training whose average `model` is, which tells the frozen norms; None: `model` itself.
    """
    modes = {module: module.training for module in model.modules()}
    learns = [_learns(own) for own in (trained or model).modules()]
    norms = [m for m, chosen in zip(modes, learns, strict=True) if chosen and isinstance(m, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # torch's value for the average of all batches
    try:
        for batch in images:
            predictor(model)(batch)
    finally:
        for module, training in modes.items():
            module.training = training
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum


def _learns(module: nn.Module) -> bool:
    """Return True if `module` is a BatchNorm with running statistics and not frozen."""
    if not isinstance(module, _BatchNorm) or not module.track_running_stats:
        return False
    return module.training or any(p.requires_grad for p in module.parameters())

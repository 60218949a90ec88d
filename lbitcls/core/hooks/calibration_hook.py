"""Delayed quantization (`calibration=dict(epoch=N, num_batches=M)`): float first, quantized from epoch N."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any

from lbitcls.core.hooks.evaluation_hook import load_best_so_far
from lbitcls.core.hooks.hook import PRIORITIES, Hook
from lbitcls.settings.training_sections import CalibrationConfig, RangeRule
from lbitcls.utils.dist import broadcast_module
from lbitcls.utils.errors import ConfigError

if TYPE_CHECKING:
    from lbitcls.core.runner import EpochRunner


class CalibrationHook(Hook):
    """Hook that trains with quantizers off, then initializes them from training batches and switches them on.

    All ranks use the same values, from the batches of all. Quantizers already initialized from a quantized checkpoint
    keep their values.

    Args:
        epoch: Epoch (from 0) at whose start the quantizers are switched on; 0: before training.
        num_batches: Number of training batches for the initial values.
        method: Rule that finds ranges in them, `mse`, `percentile` or `minmax`; None: each method's own rule.
        reload_best: Load the best weights of the float epochs first; without validation there are none.
    """

    priority = PRIORITIES["VERY_HIGH"]

    def __init__(
        self,
        epoch: int = CalibrationConfig.epoch,
        num_batches: int = CalibrationConfig.num_batches,
        method: RangeRule | None = CalibrationConfig.method,
        reload_best: bool = CalibrationConfig.reload_best,
    ) -> None:
        checked = CalibrationConfig(epoch=epoch, num_batches=num_batches, method=method, reload_best=reload_best)
        self.reload_best = checked.reload_best
        self.epoch, self.num_batches, self.method = checked.epoch, checked.num_batches, checked.method
        self.done = False

    def before_run(self, runner: EpochRunner) -> None:
        if self.epoch >= runner.max_epochs:
            last = runner.max_epochs - 1
            raise ConfigError(
                f"calibration.epoch={self.epoch}: the run has only epochs 0 to {last}, so its quantizers would never "
                f"be switched on. Use --options calibration.epoch=N with N ≤ {last}, or train for more epochs."
            )
        runner.phase = "quantized" if self.done else "float"
        _switch(runner, self.done)

    def before_epoch(self, runner: EpochRunner) -> None:
        if self.done or runner.epoch < self.epoch:
            return
        runner.model = runner.module  # remove DDP: it must register again which parameters have gradients
        if self.reload_best:
            load_best_so_far(runner)
        count, number = initialize_quantizers(runner, self.num_batches, self.method)
        _switch(runner, True)
        runner.wrap_model()
        runner.phase, self.done = "quantized", True
        runner.logger.info(
            "Quantization is on from epoch %d: %d quantizers initialized from %d batches.",
            *(runner.epoch + 1, count, number),
        )

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.done = bool(state["done"])


def initialize_quantizers(runner: EpochRunner, num_batches: int, method: RangeRule | None) -> tuple[int, int]:
    """Initialize the quantizers without values from the epoch's first training batches, those of all ranks together.

    Returns:
        Numbers of initialized quantizers and of batches.
    """
    from lbitcls.quant import calibrate, quantizer_parameters, refresh

    runner.seed_iteration()
    number = min(num_batches, len(runner.loader))
    batches = (runner.to_device(batch)["img"] for batch in runner.loader.iterate(runner.epoch))
    count = calibrate(runner.module.train(), list(islice(batches, number)), method, shared=True)
    broadcast_module(runner.module)  # the same values; ranks with other processors may round differently
    refresh(runner.module)
    if runner.ema is not None:
        runner.ema.take_over(runner.module, quantizer_parameters(runner.module))
    return count, number


def _switch(runner: EpochRunner, on: bool) -> None:
    """Switch the quantizers on or off; while off, their parameters need no gradient, so DDP ignores them."""
    from lbitcls.quant import set_quantization

    set_quantization(runner.module, on)
    hold_frozen: Callable[[], None] | None = getattr(runner.module, "hold_frozen", None)
    if hold_frozen is not None:
        hold_frozen()
    if runner.ema is not None:
        set_quantization(runner.ema.module, on)
        runner.ema.module.requires_grad_(False)

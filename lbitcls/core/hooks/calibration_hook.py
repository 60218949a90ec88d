"""Delayed quantization (`calibration=dict(epoch=N, num_batches=M)`): float first, quantizers on at epoch N."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from lbitcls.core.hooks.hook import PRIORITIES, Hook
from lbitcls.settings.training import CalibrationConfig, RangeRule
from lbitcls.utils.dist import broadcast_module
from lbitcls.utils.errors import ConfigError

if TYPE_CHECKING:
    from lbitcls.core.runner import EpochRunner


class CalibrationHook(Hook):
    """Trains with the quantizers off, then gives them their first values from training batches and switches them on.

    Rank 0's values are every rank's. A quantizer that has its values already, from a quantized checkpoint, keeps them.

    Args:
        epoch: the epoch (from 0) at whose start the quantizers come on; 0: before training.
        num_batches: training batches that the first values are taken from.
        method: rule that finds ranges in them: `mse`, `percentile` or `minmax`; None: each method's own.
    """

    priority = PRIORITIES["VERY_HIGH"]

    def __init__(
        self,
        epoch: int = CalibrationConfig.epoch,
        num_batches: int = CalibrationConfig.num_batches,
        method: RangeRule | None = CalibrationConfig.method,
    ) -> None:
        checked = CalibrationConfig(epoch=epoch, num_batches=num_batches, method=method)
        self.epoch, self.num_batches, self.method = checked.epoch, checked.num_batches, checked.method
        self.done = False

    def before_run(self, runner: EpochRunner) -> None:
        if self.epoch >= runner.max_epochs:
            raise ConfigError(
                f"calibration.epoch={self.epoch}: the run has only the epochs 0 to {runner.max_epochs - 1}."
            )
        runner.phase = "quantized" if self.done else "float"
        _switch(runner, self.done)

    def before_epoch(self, runner: EpochRunner) -> None:
        if self.done or runner.epoch < self.epoch:
            return
        from lbitcls.quant import calibrate, quantizer_parameters, refresh

        runner.model = runner.module  # DDP is taken off: it must learn anew which parameters have gradients
        runner.seed_iteration()
        number = min(self.num_batches, len(runner.loader))
        batches = (runner.to_device(batch)["img"] for batch in runner.loader.iterate(runner.epoch))
        count = calibrate(runner.module.train(), list(islice(batches, number)), self.method)
        broadcast_module(runner.module)
        refresh(runner.module)
        if runner.ema is not None:
            runner.ema.take_over(runner.module, quantizer_parameters(runner.module))
        _switch(runner, True)
        runner.wrap_model()
        runner.phase, self.done = "quantized", True
        runner.logger.info(
            "Quantization is on from epoch %d: %d quantizers took their first values from %d batches.",
            *(runner.epoch + 1, count, number),
        )

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.done = bool(state["done"])


def _switch(runner: EpochRunner, on: bool) -> None:
    """Switch the quantizers on or off; while off, their parameters need no gradient, so DDP does not wait for them."""
    from lbitcls.quant import set_quantization

    model: Any = runner.module
    set_quantization(model, on)
    if hasattr(model, "hold_frozen"):
        model.hold_frozen()
    if runner.ema is not None:
        set_quantization(runner.ema.module, on)
        runner.ema.module.requires_grad_(False)

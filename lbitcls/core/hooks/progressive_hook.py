"""Progressive quantization (`progressive=dict(bits=[8, 4, 2], epochs=[10, 10])`): fewer bits from stage to stage."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from lbitcls.core.hooks.calibration_hook import initialize_quantizers
from lbitcls.core.hooks.hook import PRIORITIES, Hook
from lbitcls.core.optim import follow_bits
from lbitcls.settings.progressive import Pair, ProgressiveConfig
from lbitcls.settings.training_sections import CalibrationConfig
from lbitcls.utils.errors import ConfigError
from lbitcls.utils.logging import DETAIL

if TYPE_CHECKING:
    from lbitcls.core.runner import EpochRunner


class ProgressiveHook(Hook):
    """Hook that gives the quantizers fewer bits at the start of each stage.

    Weights, optimizer state and statistics are carried over; with `ranges='keep'` the ranges too. The stage depends on
    the epoch only, and the model itself tells its bits, so that resuming needs no saved state. The best weights of each
    stage are kept apart: `runner.phase` is `w8a8`, …, and `quantized` in the last stage.

    Args:
        settings: Section `progressive`.
        calibration: Section `calibration`: the first stage begins when quantization does, and unless ranges are kept,
            quantizers that change are initialized by its rule.
    """

    priority = PRIORITIES["VERY_HIGH"]  # as calibration, which runs before it

    def __init__(self, settings: ProgressiveConfig, calibration: CalibrationConfig) -> None:
        self.pairs: tuple[Pair, ...] = settings.pairs
        self.keep_range = settings.ranges == "keep"
        self.calibration = calibration
        self.starts = list(accumulate(settings.epochs, initial=calibration.epoch))

    def check(self, max_epochs: int) -> None:
        """Raise `ConfigError` if a run of `max_epochs` epochs ends before its last stage begins."""
        if self.starts[-1] >= max_epochs:
            before = f"calibration.epoch={self.starts[0]} and " if self.starts[0] else ""
            raise ConfigError(
                f"progressive.epochs: the last stage begins after {self.starts[-1]} epochs ({before}the durations of "
                f"the stages before it), but total_epochs is {max_epochs}. Shorten the stages, or raise total_epochs."
            )

    def stage(self, epoch: int) -> int:
        """Return the number of the stage, from 0, that an epoch, from 0, belongs to."""
        return max(0, bisect_right(self.starts, epoch) - 1)

    def describe(self) -> str:
        """Return the stages as text, epochs counted from 1: `W8A8 from epoch 1, W4A4 from epoch 11`."""
        return ", ".join(f"{name_bits(p)} from epoch {start + 1}" for p, start in zip(self.pairs, self.starts))

    def before_run(self, runner: EpochRunner) -> None:
        runner.logger.info("Progressive quantization: %s", self.describe(), extra=DETAIL)
        self._name_phase(runner)

    def before_epoch(self, runner: EpochRunner) -> None:
        from lbitcls.quant.changing_bits import set_bits

        pair = self.pairs[self.stage(runner.epoch)]
        changed = set_bits(runner.module, pair, self.keep_range)
        if changed:
            self._carry_over(runner, pair, changed)
        self._name_phase(runner)

    def _carry_over(self, runner: EpochRunner, pair: Pair, changed: int) -> None:
        """Renew everything that depends on the bits: weight decay, the average, initial values, DDP, compiled code."""
        from lbitcls.quant import weight_bits
        from lbitcls.quant.changing_bits import set_bits

        follow_bits(runner.step.optimizer, weight_bits(runner.module))
        runner.model = runner.module  # remove DDP, which must register the buffers again
        if runner.ema is not None:
            set_bits(runner.ema.module, pair)
            runner.ema.start_over()
        told = "their ranges are kept"
        if not self.keep_range:
            _, number = initialize_quantizers(runner, self.calibration.num_batches, self.calibration.method)
            told = f"initialized from {number} batches"
        runner.wrap_model()
        if any(module._compiled_call_impl is not None for module in runner.model.modules()):
            torch.compiler.reset()  # else PyTorch's limit of recompilations is reached after a few stages
        runner.logger.info(
            "Stage %d of %d from epoch %d: %s; %d quantizers changed, %s.",
            *(self.stage(runner.epoch) + 1, len(self.pairs), runner.epoch + 1, name_bits(pair), changed, told),
        )

    def _name_phase(self, runner: EpochRunner) -> None:
        stage = self.stage(runner.epoch)
        if runner.phase != "float":
            runner.phase = "quantized" if stage == len(self.pairs) - 1 else name_bits(self.pairs[stage]).lower()


def name_bits(pair: Pair) -> str:
    """Return bits as text, such as `W4A4`."""
    return f"W{pair[0]}A{pair[1]}"

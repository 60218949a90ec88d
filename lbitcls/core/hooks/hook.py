"""Base class of hooks: empty methods that the runner calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lbitcls.utils.errors import ConfigError, suggest

if TYPE_CHECKING:
    from lbitcls.core.runner import EpochRunner

PRIORITIES = {
    "HIGHEST": 0,
    "VERY_HIGH": 10,
    "HIGH": 30,
    "ABOVE_NORMAL": 40,
    "NORMAL": 50,
    "BELOW_NORMAL": 60,
    "LOW": 70,
    "VERY_LOW": 90,
    "LOWEST": 100,
}


class Hook:
    """Actions at the events of a run; override the methods you need.

    Order of the events: `before_run`; for each epoch `before_epoch`, for each batch `before_iter`, `after_step` if the
    optimizer steps, and `after_iter` (the runner's position already counts the batch), `after_epoch` (the position is
    that of the next epoch); finally `after_run`, however the run ended (`runner.completed` tells). `on_record` is
    called with each record of results, from training or validation.

    `priority` orders hooks: lower first (built-in: calibration 10, logging 50, validation 60, writers and progress
    70, checkpoints 100). Every checkpoint contains the result of `state_dict` (plain values and tensors).

    Example:
        >>> @HOOKS.register_module()
        ... class Announce(Hook):
        ...     def after_epoch(self, runner):
        ...         runner.logger.info("epoch %d is over", runner.epoch)
    """

    priority: int = PRIORITIES["NORMAL"]

    @property
    def name(self) -> str:
        """Key of the hook's state in a checkpoint; a run numbers the keys of hooks that have the same name."""
        return type(self).__name__

    def before_run(self, runner: EpochRunner) -> None:
        """Run before the first iteration, after a checkpoint is restored."""

    def before_epoch(self, runner: EpochRunner) -> None:
        """Run before an epoch's first batch, and again when a run resumes mid-epoch."""

    def before_iter(self, runner: EpochRunner) -> None:
        """Run before training on a batch."""

    def after_step(self, runner: EpochRunner) -> None:
        """Run after a step of the optimizer, before the weights are averaged (`ema`)."""

    def after_iter(self, runner: EpochRunner) -> None:
        """Run after a batch: `runner.outputs` contains the model's outputs."""

    def after_epoch(self, runner: EpochRunner) -> None:
        """Run after an epoch: `runner.epoch` epochs are complete."""

    def during_validation(self, runner: EpochRunner) -> None:
        """Run before each batch of a validation, between `after_iter` and `after_epoch` of an epoch."""

    def on_record(self, runner: EpochRunner, record: dict[str, Any]) -> None:
        """Receive each record: `mode` ('train', 'val', 'quantizers', …), `epoch`, `iter`, and results by name."""

    def after_run(self, runner: EpochRunner) -> None:
        """Run at the end, also after an error."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state that the hook needs to resume a run."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""


def read_priority(value: int | str) -> int:
    """Return a priority from a number (0 to 100, lower first) or mmcv's name for one (`'NORMAL'`).

    Raises:
        ConfigError: The value is neither.
    """
    if isinstance(value, str) and value.upper() in PRIORITIES:
        return PRIORITIES[value.upper()]
    if isinstance(value, int) and 0 <= value <= 100:
        return value
    raise ConfigError(
        f"custom_hooks: priority must be an integer from 0 to 100 or a name; got {value!r}"
        f"{suggest(str(value), PRIORITIES)} Known: {', '.join(PRIORITIES)}."
    )

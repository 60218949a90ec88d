"""The base of every hook: empty methods that the runner calls."""

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
    """Does something at the events of a run; override what is needed.

    Order of the events: `before_run`, then for each epoch `before_epoch`, for each batch `before_iter` and
    `after_iter` (the runner's position counts the batch by then), `after_epoch` (the position is that of the next
    epoch), at last `after_run`, however the run ended (`runner.completed` tells). `on_record` comes with each record
    of results, of training or validation.

    `priority` orders hooks: lower first (built-in: calibration 10, logging 50, validation 60, writers and progress
    70, checkpoints 100). What `state_dict` returns (plain values and tensors) is in every checkpoint.

    Example:
        >>> @HOOKS.register_module()
        ... class Announce(Hook):
        ...     def after_epoch(self, runner):
        ...         runner.logger.info("epoch %d is over", runner.epoch)
    """

    priority: int = PRIORITIES["NORMAL"]

    @property
    def name(self) -> str:
        """The key of the hook's state in a checkpoint."""
        return type(self).__name__

    def before_run(self, runner: EpochRunner) -> None:
        """Before the first iteration, after a checkpoint was restored."""

    def before_epoch(self, runner: EpochRunner) -> None:
        """Before an epoch's first batch, and again where a run goes on in mid-epoch."""

    def before_iter(self, runner: EpochRunner) -> None:
        """Before a batch is learned from."""

    def after_iter(self, runner: EpochRunner) -> None:
        """After a batch: `runner.outputs` holds what the model returned."""

    def after_epoch(self, runner: EpochRunner) -> None:
        """After an epoch: `runner.epoch` of them are done."""

    def on_record(self, runner: EpochRunner, record: dict[str, Any]) -> None:
        """With each record: `mode` ('train' or 'val'), `epoch`, `iter`, and results by name."""

    def after_run(self, runner: EpochRunner) -> None:
        """At the end, also after an error."""

    def state_dict(self) -> dict[str, Any]:
        """What the hook must know to go on with a run."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned."""


def read_priority(value: int | str) -> int:
    """A priority from a number (0 to 100, lower first) or mmcv's name for one (`'NORMAL'`).

    Raises:
        ConfigError: neither.
    """
    if isinstance(value, str) and value.upper() in PRIORITIES:
        return PRIORITIES[value.upper()]
    if isinstance(value, int) and 0 <= value <= 100:
        return value
    raise ConfigError(
        f"custom_hooks: a priority is an int in 0..100 or a name; got {value!r}{suggest(str(value), PRIORITIES)} "
        f"Known: {', '.join(PRIORITIES)}."
    )

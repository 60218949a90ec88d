"""`UnfreezeHook`: trains the head first, then more of the model, with a separate learning rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, cast

from torch import nn

from lbitcls.core.hooks.evaluation_hook import load_best_so_far
from lbitcls.core.hooks.hook import PRIORITIES, Hook
from lbitcls.core.schedule import as_number
from lbitcls.registry import HOOKS
from lbitcls.utils.errors import ConfigError, require_count, require_list, shown

if TYPE_CHECKING:
    from lbitcls.core.runner import EpochRunner
    from lbitcls.protocols import Freezable


@HOOKS.register_module()
class UnfreezeHook(Hook):
    """Hook that keeps parts of the model frozen before an epoch, and trains them from that epoch on.

    Frozen parts get no gradient and stay in eval mode (see `lbitcls.models.freezing`). The frozen parts depend on the
    epoch only, so resuming needs no saved state. Use several hooks to unfreeze one part after another.

    Args:
        epoch: First epoch, from 0 as in `calibration.epoch`, in which the parts train.
        layers: Names of submodules, also with `*`, `?` and `[…]`: `['backbone']`, `['backbone.layer[34]']`.
        lr_mult: Factor on the learning rate of these parts, in the whole run, in addition to `paramwise_cfg`. If
            several hooks name a part, the one with the lowest epoch applies.
        reload_best: Load the best weights so far before the parts start to train; without validation there are none.

    Example:
        >>> UnfreezeHook(epoch=5, layers=["backbone"], lr_mult=0.1).epoch
        5
    """

    priority = PRIORITIES["HIGH"]  # after calibration, which switches the quantizers' gradients on

    def __init__(
        self,
        epoch: int,
        layers: Sequence[str] | str = ("backbone",),
        lr_mult: float = 1.0,
        reload_best: bool = False,
    ) -> None:
        self.epoch = require_count("UnfreezeHook: epoch", epoch, 1)  # epochs count from 0
        self.layers = [layers] if isinstance(layers, str) else require_list("UnfreezeHook: layers", layers)
        self.lr_mult = as_number("UnfreezeHook: lr_mult", lr_mult)
        self.reload_best = reload_best
        if not self.layers or self.lr_mult < 0:
            raise ConfigError(f"UnfreezeHook needs layers and an lr_mult ≥ 0; got {layers!r} and {lr_mult!r}.")
        if not isinstance(reload_best, bool):
            raise ConfigError(f"UnfreezeHook: reload_best must be True or False; got {shown(reload_best)}.")

    def parts(self, model: nn.Module) -> list[str]:
        """Return the names of the submodules of `model` that match `layers`.

        Raises:
            ConfigError: One of `layers` matches nothing, or the model is not an `ImageClassifier`.
        """
        find: Callable[..., list[str]] | None = getattr(model, "find_parts", None)
        if find is None:
            raise ConfigError(f"UnfreezeHook: parts of {type(model).__name__} cannot be frozen; use ImageClassifier.")
        return find(self.layers, "UnfreezeHook: layers")

    def before_run(self, runner: EpochRunner) -> None:
        if self.epoch >= runner.max_epochs:
            raise ConfigError(f"UnfreezeHook: epoch={self.epoch}, but the run has only {runner.max_epochs} epochs.")
        if runner.epoch > self.epoch:  # resumed later: a calibration at this epoch must not find the parts frozen
            return
        model = cast("Freezable", runner.module)
        for name in self.parts(runner.module):
            model.freeze(name)

    def before_epoch(self, runner: EpochRunner) -> None:
        model = cast("Freezable", runner.module)
        frozen = [name for name in self.parts(runner.module) if model.is_frozen(name)]
        if runner.epoch < self.epoch or not frozen:
            return
        if self.reload_best and (runner.epoch, runner.inner_iter) == (self.epoch, 0):  # not when resumed mid-epoch
            load_best_so_far(runner)
        runner.model = runner.module  # remove DDP: it must register again which parameters have gradients
        for name in frozen:
            model.unfreeze(name)
        runner.wrap_model()
        runner.logger.info(
            "Epoch %d: Training %s as well, at %g of the learning rate.",
            *(runner.epoch + 1, ", ".join(frozen), self.lr_mult),
        )


def unfreeze_rates(model: nn.Module, hooks: Iterable[Hook]) -> dict[int, float]:
    """Return the learning-rate factors of `UnfreezeHook`s among `hooks`, by the `id` of a parameter."""
    rates: dict[int, float] = {}
    chosen = [hook for hook in hooks if isinstance(hook, UnfreezeHook)]
    for hook in sorted(chosen, key=lambda hook: hook.epoch):
        for name in hook.parts(model):
            for parameter in model.get_submodule(name).parameters():
                rates.setdefault(id(parameter), hook.lr_mult)
    return rates

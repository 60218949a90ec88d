"""Saving during a run (`checkpoint_config`)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from lbitcls.core.hooks.hook import PRIORITIES, Hook
from lbitcls.core.run_files import INTERRUPTED, numbered
from lbitcls.registry import HOOKS
from lbitcls.settings.training_sections import CheckpointConfig
from lbitcls.utils.dist import is_main
from lbitcls.utils.sharded_checkpoint import SUFFIX, remove_checkpoint

if TYPE_CHECKING:
    from lbitcls.core.runner import EpochRunner


_EXTRA = 2  # checkpoints of `by_iter` and `minutes` to keep: the newest, and one to fall back to


@HOOKS.register_module()
class CheckpointHook(Hook):
    """Hook that saves `epoch_N.pth` or `iter_N.pth` every `interval` and at the end; `latest.pth` is the newest.

    Checkpoints of `by_iter` and `minutes` are `iter_N.pth`; one that is due with another is not saved twice. All ranks
    save after the same iteration: the clock of `minutes` is that of rank 0, which asks the others (`Guard.ask_save`).
    Of a distributed model, all but the run's last checkpoint are folders, `epoch_N.sharded`.

    Args:
        interval: Epochs (iterations unless `by_epoch`) between two checkpoints; -1: only at the end.
        by_epoch: Count epochs; False: count iterations, also mid-epoch.
        max_keep_ckpts: Number of checkpoints to keep; -1: all of `interval`, and the last two of the others.
        by_iter: Iterations between two checkpoints in addition to those of `interval`; None: no more.
        minutes: Minutes after the last checkpoint, or the run's start, until an iteration is saved; None: no more.
    """

    priority = PRIORITIES["LOWEST"]
    _now = staticmethod(time.monotonic)

    def __init__(
        self,
        interval: int = CheckpointConfig.interval,
        by_epoch: bool = CheckpointConfig.by_epoch,
        max_keep_ckpts: int = CheckpointConfig.max_keep_ckpts,
        by_iter: int | None = CheckpointConfig.by_iter,
        minutes: float | None = CheckpointConfig.minutes,
    ) -> None:
        checked = CheckpointConfig(
            interval=interval, by_epoch=by_epoch, by_iter=by_iter, minutes=minutes, max_keep_ckpts=max_keep_ckpts
        )
        self.interval = checked.interval
        self.by_epoch = checked.by_epoch
        self.every = checked.by_iter if checked.by_epoch else max(0, checked.interval)
        self.minutes = checked.minutes
        self.max_keep = checked.max_keep_ckpts
        self._due = False
        self._last = self._now()
        self._asked = False

    def before_run(self, runner: EpochRunner) -> None:
        self._last = self._now()

    def after_iter(self, runner: EpochRunner) -> None:
        self._ask(runner)
        self._due |= runner.guard.save_agreed or bool(self.every and runner.iter % self.every == 0)
        ends_epoch = runner.inner_iter == len(runner.loader)  # saved after validation
        if self._due and runner.between_steps and not ends_epoch:
            self._save(runner, "iter", runner.iter)

    def after_epoch(self, runner: EpochRunner) -> None:
        regular = self.by_epoch and self.interval > 0 and runner.epoch % self.interval == 0
        if regular or (self.by_epoch and runner.epoch == runner.max_epochs):
            self._save(runner, "epoch", runner.epoch)
        elif self._due or runner.epoch == runner.max_epochs:
            self._save(runner, "iter", runner.iter)

    def _ask(self, runner: EpochRunner) -> None:
        """On rank 0, ask all ranks to save when it is time."""
        if self.minutes is None or self._asked or not is_main():
            return
        if self._now() - self._last >= 60 * self.minutes:
            self._asked = True
            runner.guard.ask_save()

    def _save(self, runner: EpochRunner, kind: str, number: int) -> None:
        runner.save(runner.work_dir / f"{kind}_{number}.pth", then=lambda: self._tidy(runner.work_dir, kind, number))
        self._due = self._asked = runner.guard.save_agreed = False
        self._last = self._now()

    def _tidy(self, folder: Path, kind: str, number: int) -> None:
        """Delete what the new checkpoint replaces: all but the newest up to it (later ones predate a resume)."""
        for suffix in (".pth", SUFFIX):
            remove_checkpoint((folder / INTERRUPTED).with_suffix(suffix))
        extra = kind == "iter" and self.by_epoch
        keep = _EXTRA if extra and self.max_keep < 0 else self.max_keep
        if keep > 0:
            saved = {n: path for n, path in numbered(folder, kind) if n <= number}
            for old in sorted(saved)[:-keep]:
                remove_checkpoint(saved[old])

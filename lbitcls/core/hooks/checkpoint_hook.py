"""Saving during a run (`checkpoint_config`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lbitcls.core.hooks.hook import PRIORITIES, Hook
from lbitcls.core.run_files import INTERRUPTED, numbered
from lbitcls.registry import HOOKS
from lbitcls.settings.training_sections import CheckpointConfig
from lbitcls.utils.dist import is_main

if TYPE_CHECKING:
    from lbitcls.core.runner import EpochRunner


@HOOKS.register_module()
class CheckpointHook(Hook):
    """Hook that saves `epoch_N.pth` or `iter_N.pth` every `interval` and at the end; `latest.pth` is the newest.

    Args:
        interval: Epochs (iterations unless `by_epoch`) between two checkpoints; -1: only at the end.
        by_epoch: Count epochs; False: count iterations, also mid-epoch.
        max_keep_ckpts: Number of checkpoints to keep; -1: all.
    """

    priority = PRIORITIES["LOWEST"]

    def __init__(
        self,
        interval: int = CheckpointConfig.interval,
        by_epoch: bool = CheckpointConfig.by_epoch,
        max_keep_ckpts: int = CheckpointConfig.max_keep_ckpts,
    ) -> None:
        checked = CheckpointConfig(interval=interval, by_epoch=by_epoch, max_keep_ckpts=max_keep_ckpts)
        self.interval = checked.interval
        self.by_epoch = checked.by_epoch
        self.max_keep = checked.max_keep_ckpts
        self._due = False

    def after_iter(self, runner: EpochRunner) -> None:
        if self.by_epoch or self.interval < 0:
            return
        self._due |= runner.iter % self.interval == 0
        ends_epoch = runner.inner_iter == len(runner.loader)  # saved after validation
        if self._due and runner.between_steps and not ends_epoch:
            self._save(runner)

    def after_epoch(self, runner: EpochRunner) -> None:
        due = self._due or (self.by_epoch and self.interval > 0 and runner.epoch % self.interval == 0)
        if due or runner.epoch == runner.max_epochs:
            self._save(runner)

    def _save(self, runner: EpochRunner) -> None:
        self._due = False
        kind, number = ("epoch", runner.epoch) if self.by_epoch else ("iter", runner.iter)
        runner.save(runner.work_dir / f"{kind}_{number}.pth")
        if is_main():
            (runner.work_dir / INTERRUPTED).unlink(missing_ok=True)
            if self.max_keep > 0:
                self._delete_old(runner.work_dir, kind, number)

    def _delete_old(self, folder: Path, kind: str, number: int) -> None:
        """Delete all but the newest checkpoints up to the current one (later ones predate a resume)."""
        saved = {n: path for n, path in numbered(folder, kind) if n <= number}
        for old in sorted(saved)[: -self.max_keep]:
            saved[old].unlink(missing_ok=True)

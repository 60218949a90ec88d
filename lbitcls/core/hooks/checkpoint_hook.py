"""Saving during a run (`checkpoint_config`), and finding the checkpoint to resume from (`--resume`)."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbitcls.core.hooks.hook import PRIORITIES, Hook
from lbitcls.registry import HOOKS
from lbitcls.settings.training_sections import CheckpointConfig
from lbitcls.utils.checkpoint import read_checkpoint
from lbitcls.utils.dist import is_main
from lbitcls.utils.errors import CheckpointError
from lbitcls.utils.files import read_lines

if TYPE_CHECKING:
    from lbitcls.core.runner import EpochRunner

LATEST, INTERRUPTED = "latest.pth", "interrupted.pth"
RUN_FILE = "run.txt"  # contains the name of the run that the folder belongs to
_RUN = re.compile(r"\d{8}_\d{6}_[0-9a-f]{8}")


def name_run() -> str:
    """Return a unique name for a new run, which identifies its checkpoints: the time and a random suffix."""
    return f"{time.strftime('%Y%m%d_%H%M%S')}_{secrets.token_hex(4)}"


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
        saved = {n: path for n, path in _numbered(folder, kind) if n <= number}
        for old in sorted(saved)[: -self.max_keep]:
            saved[old].unlink(missing_ok=True)


def _numbered(folder: Path, kind: str) -> Iterable[tuple[int, Path]]:
    for path in folder.glob(f"{kind}_*.pth"):
        if found := re.fullmatch(rf"{kind}_(\d+)\.pth", path.name):
            yield int(found[1]), path


def noted_run(folder: Path) -> str | None:
    """Return the name of the run that `folder` belongs to, or None if no valid name is recorded."""
    try:
        name = "\n".join(read_lines(folder / RUN_FILE)).strip()
    except (OSError, UnicodeDecodeError):
        return None
    return name if _RUN.fullmatch(name) else None


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder` to resume from: `latest.pth`, then the others, newest first."""
    numbered = [path for kind in ("epoch", "iter") for _, path in _numbered(folder, kind)]
    others = [path for path in (folder / INTERRUPTED, *numbered) if path.exists()]
    latest = [folder / LATEST] if (folder / LATEST).exists() else []
    return latest + sorted(others, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def newest_checkpoint(folder: Path, logger: logging.Logger) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest readable checkpoint in `folder` to resume from, with its content, or None.

    `latest.pth` comes first; if it cannot be read, the others follow, newest first, with a warning for each failure.

    Raises:
        CheckpointError: There are checkpoints, but none can be read.
    """
    candidates = checkpoints(folder)
    run = noted_run(folder)
    if run is None and (folder / RUN_FILE).exists():
        logger.warning("%s does not name a run; rewriting it from the newest checkpoint.", folder / RUN_FILE)
    unreadable = 0
    for path in candidates:
        try:
            checkpoint = read_checkpoint(path)
        except CheckpointError as error:
            unreadable += 1
            logger.warning("%s Trying the previous one.", error)
            continue
        if run in (None, checkpoint["meta"].get("run")):
            return path, checkpoint
        logger.info("%s belongs to an earlier run in this folder; it will be moved, not overwritten.", path)
    if unreadable:
        raise CheckpointError(f"cannot resume from any of the {len(candidates)} checkpoints in {folder}.")
    return None

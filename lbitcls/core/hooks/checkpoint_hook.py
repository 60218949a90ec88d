"""Saving during a run (`checkpoint_config`), and finding where to go on (`--resume`)."""

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
from lbitcls.settings.training import CheckpointConfig
from lbitcls.utils.checkpoint import read_checkpoint
from lbitcls.utils.dist import is_main
from lbitcls.utils.errors import CheckpointError
from lbitcls.utils.files import read_lines

if TYPE_CHECKING:
    from lbitcls.core.runner import EpochRunner

LATEST, INTERRUPTED = "latest.pth", "interrupted.pth"
RUN_FILE = "run.txt"  # names the run that the folder belongs to
_RUN = re.compile(r"\d{8}_\d{6}_[0-9a-f]{8}")


def name_run() -> str:
    """A name for a new run, by which it knows its checkpoints: the time, and what makes it the only one."""
    return f"{time.strftime('%Y%m%d_%H%M%S')}_{secrets.token_hex(4)}"


@HOOKS.register_module()
class CheckpointHook(Hook):
    """Saves `epoch_N.pth` or `iter_N.pth` every `interval`, and always at the end; `latest.pth` is the newest.

    Args:
        interval: epochs between two checkpoints (iterations when not `by_epoch`); -1: only at the end.
        by_epoch: count epochs. False: iterations, also in mid-epoch.
        max_keep_ckpts: how many of them to keep; -1: all.
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
        ends_epoch = runner.inner_iter == len(runner.loader)  # saved after the validation
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
        """Delete all but the newest of the checkpoints up to the present one (others were made before it went back)."""
        saved = {n: path for n, path in _numbered(folder, kind) if n <= number}
        for old in sorted(saved)[: -self.max_keep]:
            saved[old].unlink(missing_ok=True)


def _numbered(folder: Path, kind: str) -> Iterable[tuple[int, Path]]:
    for path in folder.glob(f"{kind}_*.pth"):
        if found := re.fullmatch(rf"{kind}_(\d+)\.pth", path.name):
            yield int(found[1]), path


def noted_run(folder: Path) -> str | None:
    """The name of the run that `folder` belongs to, or None where none is noted, or what is noted is no such name."""
    try:
        name = "\n".join(read_lines(folder / RUN_FILE)).strip()
    except (OSError, UnicodeDecodeError):
        return None
    return name if _RUN.fullmatch(name) else None


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder` that a run can go on from: `latest.pth`, then the others, newest first."""
    numbered = [path for kind in ("epoch", "iter") for _, path in _numbered(folder, kind)]
    others = [path for path in (folder / INTERRUPTED, *numbered) if path.exists()]
    latest = [folder / LATEST] if (folder / LATEST).exists() else []
    return latest + sorted(others, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def newest_checkpoint(folder: Path, logger: logging.Logger) -> tuple[Path, dict[str, Any]] | None:
    """The newest readable checkpoint that a run in `folder` can go on from, with its content; None where there is none.

    `latest.pth` comes first; where it cannot be read the others follow, newest first, each with a warning.

    Raises:
        CheckpointError: there are checkpoints, and none can be read.
    """
    candidates = checkpoints(folder)
    run = noted_run(folder)
    if run is None and (folder / RUN_FILE).exists():
        logger.warning("%s names no run; it is written anew, from the newest checkpoint.", folder / RUN_FILE)
    unreadable = 0
    for path in candidates:
        try:
            checkpoint = read_checkpoint(path)
        except CheckpointError as error:
            unreadable += 1
            logger.warning("%s Trying the one before.", error)
            continue
        if run in (None, checkpoint["meta"].get("run")):
            return path, checkpoint
        logger.info("%s is of an earlier run in this folder; it will be moved, not overwritten.", path)
    if unreadable:
        raise CheckpointError(f"none of the {len(candidates)} checkpoints in {folder} can be gone on from.")
    return None

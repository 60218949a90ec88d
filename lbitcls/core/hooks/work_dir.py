"""Setup of a run's work directory: records the run's name and config, and moves an earlier run aside.

It happens after the first iteration, so that a command that fails earlier leaves the folder unchanged, and before the
run writes anything else there.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from lbitcls.core.hooks.hook import PRIORITIES, Hook
from lbitcls.core.hooks.log import LOG_TABLE, TRACKED
from lbitcls.core.run_files import HEARTBEAT, RUN_FILE, checkpoints, noted_run
from lbitcls.settings.sections import Settings
from lbitcls.utils.checkpoint import read_checkpoint
from lbitcls.utils.dist import is_main
from lbitcls.utils.errors import CheckpointError
from lbitcls.utils.files import write_whole
from lbitcls.utils.sharded_checkpoint import SUFFIX

if TYPE_CHECKING:
    from lbitcls.core.runner import EpochRunner

_CHECKPOINTS = re.compile(r"((epoch|iter)_\d+|latest|interrupted|best_.+|not_finite(_rank_\d+)?)\.(pth|sharded)")
_SUFFIXES = (".pth", SUFFIX)
PICTURES = ("results.png", "train_batch.png", "val_predictions.png", "confusion_matrix.png")
_OTHERS = ("log.jsonl", LOG_TABLE, TRACKED, "summary.json", "tf_logs", HEARTBEAT, *PICTURES)


class WorkDirHook(Hook):
    """Hook that claims the work directory for the run, and moves another run's files to its folder `earlier_N`.

    Args:
        run: name of the run, as its checkpoints have it.
        settings: of the run; their config is kept under the name of its file (unless it is that very file).
    """

    priority = PRIORITIES["HIGHEST"]

    def __init__(self, run: str, settings: Settings) -> None:
        self.run = run
        self.settings = settings
        self._begun = False

    def after_iter(self, runner: EpochRunner) -> None:
        self._begin(runner)

    def after_epoch(self, runner: EpochRunner) -> None:
        self._begin(runner)  # a run may resume after the last iteration of an epoch

    def _begin(self, runner: EpochRunner) -> None:
        if self._begun or not is_main():
            return
        self._begun = True
        config = self.settings.source
        source = Path(config.filename) if config.filename else None
        kept = runner.work_dir / (f"{source.stem}.py" if source else "config.py")  # YAML has no tuples
        given = source is not None and kept.exists() and kept.samefile(source)  # the user's, perhaps with comments
        earlier = set_aside(runner.work_dir, self.run, () if given else (kept.name,))
        if earlier is not None:
            runner.logger.warning(
                "%s contained another run: moved its checkpoints and records to %s; to resume it, use --resume "
                "--work-dir %s.",
                *(runner.work_dir, earlier, earlier),
            )
        if not given:
            config.dump(kept)


def is_written(path: Path, folder: Path) -> bool:
    """Return True if a run in the work directory `folder` writes its own checkpoints to `path`."""
    here = os.path.realpath(path.parent) == os.path.realpath(folder)
    return here and _CHECKPOINTS.fullmatch(path.name) is not None


def set_aside(folder: Path, run: str, more: Iterable[str] = ()) -> Path | None:
    """Record that `folder` is the work directory of `run`, and move other runs' files to a new folder in it.

    Args:
        folder: Work directory.
        run: Name of the run that has started.
        more: Names of additional files that a run writes.

    Returns:
        The new folder, `earlier_1` or the next number, or None if there was nothing to move.
    """
    noted = noted_run(folder) or _run_of_checkpoints(folder)
    others = [path for path in _written(folder, more) if _owner(path, noted) != run]
    target = _new_folder(folder) if others else None
    if target is not None and noted is not None:
        _note(target, noted)
    # Checkpoints move after the note: if this is interrupted, --resume must not resume the other run from an older one.
    _move((path for path in others if path.suffix not in _SUFFIXES), target)
    _note(folder, run)
    _move((path for path in others if path.suffix in _SUFFIXES), target)
    return target


def _note(folder: Path, run: str) -> None:
    write_whole(folder / RUN_FILE, lambda path: path.write_text(run + "\n", encoding="utf-8"))


def _run_of_checkpoints(folder: Path) -> str | None:
    """Return the run of the newest readable checkpoint; used if the folder records no run."""
    for path in checkpoints(folder):
        with contextlib.suppress(CheckpointError):
            return read_checkpoint(path, mmap=True)["meta"].get("run")
    return None


def _move(paths: Iterable[Path], target: Path | None) -> None:
    if target is not None:
        for path in paths:
            path.rename(target / path.name)


def _written(folder: Path, more: Iterable[str]) -> list[Path]:
    names = {*_OTHERS, *more}
    return sorted(path for path in folder.iterdir() if path.name in names or _CHECKPOINTS.fullmatch(path.name))


def _owner(path: Path, noted: str | None) -> str | None:
    """Return the run that wrote `path`: from its metadata if it is a checkpoint, else the folder's run."""
    if path.suffix not in _SUFFIXES:
        return noted
    try:
        return read_checkpoint(path, mmap=True)["meta"].get("run")
    except CheckpointError:
        return noted


def _new_folder(folder: Path) -> Path:
    target = next(path for number in count(1) if not (path := folder / f"earlier_{number}").exists())
    target.mkdir()
    return target

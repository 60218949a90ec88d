"""Names of a run's files, and the checkpoint to resume from (`--resume`)."""

from __future__ import annotations

import logging
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lbitcls.utils.checkpoint import read_checkpoint
from lbitcls.utils.errors import CheckpointError
from lbitcls.utils.files import read_lines
from lbitcls.utils.sharded_checkpoint import SUFFIX

LATEST, INTERRUPTED = "latest.pth", "interrupted.pth"
HEARTBEAT = "heartbeat.json"
RUN_FILE = "run.txt"  # contains the name of the run that the folder belongs to
_CLOCKS = 5.0  # seconds that the clocks of a machine and of its file server may be apart
_RUN = re.compile(r"\d{8}_\d{6}_[0-9a-f]{8}")


def name_run() -> str:
    """Return a unique name for a new run, which identifies its checkpoints: the time and a random suffix."""
    return f"{time.strftime('%Y%m%d_%H%M%S')}_{secrets.token_hex(4)}"


def numbered(folder: Path, kind: str) -> Iterator[tuple[int, Path]]:
    """Yield the checkpoints `epoch_N` or `iter_N` (`kind`) in a folder, whole and sharded, as pairs of N and path.

    Raises:
        OSError: The folder cannot be read.
    """
    for name in _names(folder):
        if found := re.fullmatch(rf"{kind}_(\d+)\.(pth|sharded)", name):
            yield int(found[1]), folder / name


def _names(folder: Path) -> list[str]:
    """Return the names in a folder; none if it is missing, but an error if the disk fails, as `Path.glob` would not."""
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def noted_run(folder: Path) -> str | None:
    """Return the name of the run that `folder` belongs to, or None if no valid name is recorded."""
    try:
        name = "\n".join(read_lines(folder / RUN_FILE)).strip()
    except (OSError, UnicodeDecodeError):
        return None
    return name if _RUN.fullmatch(name) else None


def claimed_since(folder: Path, moment: float) -> bool:
    """Return True if a run has begun in `folder` since `moment`, in seconds of the epoch."""
    try:
        return (folder / RUN_FILE).stat().st_mtime > moment - _CLOCKS
    except OSError:
        return False


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder` to resume from: `latest.pth`, then the others, newest first.

    Raises:
        OSError: The folder cannot be read. Without the error, its run would start again from scratch.
    """
    there = set(_names(folder))
    saved = [path for kind in ("epoch", "iter") for _, path in numbered(folder, kind)]
    stopped = {INTERRUPTED, Path(INTERRUPTED).with_suffix(SUFFIX).name}
    others = [*(folder / name for name in sorted(stopped & there)), *saved]
    return [folder / name for name in {LATEST} & there] + sorted(others, key=_time, reverse=True)


def _time(path: Path) -> int:
    """Return when a file was written, in nanoseconds; 0 for a link to nowhere."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


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

"""Writing of checkpoints in the background: training waits for a copy of the state, not for the disk.

A thread writes the copies to files, in the order in which they were saved, each as `write_checkpoint` does: complete
or absent, whenever the process is killed. A process forks (to start readers of data) only when nothing is being
written, so that no child inherits a lock in use or a temporary file.
"""

from __future__ import annotations

import os
import signal
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from lbitcls.settings.fields import copied
from lbitcls.settings.training_sections import CheckpointConfig
from lbitcls.utils.checkpoint import write_checkpoint

_writers: weakref.WeakSet[CheckpointWriter] = weakref.WeakSet()


class CheckpointWriter:
    """Writer of checkpoints, and a context that waits for its files.

    At most one checkpoint is being written and one more is pending: a third save waits, so no more than two copies of
    the state are in memory.

    Args:
        background: False: `save` itself writes the file.

    Attributes:
        seconds: Time from the last finished save's start to its file; None before the first.
    """

    def __init__(self, background: bool = CheckpointConfig.background) -> None:
        self.background = background
        self.seconds: float | None = None
        self._pending: deque[Future[None]] = deque()
        self._failed = False
        self._thread: ThreadPoolExecutor | None = None
        _writers.add(self)

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Wait for the files; the error of one that cannot be written is raised unless another error is."""
        wait(self._pending)
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
        if error is None:
            self.check()

    def save(self, content: dict[str, Any], path: Path, then: Callable[[], None] = lambda: None) -> None:
        """Write a checkpoint, from a copy of `content` if in the background.

        Args:
            content: Result of `checkpoint_content`.
            path: File to write.
            then: Function called when the file is complete, in the background too.

        Raises:
            OSError: This file or an earlier one cannot be written.
        """
        began = time.perf_counter()
        self.check()
        if not self.background:
            self._write(content, path, then, began)
            return
        if len(self._pending) > 1:
            wait([self._pending[0]])
            self.check()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "checkpoints", initializer=_leave_signals_to_the_main_thread)
        self._pending.append(self._thread.submit(self._write, copied(content, _on_cpu), path, then, began))

    def check(self) -> None:
        """Raise the error of a file that could not be written; nothing is written after it."""
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()

    def wait(self) -> None:
        """Wait for all files; call it before reading one.

        Raises:
            OSError: One cannot be written.
        """
        wait(self._pending)
        self.check()

    def _write(self, content: dict[str, Any], path: Path, then: Callable[[], None], began: float) -> None:
        if self._failed:
            return
        try:
            write_checkpoint(content, path)
            then()
        except BaseException:
            self._failed = True  # a later checkpoint may refer to the file that is missing
            raise
        self.seconds = time.perf_counter() - began


def _on_cpu(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value


def _leave_signals_to_the_main_thread() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def _wait_before_fork() -> None:
    for writer in _writers:
        wait(writer._pending)


os.register_at_fork(before=_wait_before_fork)

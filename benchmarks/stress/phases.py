"""Phases of a training that runs in another process: which it is in, how long each takes, and when one begins."""

from __future__ import annotations

import functools
import mmap
import os
import select
import time
from collections.abc import Callable
from typing import Any

SAVE, BOARD, LOG, RANGES = "a save", "TensorBoard", "log.jsonl", "calibration"
TEACHER, VALIDATION, EXPORT, TRAINING = "distillation", "validation", "export", "training"
INNER = (SAVE, BOARD, LOG, RANGES, TEACHER, VALIDATION, EXPORT, TRAINING)
"""Phases that are marked, the innermost first."""
EARLY, LATE = "before the first checkpoint", "the end"
PHASES = (EARLY, *INNER, LATE)


class Phases:
    """Memory that a process and its parent share: for each phase its depth, entries, seconds, and when it began.

    Args:
        wanted: Phase and number of its entry, from 1, of which `wait` waits; None: none.
    """

    def __init__(self, wanted: tuple[str, int] | None = None) -> None:
        self._cells = memoryview(mmap.mmap(-1, 4096)).cast("d")
        self._wanted = wanted
        self._read, self._write = os.pipe()

    def watch(self) -> None:
        """Mark the phases in this process from now on."""
        from lbitcls.core.checkpoint_writer import CheckpointWriter
        from lbitcls.core.hooks import calibration_hook
        from lbitcls.core.hooks.distiller import Distiller
        from lbitcls.core.hooks.evaluation_hook import EvaluationHook
        from lbitcls.core.hooks.log import JsonLoggerHook
        from lbitcls.core.runner import EpochRunner
        from lbitcls.tracking.tensorboard import TensorboardLoggerHook
        from lbitcls.workflows import training

        places: list[tuple[str, Any, tuple[str, ...]]] = [
            (SAVE, CheckpointWriter, ("_write",)),
            (BOARD, TensorboardLoggerHook, ("write", "after_epoch", "after_run")),
            (LOG, JsonLoggerHook, ("write",)),
            (RANGES, calibration_hook, ("initialize_quantizers",)),
            (TEACHER, Distiller, ("_compute", "_outputs")),
            (VALIDATION, EvaluationHook, ("_measure",)),
            (EXPORT, training, ("export_run",)),
            (TRAINING, EpochRunner, ("_run",)),
        ]
        for phase, owner, names in places:
            for name in names:
                setattr(owner, name, self._marked(phase, getattr(owner, name)))

    def _marked(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        cell, cells = 4 * INNER.index(phase), self._cells

        @functools.wraps(function)
        def call(*given: Any, **named: Any) -> Any:
            cells[cell + 1] += 1
            cells[cell + 3] = time.monotonic()
            cells[cell] += 1
            if self._wanted == (phase, cells[cell + 1]):
                os.write(self._write, b".")
            try:
                return function(*given, **named)
            finally:
                cells[cell] -= 1
                cells[cell + 2] += time.monotonic() - cells[cell + 3]

        return call

    def wait(self, seconds: float) -> bool:
        """Wait at most so long for the wanted entry; return True if it was there."""
        return bool(select.select([self._read], [], [], seconds)[0])

    def close(self) -> None:
        """Close the pipe of `wait`."""
        os.close(self._read)
        os.close(self._write)

    def entries(self, phase: str) -> int:
        """Return how often a phase has begun."""
        return int(self._cells[4 * INNER.index(phase) + 1])

    def seconds(self, phase: str) -> float:
        """Return the mean time of a phase that has ended."""
        return self._cells[4 * INNER.index(phase) + 2] / max(self.entries(phase), 1)

    def began(self, phase: str) -> float:
        """Return `time.monotonic()` of a phase's last entry."""
        return self._cells[4 * INNER.index(phase) + 3]

    @property
    def now(self) -> str:
        """Innermost phase of the process, or the one in which it ended."""
        inside = next((phase for phase in INNER if self._cells[4 * INNER.index(phase)] > 0), None)
        saved = self.entries(SAVE) > (inside == SAVE)
        if not saved and (inside is None or inside == TRAINING):
            return EARLY
        return inside or LATE

"""Early ends of a run, agreed on by all ranks: a loss that is not finite, or a signal to stop.

No step waits for the device: on a CPU the loss is checked immediately, on a GPU every `LOOK_EVERY` iterations and
before each save. With several processes, a small separate reduction carries each rank's findings and is read one
iteration later, so that all ranks stop at the same iteration and none waits for a rank that has exited.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

from lbitcls.utils.dist import gloo_group
from lbitcls.utils.errors import TrainingError

LOOK_EVERY = 50


class Interrupted(TrainingError):
    """A signal ended the run; its position is saved. The exit code is 128 + the signal's number."""

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.number = number
        self.exit_code = 128 + number


class Guard:
    """Monitor of losses and signals; a context in which SIGTERM and SIGINT request a stop instead of killing.

    A second signal of the same kind has its usual effect. Outside the main thread, signals are left alone.
    """

    def __init__(self) -> None:
        self._number = 0
        self._bad = 0
        self._losses: list[tuple[int, torch.Tensor]] = []
        self._old: dict[int, Any] = {}
        self._group: Any = None  # always gloo, regardless of the gradients' backend
        self._sent: tuple[torch.Tensor, dist.Work] | None = None
        self._waiting = False

    def __enter__(self) -> Guard:
        self._group = gloo_group()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old.clear()

    @property
    def signalled(self) -> int:
        """Number of the signal that this process received, or 0."""
        return self._number

    def raise_if_signalled(self) -> None:
        """Raise `Interrupted` after a signal (single process only; several agree after an iteration)."""
        if self._number and self._group is None:
            raise Interrupted(self._number)

    def watch(self, iteration: int, loss: torch.Tensor) -> None:
        """Record the loss of iteration `iteration` (of the run, from 0)."""
        self._losses.append((iteration, loss))
        if loss.device.type == "cpu" or len(self._losses) >= LOOK_EVERY:
            self._look()

    def agree(self, now: bool = False) -> tuple[int, int]:
        """Return (first bad iteration + 1 or 0, signal number or 0), the same on all ranks.

        Every rank must call it equally often. All ranks learn one rank's findings at the next call, or at this one if
        `now` is True, which waits for the device and for the other ranks.
        """
        if now:
            self._look()
        if self._group is None:
            return self._bad, self._number
        agreed = self._read()
        self._send()
        return self._read() if now and not any(agreed) else agreed

    def _look(self) -> None:
        if self._losses and not self._bad:
            finite = torch.isfinite(torch.stack([loss.detach().float() for _, loss in self._losses]))
            if not finite.all():
                self._bad = self._losses[int(finite.int().argmin())][0] + 1
        self._losses.clear()

    def _send(self) -> None:
        mine = torch.tensor([self._bad, self._number])
        work = dist.all_reduce(mine, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._sent = (mine, work)

    def _read(self) -> tuple[int, int]:
        if self._sent is None:
            return 0, 0
        (tensor, work), self._sent = self._sent, None
        work.wait()
        bad, number = tensor.tolist()
        return bad, number

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._number == number:
            signal.signal(number, self._old[number])
            signal.raise_signal(number)
        self._number = number

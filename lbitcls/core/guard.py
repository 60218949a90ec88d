"""Early ends of a run, agreed on by all ranks: a loss that is not finite, a signal to stop, or a time limit.

No step waits for the device: on a CPU the loss is checked immediately, on a GPU every `LOOK_EVERY` iterations and
before each save. With several processes, a small separate reduction carries each rank's findings and is read one
iteration later, so that all ranks stop at the same iteration and none waits for a rank that has exited.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

from lbitcls.utils.dist import gloo_group, sum_over_ranks
from lbitcls.utils.errors import TrainingError
from lbitcls.utils.shards import locals_of

LOOK_EVERY = 50
TIME_LIMIT = 1000
"""Number that stops a run like a signal's when its time limit is near; no signal has it."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
"""Signals that stop a run: the schedulers' ones, Ctrl-C, a closed terminal, and Slurm's usual warning."""


class Interrupted(TrainingError):
    """A signal or the time limit ended the run; its position is saved.

    The exit code is 128 + the signal's number, or 75 (EX_TEMPFAIL) for the time limit.
    """

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.number = number
        self.exit_code = 75 if number == TIME_LIMIT else 128 + number

    @property
    def cause(self) -> str:
        """Noun phrase for messages."""
        return "the time limit" if self.number == TIME_LIMIT else f"the signal {signal.Signals(self.number).name}"


class Rewind(TrainingError):
    """The run must restore its last checkpoint and continue at iteration `until` of the run; it is rewind `number`."""

    def __init__(self, until: int, number: int, message: str) -> None:
        super().__init__(message)
        self.until = until
        self.number = number


class Guard:
    """Monitor of losses and signals; a context in which `SIGNALS` request a stop instead of killing.

    A second signal of the same kind has its usual effect. Outside the main thread, signals are left alone, as is a
    SIGHUP that `nohup` ignores.

    Attributes:
        save_agreed: All ranks know that a rank asked for a checkpoint; whoever saves one sets it to False.
    """

    def __init__(self) -> None:
        self._number = 0
        self._bad = 0
        self._asked = 0
        self.save_agreed = False
        self._losses: list[tuple[int, torch.Tensor]] = []
        self._old: dict[int, Any] = {}
        self._group: Any = None  # always gloo, regardless of the gradients' backend
        self._sent: tuple[torch.Tensor, dist.Work] | None = None
        self._waiting = False

    def __enter__(self) -> Guard:
        self._group = gloo_group()
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                    self._old[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old.clear()

    @property
    def signalled(self) -> int:
        """Number of the signal that this process received, `TIME_LIMIT`, or 0."""
        return self._number

    def raise_if_signalled(self) -> None:
        """Raise `Interrupted` if a stop is requested (single process only; several agree after an iteration)."""
        if self._number and self._group is None:
            raise Interrupted(self._number)

    def stop(self, number: int) -> None:
        """Request a stop as the signal `number` does, if none is requested yet."""
        self._number = self._number or number

    def ask_save(self) -> None:
        """Ask all ranks to save a checkpoint; their `save_agreed` is set after the same iteration."""
        if self._group is None:
            self.save_agreed = True
        self._asked = 1

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
        mine, self._asked = torch.tensor([self._bad, self._number, self._asked]), 0
        work = dist.all_reduce(mine, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._sent = (mine, work)

    def _read(self) -> tuple[int, int]:
        if self._sent is None:
            return 0, 0
        (tensor, work), self._sent = self._sent, None
        work.wait()
        bad, number, asked = tensor.tolist()
        self.save_agreed |= bool(asked)
        return bad, number

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._number == number:
            signal.signal(number, self._old[number])
            signal.raise_signal(number)
        self._number = number


def not_finite_error(bad: int, epoch_len: int, post_mortem: str) -> TrainingError:
    """Return the error of a loss that is not finite.

    Args:
        bad: Iteration of the run, from 1.
        epoch_len: Iterations of an epoch.
        post_mortem: Sentences on its cause; may be empty.
    """
    epoch, inner = divmod(bad - 1, epoch_len)
    return TrainingError(
        f"the loss is not finite in epoch {epoch + 1}, iteration {inner + 1} (iteration {bad} of the run). Lower "
        "optimizer.lr or warm it up, clip gradients (optimizer_config=dict(grad_clip=dict(max_norm=…))), and check the "
        f"data. Earlier checkpoints are good. {post_mortem}".rstrip()
    )


def check_weights(weights: Iterable[torch.Tensor], iteration: int) -> None:
    """Raise `TrainingError` on all ranks if a weight is not finite after `iteration` iterations of the run."""
    bad = torch.stack([~torch.isfinite(weight).all() for weight in locals_of(weights)]).any()
    if sum_over_ranks(bad.int()):
        raise TrainingError(
            f"a weight is not finite after iteration {iteration}; the good checkpoints are not overwritten. Lower "
            "optimizer.lr, or clip gradients."
        )

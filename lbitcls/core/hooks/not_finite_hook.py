"""Reaction to a loss that is not finite (`not_finite`): stop with a post-mortem, skip the step, or rewind.

stop     on a CPU the loss is known before the step, at no cost: the step is not taken, and the post-mortem names the
         layer. On a GPU the loss is read every `LOOK_EVERY` iterations, when the weights have changed
skip     loss and gradient are read before each step; all ranks agree in one reduction, and a GPU is waited for. The
         step is left out: weights, optimizer, loss scale and buffers (BatchNorm's statistics) stay as they were
rewind   read in the same way; the run restores its last checkpoint and continues after the bad batch, so that the
         batches in between are left out, as in PaLM (Chowdhery et al., 2022, arXiv:2204.02311, section 5.1)
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lbitcls.core.guard import Rewind
from lbitcls.core.hooks.hook import PRIORITIES, Hook
from lbitcls.core.post_mortem import write_post_mortem
from lbitcls.settings.not_finite import NotFiniteConfig
from lbitcls.utils.dist import broadcast_object, gather_objects, sum_over_ranks
from lbitcls.utils.errors import TrainingError
from lbitcls.utils.shards import has_shards, locals_of

if TYPE_CHECKING:
    from lbitcls.core.runner import EpochRunner
    from lbitcls.core.step import Batch


class NotFiniteHook(Hook):
    """Hook that inspects each batch's loss before the step.

    Args:
        settings: Action and its limits; None: stop.

    Attributes:
        skipped: Steps left out so far.
        rewinds: Checkpoints reloaded so far.
    """

    priority = PRIORITIES["LOWEST"]

    def __init__(self, settings: NotFiniteConfig | None = None) -> None:
        self.settings = settings or NotFiniteConfig()
        self.skipped = self.rewinds = 0
        self._in_a_row = 0
        self._until = 0  # iteration at which a run that was rewound continues
        self._spoiled = False
        self._bad: tuple[int, Batch] | None = None  # iteration and batch, on the rank where the loss is not finite
        self._kept: list[Tensor] = []

    def before_run(self, runner: EpochRunner) -> None:
        runner.step.inspect = partial(self._inspect, runner)
        runner.post_mortem = partial(self._told, runner)

    def before_epoch(self, runner: EpochRunner) -> None:
        """Pass over the batches that a rewind leaves out."""
        over = min(max(0, self._until - runner.iter), len(runner.loader) - runner.inner_iter)
        runner.iter, runner.inner_iter = runner.iter + over, runner.inner_iter + over

    def before_iter(self, runner: EpochRunner) -> None:
        if self.settings.action == "skip" and runner.inner_iter % runner.step.cumulative_iters == 0:
            self._keep_buffers(runner.module)

    def continue_after(self, rewind: Rewind) -> None:
        """Continue at the iteration of `rewind`, with the weights of the checkpoint that was restored."""
        self._until, self.rewinds = rewind.until, rewind.number

    def counts(self) -> dict[str, int]:
        """Return the counters that are not 0, for the log."""
        counts = {"skipped": self.skipped, "rewinds": self.rewinds}
        return {name: number for name, number in counts.items() if number}

    def _inspect(self, runner: EpochRunner, batch: Batch, outputs: dict[str, Tensor], ends: bool) -> bool:
        """Return False if the step of this batch's group must not be taken; all ranks return the same, except to stop.

        The outputs of a batch that is left out are removed, so that no mean contains them.
        """
        if self.settings.action == "stop":
            return self._may_continue(runner, batch, outputs["loss"])
        bad = self._agreed_bad(runner, batch, outputs["loss"], ends)
        if bad:
            outputs.clear()
        self._spoiled |= bad
        if ends:
            self._end_step(runner)
        return not bad

    def _may_continue(self, runner: EpochRunner, batch: Batch, loss: Tensor) -> bool:
        """Return False from the first bad loss of this rank on: its weights are kept for the post-mortem."""
        if self._bad is None and loss.device.type == "cpu" and not loss.isfinite():
            self._bad = runner.iter, batch
        return self._bad is None

    def _told(self, runner: EpochRunner) -> str:
        """Return the sentences of the post-mortem, which the ranks with the earliest bad loss write; all call it.

        There is none of a distributed model, whose forward pass needs all ranks.
        """
        if has_shards(runner.module):
            return ""
        iteration = None if self._bad is None else self._bad[0]
        known = broadcast_object([found for found in gather_objects(iteration) if found is not None])
        text = ""
        if self._bad is not None and iteration == min(known):
            ahead = runner.iter - self._bad[0]
            runner.iter, runner.inner_iter = runner.iter - ahead, runner.inner_iter - ahead
            text = write_post_mortem(runner, self._bad[1])
            runner.iter, runner.inner_iter = runner.iter + ahead, runner.inner_iter + ahead
        return " ".join([found for found in gather_objects(text) if found][:1])

    def _agreed_bad(self, runner: EpochRunner, batch: Batch, loss: Tensor, ends: bool) -> bool:
        bad = ~loss.isfinite()
        if ends and not runner.step.scaler.is_enabled():  # a loss scale has its own way with infinite gradients
            parameters = [p for group in runner.step.optimizer.param_groups for p in group["params"]]
            gradients = locals_of(p.grad for p in parameters if p.grad is not None)
            bad = bad | ~nn.utils.get_total_norm(gradients).isfinite().to(bad.device)
        agreed = bool(sum_over_ranks(bad.int()))
        if agreed:
            self._bad = (runner.iter, batch) if bad else None
        return agreed

    def _end_step(self, runner: EpochRunner) -> None:
        spoiled, self._spoiled = self._spoiled, False
        if not spoiled:
            self._in_a_row = 0
        elif self.settings.action == "rewind":
            self._rewind(runner)
        else:
            self._skip(runner)

    def _skip(self, runner: EpochRunner) -> None:
        self._restore_buffers(runner.module)
        self.skipped, self._in_a_row = self.skipped + 1, self._in_a_row + 1
        limit, row = self.settings.max_skipped, self.settings.max_in_a_row
        place = f"epoch {runner.epoch + 1}, iteration {runner.inner_iter + 1}"
        if self.skipped > limit or self._in_a_row > row:
            raise TrainingError(
                f"the loss or a gradient is not finite in {place}, after {self.skipped - 1} skipped steps (not_finite: "
                f"max_skipped={limit}, max_in_a_row={row}). Lower optimizer.lr, clip gradients, and check the data. "
                f"Earlier checkpoints are good. {self._told(runner)}"
            )
        runner.logger.warning(
            "Skipped the step of %s: the loss or a gradient is not finite (%d of at most %d).",
            *(place, self.skipped, limit),
        )

    def _rewind(self, runner: EpochRunner) -> None:
        place = f"epoch {runner.epoch + 1}, iteration {runner.inner_iter + 1}"
        limit = self.settings.max_rewinds
        if self.rewinds >= limit:
            raise TrainingError(
                f"the loss or a gradient is not finite in {place}, after {limit} rewinds (not_finite: "
                f"max_rewinds={limit}). Lower optimizer.lr, clip gradients, and check the data. Earlier checkpoints "
                f"are good. {self._told(runner)}"
            )
        raise Rewind(runner.iter + 1, self.rewinds + 1, f"the loss or a gradient is not finite in {place}")

    def _keep_buffers(self, module: nn.Module) -> None:
        buffers = list(module.buffers())
        if [kept.shape for kept in self._kept] != [buffer.shape for buffer in buffers]:
            self._kept = [buffer.clone() for buffer in buffers]
        else:
            torch._foreach_copy_(self._kept, buffers)

    @torch.no_grad()
    def _restore_buffers(self, module: nn.Module) -> None:
        from lbitcls.quant import refresh

        for buffer, kept in zip(module.buffers(), self._kept, strict=True):
            buffer.copy_(kept)
        refresh(module)

    def state_dict(self) -> dict[str, Any]:
        state = {"skipped": self.skipped, "in_a_row": self._in_a_row, "rewinds": self.rewinds, "until": self._until}
        return state if any(state.values()) else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.skipped, self._in_a_row = int(state["skipped"]), int(state["in_a_row"])
        self.rewinds, self._until = int(state["rewinds"]), int(state["until"])

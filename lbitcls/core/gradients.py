"""Gradients of all parameters together: scaled, averaged over the processes, clipped; whole or distributed ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lbitcls.settings.training_sections import GradClip
from lbitcls.utils.dist import rank, sum_over_ranks, world_size
from lbitcls.utils.shards import is_shard, locals_of


class Gradients:
    """Gradients of `parameters`, of which each process may hold a part.

    Args:
        parameters: All parameters.
        undivided: Those that every process has whole although others are distributed: nothing else averages their
            gradients.

    Attributes:
        sharded: True if parameters are distributed.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], undivided: Sequence[nn.Parameter] = ()) -> None:
        self._parameters = parameters
        self._undivided = undivided
        self.sharded = any(map(is_shard, parameters))

    def scale(self, factor: float | Tensor) -> None:
        """Multiply the gradients so far; of distributed parameters, by the same factor on all processes."""
        gradients = locals_of(p.grad for p in self._parameters if p.grad is not None)
        if gradients:
            torch._foreach_mul_(gradients, factor)

    def average(self) -> None:
        """Average the gradients of `undivided` over the processes; all must call this."""
        learning = [p for p in self._undivided if p.requires_grad]
        if not learning:
            return
        for parameter in learning:
            if parameter.grad is None:  # another process may have one
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in learning if p.grad is not None]
        message = sum_over_ranks(torch.cat([g.reshape(-1).float() for g in gradients])) / world_size()
        for gradient, mean in zip(gradients, message.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view(gradient.shape))

    def clip(self, settings: GradClip) -> Tensor:
        """Clip all gradients together, and return their norm before; if distributed, all processes must call this."""
        if not self.sharded:
            return nn.utils.clip_grad_norm_(self._parameters, **vars(settings))
        norm = self._norm(settings.norm_type)
        self.scale((settings.max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def _norm(self, order: float) -> Tensor:
        """Return the norm of the whole gradient: that of the norms of the processes' parts and of what all have."""
        given = [p.grad for p in self._parameters if p.grad is not None]
        parts = [part for part in locals_of(filter(is_shard, given)) if part.numel()]
        kept = nn.utils.get_total_norm([g for g in given if not is_shard(g)], order)
        norms = torch.zeros(world_size(), device=given[0].device)
        norms[rank()] = nn.utils.get_total_norm(parts, order)
        return torch.linalg.vector_norm(torch.cat([sum_over_ranks(norms), kept.to(norms).reshape(1)]), order)

"""Exponential moving average of the weights (`ema=dict(decay=…)`), which the run validates and saves.

After n steps of the optimizer: `average += (1 - d) · (weight - average)`, `d = min(decay, (1 + n) / (10 + n))`, so
that the initial weights do not hold back a short run. Buffers are copied, not averaged.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from lbitcls.quant.computed_weights import copy_model
from lbitcls.settings.training_sections import EmaConfig


class ModelEMA:
    """Averaged copy of a model.

    Args:
        model: Model in training (not wrapped by DDP, not yet compiled).
        decay: Fraction of the average that a step keeps, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float = EmaConfig.decay) -> None:
        self.decay = EmaConfig(decay=decay).decay
        self.steps = 0
        self.module = copy_model(model).eval()
        for parameter in self.module.parameters():
            parameter.requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average after one step of the optimizer."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self.module.parameters()), list(model.parameters()), 1 - decay)
        for mine, buffer in zip(self.module.buffers(), model.buffers(), strict=True):
            mine.copy_(buffer)

    def take_over(self, model: nn.Module, chosen: Iterable[nn.Parameter]) -> None:
        """Copy the `chosen` parameters of `model` and all its buffers unaveraged (after a calibration)."""
        ids = {id(parameter) for parameter in chosen}
        averaged = {name for name, parameter in model.named_parameters() if id(parameter) not in ids}
        state = {name: value for name, value in model.state_dict().items() if name not in averaged}
        self.module.load_state_dict(state, strict=False)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps; the weights themselves are the checkpoint's `state_dict`."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the number of steps."""
        self.steps = int(state["steps"])

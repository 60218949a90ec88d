"""An exponential moving average of the weights (`ema=dict(decay=…)`), which is what is validated and saved.

After n steps of the optimizer: `average += (1 - d) · (weight - average)`, `d = min(decay, (1 + n) / (10 + n))`, so
that a short run is not held back by its first weights. Buffers are copied, not averaged.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from lbitcls.quant.computed_weights import copy_model
from lbitcls.settings.training import EmaConfig


class ModelEMA:
    """The averaged copy of a model.

    Args:
        model: the model that trains (not wrapped by DDP, not yet compiled).
        decay: how much of the average a step keeps, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float = EmaConfig.decay) -> None:
        self.decay = EmaConfig(decay=decay).decay
        self.steps = 0
        self.module = copy_model(model).eval()
        for parameter in self.module.parameters():
            parameter.requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take one step of the optimizer into the average."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self.module.parameters()), list(model.parameters()), 1 - decay)
        for mine, buffer in zip(self.module.buffers(), model.buffers(), strict=True):
            mine.copy_(buffer)

    def take_over(self, model: nn.Module, chosen: Iterable[nn.Parameter]) -> None:
        """Take, as they are, the `chosen` parameters of `model` and all its buffers (after a calibration)."""
        ids = {id(parameter) for parameter in chosen}
        averaged = {name for name, parameter in model.named_parameters() if id(parameter) not in ids}
        state = {name: value for name, value in model.state_dict().items() if name not in averaged}
        self.module.load_state_dict(state, strict=False)

    def state_dict(self) -> dict[str, Any]:
        """The number of steps; the weights themselves are the checkpoint's `state_dict`."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the number of steps."""
        self.steps = int(state["steps"])

"""Averages of the weights over training (`ema=dict(…)`), which the run validates and saves.

    exponential   after step n: average += (1 - d) · (weight - average), d = min(decay, (1 + n) / (10 + n)),
                  so that the initial weights do not hold back a short run
    equal (SWA)   from epoch `start` on, after each epoch or every `interval` steps: average += (weight - average) / k
                  for the k-th weights (Izmailov et al., 2018, arXiv:1803.05407); before that the average follows the
                  weights

Parameters of quantizers are averaged too. Buffers are copied, not averaged; `PreciseBNHook` estimates BatchNorm's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from lbitcls.core.optim import StateError
from lbitcls.quant.computed_weights import copy_model
from lbitcls.settings.training_sections import EmaConfig
from lbitcls.utils.errors import ConfigError
from lbitcls.utils.shards import locals_of


class ModelEMA:
    """Exponentially averaged copy of a model.

    Args:
        model: Model in training (not wrapped by DDP, not yet compiled).
        decay: Fraction of the average that a step keeps, in [0, 1).
    """

    kind = "ema"

    def __init__(self, model: nn.Module, decay: float = EmaConfig.decay) -> None:
        self.decay: float | None = EmaConfig(decay=decay).decay
        self.steps = 0
        self.module = copy_model(model).eval()
        for parameter in self.module.parameters():
            parameter.requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, epoch: int = 0, ends_epoch: bool = False) -> None:
        """Update the average after one step of the optimizer, in epoch number `epoch` (from 0)."""
        weight = self.next_weight(epoch, ends_epoch)
        if weight > 0:
            torch._foreach_lerp_(locals_of(self.module.parameters()), locals_of(model.parameters()), weight)
        for mine, buffer in zip(self.module.buffers(), model.buffers(), strict=True):
            mine.copy_(buffer)

    def next_weight(self, epoch: int, ends_epoch: bool) -> float:
        """Return the weight of the next step's parameters in the average, and count the step."""
        self.steps += 1
        return 1 - min(self.decay or 0.0, (1 + self.steps) / (10 + self.steps))

    def take_over(self, model: nn.Module, chosen: Iterable[nn.Parameter]) -> None:
        """Copy the `chosen` parameters of `model` and all its buffers unaveraged (after a calibration)."""
        ids = {id(parameter) for parameter in chosen}
        averaged = {name for name, parameter in model.named_parameters() if id(parameter) not in ids}
        state = {name: value for name, value in model.state_dict().items() if name not in averaged}
        self.module.load_state_dict(state, strict=False)

    def start_over(self) -> None:
        """Forget earlier weights where they would count as much as later ones (after other bits)."""

    def state_dict(self) -> dict[str, Any]:
        """Return the counters; the weights themselves are the checkpoint's `state_dict`."""
        return {"kind": self.kind, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counters.

        Raises:
            StateError: They are those of another kind of average.
        """
        kind = state.get("kind", self.kind)
        if kind != self.kind:
            raise StateError(f"it was trained with ema.kind='{kind}'; the config sets '{self.kind}'")
        self.steps = int(state["steps"])


class ModelSWA(ModelEMA):
    """Copy of a model with the equal average of its weights at several steps.

    When quantizers are switched on or get other bits, averaging starts over, because the average would mix weights from
    before and after.

    Args:
        model: Model in training (not wrapped by DDP, not yet compiled).
        start: First epoch, from 0, whose weights are averaged.
        interval: Optimizer steps between two averaged weights; None: the last step of each epoch.

    Attributes:
        averaged: Number k of averaged weights.
    """

    kind = "swa"

    def __init__(self, model: nn.Module, start: int = 0, interval: int | None = None) -> None:
        super().__init__(model)
        checked = EmaConfig(kind="swa", start=start, interval=interval)
        self.decay, self.start, self.interval = None, checked.start, checked.interval
        self.averaged = 0

    def next_weight(self, epoch: int, ends_epoch: bool) -> float:
        if epoch >= self.start:
            self.steps += 1
            if ends_epoch if self.interval is None else self.steps % self.interval == 0:
                self.averaged += 1
                return 1 / self.averaged
        return 0.0 if self.averaged else 1.0

    def take_over(self, model: nn.Module, chosen: Iterable[nn.Parameter]) -> None:
        super().take_over(model, chosen)
        self.start_over()

    def start_over(self) -> None:
        self.averaged = 0

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "averaged": self.averaged}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.averaged = int(state.get("averaged", 0))


def build_average(settings: EmaConfig | None, model: nn.Module, max_epochs: int, epoch_steps: int) -> ModelEMA | None:
    """Build the average that a run's settings ask for; None without settings.

    Args:
        settings: Section `ema`.
        model: Model in training.
        max_epochs: Number of epochs of the run.
        epoch_steps: Optimizer steps per epoch.

    Raises:
        ConfigError: The run is too short for an equal average of any weights.
    """
    if settings is None:
        return None
    if settings.kind == "ema":
        return ModelEMA(model, settings.decay)
    if settings.start >= max_epochs:
        raise ConfigError(f"ema.start must be less than total_epochs, {max_epochs}; got {settings.start}.")
    steps = (max_epochs - settings.start) * epoch_steps
    if settings.interval is not None and settings.interval > steps:
        raise ConfigError(
            f"ema.interval must be at most {steps}, the steps from ema.start on; got {settings.interval}."
        )
    return ModelSWA(model, settings.start, settings.interval)

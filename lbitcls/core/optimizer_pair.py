"""`OptimizerPair`: an optimizer for the quantizers' parameters beside that of the others, as one object."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

QUANTIZERS = "quantizers"
"""Mark `schedule` of parameter groups whose learning rate follows a policy of their own."""


class OptimizerPair(torch.optim.Optimizer):
    """Two optimizers with the interface of one: the training step, gradient clipping and GradScaler see one.

    The groups and states are those of both optimizers; the first groups are those of `main`.

    Args:
        main: Optimizer of all other parameters.
        quantizers: Optimizer of the parameters that quantizers learn.
    """

    def __init__(self, main: torch.optim.Optimizer, quantizers: torch.optim.Optimizer) -> None:
        self.parts = {"main": main, QUANTIZERS: quantizers}  # state lives in the parts: nothing of the base is set up

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Groups of both, `main` first; changes to a group take effect."""
        return [group for part in self.parts.values() for group in part.param_groups]

    @property
    def state(self) -> dict[Tensor, Any]:  # type: ignore[override]
        """States of both by parameter."""
        return {parameter: state for part in self.parts.values() for parameter, state in part.state.items()}

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """Settings of `main`."""
        return self.parts["main"].defaults

    @property
    def name(self) -> str:
        """Name for messages: `SGD with Adam for quantizers`."""
        main, quantizers = (type(part).__name__ for part in self.parts.values())
        return f"{main} with {quantizers} for quantizers"

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Step both."""
        for part in self.parts.values():
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of both."""
        for part in self.parts.values():
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return both state dicts, as `main` and `quantizers`."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore both."""
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])


def optimizer_name(optimizer: torch.optim.Optimizer) -> str:
    """Return the name of an optimizer, for checkpoints and messages."""
    return optimizer.name if isinstance(optimizer, OptimizerPair) else type(optimizer).__name__

"""Watch of a few consecutive optimizer steps: weights that oscillate, and relative gradients.

    frequency       moving average of the watched steps in which an integer turns back (Nagel et al., 2022,
                    arXiv:2203.11086, section 4.1); a weight with more than 0.005 oscillates
    gradient ratio  (mean |∇s| / |s|) / (mean ‖∇w‖ / ‖w‖) over the watched steps (Esser et al., 2020,
                    arXiv:1902.08153, section 2.2): the relative gradient of a quantizer's scale by that of its layer's
                    weight. Near 1 both learn at one pace. With several scales, |·| is the norm; without a scale it is
                    that of the clip, or of the first parameter

Between two watched groups of steps, integers may change any number of times; only the sum of these changes counts as
the last direction. At most `MOST` weights of a layer are watched, always the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lbitcls.analysis.passes import input_quantizer, weight_quantizer
from lbitcls.quant.layers import QuantLayer
from lbitcls.quant.quantizer import Quantizer
from lbitcls.quant.weight_oscillations import OSCILLATING, Reversals, quantizes, read_integers

MOST = 2**14
"""Maximum number of weights of a layer to watch: a random sample."""
MOMENTUM = 0.01
"""Weight of a step in the moving average, that of `FreezeOscillationsHook`."""


class StepWatch:
    """Watch of a model's steps; call `follow` after each step in a group of consecutive ones."""

    def __init__(self) -> None:
        self._reversals: dict[str, Reversals] = {}
        self._sums: dict[str, Tensor] = {}  # of relative gradients, by 'layer', 'layer:weight' and 'layer:input'

    @torch.no_grad()
    def follow(self, model: nn.Module, starts: bool) -> None:
        """Count a step of the optimizer, whose gradients are still there.

        Args:
            model: Model in training.
            starts: True for the first step of a group.
        """
        if starts:
            self._sums.clear()
        layers = dict(_weights(model))
        for name in self._reversals.keys() - layers.keys():
            del self._reversals[name]
        for name, (layer, quantizer) in layers.items():
            self._count(name, layer, quantizer, 0.0 if starts else MOMENTUM)
        learned = dict(_learned(model))
        if learned:
            sizes = torch._foreach_norm(list(learned.values()))
            gradients = torch._foreach_norm([p.grad for p in learned.values() if p.grad is not None])
            for name, size, gradient in zip(learned, sizes, gradients, strict=True):
                self._sums[name] = self._sums.get(name, 0.0) + gradient / size

    def _count(self, name: str, layer: QuantLayer, quantizer: Quantizer, momentum: float) -> None:
        integers = _sampled(read_integers(layer)).short()
        before = self._reversals.get(name)
        if before is None or before.bits != quantizer.num_bits:
            zeros = torch.zeros_like(integers, dtype=torch.float32)
            self._reversals[name] = Reversals(integers, zeros.to(torch.int8), zeros, quantizer.num_bits)
            return
        before.follow(integers, momentum)
        before.integers = integers

    def oscillating(self) -> dict[str, float]:
        """Return the shares of the watched weights that oscillate, by layer name."""
        states = self._reversals
        if not states:
            return {}
        shares = torch.stack([(state.frequency > OSCILLATING).float().mean() for state in states.values()])
        return dict(zip(states, shares.tolist(), strict=True))

    def gradient_ratios(self) -> dict[tuple[str, str], float]:
        """Return the gradient ratios of the last group of steps, by layer name and role."""
        names = [name for name in self._sums if ":" in name and name.rpartition(":")[0] in self._sums]
        if not names:
            return {}
        ratios = torch.stack([self._sums[name] / self._sums[name.rpartition(":")[0]] for name in names]).tolist()
        pairs = (name.rpartition(":")[::2] for name in names)
        return {(layer, role): ratio for (layer, role), ratio in zip(pairs, ratios, strict=True)}

    def to(self, device: torch.device) -> None:
        """Move the state to the model's device, after `load_state_dict`."""
        self._reversals = {name: state.to(device) for name, state in self._reversals.items()}
        self._sums = {name: value.to(device) for name, value in self._sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the state, tensors on the CPU."""
        reversals = {name: state.state_dict() for name, state in self._reversals.items()}
        return {"reversals": reversals, "sums": {name: value.cpu() for name, value in self._sums.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self._reversals = {name: Reversals(**tensors) for name, tensors in state["reversals"].items()}
        self._sums = dict(state["sums"])


def _weights(model: nn.Module) -> Iterator[tuple[str, tuple[QuantLayer, Quantizer]]]:
    """Yield the layers whose weights are quantized now, with the quantizer."""
    for name, layer in model.named_modules():
        quantizer = weight_quantizer(layer)
        if isinstance(layer, QuantLayer) and quantizer is not None and quantizes(quantizer):
            yield name, (layer, quantizer)


def _learned(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the weights that have a gradient, and the scales of their layers' quantizers, by the keys of `_sums`."""
    for name, (layer, quantizer) in _weights(model):
        weight = layer._parameters.get("weight")
        if weight is None or weight.grad is None:
            continue
        yield name, weight
        for role, one in (("weight", quantizer), ("input", input_quantizer(layer))):
            scale = None if one is None else _scale(one)
            if scale is not None and scale.grad is not None:
                yield f"{name}:{role}", scale


def _scale(quantizer: Quantizer) -> nn.Parameter | None:
    """Return the parameter that a quantizer learns as its scale; None if it learns none."""
    own = dict(quantizer.named_parameters(recurse=False))
    return own.get("scale", own.get("clip", next(iter(own.values()), None)))


def _sampled(values: Tensor) -> Tensor:
    """Return at most `MOST` values, always at the same places."""
    flat = values.flatten()
    if flat.numel() <= MOST:
        return flat
    generator = torch.Generator().manual_seed(flat.numel())
    return flat[torch.randint(flat.numel(), (MOST,), generator=generator).to(flat.device)]

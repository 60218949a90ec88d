"""Hooks against oscillating weights (Nagel et al., 2022, arXiv:2203.11086).

A weight whose optimum lies between two integers jumps from one to the other as long as it trains.
`FreezeOscillationsHook` fixes such weights, `DampenOscillationsHook` pulls all weights to the middle of their cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from lbitcls.core.hooks.hook import PRIORITIES, Hook
from lbitcls.core.schedule import as_number
from lbitcls.quant.layers import QuantLayer
from lbitcls.quant.quantizer import Quantizer
from lbitcls.quant.weight_oscillations import (
    OSCILLATING,
    Oscillations,
    dampening_loss,
    lacks_inverse,
    quantizer_of,
    quantizes,
    weight_quantizers,
)
from lbitcls.registry import HOOKS
from lbitcls.utils.dist import broadcast_module, world_size
from lbitcls.utils.errors import ConfigError, require_count, shown

if TYPE_CHECKING:
    from lbitcls.core.runner import EpochRunner


def read_annealed(name: str, value: Any) -> tuple[float, float]:
    """Return the values at the start and the end of the run of a setting that is one number ≥ 0, or two.

    Raises:
        ConfigError: The value is something else.
    """
    given = list(value) if isinstance(value, (list, tuple)) else [value, value]
    if len(given) != 2:
        raise ConfigError(f"{name} must be a number, or two: at the start and the end of the run; got {shown(value)}.")
    start, end = (as_number(name, number) for number in given)
    if start < 0 or end < 0:
        raise ConfigError(f"{name} must be ≥ 0; got {shown(value)}.")
    return start, end


def anneal(ends: tuple[float, float], runner: EpochRunner) -> float:
    """Return the value in the current iteration: half a cosine over the run, from the first of `ends` to the second."""
    done = runner.iter / (runner.max_epochs * len(runner.loader))
    return ends[1] + (ends[0] - ends[1]) * (1 + math.cos(math.pi * done)) / 2


@HOOKS.register_module()
class DampenOscillationsHook(Hook):
    """Hook that adds the dampening loss to the loss: weight · Σ (quantized weight - clipped weight)².

    The sum is over all weights, as in the paper; the authors' code takes the mean over the weights of an output
    channel, so its factors belong to smaller terms. The term is the record value `loss_dampening`. Weights that are
    not quantized yet (`calibration.epoch`) add nothing. See `lbitcls.quant.weight_oscillations` for methods that
    normalize weights.

    Args:
        weight: Factor λ of the term, or two factors: at the start and the end of the run, with half a cosine between
            them.

    Example:
        >>> DampenOscillationsHook(weight=1e-3).weight
        (0.001, 0.001)
    """

    def __init__(self, weight: float | Sequence[float] = (0.0, 0.1)) -> None:
        self.weight = read_annealed("DampenOscillationsHook: weight", weight)

    def before_run(self, runner: EpochRunner) -> None:
        _require_alone(self, runner)
        if not any(True for _ in weight_quantizers(runner.module)):
            raise ConfigError(
                "DampenOscillationsHook needs quantized weights; the model has none. Add quant_transformer, or remove "
                "the hook."
            )
        for _, _, quantizer in weight_quantizers(runner.module):
            _require_inverse(quantizer, self)
        runner.step.penalties["loss_dampening"] = partial(self._term, runner)

    def _term(self, runner: EpochRunner) -> torch.Tensor | float:
        return anneal(self.weight, runner) * dampening_loss(runner.module)


@HOOKS.register_module()
class FreezeOscillationsHook(Hook):
    """Hook that freezes weights whose integers oscillate, at the rounded average of their integers.

    The record at the end of each epoch has `oscillating` and `frozen`, in percent of the weights that are tracked:
    those with a frequency above 0.005 that are not frozen, and those frozen. An averaged model (`ema`) gets the frozen
    integers before it is validated. When the bits of a layer change (`progressive`), its weights are released and
    tracking starts over.

    Args:
        threshold: Frequency of oscillations, in [0, 1], above which a weight freezes; or two: at the start and the end
            of the run, with half a cosine between them. One oscillation adds `momentum` to the frequency, so 2 to 3
            times the momentum freezes weights that oscillate repeatedly. The default is that of the authors' code for
            MobileNetV2 at 4 bits, which freezes nothing in the first quarter of a run and begins the cosine there.
        momentum: Weight of a step in the moving averages of oscillations and integers, in (0, 1]. The authors' code has
            0.001, for runs of about 10⁶ steps.
        max_bits: Largest number of bits of the weights to freeze. As in the authors' code, layers of more bits are left
            alone: the step between their integers is small.

    Example:
        >>> FreezeOscillationsHook(threshold=0.03).threshold
        (0.03, 0.03)
    """

    priority = PRIORITIES["HIGH"]  # after calibration, before logging

    def __init__(
        self, threshold: float | Sequence[float] = (0.1, 0.01), momentum: float = 0.01, max_bits: int = 4
    ) -> None:
        self.threshold = read_annealed("FreezeOscillationsHook: threshold", threshold)
        self.momentum = as_number("FreezeOscillationsHook: momentum", momentum)
        self.max_bits = require_count("FreezeOscillationsHook: max_bits", max_bits, 1, 8)
        if max(self.threshold) > 1:
            raise ConfigError(
                "FreezeOscillationsHook: threshold must be in [0, 1], as the frequencies that it is compared with; got "
                f"{shown(threshold)}."
            )
        if not 0 < self.momentum <= 1:
            raise ConfigError(f"FreezeOscillationsHook: momentum must be in (0, 1]; got {shown(momentum)}.")
        self.layers: dict[str, QuantLayer] = {}
        self.oscillations: dict[str, Oscillations] = {}

    def before_run(self, runner: EpochRunner) -> None:
        _require_alone(self, runner)
        found = weight_quantizers(runner.module)
        self.layers = {name: layer for name, layer, quantizer in found if quantizer.final_bits <= self.max_bits}
        if not self.layers:
            raise ConfigError(
                f"FreezeOscillationsHook needs quantized weights of at most {self.max_bits} bits; the model has none. "
                "Add quant_transformer, raise max_bits, or remove the hook."
            )
        for name, layer in self.layers.items():
            _require_writable(name, layer)
            _require_inverse(quantizer_of(layer), self)
        restored = self.oscillations.items()
        self.oscillations = {name: state.to(runner.step.device) for name, state in restored if name in self.layers}

    def before_epoch(self, runner: EpochRunner) -> None:
        for name, layer in self.layers.items():
            bits = quantizer_of(layer).num_bits
            if name in self.oscillations and self.oscillations[name].bits != bits:
                del self.oscillations[name]
            if name not in self.oscillations and bits <= self.max_bits and quantizes(quantizer_of(layer)):
                self.oscillations[name] = Oscillations.start(layer)

    def after_step(self, runner: EpochRunner) -> None:
        threshold = anneal(self.threshold, runner)
        for name, oscillations in self.oscillations.items():
            _synchronize_norm(self.layers[name])
            oscillations.update(self.layers[name], self.momentum, threshold)

    def after_iter(self, runner: EpochRunner) -> None:
        if self.oscillations and runner.inner_iter == len(runner.loader):
            runner.outputs |= self.percentages()

    def percentages(self) -> dict[str, torch.Tensor]:
        """Return the percentages of tracked weights that are oscillating and frozen."""
        states = self.oscillations.values()
        total = sum(state.frozen.numel() for state in states)
        frozen = torch.stack([state.frozen.sum() for state in states]).sum()
        oscillating = torch.stack([((state.frequency > OSCILLATING) & ~state.frozen).sum() for state in states]).sum()
        return {"oscillating": 100 * oscillating / total, "frozen": 100 * frozen / total}

    def after_epoch(self, runner: EpochRunner) -> None:
        if runner.ema is not None:
            for name, oscillations in self.oscillations.items():
                averaged: Any = runner.ema.module.get_submodule(name)
                _synchronize_norm(averaged)
                oscillations.write(averaged)

    def state_dict(self) -> dict[str, Any]:
        return {name: oscillations.state_dict() for name, oscillations in self.oscillations.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.oscillations = {name: Oscillations(**tensors) for name, tensors in state.items()}


def _require_alone(hook: Hook, runner: EpochRunner) -> None:
    """Raise `ConfigError` if the run has another hook of this type, which would act on the same weights."""
    kind = type(hook).__name__
    if sum(isinstance(other, type(hook)) for other in runner.hooks) > 1:
        raise ConfigError(f"custom_hooks has several {kind}s, which would act on the same weights. Keep one of them.")


def _synchronize_norm(layer: QuantLayer) -> None:
    """Give all ranks rank 0's running variance of a folded BatchNorm, on which the integers of the weight depend."""
    if world_size() > 1:
        for norm in getattr(layer, "folded_norm", ()):
            broadcast_module(norm, parameters=False)


def _require_writable(name: str, layer: QuantLayer) -> None:
    if "weight" not in layer._parameters:
        raise ConfigError(
            f"FreezeOscillationsHook: the weight of '{name}' is computed (weight_norm, a parametrization), so it "
            "cannot be fixed. Remove the hook, or what computes the weight."
        )


def _require_inverse(quantizer: Quantizer, hook: Hook) -> None:
    if lacks_inverse(quantizer):
        raise ConfigError(
            f"{type(hook).__name__}: {type(quantizer).__name__} normalizes weights but has no `denormalize`, which is "
            "needed to find the middle of an integer's cell. Define it, or remove the hook."
        )

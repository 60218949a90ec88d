"""Settings of the hooks against oscillations: values, messages, schedules."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from lbitcls.core.ema import ModelEMA
from lbitcls.core.hooks.oscillation_hooks import DampenOscillationsHook, FreezeOscillationsHook, anneal
from lbitcls.quant import Quantizer, build_quant_layer
from lbitcls.quant.weight_oscillations import read_integers
from lbitcls.registry import HOOKS
from lbitcls.utils.errors import ConfigError


def runner(model: nn.Module, done: float = 0.0) -> Any:
    step = SimpleNamespace(penalties={}, device=torch.device("cpu"))
    return SimpleNamespace(module=model, iter=20 * done, max_epochs=2, loader=range(10), step=step, hooks=[])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (dict(type="FreezeOscillationsHook", threshold="much"), "threshold must be a number; got the string 'much'"),
        (dict(type="FreezeOscillationsHook", threshold=[0.1, 0.02, 0.01]), "threshold must be a number, or two"),
        (dict(type="FreezeOscillationsHook", threshold=[0.1, -0.01]), "threshold must be ≥ 0"),
        (dict(type="FreezeOscillationsHook", threshold=[0.1, 1.5]), r"threshold must be in \[0, 1\], as"),
        (dict(type="FreezeOscillationsHook", momentum=0), r"momentum must be in \(0, 1\]; got 0"),
        (dict(type="FreezeOscillationsHook", max_bits=0), "max_bits must be an integer ≥ 1; got 0"),
        (dict(type="DampenOscillationsHook", weight=-1), "weight must be ≥ 0; got -1"),
        (dict(type="DampenOscillationsHook", wait=1), "wait"),
    ],
)
def test_wrong_settings(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HOOKS.build(setting)


def test_half_a_cosine_over_the_run() -> None:
    ends = FreezeOscillationsHook(threshold=(0.1, 0.02)).threshold
    values = [anneal(ends, runner(nn.Identity(), done)) for done in (0.0, 0.25, 0.5, 1.0)]
    assert values == pytest.approx([0.1, 0.02 + 0.08 * (1 + math.cos(math.pi / 4)) / 2, 0.06, 0.02])
    assert anneal(DampenOscillationsHook(weight=0.3).weight, runner(nn.Identity(), 0.7)) == 0.3


def test_a_model_without_such_weights() -> None:
    layer = build_quant_layer(dict(type="LSQLinear", num_bit_w=8, num_bit_a=32), nn.Linear(4, 4))
    with pytest.raises(ConfigError, match="needs quantized weights of at most 4 bits; the model has none"):
        FreezeOscillationsHook().before_run(runner(layer))
    FreezeOscillationsHook(max_bits=8).before_run(runner(layer))
    with pytest.raises(ConfigError, match="DampenOscillationsHook needs quantized weights"):
        DampenOscillationsHook().before_run(runner(nn.Linear(4, 4)))


def test_weights_that_cannot_be_written() -> None:
    layer = build_quant_layer(dict(type="LSQLinear", num_bit_w=4, num_bit_a=32), weight_norm(nn.Linear(4, 4)))
    with pytest.raises(ConfigError, match="the weight of 'fc' is computed"):
        FreezeOscillationsHook().before_run(runner(nn.ModuleDict(dict(fc=layer))))


def test_a_quantizer_that_normalizes_needs_the_inverse() -> None:
    class Halved(Quantizer):
        def normalize(self, x: Any) -> Any:
            return x / 2

    layer = build_quant_layer(dict(type="LSQLinear", num_bit_w=4, num_bit_a=32), nn.Linear(4, 4))
    layer.weight_quantizer = Halved(4, role="weight")
    for hook in (FreezeOscillationsHook(), DampenOscillationsHook()):
        with pytest.raises(ConfigError, match=f"{hook.name}: Halved normalizes weights but has no `denormalize`"):
            hook.before_run(runner(layer))


@pytest.mark.slow  # imports the compiler
def test_compiled_models_and_averages_get_the_frozen_integers() -> None:
    """The hook writes weights between two calls of a compiled graph, which then uses them."""
    torch.manual_seed(0)
    torch.compiler.reset()
    model = build_quant_layer(dict(type="LSQLinear", num_bit_w=3, num_bit_a=32), nn.Linear(8, 4, bias=False))
    model.weight_quantizer.initialize(model.weight.detach())
    average = ModelEMA(nn.ModuleDict(dict(fc=model)), 0.9)
    model.compile(backend="aot_eager")
    run = runner(nn.ModuleDict(dict(fc=model)))
    run.ema = average
    hook = FreezeOscillationsHook(threshold=0.5, momentum=1.0)
    hook.before_run(run)
    hook.before_epoch(run)
    before = read_integers(model)
    for sign in (1, -1):
        model.weight.data += sign * model.weight_quantizer.scale.detach()
        hook.after_step(run)
    state = hook.oscillations["fc"]
    assert state.frozen.sum() > 16  # those that the bounds let change twice
    model.weight.data += 0.9 * model.weight_quantizer.scale.detach()
    hook.after_step(run)
    expected = (state.integers * model.weight_quantizer.scale)[state.frozen]
    rows = model(torch.eye(8)).T
    assert torch.equal(rows[state.frozen], expected) and not torch.equal(read_integers(model), before)
    hook.after_epoch(run)
    averaged = average.module["fc"]
    assert torch.equal(read_integers(averaged)[state.frozen].short(), state.integers[state.frozen])
    assert hook.percentages()["frozen"] == pytest.approx(100 * state.frozen.float().mean())

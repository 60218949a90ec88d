"""Snapshot of a model during training: same figures as in the analysis report, and the model does not change."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch

from lbitcls.analysis import snapshot
from lbitcls.analysis.compare import compare_models
from lbitcls.analysis.passes import layers_of
from lbitcls.analysis.snapshot import take_snapshot
from lbitcls.quant import set_quantization

sys.path.insert(0, str(Path(__file__).resolve().parent))

from networks import float_network, images, quantized


@pytest.mark.parametrize("method", ["LSQ", "DoReFa", "APoT"])
@pytest.mark.parametrize("fold_bn", [False, True], ids=["plain", "folded"])
def test_the_figures_are_those_of_the_report(method: str, fold_bn: bool) -> None:
    model, batch = quantized(float_network(), method, fold_bn), images()[0]
    found, logits = take_snapshot(model, batch, list(layers_of(model)))
    report = {layer.name: layer for layer in compare_models(model, None, [batch]).layers}
    assert list(found) == ["second", "unused", "first", "fc"]
    for name in ("first", "fc"):
        assert found[name].weight == report[name].weight and found[name].input == report[name].input
    assert found["second"].weight == report["second"].weight
    assert 2 * found["second"].input.number == report["second"].input.number, "its first call alone"
    assert found["unused"].input is None and found["unused"].weight.grid is None
    assert torch.equal(logits, model(batch))


def test_nothing_changes() -> None:
    model = quantized(float_network()).train()
    model.norm.eval()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    generator = torch.get_rng_state()
    take_snapshot(model, images()[0], ["first"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert modes == [module.training for module in model.modules()] and torch.equal(generator, torch.get_rng_state())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_layers_asked_for() -> None:
    found, logits = take_snapshot(quantized(float_network()), None, ["fc", "first"])
    assert list(found) == ["first", "fc"] and logits is None
    assert all(layer.input is None and layer.weight.grid is not None for layer in found.values())


def test_while_the_quantizers_are_off() -> None:
    model = quantized(float_network())
    set_quantization(model, False)
    found, _ = take_snapshot(model, images()[0], ["first"])
    assert found["first"].weight.grid is None and found["first"].input.grid is None
    assert not found["first"].weight.values.after and sum(found["first"].weight.values.before) == 4 * 3 * 9


@pytest.mark.parametrize(("most", "counted"), [(10**6, 5), (3 * 36 * 2 + 50, 2), (1, 1)])
def test_few_of_many_inputs_are_counted(most: int, counted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "MOST", most)
    model, batch = quantized(float_network()), images()[0]
    found, _ = take_snapshot(model, batch, ["first"])
    assert found["first"].input.number == counted * 3 * 36
    assert found["first"].input.maximum == batch[:counted].max().item()
